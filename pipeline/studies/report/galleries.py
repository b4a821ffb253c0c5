"""Galleries of a study: the same test slices as several methods and noise levels translate them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.reporting.panels import Panel, Row, cropping_box, draw_grid, scale_limit
from pipeline.reporting.samples import Sample, evenly_spread, read_samples

PANEL_WIDTH = 1.15  # inches; six columns fill the width of a page
LONGEST_NAME = 16  # letters of a case's name that fit beside its row; the end tells cases apart
COUNT = 8  # slices, as in the paper's supplement
ABSENT = "no result"

Slice = tuple[str, int]


@dataclass(frozen=True)
class CellSamples:
    """Where the shown slices of one cell lie.

    Attributes:
        path: a ``samples.npz`` with ``image``, ``label``, ``pred`` (N, X, Y), ``case``, ``slice`` and ``psnr`` (N,).
        method: of the cell, as all that follows.
        noise_level: of the training pairs.
        noise_kind: "affine" or "nonaffine".
        seed: of the run.
        dataset: name of the data set or fold.
    """

    path: Path
    method: str
    noise_level: float
    noise_kind: str
    seed: int
    dataset: str

    def load(self) -> dict[Slice, Sample]:
        """The slices by case and index, in the file's order.

        Raises:
            ValueError: see `read_samples`.
        """
        return {(sample.case, sample.slice or 0): sample for sample in read_samples(self.path)}


def shared_slices(loaded: Sequence[Mapping[Slice, Sample]], count: int = COUNT) -> list[Slice]:
    """Up to ``count`` slices, evenly spread, of those that every cell has."""
    common = [key for key in loaded[0] if all(key in samples for samples in loaded)] if loaded else []
    return [common[index] for index in evenly_spread(len(common), count)]


def error_limit(loaded: Iterable[Mapping[Slice, Sample]]) -> float:
    """End of the colour scale that galleries of these cells share, in intensity units (the whole range is 2)."""
    return scale_limit("error", ((item.error, item.target) for samples in loaded for item in samples.values()))


def draw_gallery(
    cells: Mapping[str, Mapping[Slice, Sample]],
    slices: Sequence[Slice],
    path: str | Path,
    limit: float,
    title: str = "",
    source: str = "source",
    target: str = "target",
) -> None:
    """Draw slices by method: columns source, target, then each method's prediction, with its PSNR, and error map.

    Args:
        cells: by method, all of one data set, with all of ``slices``.
        slices: the rows, at least one.
        path: the picture's file; replaced in one go.
        limit: end of the error scale, see ``error_limit``.
        title: what stands on top.
        source: title of the first column, such as "T1".
        target: title of the second.
    """
    first = next(iter(cells.values()))
    box = _box(samples[key] for samples in cells.values() for key in slices)
    rows = []
    for key in slices:
        panels = [Panel("image", first[key].source[box]), Panel("image", first[key].target[box])]
        for samples in cells.values():
            panels += [
                Panel("image", samples[key].prediction[box], _caption(samples[key])),
                Panel("error", samples[key].error[box]),
            ]
        rows.append(Row(_label(key), panels))
    titles = [source, target, *(name for method in cells for name in (method, "error"))]
    draw_grid(titles, rows, {"error": limit}, path, title, PANEL_WIDTH)


def draw_levels(
    cells: Mapping[str, Mapping[str, Mapping[Slice, Sample]]],
    levels: Sequence[str],
    key: Slice,
    path: str | Path,
    title: str = "",
    source: str = "source",
    target: str = "target",
) -> None:
    """Draw one slice at all noise levels: a row per method, columns source, target and the levels' predictions.

    Args:
        cells: by method and then by the level's title; a method may lack levels, and a level the slice.
        levels: titles of the levels, in the order of the columns.
        key: the slice; at least one cell has it.
        path: the picture's file; replaced in one go.
        title: what stands on top.
        source: title of the first column, such as "T1".
        target: title of the second.
    """
    found = {
        method: {level: samples[key] for level, samples in known.items() if key in samples}
        for method, known in cells.items()
    }
    items = [item for known in found.values() for item in known.values()]
    box = _box(items)
    rows = []
    for method, known in found.items():
        panels = [Panel("image", items[0].source[box]), Panel("image", items[0].target[box])]
        for level in levels:
            item = known.get(level)
            panels.append(
                Panel("image", None, absence=ABSENT)
                if item is None
                else Panel("image", item.prediction[box], _caption(item))
            )
        rows.append(Row(method, panels))
    draw_grid([source, target, *levels], rows, {}, path, title, PANEL_WIDTH)


def _box(items: Iterable[Sample]) -> tuple[slice, slice]:
    return cropping_box(image for item in items for image in (item.source, item.target, item.prediction))


def _caption(item: Sample) -> str:
    return "" if item.psnr is None else f"PSNR {item.psnr:.2f} dB"


def _label(key: Slice) -> str:
    name = key[0] if len(key[0]) <= LONGEST_NAME else f"…{key[0][-LONGEST_NAME:]}"
    return f"{name}\nslice {key[1]}"
