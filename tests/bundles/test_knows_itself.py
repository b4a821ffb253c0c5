"""A model file is enough: whatever uses it gives the same voxels, and settings that contradict it are refused."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.errors import first_cause
from pipeline.inference import Exporter, Translation
from pipeline.inference.scoring import translate
from pipeline.methods import METHODS
from pipeline.models import ContradictionError, Model, load_checkpoint
from pipeline.workflow import ConfigWorkflow

from .conftest import CONFIGS, blob, run_chain

FIRST = ("reggan", "munit-c+r")  # the others, and those of the other backbones, are in the slow suite
WINDOW = (-50, 1150)
# Wider and deeper than what conftest.py has, another slice axis and a fixed window of the target.
SETTINGS = {
    "slice_axis": 0,
    "max_epochs": 2,
    "noise_level": 1,
    "min_foreground": 0.02,
    "network_def#generator#filters": 6,
    "network_def#generator#residual_blocks": 2,
    "network_def#discriminator#filters": 5,
    "target_intensity": {
        "_target_": "transforms.ScaleCTIntensityd",
        "keys": "label",
        "allow_missing_keys": True,
        "window": list(WINDOW),
    },
    "source_intensity#upper_percentile": 98,
}
DISCRIMINATORS = {
    "cyclegan": {},
    "unit": {"network_def#discriminator#layers": 2},
    "munit": {"network_def#discriminator#layers": 2, "network_def#generator#mlp_width": 12},
    # NICE-GAN's networks read each other's features, so they are equally wide.
    "nicegan": {"network_def#discriminator#global_downsamplings": 0, "network_def#discriminator#filters": 6},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sagittal volumes with pixels of 1 mm by 2 mm: five patients."""
    folder = tmp_path_factory.mktemp("sagittal")
    affine = np.diag([4.0, 1.0, 2.0, 1.0])
    lists = {"training": "abc", "validation": "d", "test": "e"}
    datalist: dict = {"modality": {"image": "T1", "label": "T2"}}
    for split, letters in lists.items():
        datalist[split] = []
        for letter in letters:
            entry = {}
            for key, volume in zip(("image", "label"), blob(ord(letter)), strict=True):
                path = folder / key / f"{letter}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                nib.save(nib.Nifti1Image(np.moveaxis(volume, 2, 0).copy(), affine), path)
                entry[key] = f"{key}/{letter}.nii.gz"
            datalist[split].append(entry)
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Trains a method, once; returns the folder of its run."""
    torch.set_num_threads(1)

    @functools.cache
    def train(name):
        folder = tmp_path_factory.mktemp(name.replace("+", "")) / "run"
        settings = {**SETTINGS, **DISCRIMINATORS[METHODS[name].backbone]}
        if "unet.json" in METHODS[name].overlays:
            del settings["network_def#generator#residual_blocks"]
        run_chain(METHODS[name].training, dataset_dir=str(data), output_dir=str(folder), run_name=name, **settings)
        return folder

    return train


@pytest.fixture
def use(data, tmp_path, monkeypatch):
    """Translates the test volume with a file, told nothing else; returns the voxels."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(checkpoint, *overlays, image=data / "image" / "e.nii.gz", **settings):
        folder = tmp_path / f"translated{len(list(tmp_path.glob('translated*')))}"
        run_only(
            ("inference.json", *overlays),
            checkpoint=str(checkpoint),
            image=str(image),
            output_dir=str(folder),
            **settings,
        )
        [path] = folder.iterdir()
        return nib.load(path)

    return run


def run_only(chain, **settings):
    """Runs a chain with these settings and no others."""
    from monai.bundle.scripts import run

    run(run_id="run", config_file=[str(CONFIGS / name) for name in chain], logging_file=False, device="cpu", **settings)


def near(first, second):
    np.testing.assert_allclose(first, second, atol=1e-4 * (WINDOW[1] - WINDOW[0]), rtol=0)


