"""The foreground of a scan: head or body, without air, padding and couch. Everything that asks for it asks here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

__all__ = ["Background", "find_background", "foreground_mask"]

PADDED_SHARE = 0.25
"""Share of the field's sides that must hold one and the same value for it to be what was put around the patient."""
SEPARATED = 4.0
"""How many spreads of the air its mean has to lie from that of what is brighter for it to be air at all."""
NOISE = 5.0
"""How many of its spreads above its median air ends, ..."""
STEP = 0.2
"""... but no lower than this share of the way up to the tissue: partial volumes at the skin are air."""
NEAR = 0.15
"""Air that is not padding lies within this share of the way from the padding up to the tissue."""
FAR = 0.3
"""The same where the padding is a frame, whatever lies in it, and cannot be the outline of a masked organ."""
FRAME = 0.9
"""Share of its bounding box that an image within a frame of padding fills; a head or a disc fills less than 0.8."""
HOUNSFIELD_AIR, HOUNSFIELD_TOLERANCE = -1000.0, 150.0
THIN = 5.0
"""Thickness in mm of the plate of a couch, which opening takes away."""
COMPANION = 0.5
"""A component at least this share of the largest is of the patient, too: the other leg."""
SAMPLES = 1 << 19
"""Voxels that a histogram is made of."""


@dataclass(frozen=True)
class Background:
    """What lies around the patient, in the image's own units.

    Attributes:
        padding: the one value that fills what was never measured, or was masked; None where there is none.
        air: ``(low, high)`` that measured air lies in, the far end of either side infinite; None where none was found.
        level: a typical value of the background: the padding, or else the median of the air, or else the least value.
        air_level: median of measured air; None where none was found.
        bright: whether the air is brighter than the patient, as in an inverted image.
    """

    padding: float | None
    air: tuple[float, float] | None
    level: float
    air_level: float | None = None
    bright: bool = False


