"""The recipe "A backbone" of CONTRIBUTING.md, followed to the letter with a toy: two files and an overlay, no more."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from textwrap import dedent

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run as run_bundle

from pipeline.errors import first_cause
from pipeline.methods import MODES
from pipeline.models import Model, ModelError, load_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "reggan" / "configs"
NETWORKS = '''
    """Networks of the toy backbone."""

    from monai.networks.layers import Conv
    from torch import nn

    from pipeline.networks.blocks import check_counts, check_spatial_dims


    class ToyGenerator(nn.Module):
        """The image and what a few convolutions change of it."""

        def __init__(self, spatial_dims=2, filters=8, residual_blocks=2):
            super().__init__()
            check_spatial_dims(spatial_dims)
            check_counts(filters=filters, residual_blocks=residual_blocks)
            conv = Conv[Conv.CONV, spatial_dims]
            layers = [conv(1, filters, 3, padding=1), nn.ReLU()]
            for _ in range(residual_blocks):
                layers += [conv(filters, filters, 3, padding=1), nn.ReLU()]
            self.change = nn.Sequential(*layers, conv(filters, 1, 1))

        @property
        def minimum_size(self):
            return 1

        def forward(self, images):
            return (images + self.change(images)).tanh()


    class ToyDiscriminator(nn.Module):
        """Scores of patches of 8 voxels."""

        def __init__(self, spatial_dims=2, filters=8):
            super().__init__()
            check_spatial_dims(spatial_dims)
            check_counts(filters=filters)
            conv = Conv[Conv.CONV, spatial_dims]
            self.patches = nn.Sequential(conv(1, filters, 8, stride=8), nn.LeakyReLU(0.2), conv(filters, 1, 1))

        @property
        def minimum_size(self):
            return 8

        def forward(self, images):
            if min(images.shape[2:]) < self.minimum_size:
                raise ValueError(f"ToyDiscriminator needs at least {self.minimum_size} voxels, got {images.shape[2:]}")
            return self.patches(images)
'''
TRANSLATOR = '''
    """The toy backbone."""

    import torch.nn.functional as F

    from pipeline.translators import Translator


    class ToyTranslator(Translator):
        """Besides the terms of the modes it has one of its own: the mean intensity."""

        known_terms = Translator.registration_terms | {"adversarial", "cycle", "brightness"}
        training_only = (*Translator.training_only, "source_generator", "source_discriminator")

        def __init__(self, weights, generator, discriminator=None, registration=None):
            super().__init__(weights, registration)
            used_by = frozenset({"adversarial"})
            self.generator = generator()
            self.discriminator = self._build_if_needed("discriminator", discriminator, used_by)
            self.source_generator = self.source_discriminator = None
            if "cycle" in self.terms:
                self.source_generator = generator()
                self.source_discriminator = self._build_if_needed("discriminator", discriminator, used_by)

        def forward(self, source):
            return self.generator(source)

        def discriminator_networks(self):
            return tuple(network for network in (self.discriminator, self.source_discriminator) if network is not None)

        def generator_terms(self, batch):
            source, target = batch["image"], batch["label"]
            outputs = {"pred": self.generator(source)}
            corrected, terms = self.correct(outputs["pred"], batch)
            if "brightness" in self.terms:
                terms["brightness"] = F.l1_loss(outputs["pred"].mean(), target.mean())
            if self.source_generator is not None:
                outputs["source_pred"] = self.source_generator(target)
                back = self.source_generator(outputs["pred"]), self.generator(outputs["source_pred"])
                terms["cycle"] = F.l1_loss(back[0], source) + F.l1_loss(back[1], target)
            judged = self._judged(outputs, batch)
            if judged:
                terms["adversarial"] = sum(self.adversarial_loss(judge(fake), real=True) for judge, fake, _ in judged)
            return outputs | corrected, terms

        def discriminator_terms(self, batch, outputs):
            losses = [
                self.adversarial_loss(judge(fake), real=False) + self.adversarial_loss(judge(real), real=True)
                for judge, fake, real in self._judged(outputs, batch)
            ]
            return {"adversarial": sum(losses)} if losses else {}

        def _judged(self, outputs, batch):
            judged = [(self.discriminator, outputs["pred"], batch["label"])] if self.discriminator is not None else []
            if self.source_discriminator is not None:
                judged.append((self.source_discriminator, outputs["source_pred"], batch["image"]))
            return judged
'''
OVERLAY = {
    "backbone": "toy",
    "translator": "toy_translator.ToyTranslator",
    "trusted_modules": ["toy_translator", "toy_networks"],
    "network_def#generator": {
        "_target_": "toy_networks.ToyGenerator",
        "_mode_": "callable",
        "spatial_dims": "@spatial_dims",
        "filters": "$pipeline.bundle.by_size(@network_size, small=8, paper=32)",
    },
    "network_def#discriminator": {
        "_target_": "toy_networks.ToyDiscriminator",
        "_mode_": "callable",
        "spatial_dims": "@spatial_dims",
        "filters": "$pipeline.bundle.by_size(@network_size, small=8, paper=32)",
    },
    "+weights": {"brightness": 2},
}
MODULES = ("toy_networks", "toy_translator")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The path of the toy's overlay, whose modules can be imported."""
    folder = tmp_path_factory.mktemp("toy")
    for name, source in zip(MODULES, (NETWORKS, TRANSLATOR), strict=True):
        (folder / f"{name}.py").write_text(dedent(source))
    (folder / "toy.json").write_text(json.dumps(OVERLAY))
    sys.path.insert(0, str(folder))
    yield str(folder / "toy.json")
    sys.path.remove(str(folder))
    for name in MODULES:
        sys.modules.pop(name, None)


