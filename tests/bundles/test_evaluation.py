"""Scores, tables and pictures of a trained run on cases that it never saw, and their MLflow run below its own."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from monai.bundle.scripts import run as run_bundle
from skimage.io import imread
from skimage.metrics import structural_similarity

from pipeline.bundle import project_dir
from pipeline.errors import first_cause
from pipeline.metrics import foreground_mask, psnr
from pipeline.models import Model, ModelError, load_checkpoint

from .conftest import AFFINE, CONFIGS, blob, write_pair

CHAIN = ("train.json", "evaluate.json")
CANDIDATES = {"": "prediction", "source_": "source as it is", "intensity_map_": "intensity map"}
COLUMNS = [prefix + score for prefix in CANDIDATES for score in ("nmae", "psnr", "ssim")]
CONTENT = ["source_information", "label_source_information", "high_frequency", "linear_psnr"]
REGISTRATION = ["endpoint_error", "identity_endpoint_error", "folded"]
SCORES = ("mae", "nmae", "psnr", "ssim")
VOLUME_METRICS = [f"volume_{prefix}{score}" for prefix in CANDIDATES for score in SCORES]


@pytest.fixture
def run_dir(trained_run, tmp_path):
    """A copy of a finished run's folder, where ``run_config`` looks for it."""
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def run_alone(name, **settings):
    """A config of the bundle with these settings and no others."""
    run_bundle(run_id="run", config_file=str(CONFIGS / name), logging_file=False, device="cpu", **settings)


def evaluate_alone(**settings):
    run_alone("evaluate.json", **{"tracking_uri": "none", **settings})


