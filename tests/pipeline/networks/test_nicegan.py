"""Properties of NICE-GAN's encoder, generator and discriminator heads."""

import copy
import io
import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks import NICEDiscriminator, NICEEncoder, NICEGenerator
from pipeline.networks.nicegan import AdaptiveInstanceLayerNorm, InstanceLayerNorm

# What follows is counted from the layers as the paper has them, 64 filters: kernel * inputs * outputs + biases.
ENCODER = (
    (4 * 4 * 1 * 64 + 64)  # image to 1/2
    + (4 * 4 * 64 * 128 + 128)  # to 1/4
    + 2 * 128  # score of average and maximum of each channel
    + (256 * 128 + 128)  # 1-wide convolution
    + 1  # proportion of what is attended to
)
HEADS = (
    (4 * 4 * 128 * 256 + 256)  # to 1/8
    + (4 * 4 * 256 * 512 + 512)  # local scale
    + 4 * 4 * 512 * 1
    + (4 * 4 * 256 * 512 + 512)  # to 1/16
    + (4 * 4 * 512 * 1024 + 1024)  # to 1/32
    + (4 * 4 * 1024 * 2048 + 2048)  # global scale
    + 4 * 4 * 2048 * 1
)
BEFORE_STYLE = (3 * 3 * 128 * 256 + 256) + 4 * 256  # the norm has two proportions, a scale and a shift per channel
LIGHT_STYLE, FULL_STYLE = 256 * 256, (256 * 64 * 64) * 256  # 64 x 64 is a quarter of 256 x 256
AFTER_STYLE = (
    256 * 256  # second layer of the style
    + 2 * 256 * 256  # scale and shift
    + 6 * (2 * 3 * 3 * 256 * 256 + 2 * 2 * 256)  # residual blocks; their norms have proportions alone
    + (3 * 3 * 256 * 128 + 4 * 128 + (128 * 4 * 128 + 4 * 128) + 4 * 128)  # to 1/2; four channels per shuffled pixel
    + (3 * 3 * 128 * 64 + 4 * 64 + (64 * 4 * 64 + 4 * 64) + 4 * 64)  # to the image's size
    + 7 * 7 * 64 * 1
)


def encoder(**arguments):
    return NICEEncoder(**{"filters": 2} | arguments)


def generator(**arguments):
    return NICEGenerator(**{"filters": 2, "residual_blocks": 1} | arguments)


def heads(**arguments):
    return NICEDiscriminator(**{"filters": 2, "global_downsamplings": 0} | arguments)


def image(*size, channels=1, batch=1):
    return torch.rand(batch, channels, *size) * 2 - 1


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def power_buffers(network):
    return {name: value.clone() for name, value in network.named_buffers() if name.endswith(("_u", "_v"))}


def test_defaults_have_the_paper_s_sizes():
    with torch.device("meta"):
        networks = NICEEncoder(), NICEGenerator(), NICEDiscriminator()
        features, logit = networks[0](torch.empty(2, 1, 256, 256))
        prediction = networks[1](features)
        patches = networks[2](features)
    assert [count(network) for network in networks] == [ENCODER, BEFORE_STYLE + LIGHT_STYLE + AFTER_STYLE, HEADS]
    assert [count(network) for network in networks] == [165_441, 8_098_368, 46_706_944]
    assert features.shape == (2, 128, 64, 64)
    assert logit.shape == (2, 1)
    assert prediction.shape == (2, 1, 256, 256)
    assert [scores.shape for scores in patches] == [(2, 1, 30, 30), (2, 1, 6, 6)]


def test_the_full_variant_has_the_paper_s_size():
    with torch.device("meta"):
        network = NICEGenerator(image_size=[256, 256])
    assert count(network) == BEFORE_STYLE + FULL_STYLE + AFTER_STYLE == 276_468_288
    assert network.style[0].weight.numel() == 268_435_456


@pytest.mark.parametrize("size", [(32, 32), (17, 30), (5, 23), (8, 9, 11)])
def test_prediction_has_the_size_of_the_source_and_lies_in_range(size):
    dims = len(size)
    features, logit = encoder(spatial_dims=dims, in_channels=2)(image(*size, channels=2, batch=3))
    assert features.shape == (3, 4, *(math.ceil(length / 4) for length in size))
    assert logit.shape == (3, 1)
    for image_size in (None, size):
        network = generator(spatial_dims=dims, out_channels=3, image_size=image_size)
        prediction = network(features, size)
        assert prediction.shape == (3, 3, *size)
        assert prediction.abs().max() <= 1


def test_features_alone_give_a_multiple_of_four():
    features, _ = encoder()(image(17, 30))
    network = generator()
    whole = network(features)
    assert whole.shape == (1, 1, 20, 32)


@pytest.mark.parametrize("size", [(24, 30), (20, 21, 22)])
@pytest.mark.parametrize("global_downsamplings", [0, 1])
def test_patches_at_two_scales(size, global_downsamplings):
    dims = len(size)
    network = heads(spatial_dims=dims, global_downsamplings=0)
    features, _ = encoder(spatial_dims=dims)(image(*size, batch=2))
    local, whole = network(features)
    assert local.shape == whole.shape == (2, 1, *(math.ceil(length / 8) - 2 for length in size))


