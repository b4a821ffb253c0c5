"""Smoothness loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiffusionLoss

from pipeline.losses import SmoothnessLoss


@pytest.mark.parametrize("shape", [(1, 2, 8, 9), (2, 3, 5, 6, 7)])
def test_constant_field_is_smooth(shape):
    assert SmoothnessLoss()(torch.full(shape, 3.5)) == 0


def test_by_hand():
    ddf = torch.zeros(1, 2, 3, 2)
    ddf[0, 0] = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    # along axis 0 differences of 2, along axis 1 of 1, in one of two components
    assert SmoothnessLoss()(ddf).item() == pytest.approx((4 + 1) / 2)


@pytest.mark.parametrize("shape", [(2, 2, 8, 9), (2, 3, 5, 6, 7)])
def test_agrees_with_numpy(shape):
    ddf = torch.randn(shape)
    expected = sum((np.diff(ddf.numpy(), axis=axis) ** 2).mean() for axis in range(2, len(shape)))
    assert SmoothnessLoss()(ddf).item() == pytest.approx(expected, rel=1e-5)


def test_alternating_field_is_rough_unlike_for_monai():
    ddf = torch.tensor([1.0, -1.0]).repeat(4)[None, None, :, None].expand(1, 2, 8, 8)
    assert SmoothnessLoss()(ddf).item() == pytest.approx(4)
    assert DiffusionLoss()(ddf) == 0


def test_agrees_with_monai_on_linear_fields():
    """There forward and central differences are the same."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ddf = torch.stack([0.1 * rows - 0.2 * columns, 0.3 * columns])[None]
    torch.testing.assert_close(SmoothnessLoss()(ddf), DiffusionLoss()(ddf))


def test_scales_with_the_square_and_pulls_towards_smooth():
    ddf = torch.randn(1, 2, 6, 6, requires_grad=True)
    loss = SmoothnessLoss()(ddf)
    torch.testing.assert_close(SmoothnessLoss()(2 * ddf), 4 * loss)
    loss.backward()
    assert SmoothnessLoss()(ddf - 0.1 * ddf.grad) < loss


def test_axis_of_one_voxel_adds_nothing():
    ddf = torch.randn(1, 3, 6, 6, 1)
    expected = sum(ddf.diff(dim=axis).square().mean() for axis in (2, 3))
    torch.testing.assert_close(SmoothnessLoss()(ddf), expected)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 2, 8), (1, 2, 8, 8, 8), (2, 8, 8)])
def test_what_is_no_field_is_refused(shape):
    with pytest.raises(ValueError, match="one channel per axis"):
        SmoothnessLoss()(torch.zeros(shape))


def test_field_of_one_voxel_is_refused():
    with pytest.raises(ValueError, match="more than one voxel"):
        SmoothnessLoss()(torch.zeros(1, 2, 1, 1))
