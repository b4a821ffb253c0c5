"""Our warp is MONAI's to the last bit, in one graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp

from pipeline.networks import overlap, warp

pytestmark = pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")


@pytest.mark.parametrize("shape", [(2, 1, 20, 33), (1, 3, 9, 12, 7), (1, 1, 5, 1, 6)])
def test_values_and_gradients_are_those_of_monai(shape):
    generator = torch.Generator().manual_seed(0)
    results = []
    image, weight = torch.randn(2, *shape, generator=generator)
    ddf = 4 * torch.randn(shape[0], len(shape) - 2, *shape[2:], generator=generator)  # some of it points outside
    for function in (warp, Warp(mode="bilinear", padding_mode="border")):
        moving, field = image.clone().requires_grad_(), ddf.clone().requires_grad_()
        warped = function(moving, field)
        (warped * weight).sum().backward()
        results.append((warped, moving.grad, field.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_it_is_one_graph():
    explained = torch._dynamo.explain(warp)(torch.rand(1, 1, 8, 8), torch.rand(1, 2, 8, 8))
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0


@pytest.mark.parametrize("field", [(1, 2, 8, 9), (2, 2, 8, 8), (1, 3, 8, 8)])
def test_shapes_that_do_not_fit_are_refused(field):
    with pytest.raises(ValueError, match=r"ddf must have the shape .* beside \(1, 1, 8, 8\)"):
        warp(torch.rand(1, 1, 8, 8), torch.rand(field))


@pytest.mark.parametrize("size", [(5, 7), (4, 5, 6)])
def test_the_overlap_is_where_a_warped_image_has_values_of_its_own(size):
    ddf = torch.randn(2, len(size), *size) * 3
    found = overlap(ddf)
    assert found.shape == (2, 1, *size)
    assert 0 < found.float().mean() < 1
    for place in np.ndindex(*size):
        at = [place[axis] + ddf[1, axis][place].item() for axis in range(len(size))]
        assert found[1, 0][place] == all(0 <= where <= length - 1 for where, length in zip(at, size, strict=True))
    assert overlap(torch.zeros(1, len(size), *size)).all()
    assert not overlap(torch.full((1, len(size), *size), torch.nan)).any()
