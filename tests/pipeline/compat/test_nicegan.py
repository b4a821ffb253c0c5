"""Import of NICE-GAN, against modules with the names, order and arithmetic of the authors' code."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm  # the older form, which the authors use

from pipeline.compat import WeightsError, combine, import_state_dict
from pipeline.translators import NICETranslator


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def padding(mode):
    """Constructor of a padding layer, by width."""
    return {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}[mode]


def leaky():
    return nn.LeakyReLU(0.2)


def spectral(channels_in, channels_out, stride, bias=True):
    return spectral_norm(nn.Conv2d(channels_in, channels_out, 4, stride, bias=bias))


class Mixed(nn.Module):
    """Instance and layer norm, mixed by `rho`; `unbiased` is how the authors compute variances."""

    def __init__(self, channels, affine=False, unbiased=False):
        super().__init__()
        self.rho = nn.Parameter(torch.randn(1, channels, 2))
        self.unbiased = unbiased
        if affine:
            self.gamma = nn.Parameter(1 + torch.randn(1, channels, 1, 1) * 0.2)
            self.beta = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.2)

    def forward(self, x, gamma=None, beta=None):
        gamma, beta = (self.gamma, self.beta) if gamma is None else (gamma[..., None, None], beta[..., None, None])
        proportions = self.rho.softmax(2)
        mixed = 0
        for number, axes in enumerate(((2, 3), (1, 2, 3))):
            variance = x.var(axes, keepdim=True, unbiased=self.unbiased)
            normalised = (x - x.mean(axes, keepdim=True)) / (variance + 1e-5).sqrt()
            mixed = mixed + proportions[:, :, number, None, None] * normalised
        return mixed * gamma + beta


class Block(nn.Module):
    """Two convolutions with norms of one scale and shift, added to their input."""

    def __init__(self, channels, unbiased):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm1 = Mixed(channels, unbiased=unbiased)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
        self.norm2 = Mixed(channels, unbiased=unbiased)

    def forward(self, x, gamma, beta):
        def padded(y):
            return F.pad(y, (1,) * 4, mode="reflect")

        y = F.relu(self.norm1(self.conv1(padded(x)), gamma, beta))
        return x + self.norm2(self.conv2(padded(y)), gamma, beta)


class Attending(nn.Module):
    """The encoder's part that discriminators and the generator with its own encoder share."""

    def encode(self, images):
        x = self.model(images)
        weight = self.fc.weight_orig  # not the normalised one
        y = self.conv1x1(torch.cat([x, x], 1) * weight[..., None, None])
        return F.leaky_relu(self.lamda * y + x, 0.2)

    def add_encoder(self, channels, filters, pad):
        self.fc = spectral_norm(nn.Linear(4 * filters, 1, bias=False))
        self.conv1x1 = nn.Conv2d(4 * filters, 2 * filters, 1)
        self.lamda = nn.Parameter(torch.tensor([0.7]))
        first, second = spectral(channels, filters, 2), spectral(filters, 2 * filters, 2)
        return nn.Sequential(pad(1), first, leaky(), pad(1), second, leaky())


class AuthorsDiscriminator(Attending):
    """Encoder and heads; only the encoder is ever run here."""

    def __init__(self, channels=1, filters=64):
        super().__init__()
        pad = padding("reflect")
        model = self.add_encoder(channels, filters, pad)
        self.conv0, self.conv1 = spectral(8 * filters, 1, 1, False), spectral(32 * filters, 1, 1, False)
        self.model = model

        def stages(widths, stride):
            layers = [(pad(1), spectral(fine, coarse, stride), leaky()) for fine, coarse in pairwise(widths)]
            return nn.Sequential(*(part for layer in layers for part in layer))

        self.Dis0_0 = stages([2 * filters, 4 * filters], 2)
        self.Dis0_1 = stages([4 * filters, 8 * filters], 1)
        self.Dis1_0 = stages([4 * filters, 8 * filters, 16 * filters], 2)
        self.Dis1_1 = stages([16 * filters, 32 * filters], 1)