def check_everything(run_dir, data, use, tmp_path):
    """Translate, evaluate, export and run from the exports, with only the file named: the same voxels."""
    model, best = run_dir / "model.pt", run_dir / "checkpoints" / "best.pt"
    volume = use(model)
    source = nib.load(data / "image" / "e.nii.gz")
    assert volume.shape == source.shape
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-6)
    voxels = volume.get_fdata()
    assert WINDOW[0] - 1e-3 <= voxels.min() < voxels.max() <= WINDOW[1] + 1e-3
    near(use(best).get_fdata(), voxels)

    run_only(["evaluate.json"], checkpoint=str(best), tracking_uri="none", evaluation_dir=str(tmp_path / "evaluation"))
    with (tmp_path / "evaluation" / "volumes.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    label = nib.load(data / "label" / "e.nii.gz").get_fdata()
    error = np.abs(voxels - label)[label > WINDOW[0] + 1e-2]
    assert float(row["mae"]) == pytest.approx(error.mean(), rel=1e-4)
    psnr = 10 * np.log10((WINDOW[1] - WINDOW[0]) ** 2 / (error**2).mean())
    assert float(row["psnr"]) == pytest.approx(psnr, rel=1e-4)

    settings = {"checkpoint": str(model), "image": source.get_filename(), "device": "cpu"}
    exporter = Exporter(ConfigWorkflow(["inference.json"], **settings))
    slices = exporter.slices()
    suffixes = [".onnx", ".ts"] + ([] if "NICE" in type(exporter.network).__name__ else [".pt2"])
    for suffix in suffixes:
        exporter.export(tmp_path / f"model{suffix}", slices)
    near(use(tmp_path / "model.onnx").get_fdata(), voxels)
    recipe = Model(model).recipe
    loaded = {".ts": torch.jit.load, ".pt2": lambda path: torch.export.load(path).module()}
    translation = Translation(recipe)
    preprocessed = translation.preprocessing({"image": source.get_filename()})["image"]
    for suffix in suffixes[1:]:
        near(translate(preprocessed, translation, loaded[suffix](str(tmp_path / f"model{suffix}")))[0].numpy(), voxels)


@pytest.mark.parametrize("name", FIRST)
def test_a_file_is_enough(name, trained, data, use, tmp_path):
    check_everything(trained(name), data, use, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in FIRST])
def test_a_file_is_enough_for_the_other_methods(name, trained, data, use, tmp_path):
    check_everything(trained(name), data, use, tmp_path)


CONTRADICTIONS = {
    "backbone": ("unit", "'cyclegan'"),
    "network_size": ("paper", "'small'"),
    "spatial_size": ([64, 64], "[32, 32]"),
    "spatial_dims": (3, "2"),
    "slice_axis": (2, "0"),
    "orientation": ("LPS", "'RAS'"),
    "spacing": ([1, 1, 1], "[-1.0, 2.125, 2.125]"),
    "fit": ("resize", "'pad'"),
    "source_modality": ("FLAIR", "'T1'"),
    "network_def#generator#filters": (8, "6"),
    "network_def#generator#residual_blocks": (1, "2"),
    "network_def#discriminator#filters": (8, "5"),
    "network_def#registration#channels": ([8, 8], "[4, 4]"),
    "source_intensity#upper_percentile": (99, "98.0"),
    "target_intensity#window": ([0, 1], "[-50.0, 1150.0]"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
@pytest.mark.parametrize(
    "chain", [["inference.json"], ["evaluate.json"], ["train.json", "evaluate.json"]], ids="-".join
)
def test_contradictions_are_refused_with_both_values(name, chain, trained, data, tmp_path):
    given, known = CONTRADICTIONS[name]
    place = {"checkpoint": str(trained("reggan") / "model.pt"), "tracking_uri": "none"}
    if "inference.json" in chain:
        place = {
            "checkpoint": place["checkpoint"],
            "image": str(data / "image" / "e.nii.gz"),
            "output_dir": str(tmp_path / "out"),
        }
    elif name == "network_def#registration#channels":
        place["checkpoint"] = str(trained("reggan") / "checkpoints" / "best.pt")
    if chain == ["evaluate.json"] and name.partition("#")[0] in ("source_intensity", "target_intensity"):
        pytest.skip("evaluate.json alone has no scaling to set parts of")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_only(chain, **place, **{name: given})
    cause = first_cause(caught.value)
    assert isinstance(cause, ContradictionError)
    assert f"- {name}: given {given!r}, the model has {known}" in str(cause)
    assert not (tmp_path / "out").exists()


def test_an_overlay_that_contradicts_is_refused(trained, data, use):
    model = trained("reggan") / "model.pt"
    for overlay, says in (
        ("munit.json", "- backbone: given 'munit', the model has 'cyclegan'"),
        ("paper.json", "- network_size: given 'paper', the model has 'small'"),
        ("scaled.json", "- target_intensity#window: given [-1.0, 1.0], the model has [-50.0, 1150.0]"),
    ):
        with pytest.raises(RuntimeError) as caught:
            use(model, overlay)
        assert says in str(first_cause(caught.value))


def test_settings_that_agree_are_accepted(trained, data, use):
    model = trained("munit-c+r") / "model.pt"
    expected = use(model).get_fdata()
    agreeing = {name: value for name, value in SETTINGS.items() if name.startswith(("network_def", "slice_axis"))}
    of_use = {"slices_at_once": 3, "amp": False}
    near(use(model, "munit.json", "cycle.json", spatial_size=[32, 32], **agreeing, **of_use).get_fdata(), expected)


def test_unlike_volumes_are_warned_of_with_both_numbers(trained, data, use, tmp_path, caplog):
    model = trained("reggan") / "model.pt"
    before = nib.load(data / "image" / "e.nii.gz")
    voxels = before.get_fdata(dtype=np.float32)

    def said(volume):
        caplog.clear()
        nib.save(volume, tmp_path / "odd.nii.gz")
        use(model, image=tmp_path / "odd.nii.gz")
        return [
            record.getMessage() for record in caplog.records if "is unlike the training data" in record.getMessage()
        ]

    assert said(nib.Nifti1Image(voxels, before.affine)) == []
    [text] = said(nib.Nifti1Image(voxels * 10, before.affine))
    assert "intensities: the 99.5th percentile is 71" in text
    assert "in training 7" in text
    texts = said(nib.Nifti1Image(voxels + 300, before.affine))
    assert any("intensities: the 0.5th percentile is 300, in training 0" in text for text in texts)
    texts = said(nib.Nifti1Image(voxels, before.affine @ np.diag([1, 2, 1, 1])))
    assert any("spacing: 2 mm posterior-anterior, in training 1 mm" in text for text in texts)
    assert any("field of view: 80 mm posterior-anterior, in training 40 mm" in text for text in texts)
    [text] = said(before.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]])))
    assert "orientation: the file's axes point to LAS, in training to RAS" in text
    angle = np.radians(30)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    [text] = said(nib.Nifti1Image(voxels, turn @ before.affine))
    assert "orientation: tilted by 30 degrees, in training by at most 0" in text


