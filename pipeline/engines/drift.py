"""How far a generator moves, turns or sizes what it translates, without a target: by what it does to moved sources.

Where G translates and moves nothing, it commutes with any motion P of the image: G(Px) = P G(x). Where G also moves its
output by an affine map, both differ by an affine map that follows from it, and their contrast is one, whatever G does
to intensities. So it is found by registering the two, for several P, and solving for the map that explains them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.metrics import foreground_mask
from pipeline.networks import warp
from pipeline.networks.affine import affine_field, register_affine

SCALINGS = (0.9, 1.1)
SHIFT = 1 / 8
"""Of the image's size along each axis, to whole voxels."""
NEWTON = 4  # steps of the solution; a turn of 5 degrees is exact to 0.001 pixels after three


@dataclass(frozen=True)
class Motion:
    """A motion P of images about their centre: (Px)(p) = x(linear p + shift), p in voxels from the centre.

    Attributes:
        linear: (dims, dims).
        shift: (dims,), in voxels.
        kind: "flip", "turn", "scale" or "shift".
    """

    linear: Tensor
    shift: Tensor
    kind: str

    def apply(self, images: Tensor) -> Tensor:
        """Move images (B, C, *spatial); flips, turns and shifts are exact. Beyond the border they go on as it is."""
        dims = images.ndim - 2
        if self.kind == "scale":
            maps = torch.zeros(len(images), dims, dims + 1, device=images.device, dtype=images.dtype)
            maps[:, :, :-1] = (self.linear - torch.eye(dims)).to(images)
            still = images.new_zeros(len(images), dims, *images.shape[2:])
            return warp(images, affine_field(maps, still))
        if self.kind == "shift":
            return _shifted(images, [round(step) for step in self.shift.tolist()])
        source = self.linear.abs().argmax(0).tolist()  # the axis of x that each axis of Px runs along
        turned = images.permute(0, 1, *(axis + 2 for axis in source))
        signs = [self.linear[axis, place].item() for place, axis in enumerate(source)]
        return turned.flip([place + 2 for place, sign in enumerate(signs) if sign < 0])


def motions(size: Sequence[int]) -> list[Motion]:
    """The motions that drift is found by: flips, turns by a quarter and a half, scalings, and shifts.

    Args:
        size: of the images, 2D or 3D.
    """
    dims = len(size)
    still, straight = torch.zeros(dims), torch.eye(dims)
    found = []
    for axis in range(dims):
        flip = straight.clone()
        flip[axis, axis] = -1
        found.append(Motion(flip, still, "flip"))
    for first, second in itertools.combinations(range(dims), 2):
        quarter = straight.clone()
        quarter[first, first] = quarter[second, second] = 0
        quarter[first, second], quarter[second, first] = -1, 1
        found += [Motion(torch.linalg.matrix_power(quarter, turns), still, "turn") for turns in (1, 2, 3)]
    found += [Motion(straight * factor, still, "scale") for factor in SCALINGS]
    for axis, length in enumerate(size):
        step = still.clone()
        step[axis] = max(1, round(length * SHIFT))
        found += [Motion(straight, sign * step, "shift") for sign in (1, -1)]
    return found


def _shifted(images: Tensor, steps: Sequence[int]) -> Tensor:
    """x(p + steps); beyond the border it goes on with its border values, as ``warp`` does."""
    for axis, step in enumerate(steps, start=2):
        length = images.shape[axis]
        places = (torch.arange(length, device=images.device) + step).clamp(0, length - 1)
        images = images.index_select(axis, places)
    return images


