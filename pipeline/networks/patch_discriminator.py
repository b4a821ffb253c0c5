"""Patch discriminator of the CycleGAN backbone."""

from __future__ import annotations

from monai.networks.blocks import Convolution
from torch import Tensor, nn

from pipeline.networks.blocks import INSTANCE_NORM, LEAKY_RELU, check_counts, check_images, check_spatial_dims


class PatchDiscriminator(nn.Module):
    """Score how real images look, patch by patch, and average the scores.

    `layers` 4-wide convolutions of stride 2 that double the channels, one more of stride 1, and an output convolution;
    leaky ReLU (0.2), and instance norm on all but the first and last. The score is a plain number for a least-squares
    loss, without a sigmoid. Weights start from PyTorch's own distribution, as in the RegGAN authors' trainers. The
    defaults are the discriminator of Kong et al. (NeurIPS 2021, arXiv 2110.06465) with its 2,762,689 parameters.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images; for a conditional discriminator, of source and image together.
        filters: channels of the first convolution.
        layers: number of stride-2 convolutions.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, spatial_dims: int = 2, in_channels: int = 1, filters: int = 64, layers: int = 3) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(in_channels=in_channels, filters=filters, layers=layers)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.layers = layers

        widths = [in_channels, *(filters * 2**level for level in range(layers + 1))]
        convolutions = [
            Convolution(
                spatial_dims,
                widths[i],
                widths[i + 1],
                strides=2 if i < layers else 1,
                kernel_size=4,
                padding=1,
                norm=INSTANCE_NORM if i > 0 else None,
                act=LEAKY_RELU,
            )
            for i in range(layers + 1)
        ]
        output = Convolution(spatial_dims, widths[-1], 1, kernel_size=4, padding=1, conv_only=True)
        self.patches = nn.Sequential(*convolutions, output)

    @property
    def minimum_size(self) -> int:
        """Smallest size along any spatial axis: the stride-1 convolutions take one voxel each and must leave one."""
        return 3 * 2**self.layers

    def forward(self, images: Tensor) -> Tensor:
        """Score images.

        Args:
            images: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            One score per image, (B, 1), the mean over its patches.

        Raises:
            ValueError: `images` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, images, "fewer layers")
        return self.patches(images).flatten(2).mean(2)
