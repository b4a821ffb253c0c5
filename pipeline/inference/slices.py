"""Translation of a volume slice by slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SliceInferer
from torch import Tensor

BACKGROUND = -1.0
"""What scaling to [-1, 1] makes of the background, exactly."""


class ForegroundSliceInferer(SliceInferer):
    """MONAI's ``SliceInferer``, but slices of nothing but background stay background.

    Such a slice has no variance for the instance norms to divide by: what a trained network makes of it is its own
    rounding errors, blown up to the full range of intensities.

    Args:
        args: see ``SliceInferer``.
        kwargs: see ``SliceInferer``.
    """

    def network_wrapper(self, network: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Translate slices (B, C, *spatial), one voxel thick along one axis, in [-1, 1]."""
        translated = super().network_wrapper(network, x, *args, **kwargs)
        foreground = (x > BACKGROUND).flatten(1).any(1)
        return torch.where(foreground.view(-1, *(1 for _ in translated.shape[1:])), translated, BACKGROUND)
