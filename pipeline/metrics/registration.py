"""How well a displacement field registers, and whether it folds; one value per case."""

from __future__ import annotations

import torch


def endpoint_error(ddf: torch.Tensor, true_ddf: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean distance between where two displacement fields point.

    Args:
        ddf: displacement field in voxels, (B, spatial_dims, *spatial).
        true_ddf: the field that it should be, such as `RandDeformationNoised` returns, of the same shape.
        mask: True where to compare, (B, 1, *spatial); everywhere if None.

    Returns:
        (B,) in voxels; nan where the mask is empty.

    Raises:
        ValueError: when the shapes do not fit.
    """
    _check_field(ddf)
    if ddf.shape != true_ddf.shape:
        raise ValueError(f"ddf and true_ddf must have one shape, got {tuple(ddf.shape)} and {tuple(true_ddf.shape)}")
    distance = torch.linalg.vector_norm(ddf - true_ddf, dim=1, keepdim=True)
    if mask is None:
        return distance.flatten(1).mean(1)
    if mask.shape != distance.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be boolean of the shape {tuple(distance.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
        )
    return torch.where(mask, distance, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """Local change of volume under the map x + ddf(x).

    Derivatives are central differences, one-sided at the border.

    Args:
        ddf: displacement field in voxels, (B, spatial_dims, *spatial), at least 2 voxels along every axis.

    Returns:
        (B, 1, *spatial): 1 where volume is kept, 0 or below where the map folds.

    Raises:
        ValueError: when `ddf` is no displacement field or has an axis of one voxel.
    """
    _check_field(ddf)
    if min(ddf.shape[2:]) < 2:
        raise ValueError(f"ddf must have at least 2 voxels along every axis, got {tuple(ddf.shape[2:])}")
    dims = ddf.shape[1]
    gradients = torch.gradient(ddf, dim=list(range(2, ddf.ndim)))  # per axis, (B, components, *spatial)
    rows = [[gradients[axis][:, i] + float(i == axis) for axis in range(dims)] for i in range(dims)]
    if dims == 2:
        (a, b), (c, d) = rows
        return (a * d - b * c)[:, None]
    (a, b, c), (d, e, f), (g, h, i) = rows
    return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))[:, None]


def folded_fraction(ddf: torch.Tensor) -> torch.Tensor:
    """Fraction of voxels at which the map x + ddf(x) folds (Jacobian determinant of 0 or below).

    Args:
        ddf: displacement field in voxels, (B, spatial_dims, *spatial).

    Returns:
        (B,), in [0, 1].

    Raises:
        ValueError: when `ddf` is no displacement field or has an axis of one voxel.
    """
    return (jacobian_determinant(ddf) <= 0).flatten(1).float().mean(1)


def points_inside(ddf: torch.Tensor) -> torch.Tensor:
    """Tell where x + ddf(x) lies within the image, between the centres of its outermost voxels.

    Args:
        ddf: displacement field in voxels, (B, spatial_dims, *spatial).

    Returns:
        Boolean mask, (B, 1, *spatial).

    Raises:
        ValueError: when `ddf` is no displacement field.
    """
    _check_field(ddf)
    inside = torch.ones_like(ddf[:, :1], dtype=torch.bool)
    for axis, size in enumerate(ddf.shape[2:]):
        position = torch.arange(size, device=ddf.device).view(-1, *(1,) * (ddf.ndim - 3 - axis))
        point = ddf[:, axis : axis + 1] + position
        inside = inside & (point >= 0) & (point <= size - 1)
    return inside


def _check_field(ddf: torch.Tensor) -> None:
    if ddf.ndim not in (4, 5) or ddf.shape[1] != ddf.ndim - 2:
        raise ValueError(f"ddf must have the shape (B, 2, H, W) or (B, 3, H, W, D), got {tuple(ddf.shape)}")
