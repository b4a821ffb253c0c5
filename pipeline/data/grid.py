"""The grid that volumes are brought to, as far as it follows from the data: along which axis slices are counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.data.checks import DataError, inspect_all
from transforms import find_slice_axis, measure_axes

__all__ = ["training_slice_axis"]

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
    for path, spacing, lengths in _measured(items, orientation):
        axis = find_slice_axis(spacing, lengths)
        if axis is not None:
            found.setdefault(axis, []).append(path)
    if len(found) > 1:
        kinds = "; ".join(f"axis {axis} in {_some(found[axis])}" for axis in sorted(found))
        raise DataError(
            [
                f"the training volumes were not all taken along one axis (of {orientation}): {kinds}; say which one "
                "counts the slices, --slice_axis 0, 1 or 2, or train on volumes of one kind"
            ]
        )
    axis = next(iter(found), DEFAULT_AXIS)
    reason = "the thickest voxels, or single slices" if found else "voxels are about equally long"
    logger.info("slices are counted along axis %d of %s: %s", axis, orientation, reason)
    return axis


def _measured(items: Sequence[Mapping[str, Any]], orientation: str) -> Iterator[tuple[str, list[float], list[int]]]:
    """Yield path, voxel size and number of voxels of each source; one that cannot be read is for others to refuse."""
    reports = inspect_all(list(dict.fromkeys(str(item["image"]) for item in items)))
    for path, report in reports.items():
        if report.shape is not None and report.affine is not None:
            yield path, *measure_axes(report.affine, report.shape, orientation)


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