def test_more_stages_make_the_global_scale_coarser():
    features, _ = encoder()(image(96, 96))
    for stages, patches in ((0, 10), (1, 4), (2, 1)):
        local, whole = heads(global_downsamplings=stages)(features)
        assert local.shape[2:] == (10, 10)
        assert whole.shape[2:] == (patches, patches)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_spectral_norm_of_every_convolution_is_one(spatial_dims):
    torch.manual_seed(0)
    networks = encoder(spatial_dims=spatial_dims), heads(spatial_dims=spatial_dims)
    source = image(*(20,) * spatial_dims)
    for _ in range(50):
        networks[1](networks[0](source)[0])
    layers = [module for network in networks for module in network.modules() if hasattr(module, "parametrizations")]
    assert len(layers) == 2 + 1 + 5
    for layer in (layer.eval() for layer in layers):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_encoder_equals_an_independent_calculation():
    network = encoder(filters=3).eval()
    with torch.no_grad():
        network.proportion.fill_(0.7)
    source = image(12, 15, batch=2)
    features, logit = network(source)
    x = source
    for layer in (network.convolutions[0].layer, network.convolutions[2].layer):
        far = [1 + length % 2 for length in x.shape[2:]]
        x = F.pad(x, (1, far[1], 1, far[0]), mode="reflect")
        x = F.leaky_relu(F.conv2d(x, layer.weight, layer.bias, stride=2), 0.2)
    score = network.score.parametrizations.weight.original
    score = (score / score.norm())[0]
    averages, maxima = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
    torch.testing.assert_close(logit[:, 0], averages @ score[:6] + maxima @ score[6:])
    mix = network.combine.weight[:, :, 0, 0] * score
    attended = torch.einsum("oc,bcij->boij", mix[:, :6] + mix[:, 6:], x) + network.combine.bias[:, None, None]
    torch.testing.assert_close(features, F.leaky_relu(0.7 * attended + x, 0.2))


def test_attention_begins_with_none():
    network = encoder()
    assert network.proportion.item() == 0


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_norms_equal_an_independent_calculation(size):
    x = torch.randn(2, 3, *size) * 2 + 1
    space = tuple(range(2, x.ndim))
    ones = (..., *(None,) * len(size))

    def normalised(axes):
        mean, variance = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    share = math.exp(3.2) / (math.exp(3.2) + math.exp(1))  # 0.9
    by_instance, by_layer = normalised(space), normalised((1, *space))
    scale, shift = torch.randn(2, 3), torch.randn(2, 3)
    adaptive = AdaptiveInstanceLayerNorm(len(size), 3)(x, scale, shift)
    torch.testing.assert_close(adaptive, scale[ones] * (share * by_instance + (1 - share) * by_layer) + shift[ones])
    learned = InstanceLayerNorm(len(size), 3)
    torch.testing.assert_close(learned(x), (1 - share) * by_instance + share * by_layer)
    with torch.no_grad():
        learned.weight.copy_(scale[0])
        learned.bias.copy_(shift[0])
        learned.mixture.copy_(torch.tensor([[20.0, -20.0, 0.0], [-20.0, 20.0, 0.0]]))
    mixed = torch.stack([by_instance[:, 0], by_layer[:, 1], (by_instance[:, 2] + by_layer[:, 2]) / 2], dim=1)
    torch.testing.assert_close(learned(x), scale[0][ones] * mixed + shift[0][ones])


