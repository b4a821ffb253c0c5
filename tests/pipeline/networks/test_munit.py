"""Properties of the MUNIT generator: one domain's content and style encoder and decoder."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks import MUNITGenerator
from pipeline.networks.munit import AdaptiveResidualBlock


def small(**arguments):
    return MUNITGenerator(**{"filters": 2, "residual_blocks": 1, "mlp_width": 4} | arguments)


def images(*size, channels=1, batch=1):
    return torch.rand(batch, channels, *size) * 2 - 1


def test_defaults_have_the_paper_s_size():
    with torch.device("meta"):
        network = MUNITGenerator()
        content, style = network.encode(torch.empty(2, 1, 256, 256))
        decoded = network.decode(content, style)
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_007_369
    assert content.shape == (2, 256, 64, 64)
    assert style.shape == (2, 8)
    assert decoded.shape == (2, 1, 256, 256)


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (16, 17, 19)])
def test_images_have_the_size_that_was_encoded_and_lie_in_range(size):
    network = small(spatial_dims=len(size), channels=2, style_dim=3)
    content, style = network.encode(images(*size, channels=2, batch=2))
    assert content.shape == (2, 8, *(-(-length // 4) for length in size))
    assert style.shape == (2, 3)
    decoded = network.decode(content, style, size)
    assert decoded.shape == (2, 2, *size)
    assert decoded.abs().max() <= 1


def test_adaptive_norm_gives_each_channel_the_deviation_and_mean_it_is_told():
    block, x = AdaptiveResidualBlock(2, 3), torch.randn(2, 3, 8, 8)
    modulation = torch.randn(2, 4, 3)
    added = (block(x, modulation) - x).flatten(2)
    torch.testing.assert_close(added.mean(2), modulation[:, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(added.std(2, correction=0), modulation[:, 2].abs(), atol=1e-2, rtol=1e-2)
    first = F.instance_norm(block.first(x)) * modulation[:, 0, :, None, None] + modulation[:, 1, :, None, None]
    second = F.instance_norm(block.second(first.clamp(min=0)))
    expected = x + second * modulation[:, 2, :, None, None] + modulation[:, 3, :, None, None]
    torch.testing.assert_close(block(x, modulation), expected)


def test_style_changes_the_image_and_each_image_has_its_own():
    network, content = small(), torch.randn(1, 8, 6, 6)
    style = torch.randn(3, 8) * 3
    together = network.decode(content.expand(3, -1, -1, -1), style)
    assert (together[0] - together[1]).abs().max() > 1e-4
    alone = torch.cat([network.decode(content, code[None]) for code in style])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_style_encoder_keeps_what_an_instance_norm_takes_away():
    encoder, image = small(filters=4).style_encoder, images(32, 32)
    assert (encoder(image) - encoder(image * 0.5)).abs().max() > 1e-4


def test_images_of_a_batch_do_not_influence_each_other():
    network, batch = small(), images(16, 16, batch=3)
    alone = torch.cat([network(one[None]) for one in batch])
    torch.testing.assert_close(network(batch), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("halvings", [1, 3, 4])
def test_minimum_size_of_the_style_encoder_is_the_smallest_that_works(halvings, spatial_dims, monkeypatch):
    encoder = small(filters=1, style_downsamplings=halvings, spatial_dims=spatial_dims).style_encoder
    smallest = encoder.minimum_size
    assert encoder(images(*(smallest,) * spatial_dims)).isfinite().all()
    too_small = images(smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*fewer style_downsamplings"):
        encoder(too_small)
    monkeypatch.setattr("pipeline.networks.munit.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        encoder(too_small)


PARTS = ("content_encoder", "style_encoder", "decoder")


@pytest.mark.parametrize("parts", [("content_encoder",), ("style_encoder", "decoder"), PARTS])
def test_only_the_parts_asked_for_are_built(parts):
    network = small(parts=parts)
    whole = small().state_dict()
    assert set(network.state_dict()) == {name for name in whole if name.startswith(parts)}
    assert [name for name in PARTS if getattr(network, name) is not None] == [name for name in PARTS if name in parts]


def test_missing_parts_are_named():
    with pytest.raises(RuntimeError, match="MUNITGenerator was built without its 'style_encoder'"):
        small(parts=("content_encoder",)).encode(images(16, 16))


def test_every_weight_learns():
    network = small(filters=4)
    network(images(16, 16)).square().mean().backward()
    weights = {name: weight for name, weight in network.named_parameters() if name.endswith("weight")}
    assert all(weight.grad.abs().max() > 0 for weight in weights.values())


def test_exported_network_gives_the_same_images():
    network, image = small().eval(), images(18, 17)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"style_dim": 0}, "style_dim must be an integer of at least 1, got 0"),
        ({"mlp_width": 2.5}, "mlp_width must be an integer of at least 1, got 2.5"),
        ({"style_downsamplings": -1}, "style_downsamplings must be an integer of at least 1, got -1"),
        ({"parts": ("encoder",)}, r"parts of MUNITGenerator must be some of .*, got \('encoder',\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
