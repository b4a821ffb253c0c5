"""The training configs: they run as they are, from anywhere, and resume as if they had never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from monai.bundle import ConfigParser, ConfigWorkflow

from pipeline.errors import first_cause
from pipeline.handlers import PictureHandler
from pipeline.models import ContradictionError, Model, file_digest, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
DEFAULTS = json.loads((CONFIGS / "train.json").read_text())
HEEDING_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
TINY_NETWORKS = {"network_def#generator#filters": 4, "network_def#generator#residual_blocks": 1}


def command_line(dataset_dir, output_dir, *more, config="bundles/reggan/configs/train.json", run_id=("training",)):
    from_tiny = {
        "--device": "cpu",
        "--spatial_size": "32",
        "--batch_size": "2",
        "--decay_epochs": "0",
        "--network_def#generator#filters": "4",
        "--network_def#generator#residual_blocks": "1",
        "--network_def#discriminator#filters": "4",
        "--network_def#registration#channels": "[4,4]",
        "--dataset_dir": str(dataset_dir),
        "--output_dir": str(output_dir),
    }
    pairs = [word for pair in from_tiny.items() for word in pair]
    return [sys.executable, "-m", "monai.bundle", "run", *run_id, "--config_file", config, *pairs, *more]


@pytest.mark.parametrize(
    "chain", [("train.json",), ("train.json", "paper.json"), ("train.json", "cycle.json", "augmentation.json")]
)
def test_every_training_chain_runs(run_config, tmp_path, capsys, chain):
    run_config(*chain, run_id="training")
    written = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "model.pt",
        "config.json",
        "pictures/epoch_0001.png",
    } <= written
    printed = capsys.readouterr().out
    for row in ("prediction", "source as it is", "intensity map"):
        assert row in printed
    assert str(tmp_path / "run" / "model.pt") in printed
    assert "MLflow" not in printed  # tracking is off here
    load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")  # holds nothing but tensors and plain values


@pytest.mark.parametrize(
    ("weights", "absent"),
    [({"correction": 20, "smoothness": 10}, "discriminator"), ({"adversarial": 1}, "registration")],
)
def test_a_mode_is_a_set_of_weights(run_config, tmp_path, weights, absent):
    run_config("train.json", weights=weights)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert not any(name.startswith(absent) for name in saved["network"])
    assert ("discriminator_optimizer" in saved) == (absent != "discriminator")


def test_amp_trains(run_config, tmp_path):
    run_config("train.json", amp="true")
    assert (tmp_path / "run" / "model.pt").is_file()


def test_fewer_epochs_than_the_default_need_no_other_setting(run_config, tmp_path):
    run_config("train.json", max_epochs=1, decay_epochs=DEFAULTS["decay_epochs"])
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["trainer"]["epoch"] == 1


def test_a_training_goes_on_from_a_model(run_config, trained_run, tmp_path, capsys):
    """It is scored before the first step; the recipe says where it started, and a resumed run does not start again."""
    start = trained_run / "model.pt"
    settings = {"start_from": str(start), "learning_rate": 1e-9, "noise_level": 0}
    run_config("train.json", **settings)
    before = load_checkpoint(trained_run / "checkpoints" / "best.pt")["trainer"]["best_metrics"]
    printed = capsys.readouterr().out
    first = printed.split("Validation before training, of the model that it starts from:")[1]
    [prediction] = [line.split() for line in first.splitlines() if line.startswith("prediction")][:1]
    assert float(prediction[2]) == pytest.approx(before["psnr"], abs=0.006)
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["trainer"]["best_epoch"] == 1
    assert last["trainer"]["best_metrics"]["psnr"] == pytest.approx(before["psnr"], abs=1e-3)
    recipe = Model(tmp_path / "run" / "model.pt").recipe
    assert recipe["training"]["started_from"] == file_digest(start)
    assert recipe["training"]["epoch"] == 1
    run_config("train.json", **settings, resume=True, max_epochs=2)
    assert "before training" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["trainer"]["epoch"] == 2


@pytest.mark.parametrize(
    ("overlays", "settings", "says"),
    [
        ((), {"spatial_size": [40, 40]}, "- spatial_size: given [40, 40], the model has [32, 32]"),
        ((), {"orientation": "LPS"}, "- orientation: given 'LPS', the model has 'RAS'"),
        ((), {"backbone": "unit"}, "- backbone: given 'unit', the model has 'cyclegan'"),
        ((), {"network_def#generator#filters": 8}, "- network_def#generator#filters: given 8, the model has 4"),
        (("scaled.json",), {}, "- target_intensity: given {'class': 'transforms.ScaleCTIntensityd', "),
    ],
)
def test_a_training_that_contradicts_its_model_is_refused(run_config, trained_run, tmp_path, overlays, settings, says):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_config("train.json", *overlays, start_from=str(trained_run / "model.pt"), **settings)
    cause = first_cause(caught.value)
    assert isinstance(cause, ContradictionError)
    assert says in str(cause)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["scaled.json", "mr_to_ct.json"])
def test_intensity_overlays_fix_the_window(run_config, tmp_path, name):
    run_config("train.json", name)
    recipe = Model(tmp_path / "run" / "model.pt").recipe
    window = {"scaled.json": (-1, 1), "mr_to_ct.json": (-1000, 2000)}[name]
    assert recipe.target_window == window
    rule = {"scaled.json": "above-background", "mr_to_ct.json": "found"}[name]
    arguments = {"window": [*window], "foreground": rule}
    assert recipe["target"]["scaling"] == {"class": "transforms.ScaleCTIntensityd", "arguments": arguments}


@pytest.mark.parametrize(("name", "kind"), [("train.json", "train"), ("inference.json", "infer")])
def test_the_zoo_finds_its_properties(dataset_dir, trained_run, name, kind):
    settings = {"dataset_dir": str(dataset_dir), "device": "cpu", **TINY_NETWORKS}
    if kind == "infer":
        settings |= {"checkpoint": str(trained_run / "model.pt"), "image": str(dataset_dir / "images")}
    workflow = ConfigWorkflow(
        str(ROOT / "bundles" / "reggan" / "configs" / name), workflow_type=kind, logging_file=False, **settings
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_written_config_runs_by_itself(run_config, tmp_path):
    run_config("train.json")
    before = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    from monai.bundle.scripts import run

    run(run_id="run", config_file=str(tmp_path / "run" / "config.json"), logging_file=False)
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert all(torch.equal(before["network"][name], after["network"][name]) for name in before["network"])
    assert list((tmp_path / "run" / "previous").iterdir())


def test_command_line_from_the_bundle_folder(dataset_dir, tmp_path, python):
    _, *words = command_line(
        dataset_dir,
        tmp_path / "run",
        "--max_epochs",
        "1",
        "--tracking_uri",
        "none",
        config="configs/train.json",
        run_id=(),
    )
    code, said = python(*words, cwd=ROOT / "bundles" / "reggan")
    assert code == 0, said[-3000:]
    assert (tmp_path / "run" / "model.pt").is_file()


def histories(store, run_id):
    client = MlflowClient(store)
    run = client.get_run(run_id)
    keys = sorted(run.data.metrics)
    history = {key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)] for key in keys}
    return run, history


def test_killed_and_resumed_equals_uninterrupted(dataset_dir, tmp_path, assert_same, python):
    """Must hold bit for bit: weights, optimisers, and the metric history in MLflow, each value once."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["OMP_NUM_THREADS"] = "1"
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def command(name, *more):
        return command_line(
            *(dataset_dir, tmp_path / name, "--max_epochs", "16", "--picture_interval", "16"),
            *("--tracking_uri", store, "--run_name", name, *more),
        )

    def finish(*words):
        code, said = python(*command(*words)[1:], cwd=ROOT)
        assert code == 0, said[-3000:]

    finish("whole")
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command("parts"), cwd=ROOT, env=environment, stdout=log, stderr=log)
        last = tmp_path / "parts" / "checkpoints" / "last.pt"
        deadline = time.monotonic() + 240
        while not last.exists() or load_checkpoint(last)["trainer"]["epoch"] < 3:
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert load_checkpoint(last)["trainer"]["epoch"] < 16, "killed too late to show anything"
    finish("parts", "--resume", "true")

    whole, parts = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    for entry in ("network", "generator_optimizer", "discriminator_optimizer", "trainer", "random"):
        assert_same(parts[entry], whole[entry])
    runs = [json.loads((tmp_path / name / "mlflow_run.json").read_text())["run_id"] for name in ("whole", "parts")]
    (first, first_history), (second, second_history) = (histories(store, run_id) for run_id in runs)
    assert first.info.status == second.info.status == "FINISHED"
    assert first_history == second_history
    assert len(first_history["val/psnr"]) == 16