def _sides(volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The voxels on the sides of the field, but for its ends along the slices, through which head and body leave it."""
    axis = _through(volume.shape, spacing)
    parts = []
    for side in range(volume.ndim):
        if side != axis and volume.shape[side] > 1:
            parts += [volume[(slice(None),) * side + (end,)].ravel() for end in (0, -1)]  # np.take would turn it round
    return np.concatenate(parts) if parts else volume.ravel()


def _through(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """The axis that counts slices: of the thickest voxels, or else the shortest."""
    thickest = max(spacing)
    return min(range(len(shape)), key=lambda axis: (spacing[axis] < 0.95 * thickest, shape[axis], -axis))


def every(values: np.ndarray, step: int) -> np.ndarray:
    """Every so many-th of an image's values, counted along the last axis first, however they lie in memory."""
    if values.flags.c_contiguous:
        return values.ravel()[::step]
    return values[np.unravel_index(np.arange(0, values.size, step), values.shape)]


def inside(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image's values where a mask is True, in no order that one may rely on."""
    return values.T[mask.T] if values.flags.f_contiguous else values[mask]


def sample(values: np.ndarray) -> np.ndarray:
    """Values spread evenly over an image, as many as a histogram takes."""
    return every(values, max(1, values.size // SAMPLES))


def _most_common(values: np.ndarray) -> tuple[float, float]:
    """The most frequent value, and its share."""
    found, counts = np.unique(values, return_counts=True)
    at = int(counts.argmax())
    return float(found[at]), float(counts[at] / values.size)


def find_background(volume: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Background:
    """Find out what lies around the patient, from the histogram and from the sides of the field.

    Nothing is taken for granted: padding may have any value (0 in a z-scored brain, -1024, 32767), air may be exactly
    constant or noise, in MR's units, in HU, in HU + 1000.

    Args:
        volume: (X, Y, Z) or (X, Y), finite.
        spacing: size of a voxel in mm along its axes.

    Returns:
        What was found. Everything is foreground where nothing stands out from the rest.
    """
    spacing = tuple(spacing)[: volume.ndim]
    sides = _sides(volume, spacing)
    value, share = _most_common(sides)
    padding = value if share >= PADDED_SHARE else None
    measured = sample(volume)
    least = float(measured.min())
    if padding is not None:
        measured = measured[measured != padding]
        sides = sides[sides != padding]
    level = least if padding is None else padding
    if measured.size < 2:
        return Background(padding, None, level)
    low, high = (float(end) for end in np.percentile(measured, (0.1, 99.5)))
    if low == high:
        return Background(padding, None, level)
    between = float(threshold_otsu(measured.clip(low, high)))
    dark, light = measured[measured <= between], measured[measured > between]
    if not dark.size or not light.size:
        return Background(padding, None, level)
    bright = padding is None and float((sides > between).mean()) > 0.75 and float((volume > between).mean()) > 0.5
    if bright:
        dark, light = -light, -dark
        sides, between = -sides, -between
    at_sides = sides[sides <= between]
    air = at_sides if at_sides.size >= max(50, 0.05 * sides.size) else dark
    middle, tissue = float(np.median(air)), float(light.mean())
    spread = max(1.4826 * float(np.median(np.abs(air - middle))), 1e-6 * abs(tissue - middle))
    if tissue - middle < SEPARATED * spread or not _is_air(volume, padding, middle, tissue):
        return Background(padding, None, level)
    end = min(max(middle + NOISE * spread, middle + STEP * (tissue - middle)), between)
    if bright:
        return Background(padding, (-end, np.inf), -middle, -middle, True)
    return Background(padding, (-np.inf, end), level if padding is not None else middle, middle)


def _is_air(volume: np.ndarray, padding: float | None, middle: float, tissue: float) -> bool:
    """Whether the darker part of what is no padding is air, or the patient's own."""
    if padding is None or abs(middle - HOUNSFIELD_AIR) < HOUNSFIELD_TOLERANCE:
        return True
    way = (middle - padding) / (tissue - padding) if padding < middle else None
    if way is not None and way < NEAR:
        return True
    return (way is None or way < FAR) and _fills_its_box(volume != padding)


def _fills_its_box(measured: np.ndarray) -> bool:
    """Whether what is no padding is a box: noise all over the field, or an image put into a larger one."""
    closed = _dilate(measured, [1] * measured.ndim)
    return bool(closed.any()) and float(closed[_box(closed)].mean()) > FRAME


def foreground_mask(
    volume: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0), background: Background | None = None
) -> np.ndarray:
    """Tell the patient from what lies around: a threshold from the histogram, the largest component, holes filled.

    Plates as thin as that of a couch are taken away, and cavities are the patient's: lungs, sinuses, dark vessels.

    Args:
        volume: (X, Y, Z) or (X, Y), finite, in any units.
        spacing: size of a voxel in mm along its axes.
        background: what lies around, as `find_background` finds it.

    Returns:
        Boolean, of the shape of the volume. All False where it is constant, all True where nothing in it stands out as
        background.

    Raises:
        ValueError: it has not two or three axes, or holds NaN or infinite values, or the spacing is none.
    """
    volume = np.asarray(volume)
    spacing = tuple(float(size) for size in spacing)[: volume.ndim]
    if volume.ndim not in (2, 3) or volume.size == 0:
        raise ValueError(f"expected a volume (X, Y, Z) or a slice (X, Y), got shape {volume.shape}")
    if len(spacing) < volume.ndim or not all(np.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"spacing must be {volume.ndim} positive numbers of mm, got {spacing}")
    low, high = float(volume.min()), float(volume.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the volume holds NaN or infinite values")
    if low == high:
        return np.zeros(volume.shape, bool)
    found = find_background(volume, spacing) if background is None else background
    mask = np.ones_like(volume, bool) if found.padding is None else volume != found.padding
    if found.air is not None:
        low, high = found.air  # one of which is infinite
        mask &= volume > high if low == -np.inf else volume < low
    if mask.all() or not mask.any():
        return mask
    through = _through(mask.shape, spacing)
    if mask.flags.f_contiguous:  # in the order in which it lies in memory
        return _body(mask.T, spacing[::-1], mask.ndim - 1 - through).T
    return _body(mask, spacing, through)


def _body(mask: np.ndarray, spacing: Sequence[float], through: int) -> np.ndarray:
    """The largest component, without what hangs on it by a thin plate, with its holes filled."""
    # A voxel more on each side: where the field goes on, the end of the box is a surface.
    box = tuple(
        slice(max(side.start - 1, 0), min(side.stop + 1, length))
        for side, length in zip(_box(mask), mask.shape, strict=True)
    )
    inner = np.ascontiguousarray(mask[box])
    # Filled first, so that opening finds lungs and ventricles solid.
    solid = _fill(inner, through)
    # In a small image a few voxels are much of the patient; across thick slices a plate is as long as the patient.
    most = [max(length // 24, int(length > 8)) for length in inner.shape]
    thick = [axis == through and spacing[axis] > 1.5 * min(spacing) for axis in range(mask.ndim)]
    reach = [0 if thick[axis] else min(round(THIN / 2 / spacing[axis]), most[axis]) for axis in range(mask.ndim)]
    core = _erode(solid, reach)
    if not core.any():
        core = solid
        reach = [0] * mask.ndim
    labels, count = ndimage.label(core)
    if count > 1:
        sizes = np.zeros(count + 1, np.int64)
        for part in labels:  # part by part, since it makes 64 bits of each label
            sizes += np.bincount(part.ravel(), minlength=count + 1)
        sizes[0] = 0
        kept = sizes >= max(COMPANION * sizes.max(), 1)
        core = kept[labels] if kept.sum() > 1 else labels == kept.argmax()
    # Back to the skin, and a voxel further, where the image says that there is something.
    grown = _dilate(core, [steps + (steps > 0) for steps in reach]) & solid
    # What was filled before, and has lost nothing, has no holes.
    lost = np.flatnonzero((grown != solid).any(axis=tuple(axis for axis in range(mask.ndim) if axis != through)))
    if lost.size:
        part = (slice(None),) * through + (slice(int(lost[0]), int(lost[-1]) + 1),) if mask.ndim == 3 else ()
        grown[part] = _fill(grown[part], through)
    body = np.zeros(mask.shape, bool)
    body[box] = grown
    return body


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all that is True."""
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    found = [np.flatnonzero(mask.any(axis=axes)) for axes in others]
    return tuple(slice(int(at[0]), int(at[-1]) + 1) for at in found)


def _erode(mask: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    """Erode by a box of so many voxels to each side; the field's ends are no surface of the patient."""
    return _combine(np.logical_and, mask, reach)


def _dilate(mask: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    """Dilate by a box of so many voxels to each side."""
    return _combine(np.logical_or, mask, reach)


def _combine(operation: np.ufunc, mask: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    # Shifted onto itself: for boxes this small several times as fast as ndimage's filters.
    for axis, most in enumerate(reach):
        found = mask.copy(order="K")
        for steps in range(1, min(most, mask.shape[axis] - 1) + 1):
            front, back = ((slice(None),) * axis + (part,) for part in (slice(None, -steps), slice(steps, None)))
            operation(found[front], mask[back], out=found[front])
            operation(found[back], mask[front], out=found[back])
        mask = found
    return mask


def _fill(mask: np.ndarray, through: int) -> np.ndarray:
    """Fill what is enclosed within a slice."""
    # Airways and the ends of the field open cavities to the outside in 3D; within a slice they are closed.
    plane = ndimage.generate_binary_structure(mask.ndim, 1)
    if mask.ndim == 3:
        plane[(slice(None),) * through + (0,)] = plane[(slice(None),) * through + (2,)] = False
    labels, count = ndimage.label(~mask, plane)
    open_ = np.zeros(count + 1, bool)
    for axis in range(mask.ndim):
        if mask.ndim == 2 or axis != through:
            for end in (0, -1):
                open_[np.unique(labels[(slice(None),) * axis + (end,)])] = True
    open_[0] = True
    return mask if open_.all() else mask | ~open_[labels]
