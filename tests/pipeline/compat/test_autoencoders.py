"""Import of UNIT and MUNIT, against modules with the names, order and arithmetic of the authors' code."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.compat import Known, WeightsError, combine, import_state_dict
from pipeline.networks import MultiScaleDiscriminator, MUNITGenerator, UNITGenerator
from pipeline.translators import MUNITTranslator, UNITTranslator, decode_recipe, decode_signature


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Unbiased(nn.Module):
    """Layer norm with a scale and a shift per channel, and the deviation of a sample."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels))
        self.beta = nn.Parameter(torch.randn(channels) * 0.1)

    def forward(self, x):
        axes = tuple(range(1, x.ndim))
        x = (x - x.mean(axes, keepdim=True)) / (x.std(axes, keepdim=True) + 1e-5)
        return x * self.gamma[:, None, None] + self.beta[:, None, None]


class Adaptive(nn.Module):
    """Instance norm whose scale and shift are set from outside, with the statistics that it keeps and never reads."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.instance_norm(x) * self.scale[..., None, None] + self.shift[..., None, None]


class Layer(nn.Module):
    """A convolution and what follows it; the norm is registered first."""

    def __init__(self, channels_in, channels_out, kernel, stride=1, norm=None, act=F.relu):
        super().__init__()
        self.norm = None if norm is None else norm(channels_out)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride)
        self.act = act
        self.reach = (kernel - 1) // 2

    def forward(self, x):
        x = self.conv(F.pad(x, (self.reach,) * 4, mode="reflect"))
        x = x if self.norm is None else self.norm(x)
        return x if self.act is None else self.act(x)


class Chain(nn.Module):
    """Layers under the name `model`."""

    def __init__(self, *layers):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class Residual(Chain):
    """Two layers, added to their input."""

    def __init__(self, channels, norm):
        super().__init__(Layer(channels, channels, 3, norm=norm), Layer(channels, channels, 3, norm=norm, act=None))

    def forward(self, x):
        return x + super().forward(x)


def content_encoder(channels, filters, downsamplings, blocks, norm=nn.InstanceNorm2d):
    halving = [Layer(filters * 2**i, filters * 2 ** (i + 1), 4, 2, norm) for i in range(downsamplings)]
    residual = Chain(*(Residual(filters * 2**downsamplings, norm) for _ in range(blocks)))
    return Chain(Layer(channels, filters, 7, norm=norm), *halving, residual)


def decoder(channels, filters, downsamplings, blocks, norm):
    layers = [Chain(*(Residual(filters * 2**downsamplings, norm) for _ in range(blocks)))]
    for i in reversed(range(downsamplings)):
        layers += [nn.Upsample(scale_factor=2), Layer(filters * 2 ** (i + 1), filters * 2**i, 5, norm=Unbiased)]
    return Chain(*layers, Layer(filters, channels, 7, act=torch.tanh))


class AuthorsUNIT(nn.Module):
    """Autoencoder of one domain."""

    def __init__(self, channels=1, filters=64, downsamplings=2, blocks=4):
        super().__init__()
        self.enc = content_encoder(channels, filters, downsamplings, blocks)
        self.dec = decoder(channels, filters, downsamplings, blocks, nn.InstanceNorm2d)


class Linear(nn.Module):
    """A layer of the perceptron."""

    def __init__(self, inputs, outputs, act=F.relu):
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.act = act

    def forward(self, x):
        return self.act(self.fc(x))


class AuthorsMUNIT(nn.Module):
    """Autoencoder of one domain, with its style encoder and perceptron."""

    def __init__(self, channels=1, filters=64, downsamplings=2, blocks=4, style=8, mlp=256, style_halvings=4):
        super().__init__()
        widths = [filters * 2 ** min(i, 2) for i in range(style_halvings + 1)]
        self.enc_style = Chain(
            Layer(channels, filters, 7),
            *(Layer(fine, coarse, 4, 2) for fine, coarse in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(widths[-1], style, 1),
        )
        self.enc_content = content_encoder(channels, filters, downsamplings, blocks)
        self.dec = decoder(channels, filters, downsamplings, blocks, Adaptive)
        self.norms = [module for module in self.dec.modules() if isinstance(module, Adaptive)]
        outputs = len(self.norms) * 2 * filters * 2**downsamplings
        self.mlp = Chain(Linear(style, mlp), Linear(mlp, mlp), Linear(mlp, outputs, nn.Identity()))

    def decode(self, content, style):
        numbers = self.mlp(style.flatten(1)).chunk(2 * len(self.norms), dim=1)
        for norm, shift, scale in zip(self.norms, numbers[::2], numbers[1::2], strict=True):
            norm.shift, norm.scale = shift, scale
        return self.dec(content)


class AuthorsDiscriminator(nn.Module):
    """Patch scores at several resolutions."""

    def __init__(self, channels=1, filters=64, layers=4, scales=3):
        super().__init__()
        widths = [channels, *(filters * 2**i for i in range(layers))]
        self.cnns = nn.ModuleList(
            nn.Sequential(
                *(
                    Layer(fine, coarse, 4, 2, act=partial(F.leaky_relu, negative_slope=0.2))
                    for fine, coarse in pairwise(widths)
                ),
                nn.Conv2d(widths[-1], 1, 1),
            )
            for _ in range(scales)
        )

    def forward(self, x):
        scores = []
        for scale in self.cnns:
            scores.append(scale(x))
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return scores


SMALL = {"filters": 4, "blocks": 2}
ODD = {"channels": 2, "filters": 3, "downsamplings": 3, "blocks": 1}


def pair(kind, **settings):
    return kind(**settings), kind(**settings)


def imported(*networks):
    return combine([import_state_dict(network.state_dict()) for network in networks])


def translator(kind, model, **options):
    """What inference builds, with the weights loaded as strictly as MONAI's handlers do."""
    recipe = model.recipe()
    built = recipe.translator({}, **options).eval()
    assert type(built) is kind
    built.load_state_dict(model.state_dict(recipe), strict=True)
    return built


