"""What an evaluation says, and the MLflow run that it becomes below that of the training."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from mlflow import MlflowClient

from pipeline.handlers import EvaluationReport, MLflowTracker
from pipeline.handlers.mlflow_journal import RUN_FILE, UNSENT_FOLDER, Journal, RunRecord

pytestmark = pytest.mark.usefixtures("mlflow_environment")

METRICS = {"psnr": 25.0, "source_psnr": 15.0, "nmae": 0.1, "volume_psnr": 24.0}
DATASET = {"name": "brains", "digest": "d1" * 32, "pairs": {"training": 8, "validation": 2, "test": 1}}
NOISE = {"level": 3, "kind": "affine"}


@pytest.fixture
def evaluator():
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = dict(METRICS)
    engine.state.case_ids = [("p1", 3), ("p1", 4), ("p2", 3)]
    return engine


@pytest.fixture
def client(store):
    return MlflowClient(store)


STEPS = {"best.pt": 120, "last.pt": 150}


@pytest.fixture
def write_run(store):
    """Writes what a finished, tracked training leaves: its run's record, and checkpoints at iterations 120 and 150."""

    def write(folder):
        tracker = MLflowTracker(
            folder, store, run_name="reggan", params={"method": "reggan", "noise_level": 5, "seed": 0}
        )
        tracker.start()
        tracker.log_metrics({"val/psnr": 24.0}, step=120)
        tracker.close()
        for name, iteration in STEPS.items():
            checkpoint = folder / "checkpoints" / name
            checkpoint.parent.mkdir(exist_ok=True)
            torch.save({"trainer": {"iteration": iteration}}, checkpoint)
        for name in ("cases.csv", "pictures/error_maps.png"):
            path = folder / "evaluation" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return folder

    return write


@pytest.fixture
def run_dir(tmp_path, write_run):
    (tmp_path / "run").mkdir()
    return write_run(tmp_path / "run")


@pytest.fixture
def run_id(run_dir):
    return RunRecord.load(run_dir / RUN_FILE).run_id


def report(folder, **settings):
    defaults = {"checkpoint": folder / "checkpoints" / "best.pt", "run_dir": folder, "dataset": DATASET, "noise": NOISE}
    known = defaults | settings
    return EvaluationReport(folder / "evaluation", **known, step=STEPS.get(Path(known["checkpoint"]).name))


def children(client, run_id=None):
    """The runs below the run of that id, or those without a parent beside it, oldest first."""
    experiment = client.get_experiment_by_name("reggan")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
    return [run for run in found if run.data.tags.get("mlflow.parentRunId") == run_id]


def points(client, run, name="test/psnr"):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def gone(uri):
    raise ConnectionError("nobody there")


def test_scores_and_places_are_printed(evaluator, tmp_path, capsys):
    (tmp_path / "cases.csv").write_text("case")
    handler = EvaluationReport(tmp_path, "weights.pt", split="validation")
    handler.attach(evaluator)
    evaluator.run([0])
    printed = capsys.readouterr().out
    assert f"Validation cases, translated by {Path('weights.pt').absolute()}\n" in printed
    assert "3 slices of 2 patients, at the size of the training, scaled to [-1, 1]:" in printed
    assert "Prediction against source as it is: +10.00 dB PSNR." in printed
    assert f"scores per slice:  {tmp_path / 'cases.csv'}" in printed
    assert "error maps" not in printed  # none were drawn
    assert "whole volumes" not in printed  # none were scored


def test_whole_volumes_are_said_first(evaluator, tmp_path):
    evaluator.state.metrics |= {"volume_mae": 12.345, "volume_source_psnr": 20.0, "volume_intensity_map_psnr": 23.5}
    evaluator.state.volumes = [{"case": case, "volume": str(n)} for n, case in enumerate(["p1", "p1", "p2"])]
    text = EvaluationReport(tmp_path, "weights.pt", dataset=DATASET).text(evaluator)
    volumes, slices = text.split("3 slices of 2 patients")
    assert volumes.startswith("\nTest cases of brains, translated by ")
    assert "3 whole volumes of 2 patients, in physical units:" in volumes
    [prediction] = [line.split() for line in volumes.splitlines() if line.startswith("prediction ")]
    assert prediction == ["prediction", "12.35", "-", "24.00", "-"]
    assert "Prediction against source as it is: +4.00 dB PSNR." in volumes
    assert "Prediction against intensity map: +0.50 dB PSNR." in volumes
    assert "Prediction against source as it is: +10.00 dB PSNR." in slices


