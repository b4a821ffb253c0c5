"""Correction loss: the warped prediction against the misaligned target."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class CorrectionLoss(nn.Module):
    """Mean absolute difference between the warped prediction and the target.

    `mean |G(x) o R(G(x), y~) - y~|` of Kong et al., NeurIPS 2021 (arXiv 2110.06465). The warping itself is done by the
    translator with `pipeline.networks.warp`; gradients flow through it into the generator and the registration network.
    """

    def forward(self, warped: torch.Tensor, target: torch.Tensor, overlap: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss.

        Args:
            warped: prediction warped onto the target, (B, C, *spatial).
            target: misaligned target, (B, C, *spatial).
            overlap: where alone they are compared, (B, 1, *spatial), see `pipeline.networks.overlap`; everywhere
                without it. Each image's mean is over its own part, and an image without any counts 0.

        Returns:
            Scalar, in units of the intensities.

        Raises:
            ValueError: when the shapes differ.
        """
        if warped.shape != target.shape:
            raise ValueError(
                f"warped and target must have one shape, got {tuple(warped.shape)} and {tuple(target.shape)}"
            )
        if overlap is None:
            return F.l1_loss(warped, target)
        counted = overlap.to(warped.dtype)
        difference = (warped - target).abs().mean(1, keepdim=True) * counted
        return (difference.flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)).mean()