def read_volumes(folder):
    with (folder / "evaluation" / "volumes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_cases(run_dir):
    with (run_dir / "evaluation" / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_pictures_are_written_and_said(run_config, run_dir, dataset_dir, capsys):
    run_config(*CHAIN)
    folder = run_dir / "evaluation"
    rows = read_cases(run_dir)
    assert set(rows[0]) == {"case", "slice", *COLUMNS, *CONTENT, *REGISTRATION}
    assert {row["case"] for row in rows} == {"images/d"}
    assert [int(row["slice"]) for row in rows] == list(range(6))
    summary = json.loads((folder / "summary.json").read_text())
    for column in (*COLUMNS, *CONTENT, *REGISTRATION):
        assert summary["slices"][column]["mean"] == pytest.approx(np.mean([float(row[column]) for row in rows]))
    assert imread(folder / "pictures" / "error_maps.png").std() > 10
    printed = capsys.readouterr().out
    markdown = (folder / "summary.md").read_text()
    for name in CANDIDATES.values():
        assert name in printed
        assert name in markdown
    assert f"Test cases of {dataset_dir.name}, translated by {run_dir / 'checkpoints' / 'best.pt'}" in printed
    assert "1 whole volumes of 1 patients, in physical units:" in printed
    assert "6 slices of 1 patients, at the size of the training, scaled to [-1, 1]:" in printed
    assert printed.index("whole volumes of") < printed.index("6 slices of")
    for name in ("volumes.csv", "cases.csv", "summary.md", "pictures/error_maps.png"):
        assert str(folder / name) in printed


def test_files_of_the_training_stay_as_they_are(run_config, run_dir, snapshot):
    before = snapshot(run_dir)
    run_config(*CHAIN)
    after = snapshot(run_dir)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        "evaluation/cases.csv",
        "evaluation/volumes.csv",
        "evaluation/summary.json",
        "evaluation/summary.md",
        "evaluation/pictures/error_maps.png",
        "evaluation/samples.npz",
    }


@pytest.mark.parametrize("split", ["test", "training"])
def test_evaluation_does_not_augment(run_config, run_dir, split):
    """A noise study evaluates with the chain that it trained with, its augmentation included."""
    run_config(*CHAIN, split=split)
    plain = read_cases(run_dir)
    run_config("train.json", "augmentation.json", "evaluate.json", split=split)
    assert read_cases(run_dir) == plain


def test_evaluating_again_gives_the_same(run_config, run_dir, snapshot):
    run_config(*CHAIN)
    before = snapshot(run_dir)
    run_config(*CHAIN, seed=5, device="cpu")
    again = snapshot(run_dir)
    assert again["evaluation/cases.csv"] == before["evaluation/cases.csv"]


def test_scores_agree_with_a_recomputation(run_config, run_dir, dataset_dir):
    """NMAE and PSNR over the target's foreground, SSIM over the whole slice, all with data range 2."""
    run_config(*CHAIN)
    settings = {"dataset_dir": str(dataset_dir), "output_dir": str(run_dir), "device": "cpu"}
    small = {
        "network_def#generator#filters": 4,
        "network_def#generator#residual_blocks": 1,
        "network_def#registration#channels": [4, 4],
    }
    configs = [str(project_dir() / "bundles" / "reggan" / "configs" / name) for name in CHAIN]
    workflow = ConfigWorkflow(configs, logging_file=False, workflow_type=None, **settings, **small)
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("validate#dataset")
    network = workflow.parser.get_parsed_content("network").eval()
    rows = read_cases(run_dir)
    assert len(rows) == len(dataset)
    for row, item in zip(rows, dataset, strict=True):
        source, target = item["image"][0].numpy(), item["label"][0].numpy()
        with torch.no_grad():
            prediction = network(item["image"][None])[0, 0].numpy()
        inside = target > -1 + 1e-5
        for prefix, image in (("", prediction), ("source_", source)):
            error = (image - target)[inside].astype(np.float64)
            assert float(row[prefix + "nmae"]) == pytest.approx(np.abs(error).mean() / 2, rel=1e-4)
            assert float(row[prefix + "psnr"]) == pytest.approx(10 * np.log10(4 / (error**2).mean()), rel=1e-4)
            expected = structural_similarity(image.astype(np.float64), target.astype(np.float64), data_range=2)
            assert float(row[prefix + "ssim"]) == pytest.approx(expected, rel=1e-4)


def test_shown_slices_are_kept(run_config, run_dir):
    run_config(*CHAIN)
    rows = read_cases(run_dir)
    with np.load(run_dir / "evaluation" / "samples.npz") as samples:
        assert [str(case) for case in samples["case"]] == [row["case"] for row in rows]
        assert samples["slice"].tolist() == [int(row["slice"]) for row in rows]
        assert samples["psnr"] == pytest.approx([float(row["psnr"]) for row in rows])
        for number, row in enumerate(rows):
            pred, target = (torch.from_numpy(samples[name][number])[None, None] for name in ("pred", "label"))
            again = psnr(pred, target, data_range=2, mask=foreground_mask(target)).item()
            assert again == pytest.approx(float(row["psnr"]), rel=1e-5)


@pytest.mark.parametrize(("settings", "level"), [({}, 0), ({"noise_level": 3}, 3), ({"noise_level": 5}, 5)])
def test_registration_is_measured_at_the_level_of_the_training_or_another(run_config, run_dir, settings, level):
    """Levels scale the same draws, so doing nothing is wrong by an amount that goes with the level."""
    run_config(*CHAIN, **settings)
    rows = read_cases(run_dir)
    still = np.array([float(row["identity_endpoint_error"]) for row in rows])
    assert (still == 0).all() if level == 0 else (0.1 * level < still.mean() < 1.5 * level)
    assert all(math.isfinite(float(row["endpoint_error"])) for row in rows)
    text = (run_dir / "evaluation" / "summary.md").read_text()
    assert "## Registration" in text
    assert "## Leak, blur and scale" in text


def test_validation_list_scores_as_in_training(run_config, run_dir):
    run_config(*CHAIN, split="validation")
    best = load_checkpoint(run_dir / "checkpoints" / "best.pt")["trainer"]["best_metrics"]
    means = json.loads((run_dir / "evaluation" / "summary.json").read_text())["slices"]
    assert {row["case"] for row in read_cases(run_dir)} == {"images/c"}
    assert {name: means[name]["mean"] for name in COLUMNS} == pytest.approx({name: best[name] for name in COLUMNS})


def test_at_the_size_of_the_training(run_config, run_dir):
    """Whatever size the configs name; another one is refused."""
    run_config(*CHAIN)
    expected = read_cases(run_dir)
    run_config(*CHAIN, spatial_size=None)
    assert read_cases(run_dir) == expected
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_config(*CHAIN, spatial_size=40)
    assert "- spatial_size: given [40, 40], the model has [32, 32]" in str(first_cause(caught.value))
    assert read_cases(run_dir) == expected


def test_weights_alone_have_no_intensity_map(run_config, run_dir, capsys, caplog):
    with caplog.at_level(logging.WARNING):
        run_config(*CHAIN, checkpoint=str(run_dir / "model.pt"))
    assert f"{run_dir / 'model.pt'} holds no intensity map: that baseline is left out" in caplog.text
    assert set(read_cases(run_dir)[0]) == {"case", "slice", *(name for name in COLUMNS if "map" not in name), *CONTENT}
    printed = capsys.readouterr().out
    assert "source as it is" in printed
    assert "intensity map" not in printed
    assert "registration" not in printed
    assert "Registration" not in (run_dir / "evaluation" / "summary.md").read_text()


def test_paper_overlay_stacks(run_config, tmp_path):
    run_config("train.json", "paper.json", noise_level=0)
    run_config("train.json", "paper.json", "evaluate.json", run_id="evaluating")
    assert len(read_cases(tmp_path / "run")) == 6


def test_each_evaluation_is_a_run_below_that_of_the_training(run_config, dataset_dir, tmp_path, snapshot):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_config("train.json", tracking_uri=store)
    run_dir = tmp_path / "run"
    before = snapshot(run_dir)
    run_id = json.loads(before["mlflow_run.json"])["run_id"]
    client = MlflowClient(store)
    trained = client.get_run(run_id)

    run_config(*CHAIN, tracking_uri=store)

    def evaluations():
        below, order = f"tags.`mlflow.parentRunId` = '{run_id}'", ["attributes.start_time"]
        found = client.search_runs([trained.info.experiment_id], below, order_by=order)
        return [client.get_run(run.info.run_id) for run in found]

    [run] = evaluations()
    rows = read_cases(run_dir)
    assert run.info.run_name == f"{trained.info.run_name}: test of best.pt"
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= trained.data.params.items()
    assert run.data.params["evaluated_noise_level"] == run.data.params["noise_level"] == "3"
    assert set(run.data.metrics) == {f"test/{name}" for name in (*COLUMNS, *CONTENT, *REGISTRATION, *VOLUME_METRICS)}
    assert run.data.metrics["test/psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))
    (point,) = client.get_metric_history(run.info.run_id, "test/psnr")
    assert point.step == load_checkpoint(run_dir / "checkpoints" / "best.pt")["trainer"]["iteration"]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation")}
    names = ("volumes.csv", "cases.csv", "summary.md", "summary.json", "pictures")
    assert artifacts == {f"evaluation/{name}" for name in names}
    for found, context in ((trained, "training"), (run, "testing")):
        [used] = found.inputs.dataset_inputs
        assert used.dataset.name == dataset_dir.name
        assert used.dataset.digest == found.data.tags["dataset.digest"][:36]
        tags = {tag.key: tag.value for tag in used.tags}
        assert (tags["mlflow.data.context"], tags["training_pairs"], tags["test_pairs"]) == (context, "2", "1")
    after = snapshot(run_dir)
    assert {name: after[name] for name in before} == before

    # The same again is no second run, anything else is one.
    run_config(*CHAIN, tracking_uri=store)
    run_config(*CHAIN, tracking_uri=store, noise_level=5)
    run_config(*CHAIN, tracking_uri=store, checkpoint=str(run_dir / "model.pt"))
    same, noisier, bare = evaluations()
    assert same.info.run_id == run.info.run_id
    assert (noisier.data.params["evaluated_noise_level"], noisier.data.params["noise_level"]) == ("5", "3")
    assert bare.info.run_name == f"{trained.info.run_name}: test of model.pt"
    for found in (same, noisier, bare):
        assert all(len(client.get_metric_history(found.info.run_id, name)) == 1 for name in found.data.metrics)
    again = client.get_run(run_id)
    assert (again.data.to_dictionary(), again.info.end_time) == (trained.data.to_dictionary(), trained.info.end_time)


def test_gone_server_does_not_matter(run_config, run_dir, capsys, caplog, monkeypatch):
    record = {"tracking_uri": "http://127.0.0.1:9", "experiment": "reggan", "run_id": "a" * 32, "key": "b" * 32}
    (run_dir / "mlflow_run.json").write_text(json.dumps(record))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING):
        run_config(*CHAIN, tracking_uri="http://127.0.0.1:9")
    assert caplog.text.count("MLflow store http://127.0.0.1:9 cannot be used") == 1
    assert "prediction" in capsys.readouterr().out
    assert len(read_cases(run_dir)) == 6
    [header] = (run_dir / "mlflow_unsent").glob("*/run.json")
    assert json.loads(header.read_text())["parent"] == record["key"]
    assert list(header.parent.glob("*.jsonl"))


def deeper(folder, name, seed, subfolders=("imagesTs", "labelsTs")):
    """A pair of 12 slices, which take scikit-image's window along every axis."""
    for subfolder, voxels in zip(subfolders, blob(seed), strict=True):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
        volume = nib.Nifti1Image(np.repeat(voxels, 2, axis=2), AFFINE @ np.diag([1, 1, 0.5, 1]))
        nib.save(volume, folder / subfolder / f"{name}.nii.gz")


def test_scores_of_whole_volumes_agree_with_a_recomputation(trained_run, tmp_path):
    """From the volumes that inference writes, in physical units; the range is the model's target window."""
    for name, seed in (("x", 7), ("y", 8)):
        deeper(tmp_path / "data", name, seed)
    model = trained_run / "checkpoints" / "best.pt"
    evaluate_alone(checkpoint=str(model), dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path))
    run_alone("inference.json", checkpoint=str(model), image=str(tmp_path / "data"), output_dir=str(tmp_path / "out"))
    low, high = Model(model).recipe.target_window
    rows = read_volumes(tmp_path)
    assert [(row["case"], row["volume"]) for row in rows] == [("x", "x"), ("y", "y")]
    assert set(rows[0]) == {"case", "volume", *(name.removeprefix("volume_") for name in VOLUME_METRICS)}
    for row in rows:
        pred = nib.load(tmp_path / "out" / f"{row['case']}_translated.nii.gz").get_fdata()
        label = nib.load(tmp_path / "data" / "labelsTs" / f"{row['case']}.nii.gz").get_fdata()
        error = (pred - label)[label > 0]
        expected = {
            "mae": np.abs(error).mean(),
            "nmae": np.abs(error).mean() / (high - low),
            "psnr": 10 * np.log10((high - low) ** 2 / (error**2).mean()),
            "ssim": structural_similarity(pred, label, data_range=high - low),
        }
        assert {name: float(row[name]) for name in SCORES} == pytest.approx(expected, rel=1e-4)
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    means = {name: np.mean([float(row[name]) for row in rows]) for name in SCORES}
    assert {name: summary["volumes"]["over_patients"][name]["mean"] for name in SCORES} == pytest.approx(means)


