"""Least-squares adversarial loss."""

from __future__ import annotations

import pytest
import torch
from monai.losses import PatchAdversarialLoss

from pipeline.losses import LeastSquaresAdversarialLoss


def test_by_hand():
    loss = LeastSquaresAdversarialLoss()
    logits = torch.tensor([[0.0, 1.0, 3.0]])
    assert loss(logits, real=True).item() == pytest.approx((1 + 0 + 4) / 3)
    assert loss(logits, real=False).item() == pytest.approx((0 + 1 + 9) / 3)


@pytest.mark.parametrize("real", [True, False])
def test_perfect_logits_cost_nothing(real):
    assert LeastSquaresAdversarialLoss()(torch.full((2, 1, 5, 5), float(real)), real=real) == 0


@pytest.mark.parametrize("real", [True, False])
def test_agrees_with_monai_without_its_activation(real):
    logits = torch.randn(2, 1, 6, 6)
    monai = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)
    expected = monai(logits, target_is_real=real, for_discriminator=True)
    torch.testing.assert_close(LeastSquaresAdversarialLoss()(logits, real=real), expected)


def test_scales_are_averaged_within_and_summed_across():
    loss = LeastSquaresAdversarialLoss()
    scales = [torch.randn(2, 1, size, size) for size in (16, 8, 4)]
    expected = sum(loss(scale, real=True) for scale in scales)
    torch.testing.assert_close(loss(scales, real=True), expected)
    torch.testing.assert_close(loss(tuple(scales), real=True), expected)


@pytest.mark.parametrize("shape", [(2, 1), (2, 1, 4, 4), (2, 1, 4, 4, 4)])
def test_scalar_with_gradient(shape):
    logits = torch.zeros(shape, requires_grad=True)
    value = LeastSquaresAdversarialLoss()(logits, real=True)
    assert value.shape == ()
    value.backward()
    assert (logits.grad < 0).all()  # descent raises the logits towards real


def test_no_scale_is_refused():
    with pytest.raises(ValueError, match="at least one scale"):
        LeastSquaresAdversarialLoss()([], real=True)


def test_logits_of_mixed_precision_are_averaged_in_single_precision():
    logits = torch.linspace(0, 1, 999, dtype=torch.bfloat16)
    loss = LeastSquaresAdversarialLoss()(logits, real=True)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LeastSquaresAdversarialLoss()(logits.float(), real=True))