class AuthorsGenerator(Attending):
    """On features or, with `own_encoder`, on images; then `edges` is how its outermost layers are padded."""

    def __init__(
        self,
        channels=1,
        filters=64,
        blocks=7,
        size=256,
        light=False,
        own_encoder=False,
        edges="reflect",
        unbiased=False,
    ):
        super().__init__()
        wide, pad, edge, norm = 4 * filters, padding("reflect"), padding(edges), partial(Mixed, unbiased=unbiased)
        self.light = light
        model = self.add_encoder(channels, filters, edge) if own_encoder else None
        self.gamma, self.beta = nn.Linear(wide, wide, bias=False), nn.Linear(wide, wide, bias=False)
        self.blocks = [Block(wide, unbiased) for _ in range(blocks)]
        for number, block in enumerate(self.blocks, 1):
            self.add_module(f"UpBlock1_{number}", block)
        if model is not None:
            self.model = model
        seen = wide if light else wide * (size // 4) ** 2
        self.FC = nn.Sequential(
            nn.Linear(seen, wide, bias=False), nn.ReLU(), nn.Linear(wide, wide, bias=False), nn.ReLU()
        )
        self.UpBlock0 = nn.Sequential(edge(1), nn.Conv2d(2 * filters, wide, 3), norm(wide, True), nn.ReLU())
        layers = []
        for coarse, fine in ((wide, 2 * filters), (2 * filters, filters)):
            layers += [pad(1), nn.Conv2d(coarse, fine, 3, bias=False), norm(fine, True), nn.ReLU()]
            layers += [nn.Conv2d(fine, 4 * fine, 1), nn.PixelShuffle(2), norm(fine, True), nn.ReLU()]
        self.UpBlock2 = nn.Sequential(*layers, edge(3), nn.Conv2d(filters, channels, 7, bias=False), nn.Tanh())

    def forward(self, x):
        x = self.UpBlock0(self.encode(x) if hasattr(self, "model") else x)
        style = self.FC(x.mean((2, 3)) if self.light else x.flatten(1))
        gamma, beta = self.gamma(style), self.beta(style)
        for block in self.blocks:
            x = block(x, gamma, beta)
        return self.UpBlock2(x)


def trained(network):
    """Some power iterations on, and ready for use."""
    for module in network.modules():
        if hasattr(module, "weight_u"):
            for hook in module._forward_pre_hooks.values():
                for _ in range(3):
                    hook(module, None)
    return network.eval().requires_grad_(False)


def imported(*networks):
    return combine([import_state_dict(network.state_dict()) for network in networks])


def translator(model):
    """What inference builds, with the weights loaded as strictly as MONAI's handlers do."""
    recipe = model.recipe()
    built = recipe.translator({}).eval()
    assert type(built) is NICETranslator
    built.load_state_dict(model.state_dict(recipe), strict=True)
    return built.requires_grad_(False)


def images(size, channels=1):
    return torch.rand(2, channels, *size) * 2 - 1


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"filters": 4, "blocks": 2, "light": True}, (40, 32)),
        ({"filters": 4, "blocks": 3, "size": 32}, (32, 32)),
        ({"filters": 3, "blocks": 1, "size": 20, "channels": 2}, (20, 20)),
    ],
)
@pytest.mark.parametrize("own_encoder", [False, True])
def test_imported_nice_gan_translates_as_the_authors_does(settings, size, own_encoder):
    generator = trained(AuthorsGenerator(**settings, own_encoder=own_encoder))
    judge = trained(AuthorsDiscriminator(settings.get("channels", 1), settings["filters"]))
    source = images(size, settings.get("channels", 1))
    model = imported(generator) if own_encoder else imported(generator, judge)
    expected = generator(source if own_encoder else judge.encode(source))
    ours = translator(model)
    torch.testing.assert_close(ours(source), expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.01
    assert model.image_size == (() if settings.get("light") else size)
    assert model.settings["generator"]["residual_blocks"] == settings["blocks"]
    assert model.recipe()["grid"]["spatial_size"] == (list(model.image_size) or None)
    assert model.recipe()["source"]["channels"] == settings.get("channels", 1)
    assert ours.signature == "NICETranslator(imported)"
    assert bool(model.note) == own_encoder


def test_either_order_of_the_files_will_do():
    generator, judge = AuthorsGenerator(filters=2, blocks=1, light=True), AuthorsDiscriminator(filters=2)
    one, other = imported(generator, judge).state_dict(), imported(judge, generator).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_unbiased_variances_make_hardly_a_difference():
    generator = trained(AuthorsGenerator(filters=2, blocks=2, light=True, own_encoder=True, unbiased=True))
    source = images((128, 128))
    difference = (translator(imported(generator))(source) - generator(source)).abs().max()
    assert 0 < difference < 0.005


def test_padding_of_the_generator_with_its_own_encoder_tells_at_the_border_only():
    generator = trained(AuthorsGenerator(filters=4, blocks=2, light=True, own_encoder=True, edges="replicate"))
    source = images((64, 64))
    source = F.pad(source[..., 16:-16, 16:-16], (16,) * 4, value=-1)
    model = imported(generator)
    difference = (translator(model)(source) - generator(source)).abs()
    assert "repeats the outermost pixels" in model.note
    assert difference[..., 3:-3, 3:-3].max() < 1e-5
    assert difference.max() > 0.01


def test_the_paper_s_networks_are_recognised():
    with torch.device("meta"):
        networks = AuthorsGenerator(light=True), AuthorsDiscriminator()
        full = AuthorsGenerator()
    assert sum(parameter.numel() for parameter in full.parameters()) - 276_468_288 == 2 * 256 * (9 * 256 + 2)
    zeros = [{name: torch.zeros(tensor.shape) for name, tensor in net.state_dict().items()} for net in networks]
    model = combine([import_state_dict(state) for state in zeros])
    assert model.settings == {
        "encoder": {"in_channels": 1, "filters": 64},
        "generator": {"out_channels": 1, "filters": 64, "residual_blocks": 7, "image_size": None},
    }
    assert import_state_dict(zeros[1]).parameter_count == 165_441


def generator(**settings):
    return AuthorsGenerator(**{"filters": 2, "blocks": 2, "light": True, **settings})


def files(*networks):
    return [import_state_dict(network.state_dict()) for network in networks]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (files(generator()), r"no model is made of NICEGenerator \(generator\): .*and the discriminator of source"),
        (files(AuthorsDiscriminator(filters=2)), r"no model is made of NICEEncoder \(encoder\)"),
        (files(generator(), generator()), r"made of NICEGenerator \(generator\) and NICEGenerator \(generator\)"),
        (
            files(generator(own_encoder=True), AuthorsDiscriminator(filters=2)),
            "has its own encoder; give its file with",
        ),
        (files(generator(), AuthorsDiscriminator(filters=3)), "trained on features of 2 filters, the encoder has 3"),
        (
            files(generator(), AuthorsDiscriminator(filters=2), AuthorsDiscriminator(filters=2)),
            "no model is made of",
        ),
    ],
)
def test_files_that_make_no_model_are_refused(parts, message):
    with pytest.raises(WeightsError, match=message):
        combine(parts)


