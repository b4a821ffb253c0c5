"""Volumes onto the grid of the networks and back, and slices out of volumes and back.

Orientation and voxel spacing are MONAI's ``Orientationd`` and ``Spacingd``; here is what MONAI leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.transforms.utils import create_translate, scale_affine
from monai.utils import TraceKeys, TransformBackends, convert_to_tensor

__all__ = [
    "CROPPED_KEY",
    "UNMEASURED_KEY",
    "ResampleInPlane",
    "ResampleInPlaned",
    "extract_slices",
    "foreground_shares",
    "nonempty_slices",
    "stack_slices",
]


UNMEASURED_KEY = "unmeasured"
"""Entry of an image's metadata, true where nobody knows the size of its voxels."""
CROPPED_KEY = "cropped"
"""Entry of an image's metadata: the share of what it shows that was cut off."""


def _check_slice_axis(slice_axis: int) -> int:
    """Return ``slice_axis``, refusing anything but 0, 1 or 2."""
    if slice_axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
    return int(slice_axis)


def _check_volume(image: torch.Tensor) -> None:
    """Refuse everything but a channel-first volume."""
    if image.ndim != 4:
        raise ValueError(f"expected a volume of shape (C, H, W, D), got {tuple(image.shape)}")


class ResampleInPlane(InvertibleTransform):
    """Bring the slices of a volume to one size; the number of slices stays.

    Each slice is padded around its centre, then resized with linear interpolation; where that shrinks it, the kernel
    widens with the factor, so that nothing is aliased. The affine follows. How far it is padded depends on ``spacing``:

    - a number: to as many millimetres as ``spatial_size`` pixels of that size are, so that a pixel means the same in
      every volume (but for half a voxel of its file over the whole width). What reaches beyond is cut off with
      ``crop``, which ``meta["cropped"]`` tells as a share of what lies above the padding value; without ``crop`` the
      result is larger than ``spatial_size``.
    - None, or where ``meta["unmeasured"]`` says that nobody knows the size of the voxels: to the proportions of
      ``spatial_size``, counted in voxels: the slice fills the image.

    The inverse gives back shape and affine, with linear interpolation whatever ``nearest_interp`` of ``Invertd`` says.

    Args:
        spatial_size: in-plane size ``(h, w)`` of the result, along the two remaining axes in their order.
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        padding_value: intensity outside the image.
        spacing: size of a pixel in mm along both axes, or None. A plain tensor has voxels of 1 mm.
        crop: whether to cut off what does not fit.

    Raises:
        ValueError: an argument out of range, or (when called) no volume ``(C, H, W, D)``.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's convention)

    def __init__(
        self,
        spatial_size: Sequence[int],
        slice_axis: int = 2,
        padding_value: float = -1.0,
        spacing: float | None = None,
        crop: bool = True,
    ) -> None:
        if isinstance(spatial_size, int) or len(spatial_size) != 2 or any(int(n) != n or n < 1 for n in spatial_size):
            raise ValueError(f"spatial_size must be two positive integers (h, w), got {spatial_size}")
        if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"spacing must be a positive number of mm, got {spacing}")
        self.spatial_size = (int(spatial_size[0]), int(spatial_size[1]))
        self.slice_axis = _check_slice_axis(slice_axis)
        self.padding_value = float(padding_value)
        self.spacing = None if spacing is None else float(spacing)
        self.crop = crop
        self.in_plane = tuple(axis for axis in range(3) if axis != self.slice_axis)

    def place(self, shape: Sequence[int], voxel: Sequence[float] | None) -> tuple[list[tuple[int, int]], list[int]]:
        """Return how far a volume is padded, and the size to which its slices are resized then.

        Args:
            shape: spatial shape of the volume.
            voxel: size of its voxels in mm along its axes; None where it is not known.

        Returns:
            Voxels (before, after) along the three axes, negative where they are cut off; and the size (h, w).
        """
        size = list(self.spatial_size)
        lengths = [shape[axis] for axis in self.in_plane]
        if self.spacing is None or voxel is None:
            factor = max(length / count for length, count in zip(lengths, size, strict=True))
            padded = [max(round(count * factor), length) for count, length in zip(size, lengths, strict=True)]
        else:
            per_pixel = [self.spacing / voxel[axis] for axis in self.in_plane]
            if not self.crop:
                # The tolerance is for a length that fits but for rounding.
                fitting = [math.ceil(n / factor - 1e-3) for n, factor in zip(lengths, per_pixel, strict=True)]
                size = [max(pair) for pair in zip(size, fitting, strict=True)]
            padded = [max(round(count * factor), 1) for count, factor in zip(size, per_pixel, strict=True)]
        widths = [(0, 0)] * 3
        for axis, length, count in zip(self.in_plane, lengths, padded, strict=True):
            missing = count - length
            widths[axis] = (missing // 2, missing - missing // 2)
        return widths, size

    def _slices(self, image: torch.Tensor, widths: Sequence[tuple[int, int]]) -> torch.Tensor:
        """The slices (N, C, h, w) of a plain volume, padded or, where widths are negative, cut off.

        They are counted from the padding value: the weights of a pixel in resizing add up to 1 but for rounding, and so
        the background, which is zero, stays what it is to the last bit. They lie in memory one after the other, since
        resizing strides through each many times.
        """
        view = extract_slices(image, self.slice_axis)
        pairs = [widths[axis] for axis in self.in_plane]
        lengths = [length + before + after for length, (before, after) in zip(view.shape[2:], pairs, strict=True)]
        padded = max(max(pair) for pair in pairs) > 0
        slices = (view.new_zeros if padded else view.new_empty)((*view.shape[:2], *lengths))
        source, place = view, slices
        for axis, (before, after) in enumerate(pairs, 2):
            first, last = max(-before, 0), view.shape[axis] - max(-after, 0)
            source = source.narrow(axis, first, last - first)
            place = place.narrow(axis, max(before, 0), last - first)
        torch.sub(source, self.padding_value, out=place)
        return slices

    def _resize(self, slices: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Slices counted from the padding value, resized to ``size``, as they are."""
        # monai.transforms.Resize would smooth with three dense 3D convolutions: the same picture, far slower.
        resized = F.interpolate(slices, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
        return resized.add_(self.padding_value)

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Resample one volume ``(C, H, W, D)``; the result is float32."""
        image = convert_to_tensor(img, dtype=torch.float32, track_meta=get_track_meta())
        _check_volume(image)
        is_tracked = isinstance(image, MetaTensor)
        plain = convert_to_tensor(image, track_meta=False)
        measured = is_tracked and not image.meta.get(UNMEASURED_KEY, False)
        voxel = image.affine[:3, :3].norm(dim=0).tolist() if measured else None
        widths, size = self.place(plain.shape[1:], voxel)
        slices = self._slices(plain, widths)
        padded = [length + before + after for length, (before, after) in zip(plain.shape[1:], widths, strict=True)]
        resized = stack_slices(self._resize(slices, size), self.slice_axis)
        if not is_tracked:
            return resized
        result = MetaTensor(resized, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        if min(min(pair) for pair in widths) < 0:
            filled = max(int((plain > self.padding_value).sum()), 1)
            result.meta[CROPPED_KEY] = 1 - int((slices > 0).sum()) / filled
        return self.push_transform(
            result,
            affine=create_translate(3, [-before for before, _ in widths])
            @ scale_affine(tuple(padded), tuple(resized.shape[1:])),
            extra_info={"widths": widths, "padded": padded, "affine": image.affine},
        )

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Return ``data`` on the grid that the volume had before; what was cut off is filled with the padding value."""
        info = self.pop_transform(data)[TraceKeys.EXTRA_INFO]
        slices = self._slices(convert_to_tensor(data, track_meta=False), [(0, 0)] * 3)
        slices = self._resize(slices, [int(info["padded"][axis]) for axis in self.in_plane])
        for axis, place in enumerate(self.in_plane, 2):
            before, after = (max(int(width), 0) for width in info["widths"][place])
            slices = slices.narrow(axis, before, slices.shape[axis] - before - after)
        lost = [max(-int(width), 0) for axis in reversed(self.in_plane) for width in info["widths"][axis]]
        if any(lost):
            slices = F.pad(slices, lost, value=self.padding_value)
        # As the slices lie in memory: to turn a large volume round there takes longer than to resize it.
        volume = slices.movedim(0, self.slice_axis + 1)
        if not isinstance(data, MetaTensor):
            return volume
        result = MetaTensor(volume, meta=dict(data.meta), applied_operations=list(data.applied_operations))
        result.affine = info["affine"]
        return result


class ResampleInPlaned(MapTransform, InvertibleTransform):
    """Dictionary form of `ResampleInPlane`.

    Args:
        keys: keys of the volumes.
        spatial_size: see `ResampleInPlane`.
        slice_axis: see `ResampleInPlane`.
        padding_value: see `ResampleInPlane`.
        spacing: see `ResampleInPlane`.
        crop: see `ResampleInPlane`.
        allow_missing_keys: whether keys may be missing.
    """

    backend = ResampleInPlane.backend

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        slice_axis: int = 2,
        padding_value: float = -1.0,
        spacing: float | None = None,
        crop: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resampler = ResampleInPlane(spatial_size, slice_axis, padding_value, spacing, crop)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Resample every key of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resampler(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Return every key of ``data`` on its former grid."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resampler.inverse(d[key])
        return d


def extract_slices(image: NdarrayOrTensor, slice_axis: int = 2) -> torch.Tensor:
    """Return the slices of a volume as a batch.

    Args:
        image: volume ``(C, H, W, D)``.
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.

    Returns:
        Plain tensor ``(N, C, h, w)``, N the length of ``slice_axis``; a view of ``image`` where that is a tensor.

    Raises:
        ValueError: ``image`` is no volume, or ``slice_axis`` is out of range.
    """
    volume = convert_to_tensor(image, track_meta=False)
    _check_volume(volume)
    return volume.movedim(_check_slice_axis(slice_axis) + 1, 0)


def stack_slices(slices: NdarrayOrTensor, slice_axis: int = 2) -> torch.Tensor:
    """Put slices together to a volume: the inverse of `extract_slices`.

    Args:
        slices: batch ``(N, C, h, w)``.
        slice_axis: spatial axis (0, 1 or 2) along which they lie in the volume.

    Returns:
        Plain tensor ``(C, H, W, D)``, contiguous.

    Raises:
        ValueError: ``slices`` has not four dimensions, or ``slice_axis`` is out of range.
    """
    batch = convert_to_tensor(slices, track_meta=False)
    if batch.ndim != 4:
        raise ValueError(f"expected slices of shape (N, C, h, w), got {tuple(batch.shape)}")
    return batch.movedim(0, _check_slice_axis(slice_axis) + 1).contiguous()


def nonempty_slices(
    label: NdarrayOrTensor, slice_axis: int = 2, min_foreground: float = 0.05, background: float = -1.0
) -> list[int]:
    """Return the indices of the slices that show enough.

    Args:
        label: volume ``(C, H, W, D)``.
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        min_foreground: least share, in [0, 1], of a slice's pixels that lie above ``background``; 0 keeps every slice.
        background: intensity at and below which a pixel counts as background.

    Returns:
        Indices along ``slice_axis`` in ascending order.

    Raises:
        ValueError: ``label`` is no volume, or an argument is out of range.
    """
    if not 0 <= min_foreground <= 1:
        raise ValueError(f"min_foreground must lie in [0, 1], got {min_foreground}")
    return torch.nonzero(foreground_shares(label, slice_axis, background) >= min_foreground).flatten().tolist()


def foreground_shares(label: NdarrayOrTensor, slice_axis: int = 2, background: float = -1.0) -> torch.Tensor:
    """Return the share of each slice's pixels that lie above the background.

    Args:
        label: see `nonempty_slices`.
        slice_axis: see `nonempty_slices`.
        background: see `nonempty_slices`.

    Returns:
        (N,), float32, N the length of ``slice_axis``.

    Raises:
        ValueError: see `nonempty_slices`.
    """
    return (extract_slices(label, slice_axis) > background).float().mean(dim=(1, 2, 3))
