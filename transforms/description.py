"""What a volume looks like in numbers: intensities, voxel size, orientation, field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from transforms.foreground import every

__all__ = [
    "DESCRIPTION_KEY",
    "DescribeVolumed",
    "describe_volume",
    "find_slice_axis",
    "measure_axes",
    "orientation_axes",
]

DESCRIPTION_KEY = "description"
"""Entry of an image's metadata that `DescribeVolumed` writes."""

PERCENTILES = (0.5, 99.5)
THICKER = 1.2
"""From which factor on voxels count as thicker along one axis than along the others."""
MOST_VOXELS = 1 << 20
"""Voxels that the percentiles are taken of, at most; evenly spread over a larger volume."""


def describe_volume(image: NdarrayOrTensor) -> dict[str, Any]:
    """Describe an image as its file has it.

    Args:
        image: (C, H, W) or (C, H, W, D) in its own units; the affine of a `MetaTensor` counts, otherwise voxels are
            1 mm and the axes point to R, A and S.

    Returns:
        Plain values: ``channels``; ``low``, the 0.5th percentile of all voxels; ``high``, the 99.5th of those above the
        minimum; ``orientation``, where the axes point, such as "LPS"; ``tilt``, the greatest angle in degrees between
        an axis of the volume and the patient's axis that it is nearest to; ``spacing`` and ``field_of_view``, mm along
        the axes R, A and S.

    Raises:
        ValueError: the image has no voxel, or another number of axes.
    """
    tensor = convert_to_tensor(image, track_meta=False)
    if tensor.ndim not in (3, 4) or tensor.numel() == 0:
        raise ValueError(f"expected an image of shape (C, H, W) or (C, H, W, D), got {tuple(tensor.shape)}")
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    affine = to_affine_nd(3, affine.detach().cpu().numpy().astype(np.float64))
    orientation = nib.io_orientation(affine)
    axes = orientation[:, 0].astype(int)
    cosines = np.abs(affine[axes, np.arange(3)]) / np.linalg.norm(affine[:3, :3], axis=0)
    spacing, lengths = measure_axes(affine, [*tensor.shape[1:], 1][:3])
    low, high = _percentiles(tensor)
    return {
        "channels": int(tensor.shape[0]),
        "low": low,
        "high": high,
        "orientation": "".join(nib.orientations.ornt2axcodes(orientation)),
        "tilt": float(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max()),
        "spacing": spacing,
        "field_of_view": [size * length for size, length in zip(spacing, lengths, strict=True)],
    }


def measure_axes(affine: np.ndarray, shape: Sequence[int], orientation: str = "RAS") -> tuple[list[float], list[int]]:
    """Voxel size in mm and number of voxels along the axes of an orientation.

    Args:
        affine: 4x4, of the volume as it is stored.
        shape: (X, Y, Z), likewise.
        orientation: where the axes point that are asked for, such as "RAS".
    """
    stored = nib.io_orientation(affine)[:, 0].astype(int).tolist()
    order = [stored.index(axis) for axis in orientation_axes(orientation)]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return [float(spacing[axis]) for axis in order], [int(shape[axis]) for axis in order]


def orientation_axes(orientation: str) -> list[int]:
    """The patient's axis along which each axis of an orientation lies: 0 left-right, 1 front-back, 2 up-down."""
    return [next(axis for axis, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in orientation]


def find_slice_axis(spacing: Sequence[float], lengths: Sequence[int]) -> int | None:
    """The axis along which a volume was taken slice by slice.

    Args:
        spacing: voxel size in mm along each axis.
        lengths: number of voxels along each axis.

    Returns:
        That of a single slice, or else the one along which voxels are thicker than along both others by the factor
        `THICKER`; None where there is neither.
    """
    single = [axis for axis, length in enumerate(lengths) if length == 1]
    if len(single) == 1:
        return single[0]
    thickest = max(range(3), key=lambda axis: spacing[axis])
    others = max(size for axis, size in enumerate(spacing) if axis != thickest)
    return thickest if spacing[thickest] >= THICKER * others else None


def _percentiles(tensor: torch.Tensor) -> tuple[float, float]:
    voxels = tensor.detach().cpu().to(torch.float32).numpy()
    values = every(voxels, -(-voxels.size // MOST_VOXELS))
    above = values[values > values.min()]
    low, high = PERCENTILES
    return float(np.percentile(values, low)), float(np.percentile(above if len(above) else values, high))


class DescribeVolumed(MapTransform):
    """Write `describe_volume` of each key into its metadata, behind what reads; the voxels stay as they are.

    Args:
        keys: keys of the images.
        allow_missing_keys: whether keys may be missing.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Describe every key of ``data``; images without metadata are left out."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if isinstance(image, MetaTensor):
                image.meta[DESCRIPTION_KEY] = describe_volume(image)
        return d
