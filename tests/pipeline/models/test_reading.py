"""Files of weights: read without running code, verified, and made into what they say they are."""

from __future__ import annotations

import hashlib
import logging
from functools import partial

import pytest
import torch

from pipeline.metrics import IntensityMap
from pipeline.models import CheckpointError, Model, ModelError, Recipe, file_digest, load_checkpoint, load_strictly
from pipeline.networks import ResNetGenerator
from pipeline.translators import CycleGANTranslator


@pytest.fixture
def trained(make_translator, make_recipe):
    """A trained translator that carries its recipe."""
    network = make_translator()
    Recipe(make_recipe()).travel_with(network)
    return network


@pytest.fixture
def saved(trained, tmp_path):
    """model.pt, and best.pt with all networks."""
    torch.save(trained.inference_state_dict(), tmp_path / "model.pt")
    torch.save({"network": trained.state_dict()}, tmp_path / "best.pt")
    return tmp_path


def test_missing_file_is_named(tmp_path):
    for read in (load_checkpoint, Model):
        with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
            read(tmp_path / "none.pt")


def test_truncated_file_is_named(saved):
    path = saved / "model.pt"
    path.write_bytes(path.read_bytes()[:1000])
    for read in (load_checkpoint, Model):
        with pytest.raises(CheckpointError, match=r"model\.pt cannot be read, it may be cut short"):
            read(path)


def test_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="objects other than tensors"):
        load_checkpoint(tmp_path / "module.pt")


def test_other_content_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor, expected a dictionary"):
        load_checkpoint(tmp_path / "tensor.pt")


def test_flipped_bit_is_refused(saved, trained):
    path = saved / "model.pt"
    content = bytearray(path.read_bytes())
    start = content.find(trained.generator.state_dict()["stem.0.weight"].numpy().tobytes())
    content[start + 17] ^= 4
    path.write_bytes(content)
    for read in (load_checkpoint, Model):
        with pytest.raises(CheckpointError, match=r"model\.pt is damaged"):
            read(path)


