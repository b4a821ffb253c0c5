"""Properties of the UNIT generator: one domain's autoencoder."""

import warnings

import pytest
import torch
from torch import nn

from pipeline.networks import UNITGenerator
from pipeline.networks.blocks import InstanceNorm
from pipeline.networks.content_blocks import ImageDecoder


def small(**arguments):
    return UNITGenerator(**{"filters": 2, "residual_blocks": 1} | arguments)


def images(*size, channels=1, batch=1):
    return torch.rand(batch, channels, *size) * 2 - 1


def test_defaults_have_the_paper_s_size():
    with torch.device("meta"):
        network = UNITGenerator()
        latent = network.encode(torch.empty(1, 1, 256, 256))
        decoded = network.decode(latent)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_127_937
    assert latent.shape == (1, 256, 64, 64)
    assert decoded.shape == (1, 1, 256, 256)


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (5, 23), (12, 13, 15)])
def test_images_have_the_size_that_was_encoded_and_lie_in_range(size):
    network = small(spatial_dims=len(size), channels=2)
    latent = network.encode(images(*size, channels=2, batch=2))
    assert latent.shape == (2, 8, *(-(-length // 4) for length in size))
    decoded = network.decode(latent, size)
    assert decoded.shape == (2, 2, *size)
    assert decoded.abs().max() <= 1


def test_voxels_stay_in_place_at_odd_sizes():
    """An image and the same image without its last rows are the same but near the cut."""
    torch.manual_seed(0)
    network, image = small(filters=8), images(64, 64)
    for module in network.modules():  # the norms see the whole image
        if isinstance(module, nn.Sequential):
            for number, layer in enumerate(module):
                if isinstance(layer, (InstanceNorm, nn.GroupNorm)):
                    module[number] = nn.Identity()
    whole, cut = network(image), network(image[:, :, :61, :62])
    assert whole[:, :, :8, :8].std() > 1e-5
    torch.testing.assert_close(whole[:, :, :8, :8], cut[:, :, :8, :8])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("downsamplings", [1, 2, 3])
def test_minimum_size_is_the_smallest_that_works(downsamplings, spatial_dims, monkeypatch):
    network = small(filters=1, downsamplings=downsamplings, spatial_dims=spatial_dims)
    smallest = network.encoder.minimum_size
    assert network(images(*(smallest,) * spatial_dims)).isfinite().all()
    too_small = images(smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*fewer downsamplings"):
        network(too_small)
    monkeypatch.setattr("pipeline.networks.content_blocks.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        network(too_small)


def test_images_of_a_batch_do_not_influence_each_other():
    network, batch = small(), images(12, 12, batch=3)
    alone = torch.cat([network(one[None]) for one in batch])
    torch.testing.assert_close(network(batch), alone, atol=1e-5, rtol=1e-4)


def test_decoder_normalises_each_image_over_channels_and_space():
    """Scaling the features of one image scales what the first convolution gives, which the norm takes back."""
    decoder = ImageDecoder(2, out_channels=1, filters=4, downsamplings=1)
    norm = next(layer for layer in decoder.modules() if isinstance(layer, nn.GroupNorm))
    assert 0 <= norm.weight.min() < norm.weight.max() <= 1
    assert norm.bias.abs().max() == 0
    features = torch.randn(2, 4, 6, 6) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1) + 3
    nn.init.ones_(norm.weight)
    normed = norm(features).flatten(1)
    torch.testing.assert_close(normed.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("parts", [("encoder",), ("decoder",), ("encoder", "decoder")])
def test_only_the_parts_asked_for_are_built(parts):
    network = small(parts=parts)
    assert {name.split(".")[0] for name in network.state_dict()} == set(parts)
    whole = small().state_dict()
    assert set(network.state_dict()) == {name for name in whole if name.startswith(parts)}


def test_missing_parts_are_named():
    with pytest.raises(RuntimeError, match="UNITGenerator was built without its 'decoder'"):
        small(parts=("encoder",))(images(8, 8))


def test_every_weight_learns():
    network = small()
    network(images(12, 12)).square().mean().backward()
    weights = {name: weight for name, weight in network.named_parameters() if name.endswith("weight")}
    assert all(weight.grad.abs().max() > 0 for weight in weights.values())


def test_exported_network_gives_the_same_images():
    network, image = small().eval(), images(14, 17)
    expected = network(image)
    torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, image)
    torch.testing.assert_close(traced(image), expected)
    other = images(11, 20)
    torch.testing.assert_close(traced(other), network(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"filters": 0}, "filters must be an integer of at least 1, got 0"),
        ({"residual_blocks": -1}, "residual_blocks must be an integer of at least 1, got -1"),
        ({"downsamplings": 2.5}, "downsamplings must be an integer of at least 1, got 2.5"),
        ({"parts": ("coder",)}, r"parts of UNITGenerator must be some of \['encoder', 'decoder'\], got \('coder',\)"),
        ({"parts": ()}, "parts of UNITGenerator must be some of"),
        ({"parts": "encoder"}, "parts of UNITGenerator must be some of"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
