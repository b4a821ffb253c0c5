"""Autoencoder of one domain of the MUNIT backbone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.blocks import check_images, instance_norm, reflect_conv
from pipeline.networks.content_blocks import (
    STEM_KERNEL,
    ContentEncoder,
    ImageDecoder,
    built,
    check_autoencoder,
    halving_conv,
)

PARTS = ("content_encoder", "style_encoder", "decoder")


class MUNITGenerator(nn.Module):
    """Split the images of one domain into content, which all domains share, and style, and decode the two.

    The autoencoder of MUNIT (Huang et al., ECCV 2018, arXiv 1804.04732): the style drives the decoder through adaptive
    instance norm. To translate is to decode with another domain's decoder and a style of that domain. The defaults are
    the generator of one domain in Kong et al. (NeurIPS 2021, arXiv 2110.06465) with its 15,007,369 parameters; weights
    start from PyTorch's own distribution as there, where MUNIT's own paper has Kaiming's.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the domain's images.
        filters: channels at full resolution.
        downsamplings: how often the content's resolution is halved.
        residual_blocks: number of residual blocks in the content encoder and as many in the decoder.
        style_dim: numbers in a style code.
        style_downsamplings: how often the style encoder halves the resolution; channels are doubled twice at most.
        mlp_width: width of the two hidden layers between the style and the adaptive norms.
        parts: which of `content_encoder`, `style_encoder` and `decoder` to build; the others are None.

    Attributes:
        content_encoder: maps images (B, channels, *spatial) to content (B, filters * 2 ** downsamplings, *spatial),
            each axis divided by `2 ** downsamplings` and rounded up.
        style_encoder: maps images to style codes (B, style_dim).
        decoder: maps content, style codes, and the size to crop to, to images in [-1, 1].

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        channels: int = 1,
        filters: int = 64,
        downsamplings: int = 2,
        residual_blocks: int = 4,
        style_dim: int = 8,
        style_downsamplings: int = 4,
        mlp_width: int = 256,
        parts: Collection[str] = PARTS,
    ) -> None:
        super().__init__()
        check_autoencoder(
            type(self).__name__,
            spatial_dims,
            parts,
            PARTS,
            channels=channels,
            filters=filters,
            downsamplings=downsamplings,
            residual_blocks=residual_blocks,
            style_dim=style_dim,
            style_downsamplings=style_downsamplings,
            mlp_width=mlp_width,
        )
        self.content_encoder: ContentEncoder | None = None
        self.style_encoder: StyleEncoder | None = None
        self.decoder: StyledDecoder | None = None
        if "content_encoder" in parts:
            self.content_encoder = ContentEncoder(spatial_dims, channels, filters, downsamplings, residual_blocks)
        if "style_encoder" in parts:
            self.style_encoder = StyleEncoder(spatial_dims, channels, filters, style_downsamplings, style_dim)
        if "decoder" in parts:
            self.decoder = StyledDecoder(
                spatial_dims, channels, filters, downsamplings, residual_blocks, style_dim, mlp_width
            )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Content and style codes of images (B, channels, *spatial) in [-1, 1]; see the encoders."""
        return built(self, "content_encoder")(images), built(self, "style_encoder")(images)

    def decode(self, content: Tensor, style: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Decode content in a style into images of spatial `size`, default the largest with such a content."""
        return built(self, "decoder")(content, style, size)

    def forward(self, images: Tensor) -> Tensor:
        """Decode what images (B, channels, *spatial) are encoded to; the result has their shape."""
        return self.decode(*self.encode(images), images.shape[2:])


class StyleEncoder(nn.Module):
    """Map images to style codes.

    Reflection-padded 7-wide stem, 4-wide stride-2 convolutions, each with ReLU; the mean over space; a linear layer. No
    norm, which would take the style away.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        filters: channels behind the stem; doubled by the first two convolutions of stride 2.
        downsamplings: number of stride-2 convolutions.
        style_dim: numbers in a style code.
    """

    def __init__(self, spatial_dims: int, in_channels: int, filters: int, downsamplings: int, style_dim: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.downsamplings = downsamplings
        self.style_dim = style_dim
        widths = [filters * 2 ** min(level, 2) for level in range(downsamplings + 1)]
        stages = [reflect_conv(spatial_dims, in_channels, filters, STEM_KERNEL), nn.ReLU(inplace=True)]
        for fine, coarse in pairwise(widths):
            stages += [halving_conv(spatial_dims, fine, coarse), nn.ReLU(inplace=True)]
        self.stages = nn.Sequential(*stages)
        self.code = nn.Linear(widths[-1], style_dim)

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: the paddings reflect 3 voxels at the top and 1 at the bottom."""
        return max(STEM_KERNEL // 2 + 1, 2**self.downsamplings)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            Style codes (B, style_dim).

        Raises:
            ValueError: `images` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, images, "fewer style_downsamplings")
        return self.code(self.stages(images).flatten(2).mean(2))


class StyledDecoder(nn.Module):
    """Residual blocks with adaptive instance norm (Huang and Belongie, ICCV 2017), then `ImageDecoder`.

    A perceptron of two hidden layers maps the style code to the scales and shifts behind every instance norm; other
    arguments are those of `MUNITGenerator`.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        filters: int,
        downsamplings: int,
        residual_blocks: int,
        style_dim: int,
        mlp_width: int,
    ) -> None:
        super().__init__()
        width = filters * 2**downsamplings
        self.residual = nn.ModuleList(AdaptiveResidualBlock(spatial_dims, width) for _ in range(residual_blocks))
        self.mlp = nn.Sequential(
            nn.Linear(style_dim, mlp_width),
            nn.ReLU(inplace=True),
            nn.Linear(mlp_width, mlp_width),
            nn.ReLU(inplace=True),
            nn.Linear(mlp_width, residual_blocks * AdaptiveResidualBlock.modulations * width),
        )
        self.image = ImageDecoder(spatial_dims, channels, filters, downsamplings)

    def forward(self, content: Tensor, style: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Decode content in a style.

        Args:
            content: (B, filters * 2 ** downsamplings, *spatial).
            style: (B, style_dim).
            size: spatial size of the images, default that of `content` times `2 ** downsamplings`.

        Returns:
            Images (B, channels, *size) in [-1, 1].
        """
        modulations = self.mlp(style).unflatten(1, (len(self.residual), AdaptiveResidualBlock.modulations, -1))
        for number, block in enumerate(self.residual):
            content = block(content, modulations[:, number])
        return self.image(content, size)


class AdaptiveResidualBlock(nn.Module):
    """Two 3-wide reflection-padded convolutions with adaptive instance norm, added to their input.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of input and output.
    """

    modulations = 4
    """A scale and a shift behind each of the two norms."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.first = reflect_conv(spatial_dims, channels, channels, 3)
        self.second = reflect_conv(spatial_dims, channels, channels, 3)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map (B, channels, *spatial), at least 2 along every axis, to the same shape.

        Args:
            x: features.
            modulation: (B, 4, channels), scale and shift behind the first norm, then behind the second.
        """
        first_scale, first_shift, second_scale, second_shift = modulation[(..., *(None,) * (x.ndim - 2))].unbind(1)
        y = F.relu(instance_norm(self.first(x)) * first_scale + first_shift, inplace=True)
        return x + instance_norm(self.second(y)) * second_scale + second_shift
