"""Correction loss."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import Warp

from pipeline.losses import CorrectionLoss
from pipeline.networks import overlap, warp


def test_by_hand():
    warped, target = torch.tensor([[[[0.0, 0.5]]]]), torch.tensor([[[[1.0, -0.5]]]])
    assert CorrectionLoss()(warped, target).item() == 1.0


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 2, 4, 5, 6)])
def test_zero_only_for_equal_images(shape):
    target = torch.rand(shape)
    assert CorrectionLoss()(target.clone(), target) == 0
    assert CorrectionLoss()(target + 0.25, target).item() == pytest.approx(0.25)


@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")
def test_gradients_reach_prediction_and_field():
    pred = torch.rand(1, 1, 8, 8, requires_grad=True)
    ddf = torch.full((1, 2, 8, 8), 0.3, requires_grad=True)
    CorrectionLoss()(Warp()(pred, ddf), torch.rand(1, 1, 8, 8)).backward()
    assert pred.grad.abs().sum() > 0
    assert ddf.grad.abs().sum() > 0


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"got \(2, 1, 8, 8\) and \(1, 1, 8, 8\)"):
        CorrectionLoss()(torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_only_the_overlap_is_compared_and_each_image_for_itself():
    warped, target = torch.zeros(3, 2, 2, 2), torch.ones(3, 2, 2, 2)
    warped[0, 0, 0, 0], warped[1, :, 1, 1] = 5.0, 9.0
    seen = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    seen[0, 0, 0, :] = True
    seen[1, 0, 0, 0] = True
    # First image: (4 + 1) / 2 and 1 in the overlap; second: 1; third: nothing overlaps.
    assert CorrectionLoss()(warped, target, seen) == pytest.approx((1.75 + 1 + 0) / 3)
    assert CorrectionLoss()(warped, target, torch.ones_like(seen)) == CorrectionLoss()(warped, target)


def test_beyond_the_overlap_there_is_no_gradient():
    pred = torch.rand(1, 1, 8, 8, requires_grad=True)
    ddf = torch.zeros(1, 2, 8, 8)
    ddf[:, 1] = 3.0
    CorrectionLoss()(warp(pred, ddf), torch.rand(1, 1, 8, 8), overlap(ddf)).backward()
    assert pred.grad[..., :3].abs().max() < 1e-6
    assert (pred.grad[..., 4:].abs() > 1e-3).all()