@pytest.mark.parametrize("file", ["model.pt", "best.pt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, file, value):
    content = load_checkpoint(saved / file)
    state = content.get("network", content)
    state["generator.stem.0.weight"].view(-1)[3] = value
    torch.save(content, saved / file)
    with pytest.raises(CheckpointError, match=r"generator\.stem\.0\.weight"):
        Model(saved / file)


@pytest.mark.parametrize("file", ["model.pt", "best.pt"])
def test_a_file_without_a_recipe_is_refused(make_translator, saved, file):
    bare = make_translator().state_dict()  # its extra state names the translator, and says no more
    for state in (bare, {name: value for name, value in bare.items() if name != "_extra_state"}, {}):
        torch.save(state if file == "model.pt" else {"network": state}, saved / file)
        with pytest.raises(
            CheckpointError, match=rf"{file} holds no recipe, .* expected a model\.pt, best\.pt or last"
        ):
            Model(saved / file)


def test_a_recipe_that_is_not_valid_is_refused(trained, tmp_path):
    trained.recipe["grid"]["slice_axis"] = 5
    torch.save(trained.inference_state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"the recipe of .*model\.pt is not valid: grid#slice_axis: 5 is not one of"):
        Model(tmp_path / "model.pt")
    trained.recipe["version"] = 2
    torch.save(trained.inference_state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt is of version 2, this project reads version 1"):
        Model(tmp_path / "model.pt")


@pytest.mark.parametrize("file", ["model.pt", "best.pt"])
def test_what_is_built_translates_as_what_was_saved(saved, trained, batch, file):
    model = Model(str(saved / file))
    assert model.recipe.content == trained.recipe
    served = model.build()
    assert torch.equal(served(batch["image"]), trained(batch["image"]))
    assert {name for name, _ in served.named_children()} >= {"generator"}
    assert getattr(served, "discriminator", None) is None
    assert served.registration is None
    assert served.recipe == trained.recipe
    assert served.signature == trained.signature


def test_registration_is_built_beside_where_the_file_has_it(saved, trained):
    model = Model(saved / "best.pt")
    assert model.has_registration
    served = model.build(registration=True)
    assert getattr(served, "discriminator", None) is None
    pair = torch.rand(2, 1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(served.register(*pair)[1], trained.register(*pair)[1])
        assert torch.equal(served(pair[0]), trained(pair[0]))
    model.recipe["training"]["settings"]["true_field"] = True  # the network stood by and learned nothing
    assert not model.has_registration
    bare = Model(saved / "model.pt")
    assert not bare.has_registration
    assert bare.build(registration=True).registration is None


def test_a_registration_network_of_another_kind_is_refused(saved, trained):
    trained.recipe["networks"]["registration"]["arguments"]["channels"] = [8, 8]
    torch.save({"network": trained.state_dict()}, saved / "best.pt")
    Model(saved / "best.pt").build()  # which does not need it
    with pytest.raises(CheckpointError, match=r"registration\..*: file has \(4, .*network expects \(8, "):
        Model(saved / "best.pt").build(registration=True)
    del trained.recipe["networks"]["registration"]
    torch.save({"network": trained.state_dict()}, saved / "best.pt")
    with pytest.raises(CheckpointError, match="has a registration network that its recipe does not describe"):
        Model(saved / "best.pt").build(registration=True)


def test_other_widths_are_refused_naming_tensors(saved):
    wider = CycleGANTranslator({}, generator=partial(ResNetGenerator, filters=8, residual_blocks=1))
    with pytest.raises(CheckpointError, match=r"generator\..*: file has \(4, .*network expects \(8, "):
        load_strictly(wider, load_checkpoint(saved / "model.pt"), saved / "model.pt")


def test_tensors_that_are_not_those_of_the_recipe_are_refused(saved, trained):
    state = trained.inference_state_dict()
    first = state.pop("generator.stem.0.weight")
    torch.save({**state, "generator.stem.9.weight": first}, saved / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"missing: generator\.stem\.0\.weight\n .*unexpected: generator\.stem\.9"
    ):
        Model(saved / "model.pt").build()
    trained.recipe["networks"]["generator"]["arguments"]["filters"] = 8
    torch.save(trained.inference_state_dict(), saved / "model.pt")
    with pytest.raises(CheckpointError, match=r"generator\..*: file has \(4, .*network expects \(8, "):
        Model(saved / "model.pt").build()


def test_checkpoint_of_another_mode_is_refused(make_translator, saved):
    with pytest.raises(
        CheckpointError, match=r"as \w+\(adversarial, correction, smoothness\), .* builds \w+\(adversarial\)"
    ):
        load_strictly(make_translator({"adversarial": 1.0}), load_checkpoint(saved / "best.pt")["network"], "best.pt")


def test_size_is_asked_for_where_the_file_does_not_say(trained, tmp_path):
    trained.recipe["grid"]["spatial_size"] = None
    torch.save(trained.inference_state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt does not say at which image size"):
        _ = Model(tmp_path / "model.pt").recipe.spatial_size


def test_baselines_are_those_that_the_file_has(saved, trained, caplog):
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    with caplog.at_level(logging.WARNING):
        baselines = Model(saved / "model.pt").baselines()
    assert set(baselines) == {"source"}
    assert baselines["source"](image) is image
    assert "model.pt holds no intensity map: that baseline is left out" in caplog.text
    fitted = IntensityMap()
    fitted.fit([{"image": image[0], "label": -image[0]}])
    torch.save({"network": trained.state_dict(), "intensity_map": fitted.state_dict()}, saved / "best.pt")
    baselines = Model(saved / "best.pt").baselines("cpu")
    assert set(baselines) == {"source", "intensity_map"}
    assert torch.equal(baselines["intensity_map"](image), fitted(image))


def test_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