@pytest.fixture
def other_data(tmp_path):
    """Builds a data set of two test cases and nothing else, as a datalist or as folders."""

    def build(kind):
        folder = tmp_path / "other"
        entries = [write_pair(folder, name, seed) for name, seed in (("x", 7), ("y", 8))]
        if kind == "datalist":
            (folder / "datalist.json").write_text(json.dumps({"test": entries}))
        else:
            (folder / "images").rename(folder / "imagesTs")
            (folder / "labels").rename(folder / "labelsTs")
        return folder

    return build


def test_alone_it_is_what_it_is_behind_the_chain(run_config, run_dir, monkeypatch, tmp_path):
    """Whether the run is told by its name, its folder or its file."""
    run_config(*CHAIN, noise_level=2)
    cases, volumes = read_cases(run_dir), read_volumes(run_dir)
    shutil.rmtree(run_dir / "evaluation")
    (tmp_path / "outputs").mkdir()
    shutil.copytree(run_dir, tmp_path / "outputs" / "mine")
    monkeypatch.setattr("pipeline.evaluation.project_dir", lambda: tmp_path)
    best = str(run_dir / "checkpoints" / "best.pt")
    for told, folder in (
        ({"output_dir": str(run_dir)}, run_dir),
        ({"checkpoint": best}, run_dir),
        ({"run_name": "mine"}, tmp_path / "outputs" / "mine"),
    ):
        evaluate_alone(**told, noise_level=2)
        assert read_cases(folder) == cases
        assert read_volumes(folder) == volumes
        shutil.rmtree(folder / "evaluation")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        evaluate_alone(run_name="typo")
    typo = tmp_path / "outputs" / "typo"
    assert f"{typo} holds no finished training: {typo}/checkpoints/best.pt is missing" in str(first_cause(caught.value))