def test_ctrl_c_is_recorded_as_killed(dataset_dir, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = command_line(dataset_dir, tmp_path / "run", "--max_epochs", "10000", "--tracking_uri", store)
    # A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
    command = [command[0], "-c", HEEDING_CTRL_C, *command]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 240
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) != 0
    run_id = json.loads((tmp_path / "run" / "mlflow_run.json").read_text())["run_id"]
    assert MlflowClient(store).get_run(run_id).info.status == "KILLED"


def test_augmentation_changes_the_source_alone_and_no_background():
    [(name, config)] = json.loads((CONFIGS / "augmentation.json").read_text()).items()
    assert name == "train#dataset#slice_transform"
    transform = ConfigParser({"transform": config}).get_parsed_content("transform")
    transform.set_random_state(seed=0)
    pair = {"image": torch.full((1, 32, 32), -1.0), "label": torch.full((1, 32, 32), -1.0)}
    inside = torch.rand(1, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pair["image"][:, 4:20, 8:20] = inside
    pair["label"][:, 4:20, 8:20] = -inside
    mirrored = 0
    for _ in range(20):
        result = transform({key: image.clone() for key, image in pair.items()})
        flipped = not torch.equal(result["label"], pair["label"])
        mirrored += flipped
        label, image = (result[key].flip(1) if flipped else result[key] for key in ("label", "image"))
        assert torch.equal(label, pair["label"])
        assert (image[pair["image"] == -1] == -1).all()
        assert image.min() >= -1
        assert image.max() <= 1
    assert 0 < mirrored < 20
    assert not torch.equal(image, pair["image"])


def last_checkpoint(output_dir):
    return load_checkpoint(output_dir / "checkpoints" / "last.pt")


def test_intensity_map_is_that_of_the_clean_slices(run_config, tmp_path):
    for name, overlays in {"plain": (), "augmented": ("augmentation.json",)}.items():
        run_config("train.json", *overlays, output_dir=str(tmp_path / name))
    plain, augmented = (last_checkpoint(tmp_path / name) for name in ("plain", "augmented"))
    assert plain["intensity_map"]["values"].isfinite().all()
    assert torch.equal(augmented["intensity_map"]["values"], plain["intensity_map"]["values"])
    # what was trained has seen the augmented slices
    assert any(not torch.equal(augmented["network"][name], value) for name, value in plain["network"].items())


def test_what_the_map_is_fitted_to_changes_nothing_of_the_training(run_config, tmp_path, assert_same):
    """Nor would a fit that draws: the epochs' seeds say what is augmented, and how."""
    on_augmented = [line.replace("fit_once(@train#dataset)", "fit(@train#dataset)") for line in DEFAULTS["initialize"]]
    assert on_augmented != DEFAULTS["initialize"]
    chain = ("train.json", "augmentation.json")
    run_config(*chain, output_dir=str(tmp_path / "clean"))
    run_config(*chain, output_dir=str(tmp_path / "drawing"), initialize=on_augmented)
    clean, drawing = (last_checkpoint(tmp_path / name) for name in ("clean", "drawing"))
    for entry in ("network", "generator_optimizer", "discriminator_optimizer", "random"):
        assert_same(drawing[entry], clean[entry])
    assert not torch.equal(drawing["intensity_map"]["values"], clean["intensity_map"]["values"])


def test_augmentation_reaches_training_alone(dataset_dir, tmp_path):
    """Pictures, validation and the target's window are those of a run without it."""

    def seen(*overlays):
        workflow = ConfigWorkflow(
            [str(CONFIGS / name) for name in ("train.json", *overlays)],
            workflow_type="train",
            logging_file=False,
            dataset_dir=str(dataset_dir),
            output_dir=str(tmp_path / "run"),
            tracking_uri="none",
            device="cpu",
            spatial_size=32,
            **TINY_NETWORKS,
        )
        workflow.initialize()
        part = workflow.parser.get_parsed_content
        pictures = [handler for handler in part("train#handlers") if isinstance(handler, PictureHandler)]
        assert len(pictures) == 1
        sets = {"pictures": pictures[0].dataset, "validation": part("validate#evaluator").data_loader.dataset}
        images = {
            name: torch.stack([item[key] for item in dataset for key in ("image", "label")])
            for name, dataset in {**sets, "training": part("train#dataset")}.items()
        }
        return images, part("network").recipe["target"]["window"]

    (plain, window), (augmented, augmented_window) = seen(), seen("augmentation.json")
    assert window == augmented_window
    for name in ("pictures", "validation"):
        assert torch.equal(augmented[name], plain[name])
    assert not torch.equal(augmented["training"], plain["training"])


def test_a_pixel_means_the_same_in_every_patient(run_config, tmp_path):
    """Pixels of 1 x 2 mm and of 1.5 mm, other fields of view: a square is square and equally large in both."""
    data = tmp_path / "data"
    for name, shape, voxel in (
        ("a", (120, 60, 4), (1.0, 2.0)),
        ("b", (60, 80, 4), (1.5, 1.5)),
        ("c", (80, 72, 4), (1.25, 1.25)),
    ):
        axes = [(np.arange(n) + 0.5 - n / 2) * size for n, size in zip(shape, voxel, strict=False)]
        inside = (abs(axes[0]) < 20)[:, None] & (abs(axes[1]) < 20)[None]
        noise = np.random.default_rng(ord(name)).uniform(900, 1000, shape)
        for folder in ("imagesTr", "labelsTr") if name != "c" else ("imagesVal", "labelsVal"):
            (data / folder).mkdir(parents=True, exist_ok=True)
            volume = nib.Nifti1Image((inside[..., None] * noise).astype(np.float32), np.diag([*voxel, 4, 1]))
            nib.save(volume, data / folder / f"{name}.nii.gz")
    run_config("train.json", dataset_dir=str(data), noise_level=0, spatial_size=[60, 60])
    recipe = Model(tmp_path / "run" / "model.pt").recipe
    assert (recipe["grid"]["fit"], recipe["grid"]["spacing"]) == ("pad", [2.0, 2.0, -1.0])
    for name in "ab":
        paths = {"image": data / "imagesTr" / f"{name}.nii.gz", "label": data / "labelsTr" / f"{name}.nii.gz"}
        middle = recipe.pair_preprocessing()(paths)["image"][0, :, :, 2]
        assert tuple(middle.shape) == (60, 60)
        assert [(line > 0).sum().item() for line in (middle[30], middle[:, 30])] == pytest.approx([20, 20], abs=1)
    run_config(
        "train.json",
        dataset_dir=str(data),
        noise_level=0,
        spatial_size=[60, 60],
        start_from=str(tmp_path / "run" / "model.pt"),
        output_dir=str(tmp_path / "tuned"),
    )
    assert Model(tmp_path / "tuned" / "model.pt").recipe["grid"] == recipe["grid"]
