"""What is built can be described in plain values and built again, and no file decides what is imported."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from pipeline.models import ModelError
from pipeline.models.describing import (
    build_factory,
    build_scaling,
    defaults_of,
    describe_class,
    describe_factory,
    describe_scaling,
    describe_translator,
    differences,
    find_class,
    plain,
    unfold,
)
from pipeline.networks import MUNITGenerator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator, MUNITTranslator, Translator
from transforms import ScaleCTIntensityd, ScaleMRIntensityd


class Tiny(nn.Module):
    """A network of neither the project nor MONAI."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = nn.Linear(width, width)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (ResNetGenerator, "pipeline.networks.ResNetGenerator"),
        (CycleGANTranslator, "pipeline.translators.CycleGANTranslator"),
        (ScaleCTIntensityd, "transforms.ScaleCTIntensityd"),
        (UNet, "monai.networks.nets.UNet"),
        (Tiny, f"{__name__}.Tiny"),
    ],
)
def test_a_class_has_its_shortest_path(kind, path):
    assert describe_class(kind) == path


def test_a_factory_is_described_with_its_defaults():
    described = describe_factory(partial(partial(ResNetGenerator, filters=8, residual_blocks=2), filters=4))
    assert described["class"] == "pipeline.networks.ResNetGenerator"
    assert described["arguments"] == defaults_of(ResNetGenerator) | {"filters": 4, "residual_blocks": 2}
    assert "upsampling" in described["arguments"]


@pytest.mark.parametrize(
    "factory",
    [
        partial(ResNetGenerator, filters=4, residual_blocks=1),
        partial(RegistrationNet, channels=(4, 8)),
        partial(MUNITGenerator, filters=2, residual_blocks=1, style_downsamplings=2, mlp_width=4),
        RegistrationNet,
    ],
)
def test_what_is_described_is_built_again(factory):
    described = describe_factory(factory)
    again = build_factory(described)
    assert describe_factory(again) == described
    shapes = [{name: value.shape for name, value in build().state_dict().items()} for build in (factory, again)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "factory",
    [lambda: ResNetGenerator(), partial(lambda filters: None, filters=4), torch.zeros],
    ids=["a lambda", "a part of one", "a built-in function"],
)
def test_other_factories_are_refused(factory):
    with pytest.raises(
        ModelError, match=r'must be given by its class \(in a config with "_mode_": "callable"\), got <'
    ):
        describe_factory(factory)
    with pytest.raises(ModelError, match="must be given by its class"):
        unfold(factory)


@pytest.mark.parametrize("value", [torch.zeros(2), float("nan"), float("inf"), nn.ReLU, object(), [1, {"a": 2j}]])
def test_arguments_that_a_file_cannot_hold_are_refused(value):
    with pytest.raises(ModelError, match=r"Tiny has the argument .*, which a model file cannot hold"):
        describe_factory(partial(Tiny, width=value))


def test_plain_values():
    value = {"a": (1, 2.5, None), 3: {True}, "b": "text"}
    assert plain(value, "x") == {"a": [1, 2.5, None], "3": [True], "b": "text"}


@pytest.mark.parametrize(
    ("scaling", "arguments"),
    [
        (
            ScaleMRIntensityd("image", upper_percentile=98, foreground="found"),
            {"upper_percentile": 98.0, "background": 0.0, "foreground": "found"},
        ),
        (
            ScaleCTIntensityd(["label"], window=(-50, 100)),
            {"window": [-50.0, 100.0], "foreground": "above-background"},
        ),
    ],
)
def test_a_scaling_is_described_and_built_again_for_other_keys(scaling, arguments):
    described = describe_scaling(scaling)
    assert described == {"class": f"transforms.{type(scaling).__name__}", "arguments": arguments}
    again = build_scaling(described, "other")
    assert type(again) is type(scaling)
    assert again.keys == ("other",)
    assert describe_scaling(again) == described


def test_scalings_that_cannot_be_described_or_built_are_refused():
    with pytest.raises(ModelError, match=r"must be the dictionary form of a transform like .*, got ReLU"):
        describe_scaling(nn.ReLU())
    for arguments in ({"window": [2, 1]}, {"windows": [0, 1]}):
        with pytest.raises(ModelError, match=r"the scaling \{.*ScaleCTIntensityd.* cannot be built: "):
            build_scaling({"class": "transforms.ScaleCTIntensityd", "arguments": arguments}, "image")


