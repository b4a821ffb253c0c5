"""Multi-scale discriminator of the UNIT and MUNIT backbones."""

from __future__ import annotations

from itertools import pairwise

from monai.networks.layers import Conv, Pool
from torch import Tensor, nn

from pipeline.networks.blocks import check_counts, check_images, check_spatial_dims
from pipeline.networks.content_blocks import halving_conv


class MultiScaleDiscriminator(nn.Module):
    """Score how real images look, patch by patch, at several resolutions.

    At each scale `layers` 4-wide reflection-padded convolutions of stride 2 that double the channels, with leaky ReLU
    (0.2) and no norm, then a 1-wide convolution; the next scale sees the images at half the resolution, by average
    pooling. Scores are plain numbers for a least-squares loss, without a sigmoid. Weights start from PyTorch's own
    distribution, as in the RegGAN authors' trainers. The defaults are the discriminator of UNIT and MUNIT in Kong et
    al. (NeurIPS 2021, arXiv 2110.06465) with its 8,265,027 parameters.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        filters: channels of the first convolution.
        layers: number of stride-2 convolutions at each scale.
        scales: number of resolutions.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 1, filters: int = 64, layers: int = 4, scales: int = 3
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(in_channels=in_channels, filters=filters, layers=layers, scales=scales)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.layers = layers

        widths = [in_channels, *(filters * 2**layer for layer in range(layers))]
        self.scales = nn.ModuleList(_patch_scores(spatial_dims, widths) for _ in range(scales))
        self.halve = Pool[Pool.AVG, spatial_dims](kernel_size=3, stride=2, padding=1, count_include_pad=False)

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: at the coarsest scale, 2 voxels must be left for the last padding."""
        coarsest = 2**self.layers
        # Pooling rounds up.
        return (coarsest - 1) * 2 ** (len(self.scales) - 1) + 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Score images.

        Args:
            images: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            Scores of the patches, one map (B, 1, *spatial) per scale, the finest first; each axis of the first is
            divided by `2 ** layers` and rounded down.

        Raises:
            ValueError: `images` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, images, "fewer layers or scales")
        scores = []
        for number, scale in enumerate(self.scales):
            images = self.halve(images) if number else images
            scores.append(scale(images))
        return scores


def _patch_scores(spatial_dims: int, widths: list[int]) -> nn.Module:
    stages: list[nn.Module] = []
    for fine, coarse in pairwise(widths):
        stages += [halving_conv(spatial_dims, fine, coarse), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*stages, Conv[Conv.CONV, spatial_dims](widths[-1], 1, kernel_size=1))
