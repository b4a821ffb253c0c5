"""Affine registration in closed form, and the registration network that only has to find what it leaves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks.registration import RegistrationNet
from pipeline.networks.warp import warp

# Side of the blocks that are averaged, and steps on that level: 35 steps in all.
PYRAMID = ((8, 10), (4, 10), (2, 8), (1, 7))
SMALLEST_LEVEL = 8  # voxels along the shortest axis: below, there is nothing to line up
DAMPING = 1e-2  # of Levenberg and Marquardt, relative to the diagonal, to begin with
LEAST_DAMPING, MOST_DAMPING = 1e-7, 1e7
EASE, STRAIN = 0.2, 5.0  # by which the damping goes down after a step that helped, and up after one that did not
# Wilder than any noise of the paper's, where source and target move by up to 10 % each, turn by 5 degrees and scale by
# 10 %: entries of the matrix (without the identity), and shift as a part of the image's size.
WILDEST_MATRIX, WILDEST_SHIFT = 0.5, 0.4


def register_affine(moving: Tensor, fixed: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Find the affine maps that carry the moving images onto the fixed ones, where both have the same contrast.

    Minimises the mean squared difference of intensities over the entries of the matrix and the shift, 6 in 2D and 12 in
    3D, each image of the batch for itself, by the forwards additive algorithm of Lucas and Kanade with Levenberg's and
    Marquardt's damping (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 56, 2004, sections 2 and 4.5), on
    a pyramid of block averages. A step that does not lower its image's cost is not taken. Where the solution is not
    finite, wilder than any plausible misalignment, or no better than the identity at full resolution, the identity is
    the answer. The same number of steps is taken whatever the images, and nothing is read on the host.

    Args:
        moving: images to be warped, (B, C, *spatial), 2D or 3D.
        fixed: images that they should match, of the same shape.

    Returns:
        Maps (B, spatial_dims, spatial_dims + 1), single precision at least and without gradient: the displacement in
        voxels at a point p, in voxels from the image's centre, is ``map[:, :, :-1] @ p + map[:, :, -1]``, pull-back.
        And what is to be known of them, each (B,): ``cost`` and ``identity_cost``, mean squared differences with
        the map and without; ``rejected``, 1 where the solution was replaced by the identity.

    Raises:
        ValueError: if the shapes differ or are not 2D or 3D.
    """
    dims = moving.ndim - 2
    if moving.shape != fixed.shape or dims not in (2, 3):
        raise ValueError(
            "moving and fixed must have one shape, (B, C, H, W) or (B, C, H, W, D), "
            f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
        )
    size = moving.shape[2:]
    with torch.no_grad(), torch.autocast(moving.device.type, enabled=False):
        kind = torch.promote_types(moving.dtype, torch.float32)
        # NaN would go on to whole images through the averages; the rejection at the end sees it in the costs.
        moving, fixed = moving.detach().to(kind), fixed.detach().to(kind)
        found = moving.new_zeros(len(moving), dims, dims + 1)
        for factor, steps in PYRAMID:
            if factor == 1 or min(size) // factor >= SMALLEST_LEVEL:
                found = _descend(_average(moving, factor), _average(fixed, factor), found, factor, size, steps)
        cost = _cost(warp(moving, _field(found, _positions(size, 1, size, moving))), fixed)
        identity_cost = _cost(moving, fixed)
        shift = torch.stack([found[:, axis, -1] / count for axis, count in enumerate(size)], dim=1)
        wild = (found[:, :, :-1].abs().amax((1, 2)) > WILDEST_MATRIX) | (shift.abs().amax(1) > WILDEST_SHIFT)
        kept = found.isfinite().all(2).all(1) & ~wild & (cost < identity_cost)
        found = torch.where(kept[:, None, None], found, 0.0)
        cost = torch.where(kept, cost, identity_cost)
    return found, {"cost": cost, "identity_cost": identity_cost, "rejected": (~kept).to(kind)}