@pytest.mark.parametrize("settings", [SMALL, ODD])
@torch.no_grad()
def test_imported_unit_translates_as_the_authors_does(settings):
    source, target = pair(AuthorsUNIT, **settings)
    images = torch.rand(2, settings.get("channels", 1), 64, 48) * 2 - 1
    ours = translator(UNITTranslator, imported(source, target))
    torch.testing.assert_close(ours(images), target.dec(source.enc(images)), rtol=0, atol=1e-4)
    assert not torch.allclose(ours(images), source.dec(target.enc(images)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("settings", [SMALL, {**ODD, "style": 5, "mlp": 7, "style_halvings": 1}])
@torch.no_grad()
def test_imported_munit_translates_as_the_authors_does(settings):
    source, target = pair(AuthorsMUNIT, **settings)
    images = torch.rand(2, settings.get("channels", 1), 64, 48) * 2 - 1
    model, content = imported(source, target), source.enc_content(images)
    zero = torch.zeros(2, settings.get("style", 8), 1, 1)
    torch.testing.assert_close(
        translator(MUNITTranslator, model)(images), target.decode(content, zero), rtol=0, atol=1e-4
    )
    style = torch.randn_like(zero[0, :, 0, 0])
    styled = translator(MUNITTranslator, model, style=style.tolist())(images)
    expected = target.decode(content, style.expand(2, -1))
    torch.testing.assert_close(styled, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(expected, target.decode(content, zero), rtol=0, atol=1e-3)

    reference = torch.rand_like(images) * 2 - 1
    alike = translator(MUNITTranslator, model, reference=reference)(images)
    expected = target.decode(content, target.enc_style(reference).mean(0, keepdim=True).expand(2, -1, -1, -1))
    torch.testing.assert_close(alike, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_imported_multi_scale_discriminator_computes_what_the_authors_does():
    theirs, images = AuthorsDiscriminator(filters=2, layers=3), torch.rand(2, 1, 40, 48) * 2 - 1
    file = import_state_dict(theirs.state_dict())
    assert (file.role, type(file.networks["discriminator"])) == ("discriminator", MultiScaleDiscriminator)
    for ours, expected in zip(file.networks["discriminator"](images), theirs(images), strict=True):
        torch.testing.assert_close(ours, expected)
    model = combine([file])
    assert not model.translates
    assert all(name.startswith("discriminator.scales.") for name in model.state_dict())


@pytest.mark.parametrize(
    ("kind", "count", "ours"),
    [
        (AuthorsUNIT, 11_127_937, UNITGenerator),
        (AuthorsMUNIT, 15_007_369, MUNITGenerator),
        (AuthorsDiscriminator, 8_265_027, MultiScaleDiscriminator),
    ],
)
def test_the_paper_s_networks_are_those_that_we_build_by_default(kind, count, ours):
    with torch.device("meta"):
        theirs = kind()
    assert sum(parameter.numel() for parameter in theirs.parameters()) == count
    file = import_state_dict({name: torch.zeros(tensor.shape) for name, tensor in theirs.state_dict().items()})
    assert file.parameter_count == count
    [network], [settings] = file.networks.values(), file.settings.values()
    with torch.device("meta"):
        default = ours().state_dict()
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
        name: tensor.shape for name, tensor in default.items()
    }
    assert settings.items() >= {"spatial_dims": 2, "filters": 64}.items()


def test_the_state_is_that_of_a_translator():
    model = imported(*pair(AuthorsMUNIT, **SMALL))
    recipe = model.recipe(Known((0, 1000), image_size=(64, 48)))
    assert recipe["source"]["channels"] == recipe["target"]["channels"] == 1
    assert recipe["networks"]["generator"]["arguments"].items() >= model.settings["generator"].items()
    state = model.state_dict(recipe)
    assert decode_signature(state["_extra_state"]) == "MUNITTranslator(imported)"
    assert decode_recipe(state["_extra_state"]) == recipe.content
    loaded = translator(MUNITTranslator, imported(*pair(AuthorsMUNIT, **SMALL)))
    assert loaded.signature == "MUNITTranslator(imported)"


@pytest.mark.parametrize(("kind", "ours"), [(AuthorsUNIT, UNITTranslator), (AuthorsMUNIT, MUNITTranslator)])
@torch.no_grad()
def test_statistics_that_norms_keep_are_left_out(kind, ours):
    """Files from before PyTorch 0.4 have them for every norm, in front of its convolution."""

    def with_statistics(network):
        state = {}
        for name, tensor in network.state_dict().items():
            if name.endswith("conv.weight"):
                norm = name.replace("conv.weight", "norm")
                state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = torch.zeros(2, tensor.shape[0])
                state[f"{norm}.num_batches_tracked"] = torch.tensor(3)
            state[name] = tensor
        return import_state_dict(state)

    networks, images = pair(kind, **SMALL), torch.rand(1, 1, 32, 32) * 2 - 1
    expected = translator(ours, imported(*networks))(images)
    assert torch.equal(translator(ours, combine([with_statistics(network) for network in networks]))(images), expected)


def unit(**settings):
    return import_state_dict(AuthorsUNIT(**{**SMALL, **settings}).state_dict())


def munit(**settings):
    return import_state_dict(AuthorsMUNIT(**{**SMALL, **settings}).state_dict())


def discriminator():
    return import_state_dict(AuthorsDiscriminator(filters=2).state_dict())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([unit()], r"no model is made of UNITGenerator \(autoencoder\): .*of the source, then that of the target"),
        ([munit()], r"no model is made of MUNITGenerator \(autoencoder\)"),
        ([unit(), munit()], r"made of UNITGenerator \(autoencoder\) and MUNITGenerator \(autoencoder\)"),
        ([unit(), unit(), unit()], "no model is made of"),
        ([unit(), discriminator()], r"and MultiScaleDiscriminator \(discriminator\)"),
        ([unit(), unit(filters=3)], "not of the same form: filters 4 and 3"),
        ([unit(), unit(channels=2)], "not of the same form: channels 1 and 2"),
        ([munit(), munit(blocks=1, mlp=5)], "residual_blocks 2 and 1, mlp_width 256 and 5"),
        ([unit()] * 2, "both files hold the same weights; give the source's autoencoder, then the target's"),
    ],
)
def test_files_that_make_no_model_are_refused(files, message):
    with pytest.raises(WeightsError, match=message):
        combine(files)


def changed(kind, change, **settings):
    state = kind(**{"filters": 4, "blocks": 2, **settings}).state_dict()
    change(state)
    return state


def cut(count):
    """Drop the last tensors."""

    def change(state):
        for name in list(state)[-count:]:
            del state[name]

    return change


def swap_norm(state):
    """Our order of the layer norm and its convolution, instead of theirs."""
    for name in ("norm.gamma", "norm.beta"):
        state.move_to_end(f"dec.model.2.{name}")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(AuthorsUNIT, cut(2)), "nearest is UNITGenerator .* there are 30 tensors where 32 are expected"),
        (changed(AuthorsUNIT, cut(9)), "nearest is UNITGenerator .* there are 23 tensors"),
        (changed(AuthorsUNIT, cut(20)), "nearest is UNITGenerator"),
        (changed(AuthorsUNIT, cut(26)), "nearest is UNITGenerator"),
        (changed(AuthorsUNIT, swap_norm), r"nearest is UNITGenerator .*'dec.model.2.conv.weight', has shape"),
        (changed(AuthorsMUNIT, cut(6)), "nearest is MUNITGenerator"),
        (changed(AuthorsMUNIT, cut(1)), "nearest is MUNITGenerator .* there are"),
        (changed(AuthorsMUNIT, lambda state: state.move_to_end("enc_style.model.0.conv.weight")), "no known network"),
        (changed(AuthorsUNIT, lambda state: state["enc.model.0.conv.bias"].fill_(float("nan"))), "must hold finite"),
        (
            changed(AuthorsUNIT, lambda state: state.update({"dec.model.2.norm.gamma": torch.ones(9)})),
            r"'dec.model.2.norm.gamma', has shape \(9,\) where \(8,\) is expected \('decoder.image.stages.2.weight'\)",
        ),
        (
            {"a": torch.zeros(8, 3, 7, 7), "b": torch.zeros(8)}
            | {f"c{i}": torch.zeros(2 ** min(i + 4, 12), 1, 4, 4) for i in range(300)},
            "nearest is UNITGenerator",
        ),
        (
            {"a": torch.zeros(8, 3, 4, 4), "b": torch.zeros(8), "c": torch.zeros(1, 8, 1, 1)},
            "nearest is MultiScaleDiscriminator .* there are 3 tensors where 4",
        ),
    ],
)
def test_what_fits_no_autoencoder_is_refused_with_the_first_difference(state, message):
    with pytest.raises(WeightsError, match=message):
        import_state_dict(state)
