"""Drawing of translations: a grid of slices, their errors and displacement fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pipeline.files import replacing
from pipeline.metrics.image import BACKGROUND_TOLERANCE

PANEL_WIDTH = 1.8  # inches
LEFT, RIGHT, GAP, CAPTION, HEADER, FOOTER = 0.5, 0.1, 0.05, 0.2, 0.3, 0.85  # inches
DPI = 150
# Arrows along the longer side of a displacement field: more would touch each other in print.
ARROWS = 16
MIN_DISPLACEMENT = 0.1  # pixels; the colour scale of a field that is still the identity
MIN_ERROR = 0.02  # the same for errors
# Errors have a long tail along edges, and displacements few outliers: end the scales before them.
PERCENTILE = 98.0
# Below this a pixel counts as background when a picture is cropped; a generator's tanh never quite reaches -1.
EMPTY = -0.9
MARGIN = 0.03  # left around what is shown, as a share of the image

COLOURS = {"error": "inferno", "field": "viridis"}
IMAGES = ("source", "prediction", "target", "baseline", "misaligned", "warped")  # of a sample
NOTE = "For volumes in RAS orientation the patient's right is on the left side, as in radiology."
FIELD_NOTE = " Arrows point to where the warped prediction takes its values from."


@dataclass(frozen=True)
class Sample:
    """One slice and what became of it; arrays (X, Y), as they lie in the volume, intensities in [-1, 1].

    Attributes:
        source: the input.
        prediction: what the network makes of it.
        target: the aligned target.
        case: the patient.
        slice: index of the slice.
        baseline: another prediction to compare with.
        misaligned: the target as training sees it.
        warped: the prediction, warped onto the misaligned target.
        ddf: displacement field (2, X, Y) in pixels, pull-back, channel i along axis i.
        psnr: of the prediction, in dB.
        baseline_psnr: of the baseline, in dB.
    """

    source: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    case: str = ""
    slice: int | None = None
    baseline: np.ndarray | None = None
    misaligned: np.ndarray | None = None
    warped: np.ndarray | None = None
    ddf: np.ndarray | None = None
    psnr: float | None = None
    baseline_psnr: float | None = None

    def __post_init__(self) -> None:
        if self.source.ndim != 2:
            raise ValueError(f"pictures show slices (X, Y), got a source of shape {self.source.shape}")
        for name in IMAGES:
            image = getattr(self, name)
            if image is not None and image.shape != self.source.shape:
                raise ValueError(f"{name} has shape {image.shape}, expected the source's {self.source.shape}")
        if self.ddf is not None and self.ddf.shape != (2, *self.source.shape):
            raise ValueError(f"ddf has shape {self.ddf.shape}, expected {(2, *self.source.shape)}")


@dataclass(frozen=True)
class _Column:
    title: str
    kind: str  # "image", "error" or "field"
    content: Callable[[Sample], np.ndarray | None]
    psnr: Callable[[Sample], float | None] = lambda sample: None


def _error(image: np.ndarray | None, target: np.ndarray) -> np.ndarray | None:
    return None if image is None else np.abs(image - target)


COLUMNS = (
    _Column("Source", "image", lambda sample: sample.source),
    _Column("Prediction", "image", lambda sample: sample.prediction),
    _Column("Target", "image", lambda sample: sample.target),
    _Column("Error", "error", lambda sample: _error(sample.prediction, sample.target), lambda sample: sample.psnr),
    _Column("Intensity map", "image", lambda sample: sample.baseline),
    _Column(
        "Its error", "error", lambda sample: _error(sample.baseline, sample.target), lambda sample: sample.baseline_psnr
    ),
    _Column("Misaligned target", "image", lambda sample: sample.misaligned),
    _Column("Warped prediction", "image", lambda sample: sample.warped),
    _Column("Displacement", "field", lambda sample: sample.ddf),
)


def draw_translation(
    samples: Sequence[Sample], path: str | Path, title: str = "", error_limit: float | None = None
) -> None:
    """Draw a grid of translations: a row per sample, a column per kind of image that at least one sample has.

    Images are shown on the fixed grey scale [-1, 1], absolute errors on one colour scale and displacements on another,
    each shared by all rows; what is background in all of them is cut off. The view is the radiologist's: the first
    array axis runs from right to left and the second upwards, so that an axial slice of a volume in RAS orientation has
    the patient's right on the left side and the front on top (sagittal: front on the left; coronal: right on the left,
    head on top).

    Args:
        samples: at least one, all of one shape.
        path: the picture's file, of any kind that matplotlib writes without a window (``.png``, ``.pdf``); replaced in
            one go.
        title: a line on top.
        error_limit: end of the error scale in intensity units (the whole range is 2), default what 98 % of the shown
            foreground errors stay below. Give it to compare pictures with each other.

    Raises:
        ValueError: if there are no samples, their shapes differ, or ``error_limit`` is not positive.
    """
    if not samples:
        raise ValueError("no samples to draw, expected at least one")
    shapes = {sample.source.shape for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"samples must have one shape, got {sorted(shapes)}")
    if error_limit is not None and not error_limit > 0:
        raise ValueError(f"error_limit must be positive, got {error_limit}")
    path = Path(path)
    samples = _cropped(samples)
    columns = [column for column in COLUMNS if any(column.content(sample) is not None for sample in samples)]
    limits = {
        "error": error_limit or max(MIN_ERROR, _foreground_limit(samples, columns, "error")),
        "field": max(MIN_DISPLACEMENT, _foreground_limit(samples, columns, "field")),
    }
    figure = _draw(samples, columns, limits, title)
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix[1:] or "png", dpi=DPI)


def _cropped(samples: Sequence[Sample]) -> list[Sample]:
    """Cut off what is background in every image of every sample."""
    shown = np.any([image > EMPTY for sample in samples for image in _images(sample).values()], axis=0)
    if not shown.any():
        return list(samples)
    box = []
    for axis, size in enumerate(shown.shape):
        occupied = np.flatnonzero(shown.any(axis=1 - axis))
        margin = max(1, round(MARGIN * size))
        box.append(slice(max(0, occupied[0] - margin), occupied[-1] + 1 + margin))
    x, y = box
    cropped = []
    for sample in samples:
        parts: dict[str, Any] = {name: image[x, y] for name, image in _images(sample).items()}
        cropped.append(replace(sample, **parts, ddf=None if sample.ddf is None else sample.ddf[:, x, y]))
    return cropped


def _images(sample: Sample) -> dict[str, np.ndarray]:
    images = {name: getattr(sample, name) for name in IMAGES}
    return {name: image for name, image in images.items() if image is not None}


def _foreground_limit(samples: Sequence[Sample], columns: Sequence[_Column], kind: str) -> float:
    shown = [np.zeros(1)]
    for sample in samples:
        for column in columns:
            content = column.content(sample)
            if column.kind == kind and content is not None:
                magnitude = np.linalg.norm(content, axis=0) if kind == "field" else content
                shown.append(magnitude[(sample.target > -1 + BACKGROUND_TOLERANCE) & np.isfinite(magnitude)])
    return float(np.percentile(np.concatenate(shown), PERCENTILE))


def _draw(samples: Sequence[Sample], columns: Sequence[_Column], limits: Mapping[str, float], title: str) -> Figure:
    """Lay the panels out by hand, in inches: matplotlib's own layout engines cost more than the drawing."""
    x_size, y_size = samples[0].source.shape
    panel = PANEL_WIDTH * y_size / x_size
    row = panel + (CAPTION if any(column.psnr(sample) is not None for sample in samples for column in columns) else GAP)
    top = HEADER * (2 if title else 1)
    width = LEFT + len(columns) * (PANEL_WIDTH + GAP) + RIGHT
    height = top + row * len(samples) + FOOTER
    figure = Figure(figsize=(width, height), facecolor="white")

    def place(left: float, from_top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (from_top + high) / height, wide / width, high / height))

    for number, sample in enumerate(samples):
        _label_row(figure, sample, 1 - (top + number * row + panel / 2) / height, LEFT / width)
        for index, column in enumerate(columns):
            axes = place(LEFT + index * (PANEL_WIDTH + GAP), top + number * row, PANEL_WIDTH, panel)
            _draw_panel(axes, column, sample, limits)
            if number == 0:
                axes.set_title(column.title, fontsize=10, pad=4)
    for index, column in enumerate(columns):
        if column.kind in limits:
            axes = place(LEFT + index * (PANEL_WIDTH + GAP) + 0.1, height - FOOTER + 0.08, PANEL_WIDTH - 0.2, 0.1)
            _draw_scale(figure, axes, column.kind, limits[column.kind], (x_size, y_size))
    if title:
        figure.text(LEFT / width, 1 - 0.09 / height, title, fontsize=12, va="top")
    note = NOTE + (FIELD_NOTE if any(column.kind == "field" for column in columns) else "")
    figure.text(LEFT / width, 0.08 / height, note, fontsize=7, color="0.35")
    return figure


