"""Grids of image panels on paper: images, errors and displacement fields, each kind on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.files import replacing
from pipeline.metrics.image import BACKGROUND_TOLERANCE
from transforms.scale import BACKGROUND, INTENSITY_RANGE

PANEL_WIDTH = 1.8  # inches
LEFT, RIGHT, GAP, CAPTION, HEADER, FOOTER = 0.5, 0.1, 0.05, 0.2, 0.3, 0.85  # inches
NOTE_ONLY = 0.3  # inches; the footer of a grid without scales
# Inches that a character of the title and of the note takes at most, and what another line of the note adds.
TITLE_CHARACTER, NOTE_CHARACTER, NOTE_LINE = 0.095, 0.055, 0.12
NARROW = 1.6  # inches; below this a scale's label takes two lines
DPI = 150
# Arrows along the longer side of a displacement field: more would touch each other in print.
ARROWS = 16
# Errors have a long tail along edges, and displacements few outliers: end the scales before them.
PERCENTILE = 98.0
# The least ends of the scales: of errors (the whole range is 2), and in pixels of a field that is still the identity.
MIN_LIMITS = {"error": 0.02, "field": 0.1}
# Below this a pixel counts as background when a picture is cropped; a generator's tanh never quite reaches -1.
EMPTY = -0.9
MARGIN = 0.03  # left around what is shown, as a share of the image

COLOURS = {"error": "inferno", "field": "viridis"}
NOTE = "For volumes in RAS orientation the patient's right is on the left side, as in radiology."
EDGE_NOTE = " The line is the edge of the foreground, which the scores are taken in."
FIELD_NOTE = " Arrows point to where the warped prediction takes its values from."


@dataclass(frozen=True)
class Panel:
    """One image of a grid.

    Attributes:
        kind: "image", "error" or "field".
        content: (X, Y) as it lies in the volume, or (2, X, Y) of a field in pixels; None leaves the panel black.
        caption: a line below it.
        absence: what an empty panel says instead, on light grey.
        foreground: boolean, of the content's shape, whose edge is drawn; None for no line.
    """

    kind: str
    content: np.ndarray | None
    caption: str = ""
    absence: str = ""
    foreground: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """Panels side by side, and what stands at their left."""

    label: str
    panels: Sequence[Panel]


def cropping_box(images: Iterable[np.ndarray]) -> tuple[slice, slice]:
    """Where anything is shown in any of the images (X, Y) in [-1, 1], with a margin; everything if nothing is."""
    shown = np.any([image > EMPTY for image in images], axis=0)
    box = []
    for axis, size in enumerate(shown.shape):
        occupied = np.flatnonzero(shown.any(axis=1 - axis))
        margin = max(1, round(MARGIN * size))
        box.append(slice(max(0, occupied[0] - margin), occupied[-1] + 1 + margin) if occupied.size else slice(None))
    x, y = box
    return x, y


def scale_limit(kind: str, contents: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """End of a scale: what 98 % of the finite values in the foreground of all panels stay below.

    Args:
        kind: "error" or "field".
        contents: per panel its content and the target (X, Y) that tells its foreground.
    """
    shown = [np.zeros(1)]
    for content, target in contents:
        magnitude = np.linalg.norm(content, axis=0) if kind == "field" else content
        shown.append(magnitude[(target > BACKGROUND + BACKGROUND_TOLERANCE) & np.isfinite(magnitude)])
    return max(MIN_LIMITS[kind], float(np.percentile(np.concatenate(shown), PERCENTILE)))


def draw_grid(
    titles: Sequence[str],
    rows: Sequence[Row],
    limits: Mapping[str, float],
    path: str | Path,
    title: str = "",
    panel_width: float = PANEL_WIDTH,
) -> None:
    """Draw rows of panels, a scale below each column of errors or fields.

    Images are shown on the fixed grey scale [-1, 1]. The view is the radiologist's: the first array axis runs from
    right to left and the second upwards.

    Args:
        titles: of the columns.
        rows: at least one, each with a panel per column; all contents of one shape (X, Y).
        limits: ends of the scales by kind, for "error" and "field" where they occur.
        path: the picture's file, of any kind that matplotlib writes without a window; replaced in one go.
        title: what stands on top.
        panel_width: in inches; narrower panels are drawn finer, so that each has the same number of pixels.
    """
    path = Path(path)
    figure = _lay_out(titles, rows, limits, title, panel_width)
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix[1:] or "png", dpi=DPI * PANEL_WIDTH / panel_width)


def _lay_out(
    titles: Sequence[str], rows: Sequence[Row], limits: Mapping[str, float], title: str, panel_width: float
) -> Figure:
    """Place the panels by hand, in inches: matplotlib's own layout engines cost more than the drawing."""
    panels = [panel for row in rows for panel in row.panels]
    x_size, y_size = next(panel.content.shape[-2:] for panel in panels if panel.content is not None)
    panel_height = panel_width * y_size / x_size
    row_height = panel_height + (CAPTION if any(panel.caption for panel in panels) else GAP)
    width = LEFT + len(titles) * (panel_width + GAP) + RIGHT
    title = fill(title, int((width - LEFT) / TITLE_CHARACTER))
    note = NOTE + (FIELD_NOTE if any(panel.kind == "field" for panel in panels) else "")
    note += EDGE_NOTE if any(panel.foreground is not None for panel in panels) else ""
    note = fill(note, int((width - LEFT) / NOTE_CHARACTER))
    top = HEADER * (2 + 0.75 * title.count("\n") if title else 1)
    footer = FOOTER if any(panel.kind in COLOURS for panel in panels) else NOTE_ONLY
    if footer == FOOTER and panel_width < NARROW:
        footer += NOTE_LINE
    height = top + row_height * len(rows) + footer + NOTE_LINE * note.count("\n")
    figure = Figure(figsize=(width, height), facecolor="white")

    def place(left: float, from_top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (from_top + high) / height, wide / width, high / height))

    for number, row in enumerate(rows):
        _label_row(figure, row.label, 1 - (top + number * row_height + panel_height / 2) / height, LEFT / width)
        for index, panel in enumerate(row.panels):
            left = LEFT + index * (panel_width + GAP)
            axes = place(left, top + number * row_height, panel_width, panel_height)
            _draw_panel(axes, panel, limits)
            if number == 0:
                axes.set_title(titles[index], fontsize=10, pad=4)
    for index, panel in enumerate(rows[0].panels):
        if panel.kind in COLOURS:
            left = LEFT + index * (panel_width + GAP)
            axes = place(left + 0.1, top + row_height * len(rows) + 0.08, panel_width - 0.2, 0.1)
            _draw_scale(figure, axes, panel.kind, limits[panel.kind], (x_size, y_size), panel_width < NARROW)
    if title:
        figure.text(LEFT / width, 1 - 0.09 / height, title, fontsize=12, va="top")
    figure.text(LEFT / width, 0.08 / height, note, fontsize=7, color="0.35")
    return figure