@pytest.mark.parametrize("kind", ["datalist", "folders"])
def test_another_data_set_needs_no_more_than_a_test_list(trained_run, other_data, tmp_path, kind, capsys):
    folder = other_data(kind)
    evaluate_alone(checkpoint=str(trained_run / "model.pt"), dataset_dir=str(folder), output_dir=str(tmp_path / "here"))
    assert {row["volume"] for row in read_volumes(tmp_path / "here")} == {"x", "y"}
    assert "Test cases of other, translated by" in capsys.readouterr().out
    assert not (trained_run / "evaluation").exists()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        evaluate_alone(checkpoint=str(trained_run / "model.pt"), dataset_dir=str(folder), split="validation")
    assert "the data set has no validation pairs" in str(first_cause(caught.value))


def test_a_datalist_elsewhere(trained_run, other_data, tmp_path):
    folder = other_data("datalist")
    (folder / "datalist.json").rename(folder / "mine.json")
    evaluate_alone(
        checkpoint=str(trained_run / "model.pt"), datalist=str(folder / "mine.json"), output_dir=str(tmp_path / "here")
    )
    assert len(read_volumes(tmp_path / "here")) == 2


def test_data_that_changed_since_the_training_are_warned_of(run_dir, dataset_dir, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(dataset_dir, data)
    config = run_dir / "config.json"
    config.write_text(config.read_text().replace(str(dataset_dir), str(data)))
    trained_on = Model(run_dir / "model.pt").recipe["training"]["data_digest"]
    with caplog.at_level(logging.WARNING):
        evaluate_alone(output_dir=str(run_dir))
    assert "have changed" not in caplog.text
    volume = nib.load(data / "images" / "a.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj) + 1, volume.affine), data / "images" / "a.nii.gz")
    with caplog.at_level(logging.WARNING):
        evaluate_alone(output_dir=str(run_dir))
    [said] = [record.getMessage() for record in caplog.records if "have changed" in record.getMessage()]
    assert said.startswith(f"the data of {run_dir} have changed since the training: digest ")
    now, then = said.split("digest ")[1].split(" now, ")
    assert then == f"{trained_on} then"
    assert len(now) == 64
    assert now != trained_on


def test_a_model_without_its_run_needs_a_data_set(trained_run, dataset_dir, tmp_path):
    shutil.copy(trained_run / "model.pt", tmp_path / "mine.pt")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        evaluate_alone(checkpoint=str(tmp_path / "mine.pt"), output_dir=str(tmp_path / "out"))
    says = f"{tmp_path / 'mine.pt'} lies in no folder of a run, so its data are not known: name some by --dataset_dir"
    assert says in str(first_cause(caught.value))
    evaluate_alone(checkpoint=str(tmp_path / "mine.pt"), output_dir=str(tmp_path / "out"), dataset_dir=str(dataset_dir))
    assert [row["volume"] for row in read_volumes(tmp_path / "out")] == ["d"]


def test_a_file_without_a_recipe_is_refused(run_dir, tmp_path):
    state = load_checkpoint(run_dir / "model.pt")
    del state["_extra_state"]
    torch.save(state, run_dir / "model.pt")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        evaluate_alone(checkpoint=str(run_dir / "model.pt"))
    assert isinstance(first_cause(caught.value), ModelError)
    assert not (run_dir / "evaluation").exists()


def test_several_volumes_of_one_patient_count_once(trained_run, other_data, tmp_path):
    folder = other_data("datalist")
    entries = [write_pair(folder, "z", 9), *json.loads((folder / "datalist.json").read_text())["test"]]
    for entry, patient in zip(entries, ("p", "p", "q"), strict=True):
        entry["patient"] = patient
    (folder / "datalist.json").write_text(json.dumps({"test": entries}))
    evaluate_alone(checkpoint=str(trained_run / "model.pt"), dataset_dir=str(folder), output_dir=str(tmp_path / "here"))
    z, x, y = (float(row["psnr"]) for row in read_volumes(tmp_path / "here"))
    summary = json.loads((tmp_path / "here" / "evaluation" / "summary.json").read_text())["volumes"]
    assert summary["patients"]["p"]["volumes"] == 2
    assert summary["over_patients"]["psnr"]["mean"] == pytest.approx(((z + x) / 2 + y) / 2)
    assert summary["over_patients"]["psnr"]["count"] == 2


def test_slices_in_files_of_their_own(run_config, tmp_path):
    """The authors' layout of 2D files: each is scored whole, too."""
    data = tmp_path / "data"
    for split, letters in {"train": "ab", "val": "c", "test": "de"}.items():
        for letter in letters:
            for folder, voxels in zip("AB", blob(ord(letter)), strict=True):
                (data / split / folder).mkdir(parents=True, exist_ok=True)
                for number in (2, 3):
                    np.save(data / split / folder / f"{letter}_{number}.npy", voxels[:, :, number])
    named = {"dataset_dir": str(data), "cases#patient_pattern": "([a-z])_"}
    run_config("train.json", **named, noise_level=0)
    recipe = Model(tmp_path / "run" / "model.pt").recipe
    assert (recipe["data"]["patients"], recipe["data"]["volumes"]) == (2, 4)
    run_config(*CHAIN, **named)
    behind = read_cases(tmp_path / "run")
    assert {row["case"] for row in behind} == {"d", "e"}
    shutil.rmtree(tmp_path / "run" / "evaluation")
    evaluate_alone(output_dir=str(tmp_path / "run"))
    assert read_cases(tmp_path / "run") == behind
    rows = read_volumes(tmp_path / "run")
    assert [(row["case"], row["volume"]) for row in rows] == [
        (letter, f"{letter}_{number}") for letter in "de" for number in (2, 3)
    ]
    low, high = recipe.target_window
    run_alone(
        "inference.json",
        checkpoint=str(tmp_path / "run" / "checkpoints" / "best.pt"),
        image=str(data / "test" / "A" / "d_3.npy"),
        output_dir=str(tmp_path / "out"),
    )
    pred, label = nib.load(tmp_path / "out" / "d_3_translated.nii.gz").get_fdata(), np.load(data / "test/B/d_3.npy")
    error = (pred - label)[label > 0]
    expected = {
        "mae": np.abs(error).mean(),
        "psnr": 10 * np.log10((high - low) ** 2 / (error**2).mean()),
        "ssim": structural_similarity(pred, label.astype(float), data_range=high - low),
    }
    [row] = [row for row in rows if row["volume"] == "d_3"]
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dataset_dir": "$open('{marker}', 'w').name"}, "has code for dataset_dir"),
        ({"cases": {"_target_": "os.mkdir", "path": "{marker}"}}, "has code for cases#_target_ 'os.mkdir'"),
        ({"cases": {"_target_": "pipeline.data.load_cases", "seed": "$open('{marker}', 'w')"}}, "has code for seed"),
        ({"cases": 5}, "does not say what the run was trained on"),
    ],
)
def test_the_config_of_a_run_is_no_code(run_config, run_dir, tmp_path, change, says):
    """A run's folder may be from elsewhere."""
    path, marker = run_dir / "config.json", tmp_path / "marker"
    content = json.loads(path.read_text()) | json.loads(json.dumps(change).replace("{marker}", str(marker)))
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as caught:
        run_config("evaluate.json", checkpoint=str(run_dir / "checkpoints" / "best.pt"), dataset_dir=None)
    assert says in str(first_cause(caught.value))
    assert not marker.exists()