def differences(
    translate: Callable[[Tensor], Tensor], source: Tensor, pred: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How G(Px) and P G(x) differ, for each motion.

    Args:
        translate: G, takes and returns images (B, C, *spatial).
        source: x.
        pred: G(x), if it is there.

    Returns:
        Maps (motions, B, dims, dims + 1), pull-back, as `register_affine` gives them, that take P G(x) onto G(Px); and
        the mean absolute difference of intensities (motions, B).
    """
    pred = translate(source) if pred is None else pred
    maps, errors = [], []
    for motion in motions(source.shape[2:]):
        moved, expected = translate(motion.apply(source)).float(), motion.apply(pred).float()
        maps.append(register_affine(expected, moved)[0])
        errors.append((moved - expected).abs().flatten(1).mean(1))
    return torch.stack(maps), torch.stack(errors)


def solve(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The affine map by which a generator moves its output, out of how G(Px) and P G(x) differ.

    Flips and turns turn the map round and so show its shift, turn and shear; its size commutes with them (and with
    scalings), and is what shifts show. Least squares, linear terms weighed by a quarter of the image's size, then
    Newton's steps.

    Args:
        maps: of `differences`, (motions, B, dims, dims + 1).
        size: of the images.

    Returns:
        (B, dims, dims + 1): where G puts what should be at a point p, in voxels from the image's centre, less p, is
        ``map[:, :, :-1] @ p + map[:, :, -1]``.
    """
    dims, used = len(size), [motion for motion in motions(size) if motion.kind != "scale"]
    weights = torch.ones(dims + 1, dtype=torch.float64)
    weights[:dims] = min(size) / 4

    def rows(shown: Sequence[Tensor]) -> Tensor:
        """What is fitted, of the map of each motion."""
        parts = [
            _unfollowed(motion, found)[None] * weights[0] if motion.kind == "shift" else (found * weights).flatten()
            for motion, found in zip(used, shown, strict=True)
        ]
        return torch.cat(parts)

    def expected(drift: Tensor) -> Tensor:
        """The same of a drift in weighed units, pull-back."""
        return rows([_shown(motion, drift.view(dims, dims + 1) / weights) for motion in used])

    kinds = [motion.kind != "scale" for motion in motions(size)]
    measured = maps[kinds].cpu().double().transpose(0, 1)
    targets = torch.stack([rows(list(case)) for case in measured])
    found = torch.zeros(len(targets), dims * (dims + 1), dtype=torch.float64)
    back = torch.linalg.pinv(torch.autograd.functional.jacobian(expected, found.new_zeros(found.shape[1])))
    for _ in range(NEWTON):
        found = found + (targets - torch.stack([expected(drift) for drift in found])) @ back.T
    pulled = found.unflatten(1, (dims, dims + 1)) / weights
    straight = torch.eye(dims, dtype=torch.float64)
    forward = torch.linalg.inv(pulled[:, :, :-1] + straight)
    return torch.cat([forward - straight, -forward @ pulled[:, :, -1:]], dim=2).to(maps)


def drift(translate: Callable[[Tensor], Tensor], source: Tensor, pred: Tensor | None = None) -> dict[str, Tensor]:
    """Drift of each image, by the names of the catalogue's metrics.

    Args:
        translate: G, takes and returns images (B, C, *spatial).
        source: x, in [-1, 1]; its foreground is where displacements are averaged.
        pred: G(x), if it is there.

    Returns:
        Each (B,): ``drift``, mean displacement in voxels by shift, turn and shear; ``drift_shift``, at the image's
        centre; ``drift_turn`` in degrees, in 2D of axis 0 towards axis 1, in 3D without sign; ``drift_size``, by how
        much larger the output is, which no flip and no turn shows: it is told from how G follows shifts, so that a
        generator that pulls everything towards one place looks like one that makes it smaller; ``drift_scaling``,
        the share of a scaling of the source that G does not follow; ``equivariance``, mean |G(Px) - P G(x)|.
    """
    size = source.shape[2:]
    maps, errors = differences(translate, source, pred)
    moved = solve(maps, size)
    dims = len(size)
    forward = moved[:, :, :-1] + torch.eye(dims, device=moved.device)
    larger = torch.linalg.det(forward).abs() ** (1 / dims)
    kept = torch.cat([forward / larger[:, None, None] - torch.eye(dims, device=moved.device), moved[:, :, -1:]], dim=2)
    scalings = [
        -maps[place, :, :, :-1].diagonal(dim1=1, dim2=2).mean(1) / (float(motion.linear[0, 0]) - 1)
        for place, motion in enumerate(motions(size))
        if motion.kind == "scale"
    ]
    return {
        "drift": mean_displacement(kept, source),
        "drift_shift": torch.linalg.vector_norm(moved[:, :, -1], dim=1),
        "drift_turn": _turn(forward / larger[:, None, None]).rad2deg(),
        "drift_size": larger - 1,
        "drift_scaling": torch.stack(scalings).mean(0),
        "equivariance": errors.mean(0),
    }


def mean_displacement(maps: Tensor, source: Tensor) -> Tensor:
    """Mean length of affine displacements over the foreground of an image.

    Args:
        maps: (B, dims, dims + 1), see `solve`.
        source: (B, C, *spatial).

    Returns:
        (B,) in voxels; nan where there is no foreground.
    """
    mask = foreground_mask(source).any(1)
    still = maps.new_zeros(len(maps), maps.shape[1], *source.shape[2:])
    lengths = torch.linalg.vector_norm(affine_field(maps, still), dim=1)
    return torch.where(mask, lengths, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def _turn(rotation: Tensor) -> Tensor:
    """Angle of matrices (B, dims, dims) that are nearly rotations."""
    if rotation.shape[1] == 2:
        return torch.atan2(rotation[:, 1, 0] - rotation[:, 0, 1], rotation[:, 0, 0] + rotation[:, 1, 1])
    left, _, right = torch.linalg.svd(rotation)
    trace = (left @ right).diagonal(dim1=1, dim2=2).sum(1)
    return torch.acos(((trace - 1) / 2).clamp(-1, 1))


def _unfollowed(motion: Motion, shown: Tensor) -> Tensor:
    """The share of a shift that lacks in how G(Px) moves."""
    step = motion.shift.double()
    return -(shown[:, -1] @ step) / step.square().sum()


def _shown(motion: Motion, drift: Tensor) -> Tensor:
    """The map that takes P G(x) onto G(Px) where G pulls its output by this map: both are (dims, dims + 1)."""
    linear, shift = motion.linear.double(), motion.shift.double()
    straight = torch.eye(len(drift), dtype=torch.float64)
    moved, by = drift[:, :-1] + straight, drift[:, -1]
    inverse = torch.linalg.inv(moved @ linear)
    still = torch.linalg.inv(linear) @ shift
    return torch.cat(
        [inverse @ linear @ moved - straight, (inverse @ (linear @ by - by + shift) - still)[:, None]], dim=1
    )