def changed(network, **tensors):
    """A state dict with tensors replaced, or taken out where None; "__" stands for "."."""
    state = network.state_dict()
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(generator(), UpBlock2__17__weight=None), "no tensor 'UpBlock2.17.weight', which NICE-GAN's networks"),
        (changed(generator(), UpBlock1_2__norm2__rho=None), "no tensor 'UpBlock1_2.norm2.rho'.* is not whole"),
        (changed(generator(), UpBlock1_1__conv1__weight=None), "no tensor 'UpBlock1_1.conv1.weight'|unknown tensor"),
        (changed(generator(), UpBlock0__3__weight=torch.zeros(2)), "unknown tensor 'UpBlock0.3.weight' among"),
        (
            changed(generator(), UpBlock1_1__norm1__rho=torch.zeros(1, 8, 3)),
            r"'UpBlock1_1.norm1.rho' of a NICE-GAN generator has shape \(1, 8, 3\) where \(1, 8, 2\) is expected",
        ),
        (changed(generator(), FC__0__weight=torch.zeros(8, 8 * 7)), "takes 56 values, which is no square of 8"),
        (changed(generator(), FC__0__weight=torch.zeros(8)), r"'FC.0.weight' has shape \(8,\), expected 2 axes"),
        (changed(generator(), FC__0__weight=torch.zeros(8, 8, 1)), "expected 2 axes"),
        (changed(generator(), gamma__weight=torch.full((8, 8), float("inf"))), "'gamma.weight' .* must hold finite"),
        (changed(AuthorsDiscriminator(filters=2), fc__weight_u=None), "no tensor 'fc.weight_u'"),
        (
            changed(AuthorsDiscriminator(filters=2), lamda=torch.zeros(2)),
            r"'lamda' of a NICE-GAN encoder has shape \(2,",
        ),
        (
            changed(AuthorsDiscriminator(filters=2), model__1__weight_orig=torch.zeros(2, 1, 4, 4, 4)),
            "'model.1.weight_orig' has shape .*, expected 4 axes",
        ),
    ],
)
def test_what_is_no_whole_nice_gan_is_refused_by_name(state, message):
    with pytest.raises(WeightsError, match=message):
        import_state_dict(state)