def test_another_number_of_channels_is_refused(trained, data, use, tmp_path):
    before = nib.load(data / "image" / "e.nii.gz")
    nib.save(
        nib.Nifti1Image(np.stack([before.get_fdata(dtype=np.float32)] * 2, -1), before.affine), tmp_path / "two.nii.gz"
    )
    with pytest.raises(RuntimeError) as caught:
        use(trained("reggan") / "model.pt", image=tmp_path / "two.nii.gz")
    assert "expected a 2D or 3D image of one channel" in str(first_cause(caught.value))


@pytest.mark.parametrize("file", ["model.pt", "checkpoints/last.pt"])
def test_flipped_bits_of_tensors_are_refused(trained, data, use, tmp_path, file):
    """20 of 20, in use and where a training goes on."""
    run = tmp_path / "run"
    shutil.copytree(trained("reggan"), run)
    path = run / file
    whole = bytearray(path.read_bytes())
    state = load_checkpoint(path)
    weights = state.get("network", state)
    names = [name for name in weights if name.endswith("weight")]
    random = np.random.default_rng(0)
    for _ in range(20):
        tensor = weights[names[random.integers(len(names))]]
        content = bytes(tensor.untyped_storage())  # whatever the order of its channels
        start = whole.find(content)
        assert start > 0
        spoilt = bytearray(whole)
        spoilt[start + random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(spoilt)
        with pytest.raises(RuntimeError) as caught:
            use(path)
        assert "damaged" in str(first_cause(caught.value))
    if file.endswith("last.pt"):
        settings = {**SETTINGS, "max_epochs": 3, "resume": True, "dataset_dir": str(data), "output_dir": str(run)}
        with pytest.raises((RuntimeError, ValueError)) as caught:
            run_chain(["train.json"], **settings)
        assert "damaged" in str(first_cause(caught.value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(trained, use, tmp_path, value):
    state = load_checkpoint(trained("reggan") / "model.pt")
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[3] = value
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        use(tmp_path / "model.pt")
    assert name in str(first_cause(caught.value))


def test_a_file_without_a_recipe_is_refused(trained, use, tmp_path):
    state = load_checkpoint(trained("reggan") / "model.pt")
    del state["_extra_state"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        use(tmp_path / "model.pt")
    assert f"{tmp_path / 'model.pt'} holds no recipe" in str(first_cause(caught.value))


def test_the_recipe_tells_how_it_was_made(trained, data):
    recipe = Model(trained("munit-c+r") / "model.pt").recipe
    assert recipe["method"] == "munit-c+r"
    assert recipe["backbone"] == "munit"
    assert recipe["networks"]["generator"]["arguments"]["filters"] == 6
    assert recipe["networks"]["generator"]["arguments"]["style_dim"] == 8  # a default
    assert recipe["weights"]["cycle"] == 10
    assert (recipe["source"]["modality"], recipe["target"]["modality"]) == ("T1", "T2")
    assert recipe["source"]["scaling"]["arguments"] == {
        "upper_percentile": 98.0,
        "background": 0.0,
        "foreground": "found",
    }
    assert recipe["target"]["window"] == list(WINDOW)
    assert recipe["grid"]["slice_axis"] == 0
    assert recipe["data"]["patients"] == 3
    assert recipe["data"]["spacing"] == [[4, 4], [1, 1], [2, 2]]
    assert recipe["data"]["field_of_view"] == [[24, 24], [40, 40], [68, 68]]
    assert recipe["data"]["orientations"] == ["RAS"]
    training = recipe["training"]
    assert (training["noise_level"], training["noise_kind"], training["seed"]) == (1, "affine", 0)
    assert training["epoch"] in (1, 2)
    assert Path(data).name not in json.dumps(recipe.content)