def test_light_generator_takes_its_style_from_the_mean_and_full_from_every_voxel():
    light, full = generator(), generator(image_size=(16, 16))
    assert light.style[0].in_features == 8
    assert full.style[0].in_features == 8 * 4 * 4
    x = light.stem(torch.randn(1, 4, 4, 4))
    seen = []
    for network in (light, full):
        network.style.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        network.stem.register_forward_hook(lambda *_: x)
        network(torch.randn(1, 4, 4, 4))
    torch.testing.assert_close(seen[0], x.mean(dim=(2, 3)))
    torch.testing.assert_close(seen[1], x.reshape(1, -1))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_minimum_size_of_the_encoder_is_the_smallest_that_works(spatial_dims, monkeypatch):
    network = encoder(spatial_dims=spatial_dims)
    smallest = network.minimum_size
    assert network(image(*(smallest,) * spatial_dims))[0].isfinite().all()
    too_small = image(smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis"):
        network(too_small)
    monkeypatch.setattr("pipeline.networks.nicegan.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        network(too_small)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("build", [generator, heads, lambda **given: heads(global_downsamplings=1, **given)])
def test_minimum_size_of_generator_and_heads_is_the_smallest_that_works(build, spatial_dims, monkeypatch):
    network = build(spatial_dims=spatial_dims)
    encode = encoder(spatial_dims=spatial_dims)
    smallest = network.minimum_size
    sizes = (smallest,) * spatial_dims, (smallest - 1, *(smallest,) * (spatial_dims - 1))

    def run(size):
        features, _ = encode(image(*size))
        return network(features, size) if isinstance(network, NICEGenerator) else network(features)[1]

    assert run(sizes[0]).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*use larger images"):
        run(sizes[1])
    monkeypatch.setattr(type(network), "minimum_size", 0)
    with pytest.raises((RuntimeError, ValueError)):
        run(sizes[1])


def test_images_of_a_batch_do_not_influence_each_other():
    networks = encoder().eval(), generator(), heads().eval()

    def run(images):
        features, logit = networks[0](images)
        return features, logit, networks[1](features), *networks[2](features)

    batch = image(24, 24, batch=3)
    alone = [torch.cat(outputs) for outputs in zip(*(run(one[None]) for one in batch), strict=True)]
    for together, apart in zip(run(batch), alone, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns():
    torch.manual_seed(0)
    networks = torch.nn.ModuleList([encoder(filters=4), generator(filters=4), heads(filters=4)])
    with torch.no_grad():
        networks[0].proportion.fill_(0.5)  # at 0 nothing behind it learns yet
    features, logit = networks[0](image(24, 24))
    outputs = [logit, networks[1](features), *networks[2](features)]
    sum((output - 1).square().mean() for output in outputs).backward()
    still = [name for name, parameter in networks.named_parameters() if not parameter.grad.abs().max() > 0]
    assert still == []


def test_power_iteration_runs_in_training_only():
    torch.manual_seed(0)
    network, source = encoder(), image(12, 12)
    before = power_buffers(network)
    assert len(before) == 6
    network.eval()
    first = network(source)[0]
    assert torch.equal(network(source)[0], first)
    assert all(torch.equal(before[name], value) for name, value in power_buffers(network).items())
    parameters = copy.deepcopy(list(network.parameters()))
    network.train()
    for _ in range(3):
        network(source)
    assert any(not torch.equal(before[name], value) for name, value in power_buffers(network).items())
    assert all(torch.equal(one, other) for one, other in zip(parameters, network.parameters(), strict=True))


def test_mixed_precision_leaves_spectral_norm_in_single_precision():
    torch.manual_seed(0)
    full, mixed, source = encoder(filters=8), encoder(filters=8), image(16, 16)
    mixed.load_state_dict(full.state_dict())
    features, _ = full(source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = mixed(source)
    torch.testing.assert_close(power_buffers(mixed), power_buffers(full), rtol=0, atol=0)
    torch.testing.assert_close(rough.float(), features, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("amp", [False, True])
def test_smallest_and_flattest_images_give_finite_values_and_gradients(amp):
    networks = torch.nn.ModuleList([encoder(), generator()])
    for source in (torch.full((1, 1, 5, 5), -1.0), torch.zeros(1, 1, 32, 32), image(5, 5)):
        networks.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            features, logit = networks[0](source)
            prediction = networks[1](features, source.shape[2:])
        (prediction.float().square().mean() + logit.float().square().mean()).backward()
        assert prediction.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in networks.parameters())


def test_state_survives_a_file_without_running_code():
    network, source = encoder().eval(), image(12, 12)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = encoder().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(source)[0], network(source)[0], rtol=0, atol=0)


def test_exported_networks_give_the_same_prediction():
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.generator = encoder(), generator()

        def forward(self, source):
            return self.generator(self.encoder(source)[0], source.shape[2:])

    network, source = Both().eval(), image(14, 17)
    expected = network(source)
    torch.testing.assert_close(torch.export.export(network, (source,)).module()(source), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, source)
    torch.testing.assert_close(traced(source), expected)


def test_the_full_variant_refuses_other_sizes():
    network, encode = generator(image_size=[16, 20]), encoder()
    for size in ((16, 24), (15, 20)):  # the second has features of the same size
        with pytest.raises(ValueError, match=re.escape(f"size (16, 20), got {size}; use images of that size, or")):
            network(encode(image(*size))[0], size)


def test_features_of_another_image_are_refused():
    with pytest.raises(ValueError, match=r"a quarter of the image's size \(16, 20\), rounded up, got \(4, 4\)"):
        generator()(torch.zeros(1, 4, 4, 4), (16, 20))


@pytest.mark.parametrize("build", [generator, heads])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8)])
def test_other_features_are_refused(build, shape):
    with pytest.raises(ValueError, match=r"expects features of shape \(batch, 4, height, width\), got"):
        build()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (encoder, {"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        (encoder, {"filters": 0}, "filters must be an integer of at least 1, got 0"),
        (generator, {"residual_blocks": 0}, "residual_blocks must be an integer of at least 1, got 0"),
        (generator, {"image_size": (32,)}, r"None or 2 integers of at least 5, got \(32,\)"),
        (generator, {"image_size": (32, 4)}, r"None or 2 integers of at least 5, got \(32, 4\)"),
        (generator, {"image_size": (32, 32.0)}, r"None or 2 integers of at least 5, got \(32, 32.0\)"),
        (heads, {"global_downsamplings": -1}, "global_downsamplings must be an integer of at least 0, got -1"),
        (heads, {"global_downsamplings": 1.5}, "global_downsamplings must be an integer of at least 0, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