def read_configs(*chain):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in chain])
    return parser


@pytest.mark.parametrize("mode", MODES)
def test_it_trains_resumes_evaluates_and_translates_in_every_mode(run_config, dataset_dir, tmp_path, capsys, toy, mode):
    chain = ("train.json", *MODES[mode], toy)
    run_config(*chain, max_epochs=2)
    run_config(*chain, max_epochs=3, resume=True)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert saved["trainer"]["epoch"] == 3
    networks = {name.split(".")[0] for name in saved["network"] if "." in name}
    both_ways = {"source_generator", "source_discriminator"} if mode.startswith("c") else set()
    corrected = {"registration"} if mode.endswith("+r") else set()
    assert networks == {"generator", "discriminator"} | both_ways | corrected
    written = {name.split(".")[0] for name in load_checkpoint(tmp_path / "run" / "model.pt") if "." in name}
    assert written == {"generator"}

    run_config(*chain, "evaluate.json")
    written = tmp_path / "run" / "evaluation" / "summary.json"
    summary = json.loads(written.read_text())
    assert math.isfinite(summary["slices"]["psnr"]["mean"])
    assert math.isfinite(summary["volumes"]["over_patients"]["psnr"]["mean"])
    written.unlink()
    best = str(tmp_path / "run" / "checkpoints" / "best.pt")
    run_alone("evaluate.json", checkpoint=best, trusted_modules=[*MODULES], tracking_uri="none")
    assert json.loads(written.read_text()) == summary

    source = dataset_dir / "images" / "d.nii.gz"
    use = {"image": str(source), "checkpoint": str(tmp_path / "run" / "model.pt")}
    run_config("inference.json", toy, **use, output_dir=str(tmp_path / "with_overlay"))
    run_alone("inference.json", **use, trusted_modules=[*MODULES], output_dir=str(tmp_path / "alone"))
    first, second = (nib.load(tmp_path / name / "d_translated.nii.gz") for name in ("with_overlay", "alone"))
    assert first.shape == nib.load(source).shape
    assert (first.get_fdata() == second.get_fdata()).all()
    assert "prediction" in capsys.readouterr().out


def run_alone(name, **settings):
    """A config of the bundle with these settings and no others."""
    run_bundle(run_id="run", config_file=str(CONFIGS / name), logging_file=False, device="cpu", **settings)


def test_a_training_goes_on_from_it(run_config, tmp_path, toy):
    """Its name, networks and weights are the model's; the overlay is there for its modules."""
    run_config("train.json", toy)
    settings = {"start_from": str(tmp_path / "run" / "model.pt"), "output_dir": str(tmp_path / "second")}
    run_config("train.json", **settings, trusted_modules=[*MODULES])
    first, second = (Model(tmp_path / name / "model.pt", MODULES).recipe for name in ("run", "second"))
    assert second["backbone"] == "toy"
    for entry in ("translator", "networks", "weights", "grid", "method"):
        assert second[entry] == first[entry]
    assert second["weights"]["brightness"] == 2


def test_a_file_does_not_decide_what_is_imported(run_config, dataset_dir, tmp_path, toy):
    """Who uses the model has to name the modules; what is refused says how."""
    run_config("train.json", toy, "no_registration.json")
    uses = {
        "inference.json": {"image": str(dataset_dir / "images" / "d.nii.gz"), "output_dir": str(tmp_path / "out")},
        "evaluate.json": {"tracking_uri": "none"},
        "train.json": {"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / "out")},
    }
    for name, settings in uses.items():
        key = "start_from" if name == "train.json" else "checkpoint"
        settings[key] = str(tmp_path / "run" / "model.pt")
        for trusted, module in (([], "toy_translator"), (["toy_translator"], "toy_networks")):
            for imported in MODULES:
                sys.modules.pop(imported, None)
            with pytest.raises((RuntimeError, ValueError)) as caught:
                run_alone(name, **settings, trusted_modules=trusted)
            cause = first_cause(caught.value)
            assert isinstance(cause, ModelError)
            assert f"the model names {module}." in str(cause)
            assert f"name its modules yourself: --trusted_modules \"['{module}']\"" in str(cause)
            assert module not in sys.modules
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run" / "evaluation").exists()


def test_its_runs_are_named_after_it(toy):
    parser = read_configs("train.json", toy)
    assert parser.get_parsed_content("method") == "toy-nc+r"
    assert parser.get_parsed_content("weights")["brightness"] == 2


def test_its_size_goes_with_that_of_the_others(toy):
    for chain in (("train.json", "paper.json", toy), ("train.json", toy, "paper.json")):
        with torch.device("meta"):
            translator = read_configs(*chain).get_parsed_content("network_def")
        assert translator.generator.change[0].out_channels == 32


def test_its_weights_are_no_other_backbone_s(assert_refused, toy):
    says = ["is of another training: ", "backbone was cyclegan, now toy"]
    assert_refused(["train.json", toy], None, {"resume": True, "max_epochs": 20}, says)


def test_images_that_are_too_small_are_refused(assert_refused, toy):
    chain, says = ["train.json", toy, "no_registration.json"], ["at least 8 along every axis for ToyDiscriminator"]
    assert_refused(chain, None, {"spatial_size": 7}, says)