def test_an_evaluation_is_a_run_below_that_of_the_training(evaluator, run_dir, run_id, client):
    record, before = (run_dir / RUN_FILE).read_text(), client.get_run(run_id)
    report(run_dir)(evaluator)
    [run] = children(client, run_id)
    assert run.info.run_name == "reggan: test of best.pt"
    assert run.info.status == "FINISHED"
    assert before.info.end_time <= run.info.start_time <= run.info.end_time
    assert run.data.params == {
        **{"method": "reggan", "noise_level": "5", "seed": "0", "split": "test", "checkpoint": "checkpoints/best.pt"},
        **{"evaluated_noise_level": "3", "evaluated_noise_kind": "affine"},
        **{"dataset": "brains", "dataset_digest": DATASET["digest"]},
    }
    assert run.data.metrics == {f"test/{name}": value for name, value in METRICS.items()}
    assert points(client, run) == [(120, 25.0)]
    assert run.data.tags["checkpoint"] == str(run_dir / "checkpoints" / "best.pt")
    assert len(run.data.tags["checkpoint.sha256"]) == 64
    assert {"env.python", "env.device", "git.commit"} <= set(run.data.tags)
    assert {item.path for item in client.list_artifacts(run.info.run_id, "evaluation/pictures")} == {
        "evaluation/pictures/error_maps.png"
    }
    after = client.get_run(run_id)
    assert (after.info.to_proto(), after.data.to_dictionary()) == (before.info.to_proto(), before.data.to_dictionary())
    assert (run_dir / RUN_FILE).read_text() == record
    assert not (run_dir / UNSENT_FOLDER).exists()


def test_the_data_set_is_an_input_of_the_run(evaluator, run_dir, run_id, client):
    report(run_dir)(evaluator)
    report(run_dir, split="validation")(evaluator)
    contexts = []
    for run in children(client, run_id):
        [found] = client.get_run(run.info.run_id).inputs.dataset_inputs
        assert (found.dataset.name, found.dataset.digest) == ("brains", DATASET["digest"][:36])
        assert json.loads(found.dataset.profile)["sha256"] == DATASET["digest"]
        tags = {tag.key: tag.value for tag in found.tags}
        assert (tags["training_pairs"], tags["test_pairs"]) == ("8", "1")
        contexts.append(tags["mlflow.data.context"])
    assert contexts == ["testing", "validation"]


@pytest.mark.parametrize(
    "settings",
    [
        {"checkpoint": "checkpoints/last.pt"},
        {"split": "validation"},
        {"dataset": DATASET | {"digest": "e2" * 32}},
        {"noise": {"level": 4, "kind": "affine"}},
    ],
)
def test_another_evaluation_is_another_run(evaluator, run_dir, run_id, client, settings):
    report(run_dir)(evaluator)
    if "checkpoint" in settings:
        settings = {"checkpoint": run_dir / settings["checkpoint"]}
    report(run_dir, **settings)(evaluator)
    first, second = children(client, run_id)
    for run in (first, second):
        assert all(len(points(client, run, name)) == 1 for name in run.data.metrics)
    assert first.data.params != second.data.params


def test_the_same_evaluation_refreshes_its_run_and_other_scores_are_another(evaluator, run_dir, run_id, client):
    report(run_dir)(evaluator)
    [before] = children(client, run_id)
    report(run_dir)(evaluator)
    [again] = children(client, run_id)
    assert again.info.status == "FINISHED"
    assert (again.info.run_id, again.info.start_time) == (before.info.run_id, before.info.start_time)
    assert again.data.params == before.data.params
    assert points(client, again) == [(120, 25.0)]
    assert len(client.get_run(again.info.run_id).inputs.dataset_inputs) == 1
    evaluator.state.metrics["psnr"] = 26.0
    report(run_dir)(evaluator)
    assert [points(client, run) for run in children(client, run_id)] == [[(120, 25.0)], [(120, 26.0)]]


