"""What a case looks like: checkerboards and contours in three planes, before and after."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.filters import threshold_otsu

SQUARES = 7
"""Squares of a checkerboard along its longer side."""
PLANES = ("axial", "coronal", "sagittal")
MARGIN = 8.0
"""What is shown around the mask, in mm."""
WIDTH = 14.0
"""Of a picture, in inches."""
SKIN = 10.0
"""Grey values are scaled by what lies so many mm inside the mask: fat under the skin would darken the rest."""


def draw_case(
    image: np.ndarray,
    before: np.ndarray | None,
    label: np.ndarray,
    mask: np.ndarray,
    spacing: np.ndarray,
    affine: np.ndarray,
) -> bytes:
    """A JPEG with a row for each plane through the middle of the mask.

    Args:
        image: the source, (X, Y, Z); all are on one grid.
        before: the target in the header's position; None where it was not moved.
        label: the target as it was moved.
        mask: the foreground.
        spacing: sides of a voxel in mm.
        affine: of the grid, for the names of the planes.
    """
    turn = nib.io_orientation(affine)
    sides = np.array(spacing)[np.argsort(turn[:, 0])]
    targets = [label] if before is None else [before, label]
    inside = nib.apply_orientation(mask, turn) > 0
    inside = inside if inside.any() else np.ones_like(inside)
    at = np.argwhere(inside)
    low = np.maximum(at.min(0) - np.ceil(MARGIN / sides).astype(int), 0)
    shown = tuple(slice(a, b) for a, b in zip(low, at.max(0) + 1 + np.ceil(MARGIN / sides).astype(int), strict=True))
    inside = inside[shown]
    source, *others = (nib.apply_orientation(each, turn)[shown] for each in (image, *targets))
    deep = ndimage.distance_transform_edt(np.pad(inside, 1), sides)[1:-1, 1:-1, 1:-1] > SKIN
    scale = [_window(each, deep if deep.sum() > 500 else inside) for each in (source, others[-1])]
    level = _edge(_scaled(source, scale[0])[deep if deep.sum() > 500 else inside])
    middle = [int(np.median(np.nonzero(inside.any(tuple(o for o in range(3) if o != axis)))[0])) for axis in range(3)]
    moves = ["as written"] if before is None else ["header", "registered"]
    titles = ["source, with the mask", *(f"checkerboard, {move}" for move in moves)]
    titles += [f"source's contours on target, {move}" for move in moves]
    lengths = np.array(inside.shape) * sides
    across, heights = max(lengths[0], lengths[1]), [lengths[1], lengths[2], lengths[2]]
    figure = Figure(figsize=(WIDTH, WIDTH / len(titles) * sum(heights) / across + 0.5), facecolor="black")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.015, 0.005, 0.998, 1 - 0.3 / figure.get_figheight(), 0.015, 0.015)
    axes = figure.subplots(3, len(titles), squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, axis in enumerate((2, 1, 0)):
        first, *later = (
            _scaled(np.take(each, middle[axis], axis).T[::-1], window)
            for each, window in ((source, scale[0]), *((other, scale[1]) for other in others))
        )
        outline = np.take(inside, middle[axis], axis).T[::-1]
        pixel = sides[[other for other in range(3) if other != axis]]
        board = _board(first.shape, pixel)
        smooth = ndimage.gaussian_filter(first, 1.0 / pixel[::-1])
        panels = [first, *(np.where(board, first, late) for late in later), *later]
        for column, panel in enumerate(panels):
            cell = axes[row][column]
            cell.imshow(panel, cmap="gray", vmin=0, vmax=1, aspect=float(pixel[1] / pixel[0]), interpolation="bilinear")
            if column == 0 or column > len(later):
                _contour(cell, outline.astype(float), 0.5, "lime" if column == 0 else "cyan")
            if column > len(later):
                _contour(cell, np.where(outline, smooth, 0), level, "gold")
            cell.set_xticks([])
            cell.set_yticks([])
            cell.set_frame_on(False)
            if row == 0:
                cell.set_title(titles[column], color="white", fontsize=9, pad=4)
            if column == 0:
                cell.set_ylabel(PLANES[row], color="white", fontsize=9, labelpad=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=100, facecolor="black", pil_kwargs={"quality": 82})
    return buffer.getvalue()


def _contour(cell: Axes, plane: np.ndarray, level: float, color: str) -> None:
    if plane.min() < level < plane.max():
        cell.contour(plane, levels=(level,), colors=color, linewidths=0.7)


def _edge(values: np.ndarray) -> float:
    """The grey that parts what is dark in the source from what is bright."""
    return float(threshold_otsu(values)) if np.ptp(values) > 0 else 0.5


def _window(volume: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(volume[mask], (1, 99.5))
    return float(low), float(high) if high > low else float(low) + 1


def _scaled(volume: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    return ((volume - window[0]) / (window[1] - window[0])).clip(0, 1)


def _board(shape: tuple[int, ...], pixel: np.ndarray) -> np.ndarray:
    """Squares of one size in mm."""
    heights, widths = np.arange(shape[0]) * pixel[1], np.arange(shape[1]) * pixel[0]
    side = max(heights[-1], widths[-1], 1e-6) / SQUARES
    return (np.floor(heights[:, None] / side) + np.floor(widths[None] / side)) % 2 == 0
