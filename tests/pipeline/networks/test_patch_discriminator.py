"""Properties of the discriminator."""

import pytest
import torch

from pipeline.networks import PatchDiscriminator


def small(**arguments):
    return PatchDiscriminator(**{"filters": 4} | arguments)


def test_defaults_have_the_paper_s_size():
    with torch.device("meta"):
        network = PatchDiscriminator()
        scores = network(torch.empty(3, 1, 256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_762_689
    assert scores.shape == (3, 1)


@pytest.mark.parametrize("size", [(24, 24), (31, 50), (24, 25, 26)])
def test_one_score_per_image(size):
    scores = small(spatial_dims=len(size), in_channels=2)(torch.randn(2, 2, *size))
    assert scores.shape == (2, 1)
    assert scores.isfinite().all()


def test_score_is_the_mean_over_patches():
    network, images = small(), torch.randn(2, 1, 40, 48)
    patches = network.patches(images)
    assert patches.shape[2:] == (3, 4)
    torch.testing.assert_close(network(images)[:, 0], patches.mean(dim=(1, 2, 3)))


def test_images_of_a_batch_do_not_influence_each_other():
    network, batch = small(), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(network(batch), torch.cat([network(one[None]) for one in batch]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_minimum_size_is_the_smallest_that_works(layers, spatial_dims, monkeypatch):
    network = small(filters=2, layers=layers, spatial_dims=spatial_dims)
    smallest = network.minimum_size
    assert network(torch.randn(1, 1, *(smallest,) * spatial_dims)).isfinite().all()
    too_small = torch.randn(1, 1, smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*fewer layers"):
        network(too_small)
    monkeypatch.setattr("pipeline.networks.patch_discriminator.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        network(too_small)


def test_every_weight_learns():
    network = small()
    (network(torch.randn(1, 1, 32, 32)) - 1).square().mean().backward()
    weights = {name: weight for name, weight in network.named_parameters() if name.endswith("weight")}
    assert all(weight.grad.abs().max() > 0 for weight in weights.values())


@pytest.mark.parametrize("argument", ["in_channels", "filters", "layers"])
def test_bad_arguments_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be an integer of at least 1, got 0"):
        small(**{argument: 0})