def test_a_translator_is_described_without_what_says_how_it_is_used(make_translator):
    described, networks = describe_translator(make_translator())
    assert described == {"class": "pipeline.translators.CycleGANTranslator", "arguments": {}}
    assert set(networks) == {"generator", "discriminator", "registration"}
    assert networks["generator"]["arguments"]["filters"] == 4
    assert set(describe_translator(make_translator({"adversarial": 1}))[1]) == {"generator", "discriminator"}
    assert set(describe_translator(make_translator({"correction": 1}))[1]) == {"generator", "registration"}
    generator = partial(MUNITGenerator, filters=2, residual_blocks=1, style_dim=3, style_downsamplings=2, mlp_width=4)
    described, networks = describe_translator(MUNITTranslator({}, generator=generator, style=[0.5, -1, 2.0]))
    assert described["arguments"] == {}
    assert set(networks) == {"generator"}


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.exec",
        "pipeline.inference.Exporter",
        "torch.nn.Linear",
        "pipeline.networks_of_somebody.Net",
        "monai.networks.Net",
        "monai.networks.nets_of_somebody.Net",
        "Net",
        "",
        "..Net",
    ],
)
def test_what_is_not_of_the_project_is_refused(path):
    with pytest.raises(ModelError, match=r"the model names .*, which is not of this project: nothing is imported"):
        find_class(path, nn.Module)


def test_nothing_is_imported_that_only_a_file_names(tmp_path, monkeypatch):
    """Unless somebody vouches for its module or for the package that it lies in."""
    package = tmp_path / "somebodys_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\n\n\nclass Net(nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = "somebodys_package.nets.Net"
    for trusted in ((), ("somebodys",), ("somebodys_package.other",), ("somebodys_package.nets.Net",)):
        with pytest.raises(ModelError, match=r"""--trusted_modules "\['somebodys_package\.nets'\]\""""):
            find_class(path, nn.Module, trusted)
    assert "somebodys_package" not in sys.modules
    for trusted in (["somebodys_package.nets"], ["somebodys_package"]):
        assert find_class(path, nn.Module, trusted).__name__ == "Net"
    for name in ("somebodys_package", "somebodys_package.nets"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("path", "base", "says"),
    [
        ("pipeline.networks.NoSuchNet", nn.Module, "which cannot be found here"),
        ("pipeline.networks.no_such_file.Net", nn.Module, "which cannot be found here"),
        ("pipeline.networks.ResNetGenerator", Translator, "expected a class derived from Translator"),
        ("transforms.intensity.math", nn.Module, "expected a class derived from Module"),
        ("pipeline.translators.find_translator", nn.Module, "expected a class derived from Module"),
        ("transforms.RestoreIntensityd", ScaleMRIntensityd, "expected a class derived from ScaleMRIntensityd"),
    ],
)
def test_other_things_than_the_class_that_is_needed_are_refused(path, base, says):
    with pytest.raises(ModelError, match=f"the model names {path}, {says}"):
        find_class(path, base)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (None, 3),
        ((4, 4), [4, 4]),
        ([4, 4], [4.0, 4]),
        (99, 99.0),
        ("a", "a"),
        ({"b": None}, {"b": 1}),
        ({"b": (1, (2, 3))}, {"a": 0, "b": [1, [2.0, 3]]}),
        ({}, {"a": 1}),
    ],
)
def test_equal_values_agree_whatever_their_types(given, known):
    assert list(differences(given, known, "x")) == []


@pytest.mark.parametrize(
    ("given", "known", "found"),
    [
        (3, 4, [("x", 3, 4)]),
        ([4], [4, 4], [("x", [4], [4, 4])]),
        ("44", ["4", "4"], [("x", "44", ["4", "4"])]),
        (True, 1, [("x", True, 1)]),
        (0, False, [("x", 0, False)]),
        (3, None, [("x", 3, None)]),
        ({"a": {"b": 1}, "c": 2, "d": 3}, {"a": {"b": 0}, "c": 2}, [("x#a#b", 1, 0), ("x#d", 3, None)]),
        ({"a": 1}, 5, [("x", {"a": 1}, 5)]),
    ],
)
def test_differences_are_named_with_both_values(given, known, found):
    assert list(differences(given, known, "x")) == found
