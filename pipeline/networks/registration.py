"""Registration network that learns the misalignment of a pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers import Pool
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.blocks import LEAKY_RELU, ResidualBlock, check_counts, check_images, check_spatial_dims

OUTPUT_STD = 1e-5
"""Standard deviation of the output convolution's first weights: small enough that training starts from the identity."""


class RegistrationNet(nn.Module):
    """Predict the displacement field that carries one image onto another (a residual U-Net on the pair).

    Each encoder level is a 3-wide convolution and a residual block, then max pooling; residual blocks with twice the
    channels work at the bottom; each decoder level resizes linearly to the size of its skip connection and convolves
    the two together; a residual block and a 1-wide convolution refine the result. Leaky ReLU (0.2), no norm outside
    the residual blocks. Weights start from Kaiming's normal distribution, those of the output convolution from a
    normal one of standard deviation `OUTPUT_STD`: the first fields are the identity to well below 0.01 voxels. The
    defaults are the network of Kong et al. (NeurIPS 2021, arXiv 2110.06465) with its 2,058,018 parameters.

    Seven levels need 256 voxels along every axis. `channels=(16, 32, 32, 32)` does for 32 to 96. Odd sizes are fine.

    Args:
        spatial_dims: 2 or 3; also the number of channels of the field.
        in_channels: channels of each image of the pair.
        channels: channels of each level, from fine to coarse; their number is the number of levels.
        bottom_blocks: number of residual blocks at the bottom.
        overlap_only: whether the correction compares images only where the field stays inside of them. Beyond, a warped
            image goes on with its border, and a misaligned scan shows what the other never saw.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 64, 64, 64, 64, 64),
        bottom_blocks: int = 3,
        overlap_only: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(overlap_only, bool):
            raise ValueError(f"overlap_only must be true or false, got {overlap_only!r}")
        self.overlap_only = overlap_only
        check_spatial_dims(spatial_dims)
        check_counts(in_channels=in_channels, bottom_blocks=bottom_blocks)
        if not channels:
            raise ValueError("channels must name the channels of at least one level, got none")
        check_counts(**{f"channels[{level}]": width for level, width in enumerate(channels)})
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.levels = len(channels)
        self.interpolation = "bilinear" if spatial_dims == 2 else "trilinear"

        self.encoders = nn.ModuleList(
            nn.Sequential(_convolution(spatial_dims, width_in, width, 3), ResidualBlock(spatial_dims, width))
            for width_in, width in zip((2 * in_channels, *channels[:-1]), channels, strict=True)
        )
        self.pool = Pool[Pool.MAX, spatial_dims](2)
        bottom = channels[-1]
        self.bottom = nn.Sequential(
            _convolution(spatial_dims, bottom, 2 * bottom, 1),
            *(ResidualBlock(spatial_dims, 2 * bottom) for _ in range(bottom_blocks)),
            _convolution(spatial_dims, 2 * bottom, bottom, 1),
        )
        coarse_to_fine = tuple(reversed(channels))
        self.decoders = nn.ModuleList(
            _convolution(spatial_dims, below + width, width, 3)
            for below, width in zip((bottom, *coarse_to_fine[:-1]), coarse_to_fine, strict=True)
        )
        self.refine = nn.Sequential(
            ResidualBlock(spatial_dims, channels[0]), _convolution(spatial_dims, channels[0], channels[0], 1)
        )
        self.output = Convolution(spatial_dims, channels[0], spatial_dims, kernel_size=3, conv_only=True)
        self._initialise()

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: the bottom, after all poolings, must keep 2 voxels to reflect one."""
        return 2 ** (self.levels + 1)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Predict the field that carries `moving` onto `fixed`.

        Args:
            moving: image to be warped, (B, in_channels, *spatial), intensities in [-1, 1].
            fixed: image that it should match, same shape.

        Returns:
            Displacement field (B, spatial_dims, *spatial) in voxels, channel i along spatial axis i, pull-back: the
            warped image takes its value at x from `moving` at x + ddf(x), as `pipeline.networks.warp` does. Never
            below single precision, also under autocast.

        Raises:
            ValueError: the shapes differ, have another number of axes or channels, or are below `minimum_size`.
        """
        check_images(self, moving, "fewer levels (entries of channels)")
        if moving.shape != fixed.shape:
            raise ValueError(
                f"{type(self).__name__} expects images of one shape, got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        x = torch.cat((moving, fixed), dim=1)
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode=self.interpolation, align_corners=False)
            x = decoder(torch.cat((x, skip), dim=1))
        field = self.output(self.refine(x))
        # Under mixed precision a warp would add whole-voxel positions in the field's type: half precision loses voxels.
        return field.to(torch.promote_types(field.dtype, torch.float32))

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, a=LEAKY_RELU[1]["negative_slope"], nonlinearity="leaky_relu")
        nn.init.normal_(self.output.conv.weight, std=OUTPUT_STD)


def _convolution(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    return Convolution(spatial_dims, in_channels, out_channels, kernel_size=kernel_size, norm=None, act=LEAKY_RELU)
