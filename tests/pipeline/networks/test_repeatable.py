"""What is computed in the same order each time is what PyTorch computes in any, gradients included."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks import repeatable, warp
from pipeline.networks.blocks import reflect_conv


@pytest.mark.parametrize(("size", "widths"), [((2, 3, 7, 9), (3, 2, 1, 4)), ((1, 2, 5, 6, 7), (2, 1, 1, 1, 0, 3))])
def test_reflection_by_index_is_reflection(size, widths):
    images = torch.randn(size, dtype=torch.float64, requires_grad=True)
    ours, theirs = repeatable.reflect_by_index(images, widths), F.pad(images, widths, mode="reflect")
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(padded.square().sum(), images)[0] for padded in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [(2, 3, 7, 9), (1, 2, 5, 6, 7), (1, 1, 1, 4)])
def test_sampling_by_index_is_sampling(monkeypatch, size):
    image = torch.randn(size, dtype=torch.float64, requires_grad=True)
    field = 3 * torch.randn(size[0], len(size) - 2, *size[2:], dtype=torch.float64)
    field.requires_grad_()
    results = []
    for must in (False, True):
        monkeypatch.setattr(sys.modules[warp.__module__], "must_repeat", lambda _tensor, must=must: must)
        warped = warp(image, field)
        results.append((warped, *torch.autograd.grad(warped.square().sum(), (image, field))))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_convolutions_pad_alike_both_ways(monkeypatch, spatial_dims):
    for kernel, stride in ((3, 1), (7, 1), (4, 2)):
        layer, images = reflect_conv(spatial_dims, 2, 3, kernel, stride), torch.randn(1, 2, *(8,) * spatial_dims)
        expected = layer(images)
        with monkeypatch.context() as patch:
            patch.setattr(repeatable, "must_repeat", lambda _: True)
            torch.testing.assert_close(layer(images), expected)
        assert expected.shape[2:] == (8 // stride,) * spatial_dims


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_repeats_itself_where_it_is_asked_to(make_translator, batch, reggan_weights):
    from pipeline.engines import seed_all
    from pipeline.studies.timing import training_step

    def run():
        translator = make_translator().cuda()
        step = training_step(translator, reggan_weights, {name: value.cuda() for name, value in batch.items()})
        for _ in range(3):
            step()
        return [parameter.detach().clone() for parameter in translator.parameters()]

    try:
        seed_all(0, "cuda", deterministic=True)
        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    finally:
        seed_all(0, "cpu")
