"""Import of weights saved by the authors' code: the CycleGAN backbone, registration, and files on disk."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.compat import Known, WeightsError, combine, import_state_dict, read_state_dict, write_state_dict
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import decode_recipe, decode_signature


def convolution(name, out_channels, in_channels, kernel, dims=2, transposed=False):
    """Random weight and bias under the name of a layer."""
    channels = (in_channels, out_channels) if transposed else (out_channels, in_channels)
    scale = (in_channels * kernel**dims) ** -0.5
    return {
        f"{name}.weight": torch.randn(*channels, *(kernel,) * dims) * scale,
        f"{name}.bias": torch.randn(out_channels) * scale,
    }


def residual(name, channels, dims=2):
    return {
        **convolution(f"{name}.conv_block.1", channels, channels, 3, dims),
        **convolution(f"{name}.conv_block.5", channels, channels, 3, dims),
    }


def authors_generator(filters=8, blocks=2, in_channels=1, out_channels=1, dims=2):
    state = convolution("model_head.1", filters, in_channels, 7, dims)
    state |= convolution("model_head.4", 2 * filters, filters, 3, dims)
    state |= convolution("model_head.7", 4 * filters, 2 * filters, 3, dims)
    for i in range(blocks):
        state |= residual(f"model_body.{i}", 4 * filters, dims)
    state |= convolution("model_tail.0", 2 * filters, 4 * filters, 3, dims, transposed=True)
    state |= convolution("model_tail.3", filters, 2 * filters, 3, dims, transposed=True)
    return state | convolution("model_tail.7", out_channels, filters, 7, dims)


def authors_discriminator(filters=8, in_channels=1, dims=2):
    state = convolution("model.0", filters, in_channels, 4, dims)
    state |= convolution("model.2", 2 * filters, filters, 4, dims)
    state |= convolution("model.5", 4 * filters, 2 * filters, 4, dims)
    state |= convolution("model.8", 8 * filters, 4 * filters, 4, dims)
    return state | convolution("model.11", 1, 8 * filters, 4, dims)


def authors_registration(channels=(4, 8, 8), blocks=3, in_channels=1, dims=2):
    state, below, levels = {}, 2 * in_channels, len(channels)
    for level, width in enumerate(channels, 1):
        state |= convolution(f"offset_map.down_{level}.conv_0.conv2d", width, below, 3, dims)
        state |= residual(f"offset_map.down_{level}.conv_0.resnet_block.model.0", width, dims)
        below = width
    state |= convolution("offset_map.c1.conv2d", 2 * below, below, 1, dims)
    for i in range(blocks):
        state |= residual(f"offset_map.t.model.{i}", 2 * below, dims)
    state |= convolution("offset_map.c2.conv2d", below, 2 * below, 1, dims)
    for level in range(levels, 0, -1):
        width = channels[level - 1]
        state |= convolution(f"offset_map.up_{level}.conv2d", width, below + width, 3, dims)
        below = width
    state |= residual("offset_map.refine.0.model.0", below, dims)
    state |= convolution("offset_map.refine.1.conv2d", below, below, 1, dims)
    return state | convolution("offset_map.output.conv2d", dims, below, 3, dims)


class Arithmetic:
    """The authors' layers, two-dimensional, computed from a state dict by name."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def reflected(self, name, x):
        reach = self.state[f"{name}.weight"].shape[-1] // 2
        return self.conv(name, F.pad(x, (reach,) * 4, mode="reflect"))

    def residual(self, name, x):
        inner = F.relu(F.instance_norm(self.reflected(f"{name}.conv_block.1", x)))
        return x + F.instance_norm(self.reflected(f"{name}.conv_block.5", inner))

    def leaky(self, name, x, **options):
        return F.leaky_relu(self.conv(name, x, **options), 0.2)

    def generator(self, x, blocks):
        x = F.relu(F.instance_norm(self.reflected("model_head.1", x)))
        for name in ("model_head.4", "model_head.7"):
            x = F.relu(F.instance_norm(self.conv(name, x, stride=2, padding=1)))
        for i in range(blocks):
            x = self.residual(f"model_body.{i}", x)
        for name in ("model_tail.0", "model_tail.3"):
            weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
            x = F.relu(F.instance_norm(x))
        return torch.tanh(self.reflected("model_tail.7", x))

    def discriminator(self, x):
        x = self.leaky("model.0", x, stride=2, padding=1)
        for name, stride in (("model.2", 2), ("model.5", 2), ("model.8", 1)):
            x = F.leaky_relu(F.instance_norm(self.conv(name, x, stride=stride, padding=1)), 0.2)
        return self.conv("model.11", x, padding=1).mean((2, 3))

    def registration(self, moving, fixed, levels, blocks):
        x, skips = torch.cat([moving, fixed], 1), []
        for level in range(1, levels + 1):
            x = self.leaky(f"offset_map.down_{level}.conv_0.conv2d", x, padding=1)
            x = self.residual(f"offset_map.down_{level}.conv_0.resnet_block.model.0", x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.leaky("offset_map.c1.conv2d", x)
        for i in range(blocks):
            x = self.residual(f"offset_map.t.model.{i}", x)
        x = self.leaky("offset_map.c2.conv2d", x)
        for level in range(levels, 0, -1):
            skip = skips[level - 1]
            x = torch.cat([F.interpolate(x, skip.shape[2:], mode="bilinear"), skip], 1)
            x = self.leaky(f"offset_map.up_{level}.conv2d", x, padding=1)
        x = self.residual("offset_map.refine.0.model.0", x)
        return self.conv("offset_map.output.conv2d", self.leaky("offset_map.refine.1.conv2d", x), padding=1)


class Imported(NamedTuple):
    """What was made of a file with one network."""

    role: str
    network: nn.Module
    settings: dict


def import_one(state):
    file = import_state_dict(state)
    [network], [settings] = file.networks.values(), file.settings.values()
    return Imported(file.role, network, settings)


def test_imported_generator_computes_what_the_authors_does():
    state, source = authors_generator(blocks=3), torch.rand(2, 1, 20, 24) * 2 - 1
    imported = import_one(state)
    assert (imported.role, type(imported.network)) == ("generator", ResNetGenerator)
    torch.testing.assert_close(imported.network(source), Arithmetic(state).generator(source, 3))


def test_imported_discriminator_computes_what_the_authors_does():
    state, images = authors_discriminator(), torch.rand(2, 1, 40, 48) * 2 - 1
    imported = import_one(state)
    assert (imported.role, type(imported.network)) == ("discriminator", PatchDiscriminator)
    torch.testing.assert_close(imported.network(images), Arithmetic(state).discriminator(images))


@pytest.mark.parametrize("size", [(16, 16), (19, 30)])
def test_imported_registration_net_computes_what_the_authors_does(size):
    state = authors_registration()
    moving, fixed = torch.rand(2, 2, 1, *size) * 2 - 1
    imported = import_one(state)
    assert (imported.role, type(imported.network)) == ("registration", RegistrationNet)
    expected = Arithmetic(state).registration(moving, fixed, levels=3, blocks=3)
    torch.testing.assert_close(imported.network(moving, fixed), expected)


@pytest.mark.parametrize(
    ("make", "count", "settings"),
    [
        (lambda: authors_generator(64, 9), 11_365_633, {"filters": 64, "residual_blocks": 9, "downsamplings": 2}),
        (lambda: authors_discriminator(64), 2_762_689, {"filters": 64, "layers": 3}),
        (
            lambda: authors_registration((32, 64, 64, 64, 64, 64, 64)),
            2_058_018,
            {"channels": (32, 64, 64, 64, 64, 64, 64), "bottom_blocks": 3},
        ),
    ],
)
def test_the_paper_s_networks_are_recognised(make, count, settings):
    imported = import_one(make())
    assert sum(parameter.numel() for parameter in imported.network.parameters()) == count
    assert settings.items() <= imported.settings.items()


@pytest.mark.parametrize(
    ("state", "settings"),
    [
        (
            authors_generator(6, 1, 2, 3, dims=3),
            {"spatial_dims": 3, "in_channels": 2, "out_channels": 3, "filters": 6, "residual_blocks": 1},
        ),
        (authors_discriminator(5, 3, dims=3), {"spatial_dims": 3, "in_channels": 3, "filters": 5, "layers": 3}),
        (
            authors_registration((6, 3), 1, 2, dims=3),
            {"spatial_dims": 3, "in_channels": 2, "channels": (6, 3), "bottom_blocks": 1},
        ),
        (authors_registration((4,), 2), {"channels": (4,), "bottom_blocks": 2}),
    ],
)
def test_other_widths_and_depths_are_read_from_the_shapes(state, settings):
    imported = import_one(state)
    assert settings.items() <= imported.settings.items()
    for ours, theirs in zip(imported.network.state_dict().values(), state.values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "network",
    [
        ResNetGenerator(filters=4, residual_blocks=2, downsamplings=1),
        ResNetGenerator(filters=4, residual_blocks=1, downsamplings=3),
        PatchDiscriminator(filters=4, layers=2),
        RegistrationNet(channels=(4, 8, 8, 8), bottom_blocks=2),
    ],
)
def test_our_own_tensors_in_their_order_come_back_whatever_their_names(network):
    tensors = network.state_dict()
    imported = import_one({f"module.layer{i}": tensor for i, tensor in enumerate(tensors.values())})
    assert type(imported.network) is type(network)
    for name, tensor in imported.network.state_dict().items():
        assert torch.equal(tensor, tensors[name])


def test_half_precision_becomes_single():
    imported = import_one({name: tensor.half() for name, tensor in authors_discriminator().items()})
    assert all(tensor.dtype == torch.float32 for tensor in imported.network.state_dict().values())


@pytest.mark.parametrize("make", [authors_generator, authors_discriminator, authors_registration])
def test_names_are_those_of_a_translator(make):
    imported = import_one(make())
    tensors = combine([import_state_dict(make())]).state_dict()
    stripped = {name.removeprefix(f"{imported.role}."): tensor for name, tensor in tensors.items()}
    type(imported.network)(**imported.settings).load_state_dict(stripped, strict=True)


def test_a_generator_has_a_recipe_that_travels_with_its_weights():
    model = combine([import_state_dict(authors_generator(6, 1, 2, 3))])
    known = Known((-1000, 2000), image_size=(64, 48), slice_axis=0, orientation="LPS", target_modality="CT")
    recipe = model.recipe(known)
    assert recipe["networks"] == {
        "generator": {
            "class": "pipeline.networks.ResNetGenerator",
            "arguments": {
                "spatial_dims": 2,
                "in_channels": 2,
                "out_channels": 3,
                "filters": 6,
                "downsamplings": 2,
                "residual_blocks": 1,
                "upsampling": "transposed",
            },
        }
    }
    assert (recipe["backbone"], recipe["network_size"], recipe["weights"]) == ("cyclegan", None, {})
    assert recipe["translator"] == {"class": "pipeline.translators.CycleGANTranslator", "arguments": {}}
    assert recipe["source"] == {
        "modality": None,
        "channels": 2,
        "scaling": {
            "class": "transforms.ScaleMRIntensityd",
            "arguments": {"upper_percentile": 99.5, "background": 0.0, "foreground": "above-background"},
        },
    }
    assert recipe["target"] == {
        "modality": "CT",
        "channels": 3,
        "scaling": {
            "class": "transforms.ScaleCTIntensityd",
            "arguments": {"window": [-1000.0, 2000.0], "foreground": "above-background"},
        },
        "window": [-1000.0, 2000.0],
    }
    grid = {"spatial_dims": 2, "orientation": "LPS", "spacing": None, "slice_axis": 0, "spatial_size": [64, 48]}
    assert grid.items() <= recipe["grid"].items()
    assert recipe["data"] is None
    training = dict(recipe["training"])
    assert training.pop("origin") == "imported"
    assert training.pop("settings") == {}
    assert set(training.values()) == {None}

    state = model.state_dict(recipe)
    assert decode_signature(state["_extra_state"]) == "CycleGANTranslator(imported)"
    assert decode_recipe(state["_extra_state"]) == model.recipe(known).content
    loaded = recipe.translator({})
    loaded.load_state_dict(state, strict=True)
    assert all(torch.equal(state[f"generator.{name}"], value) for name, value in loaded.generator.state_dict().items())


def test_what_nobody_says_is_assumed():
    recipe = combine([import_state_dict(authors_generator())]).recipe()
    assert recipe.target_window == (-1, 1)
    assert recipe["target"]["scaling"]["class"] == "transforms.ScaleMRIntensityd"
    assert (recipe["grid"]["spatial_size"], recipe["grid"]["orientation"], recipe.slice_axis) == (None, "RAS", 2)
    asked = combine([import_state_dict(authors_generator())]).recipe(Known(source_window=(-160, 240)))
    assert asked["source"]["scaling"]["arguments"] == {"window": [-160, 240], "foreground": "above-background"}


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
@pytest.mark.parametrize("domain", ["source", "target"])
def test_windows_that_map_nothing_are_refused(domain, window):
    with pytest.raises(WeightsError, match=f"{domain} window must be two finite values, low < high, got"):
        combine([import_state_dict(authors_generator())]).recipe(Known(**{f"{domain}_window": window}))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (Known(orientation="RAR"), "orientation must have one letter of each .* got 'RAR'"),
        (Known(orientation="RA"), "orientation must have one letter of each .* got 'RA'"),
        (Known(orientation="ras"), "orientation must have one letter of each .* got 'ras'"),
        (Known(slice_axis=3), "not valid: grid#slice_axis: 3 is not one of"),
        (Known(source_modality=""), "not valid: source#modality"),
    ],
)
def test_what_is_said_wrongly_is_refused(known, message):
    with pytest.raises(WeightsError, match=message):
        combine([import_state_dict(authors_generator())]).recipe(known)


