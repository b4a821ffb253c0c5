"""Structure loss: what lies beside what in two images, whatever their contrasts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_VARIANCE = 1e-6  # of intensities in [-1, 1]; and relative to an image's mean, below which all is noise
LEAST_RELATIVE_VARIANCE = 1e-3


def mind(images: Tensor) -> Tensor:
    """Modality independent neighbourhood descriptors: how like each of its neighbours the patch around a voxel is.

    Heinrich et al., "MIND: Modality independent neighbourhood descriptor for multi-modal deformable registration",
    Medical Image Analysis 16, 2012: ``exp(-D / V)`` with the mean squared difference D of the patches
    of 3 voxels a side around a voxel and each neighbour along an axis, and V, its mean over the neighbours; the
    greatest is set to 1. Patches are boxes here, and differences are means over channels, so that images of different
    contrast or number of channels compare.

    Args:
        images: (B, C, *spatial), 2D or 3D, intensities in [-1, 1].

    Returns:
        (B, 2 * spatial_dims, *spatial) in (0, 1], never below single precision.

    Raises:
        ValueError: if the images are not 2D or 3D.
    """
    dims = images.ndim - 2
    if dims not in (2, 3):
        raise ValueError(f"images must be (B, C, H, W) or (B, C, H, W, D), got the shape {tuple(images.shape)}")
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    size, border = images.shape[2:], (1, 1) * dims
    padded = F.pad(images, border, mode="replicate")
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    distances = []
    for axis in range(dims):
        for start in (0, 2):  # in the padded image: one voxel before, one behind
            neighbour = padded
            for other, count in enumerate(size):
                neighbour = neighbour.narrow(2 + other, start if other == axis else 1, count)
            squared = (neighbour - images).square().mean(1, keepdim=True)
            distances.append(pool(F.pad(squared, border, mode="replicate"), 3, stride=1))
    distance = torch.cat(distances, dim=1)
    variance = distance.mean(1, keepdim=True)
    floor = LEAST_RELATIVE_VARIANCE * variance.detach().flatten(1).mean(1) + LEAST_VARIANCE
    variance = torch.maximum(variance, floor.view(-1, *(1,) * (dims + 1)))
    return torch.exp(-(distance - distance.amin(1, keepdim=True)) / variance)


class StructureLoss(nn.Module):
    """Mean absolute difference between the descriptors (`mind`) of a prediction and of its source.

    It holds a generator's output in its place, and borders where the source has them, without a target.
    """

    def forward(self, pred: Tensor, source: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            pred: (B, C, *spatial) in [-1, 1], with gradient.
            source: of the same batch and spatial size, in [-1, 1].

        Returns:
            Scalar in [0, 1).

        Raises:
            ValueError: when batch or spatial sizes differ.
        """
        if pred.shape[0] != source.shape[0] or pred.shape[2:] != source.shape[2:]:
            raise ValueError(
                f"pred and source must have one batch and one size, got {tuple(pred.shape)} and {tuple(source.shape)}"
            )
        return F.l1_loss(mind(pred), mind(source))