def random_symmetries(images: Tensor, scaling: float = 0.1) -> Tensor:
    """Draw flips, quarter turns and small scalings about the images' centre, one for each image.

    Axes are flipped and exchanged with one another at random, each way as likely, those of different length not
    exchanged; then the image is made larger or smaller by up to ``scaling``, uniformly on the scale of logarithms. An
    exchange with flips is a turn, or a turn and a flip.

    Args:
        images: (B, C, *spatial), 2D or 3D; only their shape, type and device matter.
        scaling: largest change of size, as a part of it.

    Returns:
        Maps (B, spatial_dims, spatial_dims + 1), for ``affine_field``.
    """
    size = images.shape[2:]
    dims = len(size)
    kind, device = torch.promote_types(images.dtype, torch.float32), images.device
    keys = torch.rand(len(images), dims, dtype=kind, device=device)
    signs = torch.randint(0, 2, (len(images), dims), device=device) * 2 - 1
    scales = torch.exp((torch.rand(len(images), 1, 1, dtype=kind, device=device) * 2 - 1) * math.log1p(scaling))
    # Ranks of random numbers are a random order; a gap between axes of different length keeps each among its like.
    order = sorted(range(dims), key=lambda axis: size[axis])
    keys = keys + torch.tensor([2.0 * count for count in size], dtype=kind, device=device)
    ranks = keys.argsort(dim=1)
    exchange = torch.zeros(len(images), dims, dims, dtype=kind, device=device)
    exchange[:, order] = F.one_hot(ranks, dims).to(exchange)
    matrix = exchange * signs[..., None] * scales
    return torch.cat(
        [matrix - torch.eye(dims, dtype=kind, device=device), matrix.new_zeros(len(images), dims, 1)], dim=2
    )


def affine_field(maps: Tensor, ddf: Tensor) -> Tensor:
    """Displacement of affine maps at the points that another field leads to.

    Args:
        maps: (B, spatial_dims, spatial_dims + 1), see ``register_affine``.
        ddf: displacement field in voxels, (B, spatial_dims, *spatial); zeros for the field of the maps themselves.

    Returns:
        (B, spatial_dims, *spatial) in voxels: the map at x + ddf(x). Added to ``ddf`` it is the composition: an image
        warped by the map and then by ``ddf`` is the image warped by the sum.
    """
    size = ddf.shape[2:]
    return _field(maps, _positions(size, 1, size, ddf) + ddf)


