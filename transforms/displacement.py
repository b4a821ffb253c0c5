"""The mathematics of synthetic deformations: parameters, resampling, and the true displacement between two of them.

Geometry, used throughout: coordinates are voxels counted from the centre of the image. A deformed image is
`noisy(x) = clean(phi(x))` with the pull-back map `phi(x) = P (x + u(x))`. P is the inverse of "scale, rotate, then
shift"; u is a smooth displacement, a uniform cubic B-spline. Both are composed first and the image is resampled once,
linearly.

Parameters live on the host as a few numbers per image; only they travel to the device, and nothing comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms.utils import create_rotate
from torch.nn import functional as F

from transforms.scale import BACKGROUND

__all__ = ["Deformation", "deform", "true_displacement"]

INVERSION_STEPS = 15  # a contraction: at level 5 nothing but rounding is left after ten


@dataclass(frozen=True)
class Deformation:
    """The parameters of B deformations, independent of image size and device.

    Args:
        rotation: angles in degrees: (B, 1) in 2D, turning axis 0 towards axis 1 (the sense of `scipy.ndimage.rotate`);
            (B, 3) in 3D, about axes 0, 1 and 2 (as in `monai.transforms.utils.create_rotate`).
        shift: how far the content moves along each axis, as a fraction of the image size, (B, spatial_dims).
        scale: magnification, the same along all axes, above 0, (B,).
        control: coefficients of the B-spline displacement, (B, spatial_dims, *cells + 3), in units of the control-point
            spacing, with `cells` grid cells across the image; None for no such displacement.

    Raises:
        ValueError: when the shapes do not belong together or a scale is not above 0.
    """

    rotation: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    control: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.shift.ndim != 2 or self.spatial_dims not in (2, 3):
            raise ValueError(f"shift must have the shape (B, 2) or (B, 3), got {self.shift.shape}")
        expected = {"rotation": (self.batch, 1 if self.spatial_dims == 2 else 3), "scale": (self.batch,)}
        for name, shape in expected.items():
            actual = getattr(self, name).shape
            if actual != shape:
                raise ValueError(f"{name} must have the shape {shape} beside shift {self.shift.shape}, got {actual}")
        if not (self.scale > 0).all():
            raise ValueError(f"scale must lie above 0, got {self.scale.tolist()}")
        if self.control is not None:
            shape = self.control.shape
            if shape[:2] != self.shift.shape or len(shape) != 2 + self.spatial_dims or min(shape[2:]) < 4:
                raise ValueError(
                    f"control must have the shape {self.shift.shape} followed by {self.spatial_dims} axes of at least "
                    f"4 coefficients, got {shape}"
                )

    @property
    def batch(self) -> int:
        """Number of deformations, B."""
        return self.shift.shape[0]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.shift.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether none of the B deformations changes an image."""
        still = self.control is None or not self.control.any()
        return still and not self.rotation.any() and not self.shift.any() and bool((self.scale == 1).all())

    @classmethod
    def identity(cls, batch: int, spatial_dims: int = 2) -> Deformation:
        """Return B deformations that change nothing."""
        angles = 1 if spatial_dims == 2 else 3
        return cls(np.zeros((batch, angles)), np.zeros((batch, spatial_dims)), np.ones(batch))


def deform(image: torch.Tensor, deformation: Deformation, background: float = BACKGROUND) -> torch.Tensor:
    """Apply deformations to a batch of images in one linear resampling.

    Args:
        image: (B, C, *spatial), floating point, on any device. Deformation b moves all channels of image b.
        deformation: as many deformations as there are images.
        background: value outside the image.

    Returns:
        The deformed images, (B, C, *spatial), float32, on the device of `image`. The identity returns equal values.

    Raises:
        ValueError: when batch size or number of spatial dimensions differ.
        TypeError: when `image` is not floating point.
    """
    _check_image(image, deformation)
    if deformation.is_identity:
        return image.to(torch.float32, copy=True)
    shape = tuple(image.shape[2:])
    affine = _pull_back_affine(deformation, shape)
    displacement = _affine_displacement(affine, shape, image.device)
    smooth = _smooth_displacement(deformation, shape, image.device)
    if smooth is not None:
        displacement = displacement + _turn(affine, smooth)
    # grid_sample knows only zeros outside: lift the image so that the background is 0, which stays exact
    return _pull(image.to(torch.float32) - background, displacement, "zeros") + background