def _label_row(figure: Figure, label: str, middle: float, left: float) -> None:
    text = "\n".join(_shortened(line) for line in label.split("\n") if line)
    figure.text(left * 0.85, middle, text, rotation=90, fontsize=9, ha="right", va="center", multialignment="center")


def _shortened(text: str, length: int = 26) -> str:
    return text if len(text) <= length else f"...{text[3 - length :]}"


def _draw_panel(axes: Axes, panel: Panel, limits: Mapping[str, float]) -> None:
    axes.set_facecolor("0.9" if panel.absence and panel.content is None else "black")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if panel.content is None:
        axes.text(0.5, 0.5, panel.absence, fontsize=9, color="0.3", ha="center", va="center", transform=axes.transAxes)
        return
    if panel.kind == "field":
        _show(axes, np.linalg.norm(panel.content, axis=0), (0, limits["field"]), COLOURS["field"])
        _draw_arrows(axes, panel.content, limits["field"])
    elif panel.kind == "error":
        _show(axes, panel.content, (0, limits["error"]), COLOURS["error"])
    else:
        _show(axes, panel.content, INTENSITY_RANGE, "gray")
        if panel.foreground is not None and panel.foreground.any() and not panel.foreground.all():
            axes.contour(panel.foreground.T, levels=[0.5], colors="tab:orange", linewidths=0.6)
    axes.set_xlabel(panel.caption, fontsize=8, labelpad=2)


def _show(axes: Axes, image: np.ndarray, limits: tuple[float, float], colours: str) -> None:
    axes.imshow(image.T, origin="lower", cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.invert_xaxis()


def _arrow_spacing(shape: tuple[int, ...]) -> int:
    return max(1, round(max(shape) / ARROWS))


def _arrow_scale(shape: tuple[int, ...], limit: float) -> float:
    """How much longer arrows are drawn than they are, so that the longest just pass their neighbours' feet."""
    return 1.3 * _arrow_spacing(shape) / limit


def _draw_arrows(axes: Axes, ddf: np.ndarray, limit: float) -> None:
    shape, step = ddf.shape[1:], _arrow_spacing(ddf.shape[1:])
    xs, ys = (np.arange(step // 2, size, step) for size in shape)
    along_x, along_y = (component[np.ix_(xs, ys)].T for component in ddf)
    scale = 1 / _arrow_scale(shape, limit)
    outline: dict[str, Any] = {"color": "white", "edgecolor": "black", "linewidth": 0.3, "width": 0.008}
    axes.quiver(xs, ys, along_x, along_y, angles="xy", scale_units="xy", scale=scale, **outline)


def _draw_scale(figure: Figure, axes: Axes, kind: str, limit: float, shape: tuple[int, int], narrow: bool) -> None:
    label = "absolute error (full range: 2)"
    if kind == "field":
        label = f"pixels (arrows drawn x {_arrow_scale(shape, limit):.2g})"
    colours = ScalarMappable(Normalize(0, limit), COLOURS[kind])
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal", extend="max")
    bar.ax.xaxis.set_major_locator(MaxNLocator(4))
    bar.ax.tick_params(labelsize=7, pad=2)
    bar.set_label(label.replace(" (", "\n(") if narrow else label, fontsize=8, labelpad=2)
