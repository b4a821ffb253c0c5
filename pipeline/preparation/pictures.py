"""What a case looks like: checkerboards and contours in three planes, before and after."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SQUARES = 6
"""Squares of a checkerboard along a side."""
PLANES = ("axial", "coronal", "sagittal")


def draw_case(
    image: np.ndarray,
    before: np.ndarray | None,
    label: np.ndarray,
    mask: np.ndarray,
    spacing: np.ndarray,
    affine: np.ndarray,
) -> bytes:
    """A PNG with a row for each plane through the middle of the mask.

    Args:
        image: the source, (X, Y, Z); all are on one grid.
        before: the target in the header's position; None where it was not moved.
        label: the target as it was moved.
        mask: the foreground.
        spacing: sides of a voxel in mm.
        affine: of the grid, for the names of the planes.
    """
    turn = nib.io_orientation(affine)
    volumes = [nib.apply_orientation(each, turn) for each in (image, label if before is None else before, label, mask)]
    sides = np.array(spacing)[np.argsort(turn[:, 0])]
    shown = volumes[3] if volumes[3].any() else np.ones_like(volumes[3])
    middle = [int(np.median(np.nonzero(shown.any(tuple(o for o in range(3) if o != axis)))[0])) for axis in range(3)]
    titles = [
        "source",
        "target",
        "checkerboard, header",
        "checkerboard, registered",
        "source's contours on target",
        "mask",
    ]
    if before is None:
        titles[3] = "checkerboard, as written"
    figure = Figure(figsize=(13.2, 7.2), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 6)
    scales = [_window(volumes[0], shown), _window(volumes[1], shown), _window(volumes[2], shown)]
    for row, axis in enumerate((2, 1, 0)):
        planes = [np.take(volume, middle[axis], axis).T[::-1] for volume in volumes]
        first, early, late = (_scaled(plane, scale) for plane, scale in zip(planes[:3], scales, strict=True))
        aspect = sides[[other for other in range(3) if other != axis]]
        board = _board(first.shape, aspect)
        panels = [first, late, np.where(board, first, early), np.where(board, first, late), late, first]
        for column, panel in enumerate(panels):
            cell = axes[row][column]
            cell.imshow(
                panel, cmap="gray", vmin=0, vmax=1, aspect=float(aspect[1] / aspect[0]), interpolation="nearest"
            )
            if column == 4:
                cell.contour(first, levels=(0.3, 0.6), colors=("cyan", "yellow"), linewidths=0.5)
            if column == 5 and planes[3].any() and not planes[3].all():
                cell.contour(planes[3].astype(float), levels=(0.5,), colors="lime", linewidths=0.8)
            cell.set_xticks([])
            cell.set_yticks([])
            if row == 0:
                cell.set_title(titles[column], color="white", fontsize=9)
            if column == 0:
                cell.set_ylabel(PLANES[row], color="white", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _window(volume: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(volume[mask > 0], (1, 99))
    return float(low), float(high) if high > low else float(low) + 1


def _scaled(plane: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    return ((plane - window[0]) / (window[1] - window[0])).clip(0, 1)


def _board(shape: tuple[int, ...], aspect: np.ndarray) -> np.ndarray:
    """Squares of one size in mm."""
    heights, widths = np.arange(shape[0]) * aspect[1], np.arange(shape[1]) * aspect[0]
    side = max(heights[-1], widths[-1]) / SQUARES
    return (np.floor(heights[:, None] / side) + np.floor(widths[None] / side)) % 2 == 0
