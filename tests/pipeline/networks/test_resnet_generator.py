"""Properties of the generator."""

import warnings

import pytest
import torch

from pipeline.networks import ResNetGenerator


def small(**arguments):
    return ResNetGenerator(**{"filters": 4, "residual_blocks": 1} | arguments)


def image(*size, channels=1, batch=1):
    return torch.rand(batch, channels, *size) * 2 - 1


def test_defaults_have_the_paper_s_size():
    with torch.device("meta"):
        network = ResNetGenerator()
        prediction = network(torch.empty(1, 1, 256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_365_633
    assert prediction.shape == (1, 1, 256, 256)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("size", [(16, 16), (17, 30), (5, 23), (12, 13, 15)])
def test_prediction_has_the_size_of_the_source_and_lies_in_range(size, upsampling):
    network = small(spatial_dims=len(size), in_channels=2, out_channels=3, upsampling=upsampling)
    prediction = network(image(*size, channels=2, batch=2))
    assert prediction.shape == (2, 3, *size)
    assert prediction.abs().max() <= 1


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("downsamplings", [1, 2, 3])
def test_minimum_size_is_the_smallest_that_works(downsamplings, upsampling, spatial_dims, monkeypatch):
    network = small(filters=2, downsamplings=downsamplings, upsampling=upsampling, spatial_dims=spatial_dims)
    smallest = network.minimum_size
    assert network(image(*(smallest,) * spatial_dims)).isfinite().all()
    too_small = image(smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*fewer downsamplings"):
        network(too_small)
    monkeypatch.setattr("pipeline.networks.resnet_generator.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        network(too_small)


def test_images_of_a_batch_do_not_influence_each_other():
    network = small()
    batch = image(12, 12, batch=3)
    together = network(batch)
    alone = torch.cat([network(one[None]) for one in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_resize_leaves_no_checkerboard_where_transposed_convolution_does():
    interior = (..., slice(24, 40), slice(24, 40))

    def alternation(upsampling):
        torch.manual_seed(0)
        image = torch.full((1, 1, 64, 64), 0.3)
        image[..., :12, :] = -1  # the norms of an image of one value are zero
        flat = small(upsampling=upsampling)(image)[interior]
        return (flat[..., ::2] - flat[..., 1::2]).abs().max().item()

    assert alternation("resize") < 1e-5 < 1e-3 < alternation("transposed")


def test_every_weight_learns():
    network = small()
    network(image(12, 12)).square().mean().backward()
    weights = {name: weight for name, weight in network.named_parameters() if name.endswith("weight")}
    assert all(weight.grad.abs().max() > 0 for weight in weights.values())


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_exported_generator_gives_the_same_prediction(upsampling):
    network, source = small(upsampling=upsampling).eval(), image(14, 17)
    expected = network(source)
    exported = torch.export.export(network, (source,)).module()
    torch.testing.assert_close(exported(source), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, source)
    torch.testing.assert_close(traced(source), expected)
    other = image(11, 20)
    torch.testing.assert_close(traced(other), network(other))


def test_exported_generator_takes_other_sizes():
    network = small().eval()
    quarter = {axis: torch.export.Dim(f"quarter_{axis}", min=2, max=64) for axis in (2, 3)}
    sizes = {axis: 4 * dimension for axis, dimension in quarter.items()}
    exported = torch.export.export(network, (image(16, 24),), dynamic_shapes=(sizes,)).module()
    other = image(20, 12)
    torch.testing.assert_close(exported(other), network(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"filters": 0}, "filters must be an integer of at least 1, got 0"),
        ({"residual_blocks": -1}, "residual_blocks must be an integer of at least 1, got -1"),
        ({"downsamplings": 2.5}, "downsamplings must be an integer of at least 1, got 2.5"),
        ({"upsampling": "nearest"}, 'upsampling must be "transposed" or "resize", got \'nearest\''),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
