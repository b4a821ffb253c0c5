"""The foreground of a scan: head or body, without air."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu


def foreground_mask(volume: np.ndarray, spacing: Sequence[float] | np.ndarray = (1.0, 1.0, 1.0)) -> np.ndarray:
    """The largest thing that is brighter than air, with its holes filled; boolean, of the shape of the volume."""
    volume = np.asarray(volume)
    edge = np.concatenate([np.take(volume, (0, -1), axis).ravel() for axis in range(volume.ndim)])
    low, high = np.percentile(volume[:: max(1, volume.shape[0] // 64)], (0.1, 99.5))
    level = float(np.median(edge[edge <= np.median(edge)]))
    bright = volume > min(float(threshold_otsu(volume.clip(low, high))), level + 0.15 * (high - level))
    opened = ndimage.binary_opening(bright)
    labels, count = ndimage.label(opened)
    if count == 0:
        return bright
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = labels == int(sizes.argmax())
    thick = int(np.argmax(spacing))
    filled = np.moveaxis(
        np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(largest, thick, 0)]), 0, thick
    )
    return np.asarray(filled, bool)
