"""Parts and checks that several networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import Norm
from torch import Tensor, nn

from pipeline.networks.repeatable import ReflectConv2d, ReflectConv3d

LEAKY_RELU = ("LEAKYRELU", {"negative_slope": 0.2, "inplace": True})
RELU = ("RELU", {"inplace": True})
INSTANCE_NORM = "INSTANCE_BY_GROUP"
"""Name, in MONAI's factory of norms, of `InstanceNorm`."""


def reflect_conv(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True
) -> nn.Module:
    """Build a convolution with reflection padding, which preserves the size or, with a stride of 2, halves it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: kernel width, odd with a stride of 1 and even with one of 2; every axis of the input must be longer
            than the padding.
        stride: 1 or 2.
        bias: whether to add one.

    Returns:
        A convolution from (B, in_channels, *spatial) to (B, out_channels, *(spatial // stride)).
    """
    kind: type[nn.Module] = ReflectConv2d if spatial_dims == 2 else ReflectConv3d
    padding = (kernel_size - 1) // 2
    return kind(
        in_channels, out_channels, kernel_size, stride=stride, padding=padding, padding_mode="reflect", bias=bias
    )


EPSILON = 1e-5
"""Added to the variances that `instance_norm` divides by."""


def instance_norm(x: Tensor) -> Tensor:
    """Normalise each channel of each image over space; (B, C, *spatial) to the same shape.

    In training it is group norm with one channel a group: PyTorch's own instance norm is the same but for rounding, and
    several times slower on a CPU. Channels last are put first on the way, for which the norm is faster. In use it is
    PyTorch's own, which is the better one where a channel hardly varies.
    """
    # A compiler writes its own; and an export of group norm would hold for some sizes only.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return F.instance_norm(x, eps=EPSILON)
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    if x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return F.group_norm(x, x.shape[1], eps=EPSILON)
    return F.group_norm(x.contiguous(), x.shape[1], eps=EPSILON).contiguous(memory_format=last)


class InstanceNorm(nn.Module):
    """`instance_norm` as a layer, without parameters.

    Args:
        num_features: channels, which it takes any number of; MONAI's factory names them.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, *spatial)."""
        return instance_norm(x)


@Norm.factory_function(INSTANCE_NORM)
def _instance_norm_factory(_: int) -> type[InstanceNorm]:
    return InstanceNorm


class ResidualBlock(nn.Module):
    """Two 3-wide reflection-padded convolutions with instance norm, added to their input.

    No activation follows the sum. The generator and the registration network of RegGAN (arXiv 2110.06465) both use it.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of input and output.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            reflect_conv(spatial_dims, channels, channels, 3),
            InstanceNorm(channels),
            nn.ReLU(inplace=True),
            reflect_conv(spatial_dims, channels, channels, 3),
            InstanceNorm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, *spatial), at least 2 along every axis, to the same shape."""
        return x + self.layers(x)


def crop(images: Tensor, size: Sequence[int]) -> Tensor:
    """Cut images to a size, at the far end of each spatial axis.

    Args:
        images: (B, C, *spatial), at least as large as `size`.
        size: of the result along the spatial axes.
    """
    # Padding by less than nothing: of a slice, torch.export wants to know at which input sizes it cuts nothing.
    margins = [(0, wanted - length) for length, wanted in zip(images.shape[2:], size, strict=True)]
    return F.pad(images, [value for margin in reversed(margins) for value in margin])


def check_spatial_dims(spatial_dims: int) -> None:
    """Raise ValueError unless `spatial_dims` is 2 or 3."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every named value is an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")


def check_axes(network: Any, images: Tensor, what: str = "images") -> None:
    """Raise ValueError unless a batch is (B, in_channels, *spatial) of a network, by its attributes of these names."""
    shape = tuple(images.shape)
    if len(shape) != network.spatial_dims + 2 or shape[1] != network.in_channels:
        axes = "height, width" if network.spatial_dims == 2 else "height, width, depth"
        raise ValueError(
            f"{type(network).__name__} expects {what} of shape (batch, {network.in_channels}, {axes}), got {shape}"
        )


def check_images(network: Any, images: Tensor, hint: str) -> None:
    """Check a batch of images against what a network can take.

    Args:
        network: has `spatial_dims`, `in_channels` and `minimum_size`, the smallest size along any spatial axis.
        images: the batch, expected as (B, in_channels, *spatial).
        hint: what to do about images that are too small, for the message.

    Raises:
        ValueError: the number of axes, the channels or the size do not fit.
    """
    check_axes(network, images)
    size, least = tuple(images.shape[2:]), network.minimum_size
    if min(size) < least:
        raise ValueError(
            f"{type(network).__name__} needs images of at least {least} along every spatial axis, got {size}; "
            f"use larger images or {hint}"
        )
