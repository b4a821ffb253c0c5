"""Translation of a volume slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from transforms.scale import BACKGROUND


class ForegroundSliceInferer(Inferer):
    """Apply a network to the slices of volumes; slices of nothing but background stay background, untranslated.

    Such a slice has no variance for the instance norms to divide by: what a trained network makes of it is its own
    rounding errors, blown up to the full range of intensities. MONAI's ``SliceInferer`` translates them, too, and keeps
    account of windows that overlap, which slices do not.

    Args:
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        slices_at_once: slices that the network sees together.
    """

    def __init__(self, slice_axis: int = 2, slices_at_once: int = 8) -> None:
        super().__init__()
        self.slice_axis, self.slices_at_once = slice_axis, slices_at_once

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
            translated[some] = network(slices[some], *args, **kwargs).float()
        unsound = ~translated.isfinite().flatten(1).all(1)  # later they would be clipped, and look like others
        broken = int(unsound.sum())
        if broken:
            raise FloatingPointError(
                f"the network gives values that are not finite (NaN or infinite) in {broken} of {len(slices)} slices: "
                "its training diverged, or the source is far from what it was trained on"
            )
        result = translated.unflatten(0, volumes.shape[:2]).movedim(1, 2 + self.slice_axis)
        return convert_to_dst_type(result, inputs, dtype=result.dtype)[0]
