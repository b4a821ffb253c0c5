"""Parts that the UNIT and MUNIT backbones share: images to content and back, and their stride-2 convolution."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pipeline.networks.blocks import (
    InstanceNorm,
    ResidualBlock,
    check_counts,
    check_images,
    check_spatial_dims,
    crop,
    reflect_conv,
)
from pipeline.networks.repeatable import reflect

STEM_KERNEL = 7


def halving_conv(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Build a 4-wide reflection-padded convolution of stride 2, for inputs of at least 2 along every axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.

    Returns:
        A convolution from (B, in_channels, *spatial) to (B, out_channels, *(spatial // 2)).
    """
    return reflect_conv(spatial_dims, in_channels, out_channels, kernel_size=4, stride=2)


def check_autoencoder(
    owner: str, spatial_dims: int, parts: Collection[str], known: Sequence[str], **counts: int
) -> None:
    """Raise ValueError unless the arguments of the autoencoder `owner` are in their ranges.

    Args:
        owner: its name, for the message.
        spatial_dims: 2 or 3.
        parts: which of its parts to build, at least one.
        known: all its parts.
        counts: its other arguments, whole numbers of at least 1.
    """
    check_spatial_dims(spatial_dims)
    check_counts(**counts)
    if isinstance(parts, str) or not parts or not set(parts) <= set(known):
        raise ValueError(f"parts of {owner} must be some of {list(known)}, got {parts!r}")


def built(owner: nn.Module, name: str) -> nn.Module:
    """Return a part of a network, or raise RuntimeError where the network was built without it."""
    part = getattr(owner, name)
    if part is None:
        raise RuntimeError(f"this {type(owner).__name__} was built without its '{name}'; name it in parts")
    return part


class ContentEncoder(nn.Module):
    """Map images to content, at a lower resolution.

    Reflection-padded 7-wide stem, 4-wide stride-2 convolutions that double the channels, each with instance norm and
    ReLU, then residual blocks.

    Sizes need not be multiples of `2 ** downsamplings`: images are reflected at the far end up to the next one, and
    `ImageDecoder` crops what it makes of the content to the images' size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        filters: channels behind the stem.
        downsamplings: number of stride-2 convolutions.
        residual_blocks: number of residual blocks.

    Attributes:
        channels: channels of the content.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, filters: int, downsamplings: int, residual_blocks: int
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.downsamplings = downsamplings
        widths = [filters * 2**level for level in range(downsamplings + 1)]
        self.channels = widths[-1]

        stages = [
            reflect_conv(spatial_dims, in_channels, filters, STEM_KERNEL),
            InstanceNorm(filters),
            nn.ReLU(inplace=True),
        ]
        for fine, coarse in pairwise(widths):
            stages += [halving_conv(spatial_dims, fine, coarse), InstanceNorm(coarse), nn.ReLU(inplace=True)]
        stages += [ResidualBlock(spatial_dims, self.channels) for _ in range(residual_blocks)]
        self.stages = nn.Sequential(*stages)

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: 2 voxels must be left for the padding of the residual blocks."""
        return 2**self.downsamplings + 1

    def content_shape(self, images: Tensor) -> tuple[int, ...]:
        """The shape of the content of images."""
        factor = 2**self.downsamplings
        return (images.shape[0], self.channels, *((length + factor - 1) // factor for length in images.shape[2:]))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            Content (B, channels, *spatial), each axis divided by `2 ** downsamplings` and rounded up.

        Raises:
            ValueError: `images` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, images, "fewer downsamplings")
        missing = [-length % 2**self.downsamplings for length in reversed(images.shape[2:])]
        return self.stages(reflect(images, [width for far in missing for width in (0, far)]))


class ImageDecoder(nn.Module):
    """Map features at the content's resolution to images.

    As many stages of nearest-neighbour upsampling, 5-wide convolution, layer norm and ReLU as there were stride-2
    convolutions, then a 7-wide convolution and tanh; reflection padding throughout. The layer norm is over channels and
    space of each image, with a scale (uniform in [0, 1] at first) and a shift per channel.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of the images.
        filters: channels in front of the last convolution.
        downsamplings: how often the content was halved.
    """

    def __init__(self, spatial_dims: int, out_channels: int, filters: int, downsamplings: int) -> None:
        super().__init__()
        self.downsamplings = downsamplings
        widths = [filters * 2**level for level in range(downsamplings, -1, -1)]
        stages: list[nn.Module] = []
        for coarse, fine in pairwise(widths):
            norm = nn.GroupNorm(1, fine)
            nn.init.uniform_(norm.weight)
            stages += [nn.Upsample(scale_factor=2, mode="nearest"), reflect_conv(spatial_dims, coarse, fine, 5)]
            stages += [norm, nn.ReLU(inplace=True)]
        self.stages = nn.Sequential(*stages, reflect_conv(spatial_dims, filters, out_channels, STEM_KERNEL), nn.Tanh())

    def forward(self, features: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Decode features.

        Args:
            features: (B, filters * 2 ** downsamplings, *spatial).
            size: spatial size of the images that the content was taken from; default that of `features` times
                `2 ** downsamplings`.

        Returns:
            Images (B, out_channels, *size) in [-1, 1].
        """
        images = self.stages(features)
        return images if size is None else crop(images, size)
