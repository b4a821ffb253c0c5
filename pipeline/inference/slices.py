"""Translation of a volume slice by slice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from transforms.scale import BACKGROUND


class FlipAveragingInferer(Inferer):
    """Apply a network to images and to their mirror images, and average what is mirrored back.

    Where a network would commute with the mirror, as a translator should, what differs between its answers is error: it
    averages out in part, and a shift of the output against its input does along the mirrored axes. Each axis doubles
    the work. MONAI's ``TestTimeAugmentation`` wants a data set and invertible transforms for it.

    Args:
        axes: spatial axes to mirror, such as ``(0,)``, left and right of an axial slice; none for the network alone.

    Raises:
        ValueError: an axis is there twice, or is no axis of a slice.
    """

    def __init__(self, axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.axes = tuple(axes)
        allowed = all(type(axis) is int and axis in (0, 1) for axis in self.axes)
        if not allowed or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"test_time_flips must be axes of a slice, 0 or 1, each once, got {list(axes)}")

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Translate images (B, C, *spatial) in [-1, 1], to as many of that size."""
        subsets = (some for count in range(len(self.axes) + 1) for some in itertools.combinations(self.axes, count))
        total: Any = 0
        for some in subsets:
            dims = [2 + axis for axis in some]
            total = total + network(inputs.flip(dims), *args, **kwargs).flip(dims)
        return total / 2 ** len(self.axes)


class ForegroundSliceInferer(Inferer):
    """Apply a network to the slices of volumes; slices of nothing but background stay background, untranslated.

    Such a slice has no variance for the instance norms to divide by: what a trained network makes of it is its own
    rounding errors, blown up to the full range of intensities. MONAI's ``SliceInferer`` translates them, too, and keeps
    account of windows that overlap, which slices do not.

    Args:
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        slices_at_once: slices that the network sees together.
        flips: axes of a slice over whose mirror images to average, see `FlipAveragingInferer`.

    Raises:
        ValueError: see `FlipAveragingInferer`.
    """

    def __init__(self, slice_axis: int = 2, slices_at_once: int = 8, flips: Sequence[int] = ()) -> None:
        super().__init__()
        self.slice_axis, self.slices_at_once = slice_axis, slices_at_once
        self.planar = FlipAveragingInferer(flips)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Translate volumes.

        Args:
            inputs: (B, C, H, W, D) in [-1, 1].
            network: maps slices (N, C, h, w) to as many of that size.
            args: further arguments of the network.
            kwargs: likewise.

        Returns:
            (B, C, H, W, D) in [-1, 1].

        Raises:
            FloatingPointError: the network's values are not finite.
        """
        volumes = convert_to_tensor(inputs, track_meta=False).movedim(2 + self.slice_axis, 1)
        slices = volumes.flatten(0, 1)
        filled = torch.nonzero((slices > BACKGROUND).flatten(1).any(1)).flatten()
        translated = torch.full(tuple(slices.shape), BACKGROUND, dtype=torch.float32, device=slices.device)
        for some in filled.split(self.slices_at_once):
            translated[some] = self.planar(slices[some], network, *args, **kwargs).float()
        unsound = ~translated.isfinite().flatten(1).all(1)  # later they would be clipped, and look like others
        broken = int(unsound.sum())
        if broken:
            raise FloatingPointError(
                f"the network gives values that are not finite (NaN or infinite) in {broken} of {len(slices)} slices: "
                "its training diverged, or the source is far from what it was trained on"
            )
        result = translated.unflatten(0, volumes.shape[:2]).movedim(1, 2 + self.slice_axis)
        return convert_to_dst_type(result, inputs, dtype=result.dtype)[0]
