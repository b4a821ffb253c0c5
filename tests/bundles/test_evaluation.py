"""Scores, tables and pictures of a trained run on cases that it never saw, and their MLflow run below its own."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from skimage.io import imread
from skimage.metrics import structural_similarity

from pipeline.bundle import project_dir
from pipeline.metrics import foreground_mask, psnr
from pipeline.models import load_checkpoint

CHAIN = ("train.json", "evaluate.json")
CANDIDATES = {"": "prediction", "source_": "source as it is", "intensity_map_": "intensity map"}
COLUMNS = [prefix + score for prefix in CANDIDATES for score in ("nmae", "psnr", "ssim")]
CONTENT = ["source_information", "label_source_information", "high_frequency"]
REGISTRATION = ["endpoint_error", "identity_endpoint_error", "folded"]


@pytest.fixture
def run_dir(trained_run, tmp_path):
    """A copy of a finished run's folder, where ``run_config`` looks for it."""
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def read_cases(run_dir):
    with (run_dir / "evaluation" / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_pictures_are_written_and_said(run_config, run_dir, capsys):
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
    assert f"Test: 6 slices of 1 patients, translated by {run_dir / 'checkpoints' / 'best.pt'}" in printed
    for name in ("cases.csv", "summary.md", "pictures/error_maps.png"):
        assert str(folder / name) in printed


def test_files_of_the_training_stay_as_they_are(run_config, run_dir, snapshot):
    before = snapshot(run_dir)
    run_config(*CHAIN)
    after = snapshot(run_dir)
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        "evaluation/cases.csv",
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


@pytest.mark.parametrize(("settings", "level"), [({}, 3), ({"noise_level": 5}, 5), ({"noise_level": 0}, 0)])
def test_registration_is_measured_at_the_level_of_the_config(run_config, run_dir, settings, level):
    """Levels scale the same draws, so doing nothing is wrong by an amount that goes with the level."""
    run_config(*CHAIN, **settings)
    rows = read_cases(run_dir)
    still = np.array([float(row["identity_endpoint_error"]) for row in rows])
    assert (still == 0).all() if level == 0 else (0.1 * level < still.mean() < 1.5 * level)
    assert all(math.isfinite(float(row["endpoint_error"])) for row in rows)
    text = (run_dir / "evaluation" / "summary.md").read_text()
    assert "## Registration" in text
    assert "## Leak and blur" in text


def test_validation_list_scores_as_in_training(run_config, run_dir):
    run_config(*CHAIN, split="validation")
    best = load_checkpoint(run_dir / "checkpoints" / "best.pt")["trainer"]["best_metrics"]
    means = json.loads((run_dir / "evaluation" / "summary.json").read_text())["slices"]
    assert {row["case"] for row in read_cases(run_dir)} == {"images/c"}
    assert {name: means[name]["mean"] for name in COLUMNS} == pytest.approx({name: best[name] for name in COLUMNS})


def test_at_the_size_of_the_training(run_config, run_dir):
    """Whatever size the configs name, unless the command line names one."""
    run_config(*CHAIN)
    expected = read_cases(run_dir)
    run_config(*CHAIN, spatial_size=None)
    assert read_cases(run_dir) == expected
    run_config(*CHAIN, spatial_size=40)
    assert read_cases(run_dir) != expected


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
    assert set(run.data.metrics) == {f"test/{name}" for name in (*COLUMNS, *CONTENT, *REGISTRATION)}
    assert run.data.metrics["test/psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))
    (point,) = client.get_metric_history(run.info.run_id, "test/psnr")
    assert point.step == load_checkpoint(run_dir / "checkpoints" / "best.pt")["trainer"]["iteration"]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation")}
    assert artifacts == {f"evaluation/{name}" for name in ("cases.csv", "summary.md", "summary.json", "pictures")}
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
