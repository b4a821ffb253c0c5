"""Properties of the multi-scale discriminator."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks import MultiScaleDiscriminator


def small(**arguments):
    return MultiScaleDiscriminator(**{"filters": 2, "layers": 2} | arguments)


def test_defaults_have_the_paper_s_size():
    with torch.device("meta"):
        network = MultiScaleDiscriminator()
        scores = network(torch.empty(3, 1, 256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 8_265_027
    assert [tuple(scale.shape) for scale in scores] == [(3, 1, 16, 16), (3, 1, 8, 8), (3, 1, 4, 4)]


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (13, 14, 15)])
def test_one_map_of_scores_per_scale(size):
    scores = small(spatial_dims=len(size), in_channels=2)(torch.randn(2, 2, *size))
    assert len(scores) == 3
    assert scores[0].shape == (2, 1, *(length // 4 for length in size))
    assert all(scale.isfinite().all() for scale in scores)


def test_coarser_scales_see_averages_that_leave_the_padding_out():
    network, images = small(scales=2), torch.randn(1, 1, 16, 17)
    inside = torch.ones_like(images)
    sums = F.avg_pool2d(images, 3, stride=2, padding=1) / F.avg_pool2d(inside, 3, stride=2, padding=1)
    torch.testing.assert_close(network(images)[1], network.scales[1](sums))


def test_images_of_a_batch_do_not_influence_each_other():
    network, batch = small(), torch.randn(3, 1, 16, 16)
    alone = [torch.cat(scale) for scale in zip(*(network(one[None]) for one in batch), strict=True)]
    torch.testing.assert_close(network(batch), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "scales", "smallest"), [(4, 3, 61), (3, 3, 29), (2, 3, 13), (1, 3, 5), (2, 1, 4), (1, 1, 2)]
)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_minimum_size_is_the_smallest_that_works(layers, scales, smallest, spatial_dims, monkeypatch):
    network = small(filters=1, layers=layers, scales=scales, spatial_dims=spatial_dims)
    assert network.minimum_size == smallest
    assert all(scale.isfinite().all() for scale in network(torch.randn(1, 1, *(smallest,) * spatial_dims)))
    too_small = torch.randn(1, 1, smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*fewer layers or scales"):
        network(too_small)
    monkeypatch.setattr("pipeline.networks.multiscale_discriminator.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        network(too_small)


def test_every_weight_learns():
    network = small()
    sum((scale - 1).square().mean() for scale in network(torch.randn(1, 1, 32, 32))).backward()
    assert all(weight.grad.abs().max() > 0 for weight in network.parameters())


@pytest.mark.parametrize("argument", ["in_channels", "filters", "layers", "scales"])
def test_bad_arguments_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be an integer of at least 1, got 0"):
        small(**{argument: 0})