def test_unreachable_store_costs_a_warning_and_is_told_later(
    evaluator, run_dir, run_id, client, caplog, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.handlers.mlflow_sender.make_client", gone)
        report(run_dir)(evaluator)
        report(run_dir)(evaluator)  # twice the same, and neither was sent
    assert "prediction" in capsys.readouterr().out
    assert caplog.text.count("cannot be used: nobody there") == 2
    assert children(client, run_id) == []
    evaluator.state.metrics["psnr"] = 26.0
    report(run_dir)(evaluator)
    assert [points(client, run) for run in children(client, run_id)] == [[(120, 25.0)], [(120, 26.0)]]
    assert {run.info.status for run in children(client, run_id)} == {"FINISHED"}
    assert not (run_dir / UNSENT_FOLDER).exists()


def test_a_training_that_was_not_sent_comes_before_its_evaluations(evaluator, tmp_path, write_run, client, monkeypatch):
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.handlers.mlflow_sender.make_client", gone)
        run_dir = write_run(tmp_path / "run")
        report(run_dir)(evaluator)
    assert RunRecord.load(run_dir / RUN_FILE).run_id is None
    report(run_dir, split="validation")(evaluator)
    [training] = children(client)
    assert training.data.metrics == {"val/psnr": 24.0}
    for run in children(client, training.info.run_id):
        assert run.data.params["method"] == "reggan"
        assert run.info.status == "FINISHED"
    assert len(children(client, training.info.run_id)) == 2
    assert not (run_dir / UNSENT_FOLDER).exists()


def test_a_training_that_is_unsent_and_goes_on_is_waited_for(evaluator, tmp_path, write_run, client, monkeypatch):
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.handlers.mlflow_sender.make_client", gone)
        run_dir = write_run(tmp_path / "run")
    record = RunRecord.load(run_dir / RUN_FILE)
    training = Journal(run_dir / UNSENT_FOLDER / record.key, record)
    report(run_dir)(evaluator)
    training.close()
    assert children(client) == []
    tracker = MLflowTracker(run_dir, record.tracking_uri, resume=True)  # sends what the evaluation left, behind its own
    tracker.start()
    tracker.close()
    [run] = children(client, tracker.run_id)
    assert run.data.params["method"] == "reggan"
    assert not (run_dir / UNSENT_FOLDER).exists()


def test_a_training_that_is_gone_from_the_store_is_nobodys_parent(evaluator, run_dir, run_id, client, caplog):
    client.delete_run(run_id)
    report(run_dir, params={"method": "given"})(evaluator)
    [run] = children(client)
    assert "the run that reggan: test of best.pt belongs to is gone" in caplog.text
    assert run.data.params["method"] == "given"
    assert points(client, run) == [(120, 25.0)]


def test_run_that_died_is_closed(evaluator, run_dir, run_id, client):
    client.update_run(run_id, status="RUNNING")
    record = RunRecord.load(run_dir / RUN_FILE)
    record.save(run_dir / UNSENT_FOLDER / record.key / "run.json")
    report(run_dir)(evaluator)
    assert client.get_run(run_id).info.status == "KILLED"


def test_run_that_is_still_going_on_is_left_alone(evaluator, run_dir, run_id, client, caplog):
    client.update_run(run_id, status="RUNNING")
    record = RunRecord.load(run_dir / RUN_FILE)
    training = Journal(run_dir / UNSENT_FOLDER / record.key, record)
    report(run_dir)(evaluator)
    training.close()
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert client.get_run(run_id).info.status == "RUNNING"
    assert [points(client, run) for run in children(client, run_id)] == [[(120, 25.0)]]


@pytest.mark.parametrize(
    "settings", [{"tracking_uri": "none"}, {"run_dir": None}, {"checkpoint": "/elsewhere/model.pt"}]
)
def test_nothing_is_told(evaluator, run_dir, run_id, client, settings):
    report(run_dir, **settings)(evaluator)
    assert children(client, run_id) == []
    assert [run.info.run_id for run in children(client)] == [run_id]


def test_untracked_training(evaluator, run_dir, client, caplog):
    (run_dir / RUN_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        report(run_dir)(evaluator)
    assert not caplog.records
    assert not (run_dir / RUN_FILE).exists()
    assert len(children(client)) == 1


@pytest.mark.parametrize("folder", ["run", "elsewhere", None])
def test_a_model_of_no_tracked_training_is_a_run_of_its_own(evaluator, tmp_path, store, client, folder):
    """Where a store is named."""
    checkpoint = tmp_path / "run" / "model.pt"
    checkpoint.parent.mkdir()
    torch.save({"target_window": torch.zeros(2)}, checkpoint)
    settings = {"tracking_uri": store, "params": {"method": "given"}, "dataset": DATASET}
    run_dir = folder and tmp_path / folder
    EvaluationReport(tmp_path / "out", checkpoint, run_dir=run_dir, experiment_name="reggan", **settings)(evaluator)
    [run] = children(client)
    assert run.info.run_name == "test of model.pt"
    assert run.data.params["method"] == "given"
    assert run.data.params["checkpoint"] == "model.pt"
    assert points(client, run) == [(0, 25.0)]  # weights without a position
    assert not list(tmp_path.rglob(UNSENT_FOLDER))
    assert not list(tmp_path.rglob(RUN_FILE))


def test_the_store_is_that_of_the_training(evaluator, run_dir, run_id, client, tmp_path):
    """Also where another one is configured by now."""
    report(run_dir, tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")(evaluator)
    assert [points(client, run) for run in children(client, run_id)] == [[(120, 25.0)]]
    assert not (tmp_path / "other.db").exists()
