"""Networks of the NICE-GAN backbone: an encoder that judges as well, a generator and heads on its features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from monai.networks.blocks import SubpixelUpsample
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.networks.blocks import (
    check_axes,
    check_counts,
    check_images,
    check_spatial_dims,
    crop,
    instance_norm,
    reflect_conv,
)
from pipeline.networks.repeatable import reflect

_DOWNSAMPLINGS = 2  # of the encoder, and as many upsamplings in the generator
_OUTPUT_KERNEL = 7
# What the proportions of instance and layer norm start from, before the softmax.
_MOSTLY_INSTANCE, _MOSTLY_LAYER = (3.2, 1.0), (1.0, 3.2)


class NICEEncoder(nn.Module):
    """First layers of a NICE-GAN discriminator, which at the same time encode for the generator.

    Two spectrally normalised 4-wide convolutions of stride 2, then class activation attention: a linear layer scores
    the averages and the maxima of all channels, its weights scale the channels, and a 1-wide convolution of the outcome
    is added to the features in a proportion that is learned, beginning with none (Chen et al., CVPR 2020, "Reusing
    Discriminators for Encoding"; the attention is that of Kim et al., ICLR 2020). The weights that scale are the
    normalised ones, as in the score. 165,441 parameters by default.

    An odd axis is padded by one voxel more at its far end, so that features have a quarter of the size, rounded up.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        filters: channels of the first convolution; the features have twice as many.

    Attributes:
        out_channels: channels of the features.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, spatial_dims: int = 2, in_channels: int = 1, filters: int = 64) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(in_channels=in_channels, filters=filters)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = channels = 2 * filters
        self.convolutions = nn.Sequential(
            _SpectralConv(spatial_dims, in_channels, filters, stride=2),
            nn.LeakyReLU(0.2, inplace=True),
            _SpectralConv(spatial_dims, filters, channels, stride=2),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.score = spectral_norm(nn.Linear(2 * channels, 1, bias=False))
        self.combine = Conv[Conv.CONV, spatial_dims](2 * channels, channels, 1)
        self.proportion = nn.Parameter(torch.zeros(1))

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: the second convolution reflects one voxel."""
        return 2 ** (_DOWNSAMPLINGS - 1) + 1

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            Features (B, out_channels, *spatial / 4, rounded up) and one attention logit per image, (B, 1), which a
            discriminator's loss judges like its patches.

        Raises:
            ValueError: `images` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, images, "another backbone")
        x = self.convolutions(images)
        weight = _spectral_weight(self.score, x)
        voxels = x.flatten(2)
        logit = F.linear(torch.cat([voxels.mean(2), voxels.amax(2)], dim=1), weight)
        attended = self.combine(_per_channel(weight, self.spatial_dims) * torch.cat([x, x], dim=1))
        return F.leaky_relu(self.proportion * attended + x, 0.2), logit


class NICEGenerator(nn.Module):
    """Make images out of the features of a `NICEEncoder`.

    A 3-wide convolution, residual blocks, two upsampling stages by pixel shuffling, 7-wide output convolution and tanh,
    all with reflection padding (Chen et al., CVPR 2020). The norms mix instance and layer norm in proportions that are
    learned per channel. In the residual blocks, scale and shift behind the norm come from a style vector of the image
    itself, which two fully connected layers compute.

    The light variant averages the features over space before these layers and takes images of any size: 8,098,368
    parameters. The full variant, which RegGAN's authors compare with, takes the features as they are, which ties it to
    one image size: 276,468,288 parameters at 256 x 256. The six residual blocks are NICE-GAN's own; RegGAN's authors
    have seven. Weights start from PyTorch's own distribution.

    Args:
        spatial_dims: 2 or 3.
        out_channels: channels of the prediction.
        filters: as in the encoder; the features taken have twice, the residual blocks four times as many channels.
        residual_blocks: number of residual blocks.
        image_size: None for the light variant; the size of all images, for the full one.

    Attributes:
        in_channels: channels of the features.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        out_channels: int = 1,
        filters: int = 64,
        residual_blocks: int = 6,
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(out_channels=out_channels, filters=filters, residual_blocks=residual_blocks)
        self.spatial_dims = spatial_dims
        self.in_channels = 2 * filters
        self.image_size = None if image_size is None else self._checked_size(image_size)

        wide = 4 * filters
        self.stem = nn.Sequential(
            reflect_conv(spatial_dims, self.in_channels, wide, 3, bias=True),
            InstanceLayerNorm(spatial_dims, wide),
            nn.ReLU(inplace=True),
        )
        seen = wide
        for size in self.image_size or ():
            seen *= _quarter(size)
        self.style = nn.Sequential(
            nn.Linear(seen, wide, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(wide, wide, bias=False),
            nn.ReLU(inplace=True),
        )
        self.scale = nn.Linear(wide, wide, bias=False)
        self.shift = nn.Linear(wide, wide, bias=False)
        self.residual = nn.ModuleList(_AdaptiveResidualBlock(spatial_dims, wide) for _ in range(residual_blocks))
        widths = [wide // 2**stage for stage in range(_DOWNSAMPLINGS + 1)]
        self.up = nn.ModuleList(_upsampling_stage(spatial_dims, coarse, fine) for coarse, fine in pairwise(widths))
        self.head = nn.Sequential(
            reflect_conv(spatial_dims, widths[-1], out_channels, _OUTPUT_KERNEL, bias=False),
            nn.Tanh(),
        )

    @property
    def minimum_size(self) -> int:
        """Smallest size of an image along any spatial axis: features of two voxels, since paddings reflect one."""
        return 2**_DOWNSAMPLINGS + 1

    def forward(self, features: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Make images.

        Args:
            features: (B, in_channels, *spatial), of a `NICEEncoder`.
            size: of the images that were encoded, which the prediction is cropped to at the far end; by default four
                times that of the features.

        Returns:
            Prediction (B, out_channels, *size), in [-1, 1].

        Raises:
            ValueError: `features` has another number of axes or channels, fits another image size than `size`, or is
                that of an image smaller than `minimum_size`; in the full variant, `size` is not `image_size`.
        """
        owner = type(self).__name__
        check_axes(self, features, "features")
        size = tuple(2**_DOWNSAMPLINGS * length for length in features.shape[2:]) if size is None else tuple(size)
        if self.image_size is not None and size != self.image_size:
            raise ValueError(
                f"{owner} was built in the full variant for images of size {self.image_size}, got {size}; "
                "use images of that size, or the light variant (image_size=None), which takes any"
            )
        if tuple(_quarter(length) for length in size) != tuple(features.shape[2:]):
            raise ValueError(
                f"{owner} expects features of a quarter of the image's size {size}, rounded up, "
                f"got {tuple(features.shape[2:])}"
            )
        if min(size) < self.minimum_size:
            raise ValueError(
                f"{owner} needs images of at least {self.minimum_size} along every spatial axis, got {size}; "
                "use larger images"
            )
        x = self.stem(features)
        style = self.style(x.flatten(2).mean(2) if self.image_size is None else x.flatten(1))
        scale, shift = self.scale(style), self.shift(style)
        for block in self.residual:
            x = block(x, scale, shift)
        for up, lengths in zip(self.up, ([_half(length) for length in size], size), strict=True):
            x = crop(up(x), lengths)
        return self.head(x)

    def _checked_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        size = tuple(image_size)
        whole = all(isinstance(length, int) and not isinstance(length, bool) for length in size)
        if len(size) != self.spatial_dims or not whole or min(size) < self.minimum_size:
            raise ValueError(
                f"image_size must be None or {self.spatial_dims} integers of at least {self.minimum_size}, "
                f"got {image_size!r}"
            )
        return size


class NICEDiscriminator(nn.Module):
    """Judge features of a `NICEEncoder`, patch by patch and at two scales.

    One stride-2 convolution leads to the local scale, `global_downsamplings` more to the global one; each scale ends
    with a convolution of stride 1 and an output convolution. 4-wide, reflection-padded, spectrally normalised
    throughout, leaky ReLU (0.2). The scores are plain numbers for a least-squares loss, neither averaged nor squashed.
    Together with the encoder's attention logit they are NICE-GAN's discriminator (Chen et al., CVPR 2020). 46,706,944
    parameters by default.

    Odd axes are padded as in the encoder.

    Args:
        spatial_dims: 2 or 3.
        filters: as in the encoder; the features taken have twice as many channels.
        global_downsamplings: number of stride-2 convolutions between the scales, at least 0. Fewer take smaller images.

    Attributes:
        in_channels: channels of the features.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, spatial_dims: int = 2, filters: int = 64, global_downsamplings: int = 2) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(filters=filters)
        whole = isinstance(global_downsamplings, int) and not isinstance(global_downsamplings, bool)
        if not whole or global_downsamplings < 0:
            raise ValueError(f"global_downsamplings must be an integer of at least 0, got {global_downsamplings!r}")
        self.spatial_dims = spatial_dims
        self.in_channels = 2 * filters
        self.global_downsamplings = global_downsamplings

        widths = [4 * filters * 2**level for level in range(global_downsamplings + 1)]
        self.shared = _strided_stage(spatial_dims, self.in_channels, widths[0])
        self.local_scale = _patch_scores(spatial_dims, widths[0])
        self.global_scale = nn.Sequential(
            *(_strided_stage(spatial_dims, fine, coarse) for fine, coarse in pairwise(widths)),
            _patch_scores(spatial_dims, widths[-1]),
        )

    @property
    def minimum_size(self) -> int:
        """Smallest size of an image along any spatial axis: three voxels at the global scale."""
        return 2 * 2 ** (_DOWNSAMPLINGS + 1 + self.global_downsamplings) + 1

    def forward(self, features: Tensor) -> list[Tensor]:
        """Judge features.

        Args:
            features: (B, in_channels, *spatial).

        Returns:
            Patch scores, (B, 1, *patches), of the local scale and of the global one.

        Raises:
            ValueError: `features` has another number of axes or channels, or is that of an image smaller than
                `minimum_size`.
        """
        check_axes(self, features, "features")
        if min(features.shape[2:]) < _quarter(self.minimum_size):
            raise ValueError(
                f"{type(self).__name__} needs images of at least {self.minimum_size} along every spatial axis, which "
                f"is features of {_quarter(self.minimum_size)}, got features of {tuple(features.shape[2:])}; "
                "use larger images or fewer global_downsamplings"
            )
        x = self.shared(features)
        return [self.local_scale(x), self.global_scale(x)]


class InstanceLayerNorm(nn.Module):
    """Instance norm and layer norm of each image, mixed in proportions that are learned per channel.

    A learned scale and shift per channel follow. Starts as mostly layer norm (Kim et al., ICLR 2020).

    Args:
        spatial_dims: 2 or 3.
        channels: channels of input and output.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.mixture = _mixture(channels, _MOSTLY_LAYER)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, channels, *spatial), more than one voxel in space."""
        normalised = _mixed_norm(x, self.mixture)
        return _per_channel(self.weight, self.spatial_dims) * normalised + _per_channel(self.bias, self.spatial_dims)


class AdaptiveInstanceLayerNorm(nn.Module):
    """As `InstanceLayerNorm`, but scale and shift are given for each image. Starts as mostly instance norm.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of input and output.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.mixture = _mixture(channels, _MOSTLY_INSTANCE)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Normalise (B, channels, *spatial), more than one voxel in space; scale and shift are (B, channels)."""
        normalised = _mixed_norm(x, self.mixture)
        return _per_channel(scale, self.spatial_dims) * normalised + _per_channel(shift, self.spatial_dims)


class _AdaptiveResidualBlock(nn.Module):
    """Two convolutions with adaptive norms, added to their input; no activation follows the sum."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.first = reflect_conv(spatial_dims, channels, channels, 3, bias=False)
        self.first_norm = AdaptiveInstanceLayerNorm(spatial_dims, channels)
        self.second = reflect_conv(spatial_dims, channels, channels, 3, bias=False)
        self.second_norm = AdaptiveInstanceLayerNorm(spatial_dims, channels)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x), scale, shift))
        return x + self.second_norm(self.second(inner), scale, shift)


class _SpectralConv(nn.Module):
    """4-wide convolution with reflection padding and spectral norm; stride 2 halves sizes, rounded up."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.convolve = F.conv2d if spatial_dims == 2 else F.conv3d
        self.layer = spectral_norm(
            Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 4, stride=stride, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for length in reversed(x.shape[2:]):
            padding += [1, 1 + length % self.stride]
        x = reflect(x, padding)
        return self.convolve(x, _spectral_weight(self.layer, x), cast("Tensor | None", self.layer.bias), self.stride)


def _spectral_weight(layer: nn.Module, x: Tensor) -> Tensor:
    """The normalised weight of a layer that is about to see `x`.

    In single precision also under autocast: in bfloat16 the power iteration is too coarse to keep in the buffers, and
    autocast gives its steps different types on a GPU.
    """
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return cast(Tensor, layer.weight)
    with torch.autocast(device, enabled=False):
        return cast(Tensor, layer.weight)


def _mixed_norm(x: Tensor, mixture: Tensor) -> Tensor:
    instance, layer = (_per_channel(part, x.ndim - 2) for part in mixture.softmax(dim=0))
    return instance * instance_norm(x) + layer * F.group_norm(x, num_groups=1)


def _mixture(channels: int, start: Sequence[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(start)[:, None].repeat(1, channels))


def _per_channel(values: Tensor, spatial_dims: int) -> Tensor:
    """(..., channels) in the shape that multiplies (B, channels, *spatial)."""
    return values[(..., *(None,) * spatial_dims)]


def _upsampling_stage(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    spread = Conv[Conv.CONV, spatial_dims](out_channels, out_channels * 2**spatial_dims, 1)
    return nn.Sequential(
        reflect_conv(spatial_dims, in_channels, out_channels, 3, bias=False),
        InstanceLayerNorm(spatial_dims, out_channels),
        nn.ReLU(inplace=True),
        SubpixelUpsample(spatial_dims, out_channels, scale_factor=2, conv_block=spread, apply_pad_pool=False),
        InstanceLayerNorm(spatial_dims, out_channels),
        nn.ReLU(inplace=True),
    )


def _strided_stage(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        _SpectralConv(spatial_dims, in_channels, out_channels, stride=2), nn.LeakyReLU(0.2, inplace=True)
    )


def _patch_scores(spatial_dims: int, channels: int) -> nn.Module:
    return nn.Sequential(
        _SpectralConv(spatial_dims, channels, 2 * channels, stride=1),
        nn.LeakyReLU(0.2, inplace=True),
        _SpectralConv(spatial_dims, 2 * channels, 1, stride=1, bias=False),
    )


def _half(length: int) -> int:
    """Half a size, rounded up."""
    # As `_SpectralConv` has it, for torch.export compares the two. Not `-(-length // 2)`: in ONNX a negative quotient
    # is rounded towards zero.
    return (length + length % 2) // 2


def _quarter(length: int) -> int:
    """Size of the features of an image of that size."""
    return _half(_half(length))
