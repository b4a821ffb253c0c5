"""The grid that volumes are brought to, as far as the data decide: the axis that counts slices, the size of a pixel."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.data.checks import DataError
from pipeline.data.inspection import inspect_all
from transforms import find_slice_axis, measure_axes

__all__ = ["FITS", "training_pixel_size", "training_slice_axis"]

FITS = ("pad", "resize")
"""How slices come to their size: pixels of one size in mm, padded; or resized to fill it, counted in voxels."""

DEFAULT_AXIS = 2
"""Where voxels are equally long: axial slices of a volume that points to R, A and S."""
SHOWN = 3
"""Volumes that a message names of each kind."""

logger = logging.getLogger(__name__)


def training_slice_axis(items: Sequence[Mapping[str, Any]], orientation: str = "RAS", given: int | None = None) -> int:
    """The axis of the oriented volumes that counts slices: the one that is given, or else the data's.

    A volume says it by its thickest voxels, or by being a single slice (see `transforms.find_slice_axis`); volumes of
    equally long voxels agree with any axis, and if all are, it is the last.

    Args:
        items: the training pairs, ``{"image": path, ...}`` each; files known from the checks are not read again.
        orientation: where the axes of the oriented volumes point.
        given: 0, 1 or 2; None to find it.

    Raises:
        ValueError: ``given`` is out of range.
        DataError: the volumes do not agree; the message names some of each kind, and what to do.
    """
    if given is not None:
        if isinstance(given, bool) or given not in (0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2, got {given}")
        return int(given)
    found: dict[int, list[str]] = {}
    unknown = {}
    for path, spacing, lengths in _measured(items, orientation):
        axis = find_slice_axis(spacing, lengths)
        if axis is not None:
            found.setdefault(axis, []).append(path)
        elif not inspect_all([path])[path].measured:
            unknown[path] = tuple(lengths)
    if len(found) > 1:
        kinds = "; ".join(f"axis {axis} in {_some(found[axis])}" for axis in sorted(found))
        raise DataError(
            [
                f"the training volumes were not all taken along one axis (of {orientation}): {kinds}; say which one "
                "counts the slices, --slice_axis 0, 1 or 2, or train on volumes of one kind"
            ]
        )
    axis = next(iter(found), DEFAULT_AXIS)
    if unknown:
        path, shape = next(iter(unknown.items()))
        logger.warning(
            "%s have no header that says how they were taken: their slices are counted along axis %d of %s; if that is "
            "another, --slice_axis says so",
            _some(list(unknown)), axis, "x".join(map(str, shape)),
        )  # fmt: skip
    reason = "the thickest voxels, or single slices" if found else "voxels are about equally long"
    logger.info("slices are counted along axis %d of %s: %s", axis, orientation, reason)
    return axis


def training_pixel_size(
    items: Sequence[Mapping[str, Any]],
    orientation: str,
    slice_axis: int,
    spatial_size: Sequence[int],
    fit: str = "pad",
    given: float | Sequence[float] | None = None,
) -> float | None:
    """The size of a pixel, in mm: what is given, or else the finest at which every training volume fits into a slice.

    Args:
        items: see `training_slice_axis`.
        orientation: see `training_slice_axis`.
        slice_axis: axis of the oriented volumes that counts the slices.
        spatial_size: size of a slice in pixels.
        fit: one of `FITS`.
        given: a size in mm, or as a recipe has it, along three axes with -1 for the one that counts slices.

    Returns:
        The size; None for "resize", where each volume has its own, and where no file says how large its voxels are.

    Raises:
        ValueError: ``fit`` is none of `FITS`, or ``given`` is no size, or does not go with ``fit``.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    if fit == "resize":
        if isinstance(given, int | float):
            raise ValueError(f"spacing {given} goes with fit pad; with fit resize a pixel has no size in mm")
        return None
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    if given is not None:
        # A model's spacing has -1 along its own slice axis; that another axis is given is for the recipe to refuse.
        sizes = [given] if isinstance(given, int | float) else [size for size in given if size > 0]
        if len(set(sizes)) != 1 or isinstance(sizes[0], bool) or not 0 < sizes[0] < math.inf:
            raise ValueError(f"spacing must be the size of a pixel, a positive number of mm, got {given}")
        return float(sizes[0])
    sizes = [
        spacing[axis] * lengths[axis] / pixels
        for _, spacing, lengths in _measured(items, orientation, with_size=True)
        for axis, pixels in zip(in_plane, spatial_size, strict=True)
    ]
    if not sizes:
        logger.info("no file says how large its voxels are: every slice is resized to the same number of pixels")
        return None
    logger.info("a pixel is %.4g mm: the finest at which every training volume fits into a slice", max(sizes))
    return max(sizes)


def _measured(
    items: Sequence[Mapping[str, Any]], orientation: str, with_size: bool = False
) -> Iterator[tuple[str, list[float], list[int]]]:
    """Yield path, voxel size and number of voxels of each source; one that cannot be read is for others to refuse."""
    reports = inspect_all(list(dict.fromkeys(str(item["image"]) for item in items)))
    for path, report in reports.items():
        if report.shape is not None and report.affine is not None and (report.measured or not with_size):
            yield path, *measure_axes(report.affine, report.shape, orientation)


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
