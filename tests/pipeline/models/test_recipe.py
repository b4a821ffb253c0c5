"""The recipe: its schema, what is built from it, and which settings agree with it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Spacingd

from pipeline.models import (
    SCHEMA,
    ContradictionError,
    ModelError,
    Recipe,
    check_recipe,
    decode_recipe,
    encode_recipe,
)
from transforms import ScaleCTIntensityd, ScaleMRIntensityd

MISSING = object()


def changed(content, where, value):
    *path, last = where.split("#")
    place = content
    for name in path:
        place = place[name]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return content


def test_a_recipe_is_taken_as_it_is(make_recipe):
    content = make_recipe()
    recipe = Recipe(content, "a.pt")
    assert recipe.content == content
    assert recipe["grid"] == content["grid"]
    content["grid"]["slice_axis"] = 0
    assert recipe.slice_axis == 2  # it has a copy of its own


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("format", "other", "format: 'reggan-recipe' was expected"),
        ("grid", MISSING, "the whole: 'grid' is a required property"),
        ("grid#slice_axis", MISSING, "grid: 'slice_axis' is a required property"),
        ("grid#slice_axis", 3, r"grid#slice_axis: 3 is not one of \[0, 1, 2\]"),
        ("grid#orientation", "RASP", "grid#orientation: 'RASP' does not match"),
        ("grid#spatial_size", [32, 0], "grid#spatial_size#1: 0 is less than the minimum of 1"),
        ("grid#spacing", [1, 1], "grid#spacing: .*too short|grid#spacing: .* is not valid"),
        ("grid#fit", "crop", r"grid#fit: 'crop' is not one of \['resize', 'pad'\]"),
        ("grid#oblique", True, r"grid: Additional properties are not allowed \('oblique' was unexpected\)"),
        ("foreground#rule", "otsu", "foreground#rule: 'otsu' is not one of"),
        ("foreground#min_foreground", 1.5, "foreground#min_foreground: 1.5 is greater than the maximum of 1"),
        ("source#scaling#class", MISSING, "source#scaling: 'class' is a required property"),
        ("source#channels", 0, "source#channels: 0 is less than the minimum of 1"),
        ("target#window", [0, "high"], "target#window#1: 'high' is not of type 'number'"),
        ("target#window", [5, 1], r"target#window must be \(low, high\) with low < high, got \(5, 1\)"),
        ("target#window", [1, 1], r"target#window must be \(low, high\) with low < high, got \(1, 1\)"),
        ("networks#generator", {"class": "a.B"}, "networks#generator: 'arguments' is a required property"),
        ("weights#adversarial", -1, "weights#adversarial: -1 is less than the minimum of 0"),
        ("training#origin", "found", "training#origin: 'found' is not one of"),
        ("training#epoch", 1.5, "training#epoch: 1.5 is not"),
        ("data", {}, "data: "),
        ("author", "me", r"the whole: Additional properties are not allowed \('author' was unexpected\)"),
    ],
)
def test_what_is_wrong_is_named(make_recipe, where, value, says):
    content = changed(make_recipe(), where, value)
    with pytest.raises(ModelError, match=rf"the recipe of a\.pt is not valid: ({says})"):
        Recipe(content, "a.pt")


@pytest.mark.parametrize("content", [None, [], "text", {}])
def test_other_content_is_no_recipe(content):
    with pytest.raises(ModelError, match=r"the recipe of a\.pt is not valid: the whole: "):
        check_recipe(content, "a.pt")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused_whatever_else_it_holds(make_recipe, version):
    for content in (make_recipe(version=version), {"format": "reggan-recipe", "version": version}):
        with pytest.raises(ModelError, match=rf"a\.pt is of version {version!r}, this project reads version 1; use"):
            Recipe(content, "a.pt")


def test_text_and_back(make_recipe):
    content = make_recipe(source={"modality": "T2*, café"})
    text = encode_recipe(content)
    assert text.isascii()
    assert text == encode_recipe(dict(reversed(content.items())))
    assert decode_recipe(text, "a.onnx").content == content
    for junk in ("{not json", "", "[" * 100_000):
        with pytest.raises(ModelError, match=r"the recipe of a\.onnx is no JSON"):
            decode_recipe(junk, "a.onnx")
    with pytest.raises(ModelError, match=r"a\.onnx is not valid"):
        decode_recipe("{}", "a.onnx")
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_recipe({"a": float("nan")})


def test_every_entry_of_the_schema_is_described():
    def entries(schema, name):
        for key, entry in schema.get("properties", {}).items():
            yield f"{name}#{key}", entry
            for option in (entry, *entry.get("anyOf", ())):
                yield from entries(option, f"{name}#{key}")

    assert [name for name, entry in entries(SCHEMA, "") if not entry.get("description")] == []


def test_what_it_says(make_recipe):
    recipe = Recipe(make_recipe(target={"window": [-50, 1150]}))
    assert recipe.target_window == (-50.0, 1150.0)
    assert recipe.data_range == 1200
    assert recipe.spatial_size == (32, 32)
    with pytest.raises(ModelError, match=r"a\.pt does not say at which image size it was trained; pass spatial_size"):
        _ = Recipe(make_recipe(grid={"spatial_size": None}), "a.pt").spatial_size


def test_the_translator_of_the_recipe_is_built_with_what_its_weights_need(make_recipe, make_translator, batch):
    recipe = Recipe(make_recipe())
    served = recipe.translator({})
    assert served.registration is None
    assert served.recipe == recipe.content
    served.recipe["training"]["epoch"] = 7
    assert recipe["training"]["epoch"] == 0
    trained = recipe.translator(recipe["weights"])
    assert trained.state_dict().keys() == make_translator().state_dict().keys()
    trained.load_state_dict(make_translator(seed=3).state_dict())
    torch.testing.assert_close(trained(batch["image"]), make_translator(seed=3)(batch["image"]))
    assert recipe.network("encoder") is None
    assert type(recipe.network("registration")()) is type(make_translator().registration)


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        ({"generator": {"class": "os.system", "arguments": {}}}, "names os.system, which is not of this project"),
        (
            {"generator": {"class": "pipeline.inference.Exporter", "arguments": {}}},
            "names pipeline.inference.Exporter, which is not of this project",
        ),
        (
            {"generator": {"class": "pipeline.networks.ResNetGenerator", "arguments": {"depth": 1}}},
            r"the networks of a\.pt cannot be built: .*unexpected keyword argument 'depth'",
        ),
        ({}, r"the networks of a\.pt cannot be built: .*generator"),
    ],
)
def test_translators_that_cannot_be_built_are_refused(make_recipe, networks, says):
    content = make_recipe()
    content["networks"] = networks
    with pytest.raises(ModelError, match=says):
        Recipe(content, "a.pt").translator({})


@pytest.mark.parametrize("path", ["os.system", "pipeline.networks.ResNetGenerator", "torch.nn.Linear"])
def test_translators_of_other_classes_are_refused(make_recipe, path):
    recipe = Recipe(make_recipe(translator={"class": path}), "a.pt")
    with pytest.raises(ModelError, match=f"the model names {path}, "):
        recipe.translator({})
    recipe = Recipe(make_recipe(source={"scaling": {"class": path, "arguments": {}}}), "a.pt")
    with pytest.raises(ModelError, match=f"the model names {path}, "):
        recipe.scaling("source", "image")


def test_one_trusted_module_may_be_given_by_its_name(make_recipe):
    recipe = Recipe(make_recipe(translator={"class": "elsewhere.Own"}), "a.pt", trusted="elsewhere")
    with pytest.raises(ModelError, match=r"the model names elsewhere\.Own, which cannot be found here"):
        recipe.translator({})


def test_settings_of_use_that_are_of_another_translator_are_refused(make_recipe):
    with pytest.raises(ModelError, match=r"style is no setting of CycleGANTranslator, the translator of a\.pt"):
        Recipe(make_recipe(), "a.pt").translator({}, style=[1, 2])


def test_preprocessing_is_what_the_grid_says(make_recipe, tmp_path):
    voxels = np.zeros((12, 10, 4), np.float32)
    voxels[3:9, 2:8] = np.linspace(100, 800, 4)
    affine = np.diag([-2.0, 2, 3, 1])  # the first axis points to the left
    for name in ("image", "label"):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}
    recipe = Recipe(make_recipe(grid={"spatial_size": [12, 12]}))
    pair = recipe.pair_preprocessing()(dict(paths))
    assert pair["image"].shape == pair["label"].shape == (1, 12, 12, 4)
    high = np.percentile(voxels[voxels > 0], 99.5)
    expected = np.pad(voxels[::-1], ((0, 0), (1, 1), (0, 0)))
    np.testing.assert_allclose(pair["image"][0], expected.clip(0, high) / high * 2 - 1, atol=1e-5)
    np.testing.assert_allclose(pair["label"][0], expected / 1000 * 2 - 1, atol=1e-5)
    steps = Recipe(make_recipe(grid={"spacing": [2.0, 2.0, 1.5]})).spatial_preprocessing("image").transforms
    assert any(isinstance(step, Spacingd) for step in steps)
    assert not any(isinstance(step, Spacingd) for step in recipe.spatial_preprocessing("image").transforms)


AGREEING = {
    "nothing": {},
    "None is not given": dict.fromkeys(("backbone", "spatial_size", "source_intensity", "network_def", "spacing")),
    "all of it": {
        "backbone": "cyclegan",
        "translator": "cyclegan",
        "network_size": "small",
        "spatial_dims": 2,
        "spatial_size": (32, 32),
        "slice_axis": 2,
        "orientation": "RAS",
        "fit": "resize",
        "min_foreground": 0.1,
        "source_modality": "T1",
    },
    "the class of the translator": {"translator": "pipeline.translators.CycleGANTranslator"},
    "one number for all axes": {"spatial_size": 32},
    "integers and floats": {"target_intensity": {"window": (0, 1000)}, "source_intensity": {"background": 0}},
    "a part of a scaling": {"source_intensity": {"upper_percentile": 99.5}},
    "a scaling as a config has it": {
        "target_intensity": {"_target_": "transforms.ScaleCTIntensityd", "keys": "x", "allow_missing_keys": True}
    },
    "scalings": {
        "source_intensity": ScaleMRIntensityd("image"),
        "target_intensity": ScaleCTIntensityd("x", (0, 1000)),
    },
    "parts of networks": {"network_def": {"generator": {"filters": 4}, "discriminator": {}, "encoder": None}},
    "tuples and lists": {"network_def": {"registration": {"channels": (4, 4)}}},
    "None within networks": {"network_def": {"generator": {"filters": None}, "encoder": {"filters": None}}},
}


@pytest.mark.parametrize("settings", AGREEING.values(), ids=AGREEING)
def test_settings_that_agree_change_nothing(make_recipe, settings):
    recipe = Recipe(make_recipe())
    agreed = recipe.agree(settings)
    assert agreed.content == recipe.content


def test_factories_that_agree_and_that_do_not(make_recipe, make_translator):
    recipe = Recipe(make_recipe(), "a.pt")
    networks = {name: make_translator().arguments[name] for name in ("generator", "discriminator", "registration")}
    assert recipe.agree({"network_def": networks}).content == recipe.content
    with pytest.raises(ContradictionError) as caught:
        recipe.agree({"network_def": {"generator": networks["discriminator"], "encoder": networks["generator"]}})
    assert str(caught.value).splitlines()[1:] == [
        "- network_def#generator#_target_: given 'pipeline.networks.PatchDiscriminator', the model has "
        "'pipeline.networks.ResNetGenerator'",
        "- network_def#encoder: given {'filters': 4, 'residual_blocks': 1}, the model has nothing of the kind",
    ]
    with pytest.raises(ModelError, match="must be given by its class"):
        recipe.agree({"network_def": {"generator": lambda: None}})


@pytest.mark.parametrize(
    ("settings", "name", "given", "known"),
    [
        ({"backbone": "unit"}, "backbone", "'unit'", "'cyclegan'"),
        ({"translator": "unit"}, "backbone", "'unit'", "'cyclegan'"),
        ({"translator": "my.Own"}, "translator", "'my.Own'", "'pipeline.translators.CycleGANTranslator'"),
        ({"spatial_size": 64}, "spatial_size", "[64, 64]", "[32, 32]"),
        ({"spatial_size": (32, 64)}, "spatial_size", "(32, 64)", "[32, 32]"),
        ({"slice_axis": 0}, "slice_axis", "0", "2"),
        ({"spacing": [1, 1, 1]}, "spacing", "[1, 1, 1]", "nothing of the kind"),
        ({"min_foreground": 0.2}, "min_foreground", "0.2", "0.1"),
        ({"source_modality": "CT"}, "source_modality", "'CT'", "'T1'"),
        ({"source_intensity": {"background": 5}}, "source_intensity#background", "5", "0.0"),
        ({"source_intensity": {"window": [0, 1]}}, "source_intensity#window", "[0, 1]", "nothing of the kind"),
        ({"target_intensity": {"window": [0, 500]}}, "target_intensity#window", "[0, 500]", "[0.0, 1000.0]"),
        (
            {"target_intensity": ScaleCTIntensityd("x", (0, 500))},
            "target_intensity#window",
            "[0.0, 500.0]",
            "[0.0, 1000.0]",
        ),
        (
            {"target_intensity": ScaleMRIntensityd("x")},
            "target_intensity#_target_",
            "'transforms.ScaleMRIntensityd(upper_percentile=99.5, background=0.0, foreground=above-background)'",
            "'transforms.ScaleCTIntensityd(window=[0.0, 1000.0])'",
        ),
        ({"network_def": {"generator": {"filters": 8}}}, "network_def#generator#filters", "8", "4"),
        ({"network_def": {"generator": {"style_dim": 8}}}, "network_def#generator#style_dim", "8", "nothing of the"),
        ({"network_def": {"encoder": {"filters": 8}}}, "network_def#encoder", "{'filters': 8}", "nothing of the kind"),
    ],
)
def test_contradictions_are_named_with_both_values(make_recipe, settings, name, given, known):
    with pytest.raises(ContradictionError) as caught:
        Recipe(make_recipe(), "a.pt").agree(settings)
    head, line = str(caught.value).splitlines()
    assert head == "1 setting contradicts the recipe of a.pt; leave out what the model knows by itself:"
    assert line.startswith(f"- {name}: given {given}, the model has {known}")


def test_all_contradictions_are_told_at_once(make_recipe):
    with pytest.raises(ContradictionError) as caught:
        Recipe(make_recipe(), "a.pt").agree({"backbone": "unit", "slice_axis": 1, "orientation": "RAS"})
    assert [name for name, _, _ in caught.value.found] == ["backbone", "slice_axis"]
    assert str(caught.value).startswith("2 settings contradict the recipe of a.pt;")


def test_what_the_model_does_not_know_is_taken_over(make_recipe):
    recipe = Recipe(make_recipe(grid={"spatial_size": None}, network_size=None), "a.pt", trusted=("mine",))
    agreed = recipe.agree({"spatial_size": (48, 40), "target_modality": "T2", "network_size": "paper"})
    assert agreed.spatial_size == (48, 40)
    assert agreed["target"]["modality"] == "T2"
    assert agreed["network_size"] is None
    assert (agreed.path, agreed.trusted) == ("a.pt", ("mine",))
    assert recipe["grid"]["spatial_size"] is None
    assert recipe.agree({"spatial_size": 48}).spatial_size == (48, 48)
    json.dumps(agreed.content)