def test_what_does_not_translate_has_no_recipe():
    with pytest.raises(WeightsError, match="a discriminator network alone does not translate, so it has no recipe"):
        combine([import_state_dict(authors_discriminator())]).recipe()


def test_a_recipe_of_other_networks_is_refused():
    recipe = combine([import_state_dict(authors_generator(6))]).recipe()
    with pytest.raises(
        WeightsError, match=r"(?s)not those of their recipe: .*generator\.stem.*: file has .*, network expects"
    ):
        combine([import_state_dict(authors_generator(8))]).state_dict(recipe)


@pytest.mark.parametrize(
    ("makes", "found"),
    [
        ([], "no files"),
        ([authors_generator, authors_generator], r"ResNetGenerator \(generator\) and ResNetGenerator \(generator\)"),
        (
            [authors_generator, authors_discriminator],
            r"ResNetGenerator \(generator\) and PatchDiscriminator \(discriminator\)",
        ),
    ],
)
def test_files_that_make_no_model_are_refused(makes, found):
    with pytest.raises(WeightsError, match=f"no model is made of {found}: expected one generator, discriminator or"):
        combine([import_state_dict(make()) for make in makes])


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"no known network starts with a tensor of shape \(\) \('no tensor'\)"),
        (
            {"fc.weight": torch.zeros(10, 20)},
            r"starts with a tensor of shape \(10, 20\) \('fc.weight'\): expected a 7-wide",
        ),
        ({"a": torch.zeros(8, 3, 5, 5)}, r"starts with a tensor of shape \(8, 3, 5, 5\)"),
        ({"a": torch.zeros(8, 3, 3, 7)}, r"starts with a tensor of shape \(8, 3, 3, 7\)"),
        ({"a": torch.zeros(8, 3, 3, 3)}, "nearest is RegistrationNet .* where"),
        ({"a": torch.zeros(8, 3, 7, 7), "b": torch.zeros(())}, "nearest is ResNetGenerator .*'b', has shape"),
        (without(authors_generator(), "model_tail.7"), "nearest is ResNetGenerator"),
        (without(authors_generator(), "model_body.1.conv_block.5"), "nearest is ResNetGenerator"),
        (without(authors_discriminator(), "bias"), "nearest is PatchDiscriminator"),
        (
            authors_discriminator() | {"model.8.weight": torch.zeros(64, 32, 3, 3)},
            r"tensor 7 of 10, 'model.8.weight', has shape \(64, 32, 3, 3\) where \(64, 32, 4, 4\) is expected",
        ),
        (
            {"patches": torch.zeros(96, 3, 4, 4)} | {f"layer{i}": torch.zeros(96) for i in range(300)},
            "nearest is PatchDiscriminator .*tensor 3 of 301, 'layer1', has shape",
        ),
        (authors_registration() | {"extra": torch.zeros(1)}, "there are 49 tensors where 48 are expected"),
        (without(authors_registration(), "up_2"), "nearest is RegistrationNet"),
        (dict(sorted(authors_registration().items())), "no known network"),
        (
            authors_generator() | {"model_head.1.bias": torch.full((8,), float("nan"))},
            "'model_head.1.bias' .* must hold finite floating-point values",
        ),
        (authors_generator() | {"model_head.1.bias": torch.zeros(8, dtype=torch.int64)}, "int64.* must hold finite"),
    ],
)
def test_what_fits_no_network_is_refused_with_the_first_difference(state, message):
    with pytest.raises(WeightsError, match=message):
        import_state_dict(state)


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_is_read_in_order(tmp_path, zipped):
    state = authors_generator()
    torch.save(state, tmp_path / "netG_A2B.pth", _use_new_zipfile_serialization=zipped)
    loaded = read_state_dict(tmp_path / "netG_A2B.pth")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            torch.nn.Linear(2, 2),
            "holds objects other than tensors .*could run code .*; save plain weights with torch.save",
        ),
        ({"epoch": 3}, "no state dict: its entry 'epoch' holds int, expected a tensor"),
        ({"netG": {"a": torch.zeros(1)}}, "no state dict: its entry 'netG' holds dict, expected a tensor"),
        ({3: torch.zeros(1)}, "no state dict: its entry 3"),
        (torch.zeros(3), "holds Tensor, expected a state dict"),
        ({}, "holds an empty mapping, expected a state dict"),
    ],
)
def test_files_without_plain_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "file.pth")


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"\x80\x02", b"PK\x03\x04 no archive"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"file\.pth cannot be read, it may be cut short or not written by torch\.save"
    ):
        read_state_dict(tmp_path / "file.pth")


def test_cut_files_are_refused(tmp_path):
    path = tmp_path / "file.pth"
    torch.save(authors_generator(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="may be cut short"):
        read_state_dict(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is not a file"):
        read_state_dict(tmp_path)


def test_writing_replaces_only_when_told_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "weights.pt"
    write_state_dict({"a": torch.zeros(2)}, path)
    with pytest.raises(FileExistsError, match=r"weights\.pt exists already"):
        write_state_dict({"a": torch.ones(2)}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.zeros(2))
    write_state_dict({"a": torch.ones(2)}, path, overwrite=True)
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    write_state_dict({"a": torch.zeros(2)}, path)

    def break_off(content, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(WeightsError, match=r"weights\.pt cannot be written: no space left"):
        write_state_dict({"a": torch.ones(2)}, path, overwrite=True)
    assert torch.equal(read_state_dict(path)["a"], torch.zeros(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_unwritable_places_are_named(tmp_path):
    with pytest.raises(WeightsError, match="is a folder, expected a file"):
        write_state_dict({}, tmp_path, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="file is a file, not a folder"):
        write_state_dict({}, tmp_path / "file" / "weights.pt")
