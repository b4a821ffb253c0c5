"""Curves of a study: metrics against noise level, a line per method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.files import replacing
from pipeline.methods import METHODS
from pipeline.metrics.catalogue import BASELINES, CATALOGUE, Metric

DPI = 200
WIDTH = 7.2  # inches; the text of an A4 page
PANEL_HEIGHT, LEGEND_ROW, TOP = 2.3, 0.22, 0.1  # inches
LEGEND_COLUMNS = 5
# Okabe and Ito's colours for all kinds of colour vision, and marks that tell the methods apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX<>ph*d8"
DASHES = ("-", "--", "-.", ":")
GREY = "0.55"
DODGE = 0.05  # between neighbouring methods, in steps of the level, so that their intervals do not hide each other
BASELINE_DASHES = {"source_": ":", "intensity_map_": "--"}
# What a method is compared with, that has a column of its own.
DOING_NOTHING = {"endpoint_error": ("identity_endpoint_error", "doing nothing")}
IDEALS = {"high_frequency": (1.0, "target")}


@dataclass(frozen=True)
class _Scale:
    """Places on the axis of noise levels: affine levels where they are, the others to the right of them."""

    places: Mapping[tuple[str, float], float]
    labels: Mapping[float, str]
    border: float | None
    step: float


def method_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the paper's table, then any others by name."""
    known = list(METHODS)
    return sorted(set(methods), key=lambda name: (known.index(name) if name in known else len(known), name))


