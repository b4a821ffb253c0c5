"""Smoothness loss of a displacement field."""

from __future__ import annotations

import torch
from torch import nn


class SmoothnessLoss(nn.Module):
    """Mean squared forward difference of a displacement field along each axis, summed over the axes.

    `sum_axis mean (u(x + e_axis) - u(x))^2`, the mean taken over batch, components and pixels (Kong et al., NeurIPS
    2021, arXiv 2110.06465).

    MONAI's `DiffusionLoss` is near but not the same: it takes central differences over two voxels, for which a field
    that alternates from voxel to voxel is smooth, and leaves out the border. `BendingEnergyLoss` penalises second
    derivatives, for which every affine field is free.
    """

    def forward(self, ddf: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            ddf: displacement field in voxels, (B, spatial_dims, *spatial), 2D or 3D. An axis of one voxel adds nothing.

        Returns:
            Scalar, in squared voxels per voxel.

        Raises:
            ValueError: when `ddf` is no displacement field.
        """
        spatial_dims = ddf.ndim - 2
        if spatial_dims not in (2, 3) or ddf.shape[1] != spatial_dims:
            raise ValueError(
                f"ddf must have the shape (B, 2, H, W) or (B, 3, H, W, D), one channel per axis, got {tuple(ddf.shape)}"
            )
        axes = [axis for axis in range(2, ddf.ndim) if ddf.shape[axis] > 1]
        if not axes:
            raise ValueError(f"ddf must have more than one voxel, got the shape {tuple(ddf.shape)}")
        return torch.stack([ddf.diff(dim=axis).square().mean() for axis in axes]).sum()