class AffineRegistrationNet(RegistrationNet):
    """A registration network behind an affine registration in closed form.

    The affine map from ``moving`` to ``fixed`` is found by ``register_affine``; ``moving`` is warped by it; the network
    finds what remains; both are composed. Most of what misaligns two scans is affine, and the prediction has the
    contrast of the target, so that this part needs no learning. It is found anew for each pair and has no weights and
    no gradient: the generator learns through the warp, the network through its own part. Made with, and has the
    weights of, a ``RegistrationNet``.
    """

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The composed field, see ``RegistrationNet.forward``."""
        return self.in_parts(moving, fixed)[0]

    def in_parts(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The composed field, the network's own part of it, and what is to be known of the affine part.

        Args:
            moving: (B, in_channels, *spatial), intensities in [-1, 1].
            fixed: of the same shape.

        Returns:
            Two displacement fields (B, spatial_dims, *spatial) in voxels, and scalars by name, means over the batch:
            ``affine_displacement`` in voxels, ``affine_cost`` and ``identity_cost``, mean squared differences of the
            images with the affine map and without, and ``affine_rejected``, the share of maps that were rejected.

        Raises:
            ValueError: see ``RegistrationNet.forward``.
        """
        if moving.shape != fixed.shape:
            raise ValueError(
                f"{type(self).__name__} expects images of one shape, got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        maps, facts = register_affine(moving, fixed)
        still = maps.new_zeros(len(maps), self.spatial_dims, *moving.shape[2:])
        field = affine_field(maps, still)
        rest = super().forward(warp(moving.to(field.dtype), field), fixed)
        scalars = {
            "affine_displacement": torch.linalg.vector_norm(field, dim=1).mean(),
            "affine_cost": facts["cost"].mean(),
            "identity_cost": facts["identity_cost"].mean(),
            "affine_rejected": facts["rejected"].mean(),
        }
        return rest + affine_field(maps, rest), rest, scalars


def _descend(moving: Tensor, fixed: Tensor, found: Tensor, factor: int, size: Any, steps: int) -> Tensor:
    """Take some damped steps on one level; ``found`` is in voxels of full resolution, as is what is returned."""
    positions = _positions(moving.shape[2:], factor, size, moving)
    # Matrix and shift in units of half the image, so that all parameters weigh alike.
    half = max(size) / 2
    basis = torch.cat([positions / half, torch.ones_like(positions[:, :1])], dim=1)  # (1, dims + 1, *spatial)
    images = torch.cat([moving, *_gradients(moving)], dim=1)
    damping = found.new_full((len(found),), DAMPING)

    def look(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cost, normal matrix and right side at these maps."""
        parts = warp(images, _field(maps, positions) / factor).unflatten(1, (-1, moving.shape[1]))
        residual = parts[:, 0] - fixed  # (B, C, *spatial)
        # How each channel changes with each parameter: gradient along an axis times the basis.
        jacobian = torch.einsum("bac...,k...->bakc...", parts[:, 1:], basis[0]).flatten(3).flatten(1, 2)
        return (
            residual.square().flatten(1).mean(1),
            jacobian @ jacobian.mT,
            -(jacobian @ residual.flatten(1)[..., None])[..., 0],
        )

    cost, normal, right = look(found)
    for _ in range(steps):
        diagonal = normal.diagonal(dim1=1, dim2=2)
        # A flat image has no gradients: what is added keeps the matrix positive, the step is then zero.
        damped = normal + torch.diag_embed(damping[:, None] * diagonal + 1e-6 * diagonal.mean(1, keepdim=True) + 1e-12)
        factors = torch.linalg.cholesky_ex(damped).L  # unlike solve, does not ask the device whether it succeeded
        step = torch.cholesky_solve(right[..., None], factors)[..., 0].unflatten(1, (found.shape[1], -1))
        # In steps per unit of basis: matrix entries per half an image, shift in this level's voxels.
        step = torch.cat([step[..., :-1] / half, step[..., -1:]], dim=2) * factor
        proposal = found + step
        new_cost, new_normal, new_right = look(proposal)
        better = new_cost < cost  # never where it is NaN
        found = torch.where(better[:, None, None], proposal, found)
        cost = torch.where(better, new_cost, cost)
        normal = torch.where(better[:, None, None], new_normal, normal)
        right = torch.where(better[:, None], new_right, right)
        damping = torch.where(better, damping * EASE, damping * STRAIN).clamp(LEAST_DAMPING, MOST_DAMPING)
    return found


def _average(images: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return images
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return pool(images, factor)


def _gradients(images: Tensor) -> tuple[Tensor, ...]:
    """Central differences along each axis, zero along an axis of one voxel."""
    return tuple(
        torch.gradient(images, dim=axis)[0] if images.shape[axis] > 1 else torch.zeros_like(images)
        for axis in range(2, images.ndim)
    )


def _positions(level_size: Any, factor: int, size: Any, like: Tensor) -> Tensor:
    """Centres of a level's voxels, in voxels of full resolution from the image's centre, (1, dims, *level_size)."""
    axes = [
        (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * factor - full / 2
        for count, full in zip(level_size, size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def _field(maps: Tensor, positions: Tensor) -> Tensor:
    flat = positions.flatten(2)
    return (maps[:, :, :-1] @ flat + maps[:, :, -1:]).unflatten(2, positions.shape[2:])


def _cost(images: Tensor, others: Tensor) -> Tensor:
    return (images - others).square().flatten(1).mean(1)
