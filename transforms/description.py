"""What a volume looks like in numbers: intensities, voxel size, orientation, field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

__all__ = ["DESCRIPTION_KEY", "DescribeVolumed", "describe_volume"]

DESCRIPTION_KEY = "description"
"""Entry of an image's metadata that `DescribeVolumed` writes."""

PERCENTILES = (0.5, 99.5)
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
    lengths = np.array([*tensor.shape[1:], 1][:3])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    orientation = nib.io_orientation(affine)
    axes = orientation[:, 0].astype(int)
    cosines = np.abs(affine[axes, np.arange(3)]) / spacing
    order = np.argsort(axes)
    low, high = _percentiles(tensor)
    return {
        "channels": int(tensor.shape[0]),
        "low": low,
        "high": high,
        "orientation": "".join(nib.orientations.ornt2axcodes(orientation)),
        "tilt": float(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max()),
        "spacing": [float(value) for value in spacing[order]],
        "field_of_view": [float(value) for value in (spacing * lengths)[order]],
    }


def _percentiles(tensor: torch.Tensor) -> tuple[float, float]:
    voxels = tensor.detach().cpu().reshape(-1)
    values = voxels[:: -(-voxels.numel() // MOST_VOXELS)].to(torch.float32).numpy()
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