def draw_curves(summary: pd.DataFrame, metrics: Sequence[str], path: str | Path, columns: int = 3) -> list[str]:
    """Draw metrics against the noise level, an axes per metric, a line per method with its interval as bars.

    Levels of the non-affine kind stand at the right as marks of their own. Baselines are thin grey lines; one far from
    all methods is written at the edge instead, since it would flatten the curves.

    Args:
        summary: see ``statistics.summarise``.
        metrics: columns to draw; those without any value are left out.
        path: the picture's file, of any kind that matplotlib writes without a window; replaced in one go.
        columns: most axes in a row.

    Returns:
        What was drawn; where nothing was, there is no file.
    """
    drawn = [name for name in metrics if (summary["metric"] == name).any()]
    if not drawn:
        return []
    path = Path(path)
    shown = summary[summary["metric"].isin(drawn)]
    methods = method_order(shown["method"])
    scale = _scale(shown)
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    legend = LEGEND_ROW * (math.ceil((len(methods) + 2) / (LEGEND_COLUMNS if columns > 1 else 2)) + 0.5)
    height = rows * PANEL_HEIGHT + legend + TOP
    figure = Figure(figsize=(WIDTH if columns > 1 else WIDTH / 2, height), facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    for axes, name in zip(grid, drawn, strict=False):
        _draw_axes(axes, CATALOGUE[name], summary, methods, scale)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axes in list(grid)[len(drawn) :]:
        axes.set_axis_off()
    labels = sorted(handles, key=lambda label: methods.index(label) if label in methods else len(methods))
    places: dict[str, Any] = {"loc": "lower center", "ncols": LEGEND_COLUMNS if columns > 1 else 2}
    figure.legend([handles[label] for label in labels], labels, fontsize=8, frameon=False, **places)
    figure.tight_layout(rect=(0, legend / height, 1, 1), pad=0.5, w_pad=1.2, h_pad=1.0)
    with replacing(path) as beside:
        figure.savefig(beside, format=path.suffix[1:] or "png", dpi=DPI)
    return drawn


def _scale(shown: pd.DataFrame) -> _Scale:
    levels = {kind: sorted(set(group["noise_level"])) for kind, group in shown.groupby("noise_kind")}
    affine, other = levels.get("affine", []), levels.get("nonaffine", [])
    places = {("affine", level): level for level in affine}
    labels = {level: f"{level:g}" for level in affine}
    step = min((after - before for before, after in pairwise(affine)), default=1.0)
    start = affine[-1] + 1.3 * step if affine else 0.0
    for index, level in enumerate(other):
        place = start + 1.3 * index * step
        places["nonaffine", level] = place
        labels[place] = "non-\naffine" if len(other) == 1 else f"non-aff.\n{level:g}"
    return _Scale(places, labels, start - 0.65 * step if affine and other else None, step)


def _draw_axes(axes: Axes, metric: Metric, summary: pd.DataFrame, methods: Sequence[str], scale: _Scale) -> None:
    rows = summary[summary["metric"] == metric.name]
    for index, method in enumerate(methods):
        offset = (index - (len(methods) - 1) / 2) * DODGE * scale.step
        _draw_method(axes, rows[rows["method"] == method], method, index, offset, scale)
    reference = DOING_NOTHING.get(metric.name)
    if reference is not None:
        _draw_reference(axes, summary[summary["metric"] == reference[0]], scale, reference[1], "--")
    if metric.name in IDEALS:
        value, label = IDEALS[metric.name]
        axes.axhline(value, color=GREY, linewidth=0.8, linestyle=":", label=label, zorder=1)
    _draw_baselines(axes, metric, summary, scale)
    if scale.border is not None:
        axes.axvline(scale.border, color="0.85", linewidth=0.8, zorder=0)
    places = list(scale.labels)
    axes.set_xticks(places, list(scale.labels.values()))
    axes.set_xlim(min(places) - 0.5 * scale.step, max(places) + 0.5 * scale.step)
    if metric.form.endswith("%"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_title(metric.axis, fontsize=9)
    axes.set_xlabel("noise level", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_method(axes: Axes, rows: pd.DataFrame, method: str, index: int, offset: float, scale: _Scale) -> None:
    style: dict[str, Any] = {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4.5,
        "capsize": 2,
        "elinewidth": 0.9,
        "linewidth": 1.3,
    }
    label = method
    for kind, line in (("affine", DASHES[index % len(DASHES)]), ("nonaffine", "none")):
        part = rows[rows["noise_kind"] == kind].sort_values("noise_level")
        if part.empty:
            continue
        places = [scale.places[kind, level] + offset for level in part["noise_level"]]
        below, above = part["mean"] - part["low"], part["high"] - part["mean"]
        # Resampled means may lie askew: a bar has no negative length.
        bars = [side.fillna(0).clip(lower=0).to_numpy() for side in (below, above)]
        bars_drawn = bars if part["low"].notna().any() else None
        axes.errorbar(places, part["mean"], yerr=bars_drawn, linestyle=line, label=label, zorder=3, **style)
        label = "_nolegend_"


def _draw_reference(axes: Axes, rows: pd.DataFrame, scale: _Scale, label: str, dashes: str) -> None:
    means = rows.groupby(["noise_kind", "noise_level"])["mean"].mean()
    values = {scale.places[key]: value for key, value in means.items() if key in scale.places}
    line = [place for place in sorted(values) if scale.border is None or place < scale.border]
    for run in (line, *([place] for place in values if place not in line)):
        if run:
            places = [run[0] - 0.3 * scale.step, *run, run[-1] + 0.3 * scale.step]
            heights = [values[place] for place in (run[0], *run, run[-1])]
            axes.plot(places, heights, color=GREY, linewidth=0.8, linestyle=dashes, label=label, zorder=1)
            label = "_nolegend_"


def _draw_baselines(axes: Axes, metric: Metric, summary: pd.DataFrame, scale: _Scale) -> None:
    low, high = axes.get_ylim()
    reach = 0.6 * (high - low)
    far = []
    for prefix, title in BASELINES.items():
        rows = summary[summary["metric"] == prefix + metric.name]
        if rows.empty:
            continue
        mean = rows["mean"].mean()
        if low - reach <= mean <= high + reach:
            _draw_reference(axes, rows, scale, title, BASELINE_DASHES[prefix])
        else:
            far.append((mean > high, f"{title}: {metric.number(mean)}"))
    for up, arrow, edge, align in ((True, "\u2191", 1.0, "top"), (False, "\u2193", 0.02, "bottom")):
        text = "\n".join(f"{arrow} {entry}" for above, entry in far if above == up)
        if text:
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(0.02, edge, text, transform=axes.transAxes, fontsize=7, color="0.4", va=align, bbox=paper)
