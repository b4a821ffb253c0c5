"""U-Net generator: skip connections at full resolution."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.blocks import INSTANCE_NORM, check_counts, check_images, check_spatial_dims, crop

_MULTIPLE = 16  # BasicUNet halves four times


class UNetGenerator(nn.Module):
    """Translate images with MONAI's ``BasicUNet`` and tanh.

    Unlike the paper's generator it hands what it sees at full resolution past its bottom, and so keeps fine detail. Its
    bottom also sees the whole image, which lets it move the image where nothing in the training forbids that.

    Images whose sizes are no multiples of 16 go on with their border values, and are cropped again.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the source.
        out_channels: channels of the prediction.
        filters: channels on the two finest levels, and in front of the last convolution; on each of the three below
            twice as many as on the one above.

    Raises:
        ValueError: an argument is out of range.
    """

    minimum_size = 2 * _MULTIPLE  # an instance norm over one voxel has nothing to normalise by

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        filters: int = 32,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_counts(in_channels=in_channels, out_channels=out_channels, filters=filters)
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        features = (*(filters * factor for factor in (1, 1, 2, 4, 8)), filters)
        self.network = BasicUNet(spatial_dims, in_channels, out_channels, features, norm=INSTANCE_NORM)

    def forward(self, source: Tensor) -> Tensor:
        """Translate images.

        Args:
            source: (B, in_channels, *spatial), intensities in [-1, 1].

        Returns:
            Prediction (B, out_channels, *spatial) of the same size, in [-1, 1].

        Raises:
            ValueError: `source` has another number of axes or channels, or is smaller than `minimum_size`.
        """
        check_images(self, source, "another generator")
        size = source.shape[2:]
        # Up to a multiple, written so that whoever traces it with sizes as symbols sees that it is one.
        whole = [(length + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE for length in size]
        missing = [value for length, full in reversed([*zip(size, whole, strict=True)]) for value in (0, full - length)]
        return crop(torch.tanh(self.network(F.pad(source, missing, mode="replicate"))), size)
