"""Warping of images with a displacement field."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks.repeatable import must_repeat, sample


def overlap(ddf: Tensor) -> Tensor:
    """Where a warped image has values of its own: where x + ddf(x) lies inside the image, and not beyond its border.

    Args:
        ddf: displacement field in voxels, (B, spatial_dims, *spatial), see `warp`.

    Returns:
        Truth values (B, 1, *spatial).
    """
    inside = torch.ones_like(ddf[:, 0], dtype=torch.bool)
    for axis, position in enumerate(_positions(ddf.detach())):
        inside = inside & (position >= 0) & (position <= ddf.shape[2 + axis] - 1)
    return inside[:, None]


def warp(image: Tensor, ddf: Tensor) -> Tensor:
    """Sample an image linearly at x + ddf(x); beyond the border it goes on with its border values.

    The arithmetic is that of `monai.networks.blocks.Warp` on PyTorch's own sampling, so that values and gradients are
    the same to the last bit. That one makes the grid of positions on the host at each call, which breaks a captured or
    compiled step; this one makes it on the device.

    Args:
        image: (B, C, *spatial), in 2D or 3D.
        ddf: displacement field in voxels, (B, spatial_dims, *spatial), channel i along spatial axis i, pull-back.

    Returns:
        The warped image, (B, C, *spatial), never below single precision.

    Raises:
        ValueError: when the shapes do not belong together.
    """
    shape = image.shape[2:]
    dims = len(shape)
    if dims not in (2, 3) or ddf.shape != (image.shape[0], dims, *shape):
        raise ValueError(
            f"ddf must have the shape (B, spatial_dims, *spatial) of the image, got {tuple(ddf.shape)} beside "
            f"{tuple(image.shape)}"
        )
    # In single precision also under autocast: a position of 200.5 pixels is none in half precision.
    single = torch.promote_types(torch.promote_types(image.dtype, ddf.dtype), torch.float32)
    image, ddf = image.to(single), ddf.to(single)
    positions = _positions(ddf)
    if must_repeat(image):
        return sample(image, positions)
    axes = [position * 2 / max(size - 1, 1) - 1 for position, size in zip(positions, shape, strict=True)]
    grid = torch.stack(axes[::-1], dim=-1)  # grid_sample takes the last axis first
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _positions(ddf: Tensor) -> list[Tensor]:
    """Where each voxel's value comes from along each axis, (B, *spatial) each."""
    shape = ddf.shape[2:]
    return [
        torch.arange(size, device=ddf.device, dtype=ddf.dtype).view(-1, *(1,) * (len(shape) - 1 - axis)) + ddf[:, axis]
        for axis, size in enumerate(shape)
    ]
