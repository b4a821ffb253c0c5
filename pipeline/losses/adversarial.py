"""Least-squares adversarial loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

REAL_LABEL = 1.0
FAKE_LABEL = 0.0


class LeastSquaresAdversarialLoss(nn.Module):
    """Squared distance of a discriminator's logits from the label that they should carry.

    The generator asks for `loss(D(G(x)), real=True)`, the discriminator for `loss(D(G(x)), real=False)` and
    `loss(D(y), real=True)` (Kong et al., NeurIPS 2021, arXiv 2110.06465; Mao et al., ICCV 2017). MONAI's
    `PatchAdversarialLoss` averages over scales and puts a leaky ReLU before the square unless told otherwise; here
    scales are summed and logits enter as they are.
    """

    def forward(self, logits: torch.Tensor | Sequence[torch.Tensor], real: bool) -> torch.Tensor:
        """Compute the loss.

        Args:
            logits: output of a discriminator, of any shape (B, ...), or a sequence of such, one per scale.
            real: whether the discriminator should call them real (label 1) or fake (label 0).

        Returns:
            Scalar: the mean over each scale, summed over scales; never below single precision, also under autocast.

        Raises:
            ValueError: when the sequence is empty.
        """
        scales = [logits] if isinstance(logits, torch.Tensor) else list(logits)
        if not scales:
            raise ValueError("logits must hold at least one scale, got an empty sequence")
        label = REAL_LABEL if real else FAKE_LABEL
        # Under mixed precision logits near their label differ from it by less than bfloat16 can tell.
        full = [scale.to(torch.promote_types(scale.dtype, torch.float32)) for scale in scales]
        return torch.stack([(scale - label).square().mean() for scale in full]).sum()