def _label_row(figure: Figure, sample: Sample, middle: float, left: float) -> None:
    lines = [_shortened(sample.case), "" if sample.slice is None else f"slice {sample.slice}"]
    text = "\n".join(line for line in lines if line)
    figure.text(left * 0.85, middle, text, rotation=90, fontsize=9, ha="right", va="center", multialignment="center")


def _shortened(text: str, length: int = 26) -> str:
    return text if len(text) <= length else f"...{text[3 - length :]}"


def _draw_panel(axes: Axes, column: _Column, sample: Sample, limits: Mapping[str, float]) -> None:
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    content = column.content(sample)
    if content is None:
        return
    if column.kind == "field":
        _show(axes, np.linalg.norm(content, axis=0), (0, limits["field"]), COLOURS["field"])
        _draw_arrows(axes, content, limits["field"])
    elif column.kind == "error":
        _show(axes, content, (0, limits["error"]), COLOURS["error"])
    else:
        _show(axes, content, (-1, 1), "gray")
    psnr = column.psnr(sample)
    if psnr is not None:
        axes.set_xlabel(f"PSNR {psnr:.2f} dB", fontsize=8, labelpad=2)


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


def _draw_scale(figure: Figure, axes: Axes, kind: str, limit: float, shape: tuple[int, int]) -> None:
    label = "absolute error (full range: 2)"
    if kind == "field":
        label = f"pixels (arrows drawn x {_arrow_scale(shape, limit):.2g})"
    colours = ScalarMappable(Normalize(0, limit), COLOURS[kind])
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal", extend="max")
    bar.ax.tick_params(labelsize=7, pad=2)
    bar.set_label(label, fontsize=8, labelpad=2)
