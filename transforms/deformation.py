"""Synthetic deformation noise: aligned pairs become misaligned, by a known amount.

The noise of Kong et al., NeurIPS 2021 (arXiv 2110.06465): rotation, shift and scaling that grow with a level from 0 to
5, drawn independently for source and target, and in the non-affine kind a smooth random displacement on top.

Drawing is apart from applying: a `Deformation` that was drawn can be kept and applied again, to other images too.
MONAI's `RandAffine` and `Rand2DElastic` take one image at a time; these transforms also take a batch where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep

from transforms.displacement import Deformation, deform, true_displacement
from transforms.scale import BACKGROUND

__all__ = ["MAX_NOISE_LEVEL", "NOISE_KINDS", "DeformationNoise", "RandDeformationNoised"]

NOISE_KINDS = ("affine", "nonaffine")
MAX_NOISE_LEVEL = 5.0
ROTATION_PER_LEVEL = 1.0  # degrees
SHIFT_PER_LEVEL = 0.02  # of the image size along each axis
SCALE_PER_LEVEL = 0.02
DEFAULT_AMPLITUDE = 0.03  # of the local part


class DeformationNoise(Randomizable, Transform):
    """Draw and apply random deformations of one noise level (array form).

    At level L: rotation uniform in [-L, L] degrees (in 3D about every axis), shift uniform in [-2L %, 2L %] of the
    image size along each axis, scaling uniform in [1 - 0.02 L, 1 + 0.02 L], the same along all axes. Level 0 draws at
    level 1: it is the augmentation that `RandDeformationNoised` applies alike to source and target.

    Kind "nonaffine" adds a cubic B-spline displacement with coefficients uniform in [-a L, a L] control-point spacings,
    a = `amplitude`. No partial derivative of such a spline exceeds twice its largest coefficient, so with
    `2 * spatial_dims * a * L < 1` the displacement is a contraction: nothing folds and the inverse exists. The
    constructor demands it. The default reaches 0.15 spacings at level 5 (the bounds are 1/4 in 2D and 1/6 in 3D): over
    256 pixels with 4 cells, coefficients of up to 9.6 pixels and displacements of about 3, at most 7 or so.

    Args:
        level: noise level in [0, 5], whole or not.
        kind: "affine" or "nonaffine".
        spatial_dims: 2 or 3.
        control_cells: cells of the control-point grid across the image, one number or one per axis, at least 1.
        amplitude: largest spline coefficient at level 1, in control-point spacings.
        background: value outside the image.

    Attributes:
        deformation: what was drawn last.
        part: see `RandDeformationNoised`.

    Raises:
        ValueError: when an argument lies outside its range.
    """

    def __init__(
        self,
        level: float,
        kind: str = "affine",
        spatial_dims: int = 2,
        control_cells: int | Sequence[int] = 4,
        amplitude: float = DEFAULT_AMPLITUDE,
        background: float = BACKGROUND,
    ) -> None:
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 <= level <= MAX_NOISE_LEVEL:
            raise ValueError(f"noise_level must lie in [0, {MAX_NOISE_LEVEL:g}], got {level!r}")
        if kind not in NOISE_KINDS:
            raise ValueError(f"noise_kind must be one of {', '.join(NOISE_KINDS)}, got {kind!r}")
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
        self.level = float(level)
        self.kind = kind
        self.spatial_dims = spatial_dims
        self.background = float(background)
        self.control_cells = ensure_tuple_rep(control_cells, spatial_dims)
        if not all(isinstance(cells, int) and cells >= 1 for cells in self.control_cells):
            raise ValueError(f"control_cells must be whole numbers of at least 1, got {control_cells!r}")
        self.amplitude = float(amplitude)
        self._check_amplitude()
        self.part = (0, 1)
        self.deformation = Deformation.identity(1, spatial_dims)

    @property
    def _strength(self) -> float:
        return self.level or 1.0

    def _check_amplitude(self) -> None:
        if not (math.isfinite(self.amplitude) and self.amplitude >= 0):
            raise ValueError(f"amplitude must be a number of at least 0, got {self.amplitude}")
        bound = 1 / (2 * self.spatial_dims)
        if self.kind == "nonaffine" and self.amplitude * self._strength >= bound:
            raise ValueError(
                f"amplitude * level must stay below {bound:.4g} in {self.spatial_dims}D, or images may fold: got "
                f"{self.amplitude} * {self._strength:g} = {self.amplitude * self._strength:.4g}"
            )

    def sample(self, batch: int) -> Deformation:
        """Draw independent deformations.

        Args:
            batch: how many, at least 1.

        Returns:
            `batch` deformations; a few numbers on the host.

        Raises:
            ValueError: when `batch` is below 1.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")

        number, of = self.part

        def uniform(per_level: float, *shape: int) -> np.ndarray:
            largest = per_level * self._strength
            return self.R.uniform(-largest, largest, size=(of * batch, *shape))[number::of]

        dims = self.spatial_dims
        rotation = uniform(ROTATION_PER_LEVEL, 1 if dims == 2 else 3)
        shift = uniform(SHIFT_PER_LEVEL, dims)
        scale = 1 + uniform(SCALE_PER_LEVEL)
        control = None
        if self.kind == "nonaffine":
            control = uniform(self.amplitude, dims, *(cells + 3 for cells in self.control_cells))
        return Deformation(rotation, shift, scale, control)

    def randomize(self, data: int) -> None:
        """Draw for a batch of `data` images and keep the draw as `deformation`."""
        self.deformation = self.sample(data)

    def apply(self, image: NdarrayOrTensor, deformation: Deformation) -> NdarrayOrTensor:
        """Apply deformations drawn before.

        Args:
            image: a batch (B, C, *spatial) or one image (C, *spatial), floating point; array, tensor or MetaTensor. The
                affine of a MetaTensor stays: a misaligned scan does not know that it is.
            deformation: one per image.

        Returns:
            The deformed image, with the type, shape, dtype and device of `image`.

        Raises:
            ValueError: when the number of dimensions or the batch size does not fit.
            TypeError: when `image` is not floating point.
        """
        single = self.batch_size(image) is None
        tensor = convert_to_tensor(image, track_meta=False)
        moved = deform(tensor[None] if single else tensor, deformation, self.background)
        return convert_to_dst_type(moved[0] if single else moved, dst=image)[0]

    def batch_size(self, image: NdarrayOrTensor) -> int | None:
        """Return B of a batch (B, C, *spatial), or None for one image (C, *spatial).

        Raises:
            ValueError: when `image` is neither.
        """
        extra = image.ndim - self.spatial_dims
        if extra not in (1, 2):
            raise ValueError(
                f"image must be (C, *spatial) or (B, C, *spatial) in {self.spatial_dims}D, got the shape "
                f"{tuple(image.shape)}"
            )
        return int(image.shape[0]) if extra == 2 else None

    def __call__(self, image: NdarrayOrTensor) -> NdarrayOrTensor:
        """Draw and apply; see `apply`."""
        self.randomize(self.batch_size(image) or 1)
        return self.apply(image, self.deformation)


