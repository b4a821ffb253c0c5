"""All methods, of the paper and ours, through the configs: they train, resume, evaluate, translate, and keep apart."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.engines import TranslationTrainer
from pipeline.errors import first_cause
from pipeline.evaluation import Evaluated
from pipeline.files import file_digest
from pipeline.methods import BACKBONES, METHODS
from pipeline.metrics import DriftMetric
from pipeline.models import Model, load_checkpoint
from pipeline.translators import decode_recipe, decode_signature, find_translator

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "reggan" / "configs"
# What the discriminators need, beside what conftest.py sets, to take images of 32x32.
TINY_DISCRIMINATORS = {
    "cyclegan": {},
    "unit": {"network_def#discriminator#layers": 2},
    "munit": {"network_def#discriminator#layers": 2},
    "nicegan": {"network_def#discriminator#global_downsamplings": 0},
}
CLASSES = {
    "cyclegan": "CycleGANTranslator",
    "unit": "UNITTranslator",
    "munit": "MUNITTranslator",
    "nicegan": "NICETranslator",
}
STEPS_PER_EPOCH = 6
# The paper's weights.
CORRECTION = {"correction": 20, "smoothness": 10}
MODE_WEIGHTS = {
    "nc": {"adversarial": 1},
    "nc+r": {"adversarial": 1} | CORRECTION,
    "c": {"adversarial": 1, "cycle": 10},
    "c+r": {"adversarial": 1, "cycle": 10} | CORRECTION,
}
OWN_WEIGHTS = {
    "cyclegan": {},
    "unit": {"reconstruction": 10, "kl": 0.01},
    "munit": {"reconstruction": 10, "content": 1, "style": 1},
    "nicegan": {},
}


def expected_weights(name):
    if name.startswith("pix2pix"):
        return {"conditional_adversarial": 1, "pixel": 100}
    if name == "reggan-true":
        return {"adversarial": 1, "correction": 60}
    if name == "reggan-affine":
        return {"adversarial": 1, "correction": 60, "smoothness": 150, "equivariance": 3}
    if name == "reggan-affine-unet":
        return {"adversarial": 1, "correction": 20, "smoothness": 50, "equivariance": 10}
    mode = "nc+r" if name.startswith("reggan") else {"cyclegan": "c"}.get(name) or name.split("-")[1]
    identity = METHODS[name].backbone == "nicegan" and "cycle" in MODE_WEIGHTS[mode]
    return MODE_WEIGHTS[mode] | OWN_WEIGHTS[METHODS[name].backbone] | ({"identity": 10} if identity else {})


def read_configs(*chain, **settings):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in chain])
    parser.update(settings)
    return parser


@pytest.fixture
def run_until(run_config, monkeypatch):
    """Runs a chain as ``run_config`` does, but the power fails before so many training steps are done."""

    def run(steps, *chain, **settings):
        step, count = TranslationTrainer._iteration, itertools.count()

        def fail_in_time(*arguments):
            if next(count) == steps:
                raise InterruptedError("the power failed")
            return step(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(TranslationTrainer, "_iteration", fail_in_time)
            with pytest.raises(RuntimeError) as caught:
                run_config(*chain, **settings)
        assert str(first_cause(caught.value)) == "the power failed"

    return run


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_resumes_evaluates_and_translates(
    run_config, run_until, dataset_dir, tmp_path, assert_same, name
):
    """And a run that was stopped and resumed equals the uninterrupted one to the bit."""
    method = METHODS[name]
    chain = ("train.json", *method.overlays)
    tiny = {**TINY_DISCRIMINATORS[method.backbone], "max_epochs": 2, "picture_interval": 2}
    run_config(*chain, **tiny, output_dir=str(tmp_path / "whole"))

    run_until(STEPS_PER_EPOCH + 2, *chain, **tiny)
    first = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert first["trainer"]["epoch"] == 1
    run_config(*chain, **tiny, resume=True)
    whole, parts = (load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "run"))
    assert parts["trainer"]["epoch"] == 2
    for entry in parts.keys() - {"random"}:
        assert_same(parts[entry], whole[entry])
    assert torch.equal(parts["random"]["torch"], whole["random"]["torch"])
    networks = decode_recipe(parts["network"]["_extra_state"])["networks"]
    if "correction" in expected_weights(name):
        assert networks["registration"]["arguments"]["overlap_only"] is (name == "reggan-affine")
    terms = ", ".join(sorted(expected_weights(name)))
    assert decode_signature(parts["network"]["_extra_state"]) == f"{CLASSES[method.backbone]}({terms})"

    run_config(*chain, "evaluate.json", **tiny)
    scores = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())["slices"]
    assert all(math.isfinite(scores[score]["mean"]) for score in ("psnr", "ssim", "nmae"))

    source = dataset_dir / "images" / "d.nii.gz"
    settings = {"image": str(source), "checkpoint": str(tmp_path / "run" / "model.pt")}
    overlays = {"translated": (), "again": method.overlays}  # the file knows what the overlays say
    for folder, names in overlays.items():
        run_config("inference.json", *names, **settings, output_dir=str(tmp_path / folder))
    [result, again] = (nib.load(tmp_path / folder / "d_translated.nii.gz") for folder in ("translated", "again"))
    assert result.shape == nib.load(source).shape
    assert result.affine == pytest.approx(nib.load(source).affine, abs=1e-5)
    assert math.isfinite(result.get_fdata().sum())
    assert (result.get_fdata() == again.get_fdata()).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pix2pix-unet", "unit-nc", "munit-c+r", "nicegan-c"])
def test_a_running_mean_of_the_weights_resumes_to_the_bit_with_every_backbone(
    run_config, run_until, tmp_path, assert_same, name
):
    method = METHODS[name]
    tiny = {**TINY_DISCRIMINATORS[method.backbone], "max_epochs": 2, "ema_decay": 0.9}
    run_config(*method.training, **tiny, output_dir=str(tmp_path / "whole"))
    run_until(STEPS_PER_EPOCH + 2, *method.training, **tiny)
    with pytest.raises(RuntimeError) as caught:
        run_config(*method.training, **{**tiny, "ema_decay": 0}, resume=True)
    assert "ema_decay was 0.9, now nothing of the kind" in str(first_cause(caught.value))
    run_config(*method.training, **tiny, resume=True)
    whole, parts = (load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "run"))
    for entry in parts.keys() - {"random"}:
        assert_same(parts[entry], whole[entry])
    trained, used = parts["average"]["trained"], parts["network"]
    assert trained
    assert not any(torch.equal(value, used[weight]) for weight, value in trained.items() if value.ndim > 1)


@pytest.mark.parametrize("name", METHODS)
def test_a_chain_knows_its_name_and_has_the_weights_of_the_paper(name):
    parser = read_configs("train.json", *METHODS[name].overlays)
    assert parser.get_parsed_content("method") == name
    assert parser.get_parsed_content("run_name") == name
    assert parser.get_parsed_content("output_dir").endswith(name)
    weights = parser.get_parsed_content("loss_weights")
    assert weights == parser.get_parsed_content("weights")
    assert {term: weight for term, weight in weights.items() if weight} == expected_weights(name)


def resolved(chain):
    """What a chain builds its translator from: plain values, and factories as what they call with which arguments."""
    parser = read_configs(*chain)

    def value(name):
        content = parser.get_parsed_content(name)
        return (content.func, content.keywords) if isinstance(content, partial) else content

    names = [f"network_def#{part}" for part in parser["network_def"]]
    return {name: value(name) for name in (*names, "method", "weights", "image_size", "max_epochs", "learning_rate")}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_overlays_stack_in_any_order(backbone):
    overlays = [*METHODS["cyclegan" if backbone == "cyclegan" else f"{backbone}-c"].overlays, "paper.json"]
    orders = [resolved(["train.json", *order]) for order in itertools.permutations(overlays)]
    assert len(orders) == math.factorial(len(overlays))
    assert all(order == orders[0] for order in orders)
    for part in ("generator", "discriminator"):
        assert orders[0][f"network_def#{part}"][1]["filters"] == 64
    assert orders[0]["network_def#registration"][1]["channels"] == [32, 64, 64, 64, 64, 64, 64]
    assert orders[0]["network_def#weights"] == orders[0]["weights"]
    assert orders[0]["network_def#_target_"] is find_translator(backbone)
    assert orders[0]["method"] == ("cyclegan" if backbone == "cyclegan" else f"{backbone}-c")


# What is resumed is a RegGAN, the run of ``place``.


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_a_run_of_another_backbone_is_not_resumed(assert_refused, backbone):
    says = [
        "is of another training: ",
        f"backbone was cyclegan, now {backbone}",
        f"now pipeline.translators.{CLASSES[backbone]}",
    ]
    settings = {**TINY_DISCRIMINATORS[backbone], "resume": True, "max_epochs": 20}
    assert_refused(["train.json", f"{backbone}.json"], None, settings, says)


@pytest.mark.parametrize("last", ["evaluate.json", "inference.json"])
@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_weights_of_another_backbone_are_refused(assert_refused, backbone, last):
    chain = [last, f"{backbone}.json"] if last == "inference.json" else ["train.json", f"{backbone}.json", last]
    file = "{model}" if last == "inference.json" else "{run}/checkpoints/best.pt"
    says = [f"recipe of {file};", f"- backbone: given '{backbone}', the model has 'cyclegan'"]
    assert_refused(chain, None, {}, says)


@pytest.mark.parametrize(
    ("overlays", "changes"),
    [
        (["no_registration.json"], ["weights#correction was 20, now nothing of the kind"]),
        (
            ["cycle.json", "no_registration.json"],
            ["weights#cycle was nothing of the kind, now 10", "weights#smoothness was 10"],
        ),
        (["cycle.json"], ["weights#cycle was nothing of the kind, now 10"]),
        (["pix2pix.json"], ["weights#pixel was nothing of the kind, now 100", "weights#adversarial was 1"]),
    ],
)
def test_a_run_of_another_mode_is_not_resumed(assert_refused, overlays, changes):
    says = ["is of another training: ", *changes]
    assert_refused(["train.json", *overlays], None, {"resume": True, "max_epochs": 20}, says)


def test_a_run_of_another_registration_is_not_resumed(assert_refused):
    before, now = (f"pipeline.networks.{name}" for name in ("RegistrationNet", "AffineRegistrationNet"))
    says = [f"network_def#registration#class was {before}, now {now}"]
    assert_refused(["train.json", "affine.json"], None, {"resume": True, "max_epochs": 20}, says)
    settings = {"resume": True, "max_epochs": 20, "network_def#registration#overlap_only": True}
    assert_refused(["train.json"], None, settings, ["overlap_only was False, now True"])


def test_a_generator_with_skips_goes_on_from_registered_pairs(run_config, tmp_path):
    """The weights of the loss terms are then those of anchored.json, not of the Pix2Pix that it starts from."""
    first = tmp_path / "first"
    run_config("train.json", "pix2pix.json", "unet.json", "registered.json", output_dir=str(first), noise_level=0)
    chain = METHODS["reggan-affine-unet"].training
    run_config(*chain, start_from=str(first / "model.pt"), output_dir=str(tmp_path / "second"))
    recipe = Model(tmp_path / "second" / "model.pt").recipe
    weights = {term: weight for term, weight in recipe["weights"].items() if weight}
    assert weights == expected_weights("reggan-affine-unet")
    assert recipe["training"]["started_from"] == file_digest(first / "model.pt")


def test_an_evaluation_has_the_local_noise_of_the_training(run_config, tmp_path):
    run_config("train.json", noise_kind="nonaffine", noise_level=2, noise_amplitude=0.1, max_epochs=1)
    evaluated = Evaluated(tmp_path / "run" / "model.pt")
    assert evaluated.noise() == {"level": 2, "kind": "nonaffine", "amplitude": 0.1}
    assert evaluated.noise(1, "affine", 0.02) == {"level": 1, "kind": "affine", "amplitude": 0.02}


@pytest.mark.parametrize(("overlay", "pairs"), [("fixed_noise.json", "fixed"), ("registered.json", "registered")])
def test_a_run_of_other_pairs_is_not_resumed(assert_refused, overlay, pairs):
    says = ["is of another training: ", f"pairs was nothing of the kind, now {pairs}"]
    assert_refused(["train.json", overlay], None, {"resume": True, "max_epochs": 20, "noise_level": 0}, says)


def test_the_best_epoch_is_that_of_the_least_drift_where_it_is_asked_for(run_config, tmp_path, monkeypatch):
    found = []
    compute = DriftMetric.compute

    def note(metric):
        value = compute(metric)
        if metric.keys == ("drift",):
            found.append(value)
        return value

    monkeypatch.setattr(DriftMetric, "compute", note)
    settings = {"best_by": "drift", "max_epochs": 4, "picture_interval": 4, "learning_rate": 0.003}
    run_config("train.json", **settings)
    best, last = (
        load_checkpoint(tmp_path / "run" / "checkpoints" / f"{name}.pt")["trainer"] for name in ("best", "last")
    )
    assert len(set(found)) == 4
    assert best["epoch"] == 1 + found.index(min(found))
    assert last["best_metric"] == last["best_metrics"]["drift"] == min(found)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run_config("train.json", **settings | {"best_by": "psnr", "max_epochs": 5}, resume=True)
    assert "best_by was drift, now nothing of the kind" in str(first_cause(caught.value))


def test_a_stopped_run_is_resumed_with_its_image_pools(run_config, run_until, tmp_path, assert_same):
    """Long enough for the pools to be full and to draw, before the run stops and after."""
    chain = ("train.json", *METHODS["cyclegan"].overlays)
    settings = {"max_epochs": 9, "val_interval": 9, "picture_interval": 9}
    run_config(*chain, **settings, output_dir=str(tmp_path / "whole"))

    run_until(7 * STEPS_PER_EPOCH + 3, *chain, **settings)
    stopped = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert stopped["trainer"]["epoch"] == 7
    assert len(stopped["network"]["pool._extra_state"]["images"]) == 50

    run_config(*chain, **settings, resume=True)
    whole, parts = (load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "run"))
    for entry in ("network", "generator_optimizer", "discriminator_optimizer", "trainer"):
        assert_same(parts[entry], whole[entry])
