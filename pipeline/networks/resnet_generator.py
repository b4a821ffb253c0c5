"""ResNet generator of the CycleGAN backbone."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from monai.networks.blocks import Convolution
from torch import Tensor, nn

from pipeline.networks.blocks import (
    INSTANCE_NORM,
    RELU,
    InstanceNorm,
    ResidualBlock,
    check_counts,
    check_images,
    check_spatial_dims,
    crop,
    reflect_conv,
)

_STEM_KERNEL = 7


class ResNetGenerator(nn.Module):
    """Translate images with a residual encoder and decoder.

    Reflection-padded 7-wide stem, stride-2 convolutions that double the channels, residual blocks, as many upsampling
    stages, 7-wide output convolution and tanh; instance norm throughout. Weights start from PyTorch's own
    distribution, as in the RegGAN authors' trainers. The defaults are the generator of Kong et al. (NeurIPS 2021,
    arXiv 2110.06465) with its 11,365,633 parameters.

    Sizes need not be multiples of `2 ** downsamplings`: each upsampling stage is cropped at the far end to the size
    that its mirror stage had, so that voxels stay in place.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the source.
        out_channels: channels of the prediction.
        filters: channels behind the stem.
        downsamplings: number of stride-2 stages.
        residual_blocks: number of residual blocks at the lowest resolution.
        upsampling: "transposed" (transposed convolution, as in the paper) or "resize" (nearest-neighbour resize, then
            a reflection-padded convolution), which leaves no checkerboard pattern (Odena et al., 2016,
            doi 10.23915/distill.00003).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        filters: int = 64,
        downsamplings: int = 2,
        residual_blocks: int = 9,
        upsampling: Literal["transposed", "resize"] = "transposed",
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(
            in_channels=in_channels,
            out_channels=out_channels,
            filters=filters,
            downsamplings=downsamplings,
            residual_blocks=residual_blocks,
        )
        if upsampling not in ("transposed", "resize"):
            raise ValueError(f'upsampling must be "transposed" or "resize", got {upsampling!r}')
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.downsamplings = downsamplings

        widths = [filters * 2**level for level in range(downsamplings + 1)]
        self.stem = nn.Sequential(
            reflect_conv(spatial_dims, in_channels, filters, _STEM_KERNEL),
            InstanceNorm(filters),
            nn.ReLU(inplace=True),
        )
        self.down = nn.ModuleList(
            Convolution(spatial_dims, fine, coarse, strides=2, kernel_size=3, norm=INSTANCE_NORM, act=RELU)
            for fine, coarse in pairwise(widths)
        )
        self.residual = nn.Sequential(*(ResidualBlock(spatial_dims, widths[-1]) for _ in range(residual_blocks)))
        stage = _transposed_stage if upsampling == "transposed" else _resize_stage
        self.up = nn.ModuleList(stage(spatial_dims, coarse, fine) for coarse, fine in pairwise(reversed(widths)))
        self.head = nn.Sequential(reflect_conv(spatial_dims, filters, out_channels, _STEM_KERNEL), nn.Tanh())

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: the paddings reflect 3 voxels at the top and 1 at the bottom."""
        return max(_STEM_KERNEL // 2 + 1, 2**self.downsamplings + 1)

    def forward(self, source: Tensor) -> Tensor:
        """Translate images.

        Args:
            source: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            Prediction (B, out_channels, *spatial) of the same size, in [-1, 1].

        Raises:
            ValueError: `source` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, source, "fewer downsamplings")
        x = self.stem(source)
        sizes = []
        for down in self.down:
            sizes.append(x.shape[2:])
            x = down(x)
        x = self.residual(x)
        for up, size in zip(self.up, reversed(sizes), strict=True):
            x = crop(up(x), size)
        return self.head(x)


def _transposed_stage(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    return Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=2,
        kernel_size=3,
        padding=1,
        output_padding=1,
        is_transposed=True,
        norm=INSTANCE_NORM,
        act=RELU,
    )


def _resize_stage(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        reflect_conv(spatial_dims, in_channels, out_channels, 3),
        InstanceNorm(out_channels),
        nn.ReLU(inplace=True),
    )