def true_displacement(
    source: Deformation,
    target: Deformation,
    spatial_shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Compute the field that a perfect registration finds between two deformed images of one anatomy.

    With `moving(x) = clean(phi_source(x))` and `fixed(x) = clean(phi_target(x))` it is the displacement d such that
    `moving(x + d(x)) = fixed(x)`, that is `d(x) = phi_source^-1(phi_target(x)) - x`. For RegGAN, moving is the perfect
    translation of the noisy source and fixed the noisy target. MONAI's `Warp` takes the field as it is.

    The affine part is inverted exactly. A smooth displacement of the source is inverted by fixed-point iteration on its
    field, interpolated linearly between voxels: at level 5 with the default control grid the error stays below 0.02
    voxel, as far as x + d(x) stays inside the image. Outside of it there is nothing to line up.

    Args:
        source: deformations of the source images.
        target: deformations of the target images, as many.
        spatial_shape: size of the images.
        device: where the field is computed.

    Returns:
        (B, spatial_dims, *spatial) in voxels, channel i along axis i, pull-back, float32.

    Raises:
        ValueError: when batch size or number of spatial dimensions differ.
    """
    shape = tuple(int(size) for size in spatial_shape)
    dims, device = source.spatial_dims, torch.device(device)
    if (target.batch, target.spatial_dims) != (source.batch, dims) or len(shape) != dims:
        raise ValueError(
            f"source, target and spatial_shape must agree: {source.batch} deformations in {dims}D, {target.batch} in "
            f"{target.spatial_dims}D, shape {shape}"
        )
    if source is target:  # both moved together: nothing to line up
        return torch.zeros(source.batch, dims, *shape, device=device)
    affine = np.linalg.inv(_pull_back_affine(source, shape)) @ _pull_back_affine(target, shape)
    wanted = _affine_displacement(affine, shape, device)
    smooth_target = _smooth_displacement(target, shape, device)
    if smooth_target is not None:
        wanted = wanted + _turn(affine, smooth_target)
    smooth_source = _smooth_displacement(source, shape, device)
    if smooth_source is None:
        return wanted
    found = wanted
    for _ in range(INVERSION_STEPS):
        found = wanted - _pull(smooth_source, found, "border")
    return found


def _check_image(image: torch.Tensor, deformation: Deformation) -> None:
    dims = deformation.spatial_dims
    if image.ndim != dims + 2:
        raise ValueError(f"image must have the shape (B, C, *spatial) in {dims}D, got {tuple(image.shape)}")
    if image.shape[0] != deformation.batch:
        raise ValueError(
            f"there must be one deformation per image, got {deformation.batch} for {image.shape[0]} images"
        )
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point to be resampled, got {image.dtype}")


def _pull_back_affine(deformation: Deformation, shape: tuple[int, ...]) -> np.ndarray:
    """Return P as (B, d + 1, d + 1) on centred voxel coordinates, float64, on the host."""
    dims = deformation.spatial_dims
    forward = np.stack([create_rotate(dims, tuple(angles)) for angles in np.deg2rad(deformation.rotation)])
    forward[:, :dims, :dims] *= deformation.scale[:, None, None]
    forward[:, :dims, dims] = deformation.shift * np.array(shape)
    return np.linalg.inv(forward)


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    # CUDA reads ordinary host memory before the call returns, yet does not wait for its stream; others promise neither
    return tensor.to(device, non_blocking=device.type == "cuda")


def _centred(shape: tuple[int, ...], device: torch.device) -> list[torch.Tensor]:
    """Return the centred coordinate along each axis, shaped to broadcast over (B, *spatial)."""
    dims = len(shape)
    return [
        (torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2).view(-1, *(1,) * (dims - 1 - axis))
        for axis, size in enumerate(shape)
    ]


def _affine_displacement(affine: np.ndarray, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return A x - x in voxels, (B, d, *spatial)."""
    dims = len(shape)
    change = _to_device(affine[:, :dims] - np.eye(dims, dims + 1), device)
    change = change.view(*change.shape, *(1,) * dims)
    field = change[:, :, dims]
    for axis, coordinate in enumerate(_centred(shape, device)):
        field = field + change[:, :, axis] * coordinate
    return field


def _turn(affine: np.ndarray, field: torch.Tensor) -> torch.Tensor:
    """Multiply every displacement of a field by the linear part of an affine map."""
    dims = field.shape[1]
    return torch.einsum("bij,bj...->bi...", _to_device(affine[:, :dims, :dims], field.device), field)


def _smooth_displacement(deformation: Deformation, shape: tuple[int, ...], device: torch.device) -> torch.Tensor | None:
    """Evaluate u at every voxel, (B, d, *spatial) in voxels; None where the deformation has none."""
    if deformation.control is None:
        return None
    dims = len(shape)
    cells = [points - 3 for points in deformation.control.shape[2:]]
    spacing = np.array(shape) / np.array(cells)
    field = _to_device(deformation.control * spacing.reshape(1, dims, *(1,) * dims), device)
    for axis, (size, count) in enumerate(zip(shape, cells, strict=True), start=2):
        field = torch.movedim(torch.movedim(field, axis, -1) @ _cubic_basis(size, count, device).T, -1, axis)
    return field.contiguous()


def _cubic_basis(size: int, cells: int, device: torch.device) -> torch.Tensor:
    """Return the weights of the `cells + 3` uniform cubic B-splines at each voxel centre, (size, cells + 3)."""
    position = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (cells / size)
    distance = (position[:, None] - torch.arange(-1, cells + 2, device=device)).abs()
    return (F.relu(2 - distance) ** 3 - 4 * F.relu(1 - distance) ** 3) / 6


def _pull(image: torch.Tensor, displacement: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """Sample an image linearly at x + displacement(x).

    MONAI's `Warp` does so for networks; it has no background but 0, and rounds more, since it divides by size - 1.
    """
    shape = tuple(displacement.shape[2:])
    # without aligned corners a voxel is 2 / size wide, so that an axis of one voxel is no special case
    axes = [
        (displacement[:, axis] + coordinate) * (2 / shape[axis])
        for axis, coordinate in enumerate(_centred(shape, image.device))
    ]
    grid = torch.stack(axes[::-1], dim=-1)  # grid_sample takes the last axis first
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)