class RandDeformationNoised(Randomizable, MapTransform):
    """Dictionary form of `DeformationNoise`: a deformation of its own for every key and image.

    Level 0 draws one level-1 deformation per image and applies it to every key: augmentation without misalignment.

    Args:
        keys: items to deform, all batches (B, C, *spatial) or all single (C, *spatial); source first, target second.
        level: noise level in [0, 5].
        kind: "affine" or "nonaffine".
        spatial_dims: 2 or 3.
        return_displacement: also write the field that lines the source up with the target (`true_displacement`):
            (B, spatial_dims, *spatial) in voxels, or without B for a single sample. Takes exactly two keys.
        displacement_key: where that field goes.
        part: (number, of): each batch is the part with that number of a larger one, every ``of``-th image of it, for
            which is drawn as a whole; so many processes that share batches draw what one draws.
        control_cells: see `DeformationNoise`.
        amplitude: see `DeformationNoise`.
        background: value outside the images.
        allow_missing_keys: pass over keys that the dictionary does not have.

    Attributes:
        deformations: what was drawn last, by key; `noise.apply` replays it.

    Raises:
        ValueError: when an argument lies outside its range.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        level: float = 0.0,
        kind: str = "affine",
        spatial_dims: int = 2,
        return_displacement: bool = False,
        displacement_key: str = "true_ddf",
        part: Sequence[int] = (0, 1),
        control_cells: int | Sequence[int] = 4,
        amplitude: float = DEFAULT_AMPLITUDE,
        background: float = BACKGROUND,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.noise = DeformationNoise(level, kind, spatial_dims, control_cells, amplitude, background)
        number, of = part
        if not 0 <= number < of:
            raise ValueError(f"part must be (number, of) with 0 <= number < of, got {tuple(part)}")
        self.noise.part = (number, of)
        if return_displacement and len(self.keys) != 2:
            raise ValueError(f"return_displacement takes two keys, source and target, got {self.keys}")
        self.return_displacement = return_displacement
        self.displacement_key = displacement_key
        self.deformations: dict[Hashable, Deformation] = {}

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandDeformationNoised:
        """Set `R`, the one random state of all draws."""
        super().set_random_state(seed, state)
        self.noise.set_random_state(state=self.R)
        return self

    def randomize(self, data: int) -> None:
        """Draw for `data` images of every key, and keep the draws as `deformations`."""
        if self.noise.level == 0:
            self.deformations = dict.fromkeys(self.keys, self.noise.sample(data))
        else:
            self.deformations = {key: self.noise.sample(data) for key in self.keys}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Deform a sample or a collated batch; other keys pass untouched.

        Raises:
            KeyError: when a key is missing and `allow_missing_keys` is not set.
            ValueError: when the shapes of the keys do not fit together.
        """
        items = dict(data)
        present = list(self.key_iterator(items))
        shapes = {key: tuple(items[key].shape) for key in present}
        batches = {self.noise.batch_size(items[key]) for key in present}
        if len(batches) > 1:
            raise ValueError(f"all keys must hold batches of one size, or single images, got the shapes {shapes}")
        batch = batches.pop() if batches else None
        self.randomize(batch or 1)
        for key in present:
            items[key] = self.noise.apply(items[key], self.deformations[key])
        if self.return_displacement:
            field = self._true_displacement(items)
            items[self.displacement_key] = field[0] if batch is None else field
        return items

    def _true_displacement(self, items: Mapping[Hashable, Any]) -> torch.Tensor:
        sizes = [tuple(items[key].shape[-self.noise.spatial_dims :]) for key in self.keys]
        if sizes[0] != sizes[1]:
            raise ValueError(f"return_displacement takes source and target of one size, got {sizes[0]} and {sizes[1]}")
        source, target = (self.deformations[key] for key in self.keys)
        return true_displacement(source, target, sizes[0], torch.as_tensor(items[self.keys[0]]).device)
