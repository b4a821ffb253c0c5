"""A training that goes on from a model: what it inherits, what starts anew, and what it may not change."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

from pipeline.models import ContradictionError, ModelError, Recipe, StartingPoint
from pipeline.networks import AffineRegistrationNet, PatchDiscriminator, RegistrationNet, ResNetGenerator, UNITGenerator
from pipeline.translators import CycleGANTranslator, UNITTranslator
from transforms import ScaleCTIntensityd, ScaleMRIntensityd

REGGAN = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}
# What train.json's chain names, where no size of networks is asked for.
NOTHING_ASKED = {
    "generator": partial(ResNetGenerator, spatial_dims=2, filters=None, residual_blocks=None),
    "discriminator": partial(PatchDiscriminator, spatial_dims=2, filters=None),
    "registration": partial(RegistrationNet, spatial_dims=2, channels=None),
}


@pytest.fixture
def trained(make_translator, make_recipe, tmp_path):
    """Folder of a training: model.pt, and checkpoints/best.pt with the weights of all networks."""
    network = make_translator()
    Recipe(make_recipe()).travel_with(network)
    torch.save(network.inference_state_dict(), tmp_path / "model.pt")
    (tmp_path / "checkpoints").mkdir()
    torch.save({"network": network.state_dict()}, tmp_path / "checkpoints" / "best.pt")
    return tmp_path


def parts_equal(first, second):
    """Names of the networks whose weights are the same in both."""
    ours, theirs = first.state_dict(), second.state_dict()
    names = {name.partition(".")[0] for name in ours if not name.endswith("_extra_state")}
    return {
        part
        for part in names
        if all(name in theirs and torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(f"{part}."))
    }


def build(path, weights=REGGAN, translator="cyclegan", **networks):
    return StartingPoint(path).builder(translator)(weights=weights, **{**NOTHING_ASKED, **networks})


def test_without_a_model_everything_is_the_config_s():
    start = StartingPoint(None)
    assert start.inherit("backbone", "munit") == "munit"
    assert start.weight("adversarial", 3) == 3
    assert start.weights({"adversarial": 1}) == {"adversarial": 1}
    assert start.scaling("source") is ScaleMRIntensityd
    assert start.builder("unit") is UNITTranslator
    assert start.digest is None
    with pytest.raises(ValueError, match="backbone must be one of cyclegan, unit, munit, nicegan, or the path"):
        start.builder("uint")


def test_settings_are_the_model_s(trained):
    start = StartingPoint(trained / "model.pt")
    assert start.inherit("backbone", "munit") == "cyclegan"
    assert start.inherit("spatial_size", [96, 96]) == [32, 32]
    assert start.inherit("min_foreground", 0.5) == 0.1
    assert start.inherit("source_modality", "CT") == "T1"
    assert start.inherit("target_modality", "CT") == "CT"  # which the model does not know
    assert start.inherit("spacing", None) is None
    scaling = start.scaling("target")(keys="label", allow_missing_keys=True)
    assert isinstance(scaling, ScaleCTIntensityd)
    assert scaling.scaler.window == (0, 1000)
    assert start.scaling("target")(keys="label", window=(0, 500)).scaler.window == (0, 500)


def test_weights_of_the_loss_terms_are_the_model_s(trained, make_recipe, make_translator):
    start = StartingPoint(trained / "model.pt")
    assert [start.weight(term, 7) for term in ("correction", "cycle")] == [20, 0]
    default = {"adversarial": 1, "cycle": 0, "correction": 20, "smoothness": 10}
    network = make_translator()
    Recipe(make_recipe(weights={"identity": 5})).travel_with(network)
    torch.save(network.inference_state_dict(), trained / "model.pt")
    start = StartingPoint(trained / "model.pt")
    assert start.weights(default) == {**default, "identity": 5}
    assert start.weights({**default, "identity": 1}) == {**default, "identity": 1}
    assert start.weights({"adversarial": 1}) == {"adversarial": 1}  # replaced as a whole
    assert start.weights(20) == 20  # which is refused where knobs are checked


def test_imported_weights_have_no_loss_weights_and_the_defaults_count(trained, make_recipe, make_translator):
    network = make_translator({})
    content = make_recipe(training={"origin": "imported"})
    content["weights"] = {}
    Recipe(content).travel_with(network)
    torch.save(network.inference_state_dict(), trained / "model.pt")
    start = StartingPoint(trained / "model.pt")
    assert [start.weight(term, default) for term, default in (("adversarial", 1), ("cycle", 0))] == [1, 0]
    assert start.weights({"adversarial": 1, "cycle": 0, "correction": 20, "smoothness": 10}) == {
        "adversarial": 1,
        "cycle": 0,
        "correction": 20,
        "smoothness": 10,
    }


def test_all_networks_go_on_where_the_checkpoint_of_the_same_weights_lies_beside(trained, make_translator, caplog):
    with caplog.at_level(logging.INFO):
        network = build(trained / "model.pt")
    assert parts_equal(network, make_translator()) == {"generator", "discriminator", "registration"}
    assert "anew" not in caplog.text
    assert network.recipe is None  # it gets one of its own
    assert network.terms == make_translator().terms


def test_a_checkpoint_itself_has_them_all(trained, make_translator):
    network = build(trained / "checkpoints" / "best.pt")
    assert parts_equal(network, make_translator()) == {"generator", "discriminator", "registration"}


@pytest.mark.parametrize("beside", ["nothing", "other weights", "junk", "something else"])
def test_networks_that_only_training_has_start_anew_elsewhere(trained, make_translator, caplog, beside):
    path = trained / "checkpoints" / "best.pt"
    if beside == "nothing":
        path.unlink()
    elif beside == "other weights":
        torch.save({"network": make_translator(seed=4).state_dict()}, path)
    elif beside == "junk":
        path.write_bytes(b"junk")
    else:
        torch.save({"weights": {}}, path)
    with caplog.at_level(logging.INFO):
        network = build(trained / "model.pt")
    assert parts_equal(network, make_translator()) == {"generator"}
    assert "these networks start anew: discriminator, registration" in caplog.text


def test_other_loss_terms_may_need_other_networks(trained, make_translator):
    network = build(trained / "model.pt", {"adversarial": 1, "cycle": 10})
    assert parts_equal(network, make_translator()) >= {"generator", "discriminator"}
    assert network.registration is None
    assert network.source_generator is not None


@pytest.mark.parametrize(
    ("weights", "name", "given"),
    [
        ({"adversarial": 1}, "registration", partial(AffineRegistrationNet, spatial_dims=2, channels=[6, 6])),
        ({"correction": 1}, "discriminator", partial(PatchDiscriminator, spatial_dims=2, filters=6)),
    ],
)
def test_a_network_that_the_model_was_trained_without_may_be_any(
    make_translator, make_recipe, tmp_path, weights, name, given
):
    network = make_translator(weights)
    Recipe(make_recipe(network, weights=weights)).travel_with(network)
    torch.save(network.inference_state_dict(), tmp_path / "model.pt")
    started = build(tmp_path / "model.pt", REGGAN, **{name: given})
    assert parts_equal(started, network) == {"generator"}
    assert type(getattr(started, name)) is given.func
    widths = {value.shape[0] for key, value in started.state_dict().items() if key.startswith(f"{name}.")}
    assert 6 in widths


def test_networks_that_are_asked_for_have_to_be_the_model_s(trained):
    same = {"generator": partial(ResNetGenerator, spatial_dims=2, filters=4, residual_blocks=None)}
    build(trained / "model.pt", **same)
    build(trained / "model.pt", generator=partial(UNITGenerator, spatial_dims=2, filters=None))  # its default
    with pytest.raises(ContradictionError) as caught:
        build(
            trained / "model.pt",
            translator="unit",
            generator=partial(ResNetGenerator, spatial_dims=2, filters=8),
            registration=partial(RegistrationNet, spatial_dims=2, channels=[8, 8]),
        )
    assert str(caught.value).splitlines()[1:] == [
        "- backbone: given 'unit', the model has 'cyclegan'",
        "- network_def#generator#filters: given 8, the model has 4",
        "- network_def#registration#channels: given [8, 8], the model has [4, 4]",
    ]


@pytest.mark.parametrize("given", [{}, {"overlap_only": True}, {"overlap_only": False}])
def test_registration_is_of_the_kind_that_is_asked_for_and_its_weights_go_on(trained, given):
    for kind in (AffineRegistrationNet, RegistrationNet):
        network = build(trained / "model.pt", registration=partial(kind, spatial_dims=2, channels=None, **given))
        assert type(network.registration) is kind
        assert network.registration.overlap_only is given.get("overlap_only", False)
        assert parts_equal(network, build(trained / "model.pt")) == {"generator", "discriminator", "registration"}


def test_scaling_and_grid_have_to_be_the_model_s(trained, make_recipe):
    start = StartingPoint(trained / "model.pt")
    start.check(Recipe(make_recipe(method="other", training={"seed": 9})))
    start.check(Recipe(make_recipe(foreground={"min_foreground": 0.3}, source={"modality": "T2"})))
    StartingPoint(None).check(Recipe(make_recipe(grid={"slice_axis": 0})))
    other = make_recipe(grid={"slice_axis": 0, "spacing": [1, 1, 1]}, source={"channels": 2})
    other["source"]["scaling"]["arguments"]["background"] = 5.0
    with pytest.raises(ContradictionError) as caught:
        start.check(Recipe(other))
    found = {name: (given, known) for name, given, known in caught.value.found}
    assert found["slice_axis"] == (0, 2)
    assert found["channels"] == (2, 1)
    assert found["source_intensity"][0]["arguments"]["background"] == 5
    assert set(found) == {"slice_axis", "spacing", "channels", "source_intensity"}


def test_files_that_cannot_be_used_are_refused(trained, make_recipe):
    with pytest.raises(ModelError, match=r"none\.pt does not exist"):
        StartingPoint(trained / "none.pt")
    state = torch.load(trained / "model.pt", weights_only=True)
    state.pop("generator.stem.0.weight")
    torch.save(state, trained / "model.pt")
    with pytest.raises(ModelError, match=r"missing: generator\.stem\.0\.weight"):
        build(trained / "model.pt")


def test_a_translator_of_elsewhere_needs_its_module_trusted(trained, make_translator, make_recipe):
    network = make_translator()
    Recipe(make_recipe(translator={"class": "elsewhere.Own"})).travel_with(network)
    torch.save(network.inference_state_dict(), trained / "model.pt")
    with pytest.raises(ModelError, match=r"names elsewhere\.Own, which is not of this project"):
        build(trained / "model.pt")
    with pytest.raises(ModelError, match=r"names elsewhere\.Own, which cannot be found here"):
        StartingPoint(trained / "model.pt", ["elsewhere"]).builder("cyclegan")(weights=REGGAN, **NOTHING_ASKED)
    assert isinstance(make_translator(), CycleGANTranslator)
