"""What an evaluation says, and what it adds to the MLflow run of the training."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine
from mlflow import MlflowClient

from pipeline.handlers import EvaluationReport
from pipeline.handlers.mlflow_journal import RUN_FILE, UNSENT_FOLDER, Journal, RunRecord

METRICS = {"psnr": 25.0, "source_psnr": 15.0, "nmae": 0.1}


@pytest.fixture
def evaluator():
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = dict(METRICS)
    engine.state.case_ids = [("p1", 3), ("p1", 4), ("p2", 3)]
    return engine


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store):
    return MlflowClient(store)


@pytest.fixture
def run_dir(tmp_path, store, client, monkeypatch):
    """What a finished, tracked training leaves: the record of its MLflow run, and a checkpoint at iteration 120."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = client.get_experiment_by_name("reggan")
    artifacts = (tmp_path / "artifacts").as_uri()
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("reggan", artifacts)
    run = client.create_run(experiment_id)
    client.set_terminated(run.info.run_id, "FINISHED")
    RunRecord(tracking_uri=store, experiment="reggan", run_id=run.info.run_id).save(tmp_path / RUN_FILE)
    checkpoint = tmp_path / "checkpoints" / "best.pt"
    checkpoint.parent.mkdir()
    torch.save({"trainer": {"iteration": 120}}, checkpoint)
    for name in ("cases.csv", "pictures/error_maps.png"):
        path = tmp_path / "evaluation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.fixture
def run_id(run_dir):
    return RunRecord.load(run_dir / RUN_FILE).run_id


def report(folder, **settings):
    defaults = {"checkpoint": folder / "checkpoints" / "best.pt", "run_dir": folder}
    return EvaluationReport(folder / "evaluation", **(defaults | settings))


def points(client, run_id, name="test/psnr"):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def test_scores_and_places_are_printed(evaluator, tmp_path, capsys):
    (tmp_path / "cases.csv").write_text("case")
    handler = EvaluationReport(tmp_path, "weights.pt", split="validation")
    handler.attach(evaluator)
    evaluator.run([0])
    printed = capsys.readouterr().out
    assert "Validation: 3 slices of 2 patients, translated by " in printed
    assert "Prediction against source as it is: +10.00 dB PSNR." in printed
    assert f"scores per slice: {tmp_path / 'cases.csv'}" in printed
    assert "error maps" not in printed  # none were drawn


def test_scores_and_files_join_the_run(evaluator, run_dir, run_id, client):
    before = (run_dir / RUN_FILE).read_text()
    report(run_dir)(evaluator)
    assert points(client, run_id) == [(120, 25.0)]
    run = client.get_run(run_id)
    assert set(run.data.metrics) == {f"test/{name}" for name in METRICS}
    assert run.data.tags["test.checkpoint"] == str(run_dir / "checkpoints" / "best.pt")
    assert {item.path for item in client.list_artifacts(run_id, "evaluation/pictures")} == {
        "evaluation/pictures/error_maps.png"
    }
    assert run.info.status == "FINISHED"
    assert (run_dir / RUN_FILE).read_text() == before
    assert not (run_dir / UNSENT_FOLDER).exists()


def test_evaluated_again_both_count(evaluator, run_dir, run_id, client):
    report(run_dir)(evaluator)
    evaluator.state.metrics["psnr"] = 26.0
    report(run_dir)(evaluator)
    assert points(client, run_id) == [(120, 25.0), (120, 26.0)]
    report(run_dir, split="validation")(evaluator)
    assert points(client, run_id, "validation/psnr") == [(120, 26.0)]


def test_unreachable_store_costs_a_warning_and_is_told_later(
    evaluator, run_dir, run_id, client, caplog, capsys, monkeypatch
):
    def gone(uri):
        raise ConnectionError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.handlers.mlflow_sender.make_client", gone)
        report(run_dir)(evaluator)
    assert "prediction" in capsys.readouterr().out
    assert "cannot be used: nobody there. What is unsent is kept" in caplog.text
    assert points(client, run_id) == []
    evaluator.state.metrics["psnr"] = 26.0
    report(run_dir)(evaluator)
    assert points(client, run_id) == [(120, 25.0), (120, 26.0)]
    assert not (run_dir / UNSENT_FOLDER).exists()


def test_run_that_died_is_closed(evaluator, run_dir, run_id, client):
    client.update_run(run_id, status="RUNNING")
    report(run_dir)(evaluator)
    assert client.get_run(run_id).info.status == "KILLED"


def test_run_that_is_still_going_on_is_left_alone(evaluator, run_dir, run_id, client, caplog, capsys):
    client.update_run(run_id, status="RUNNING")
    record = RunRecord.load(run_dir / RUN_FILE)
    training = Journal(run_dir / UNSENT_FOLDER / record.key, record)
    report(run_dir)(evaluator)
    training.close()
    assert "MLflow was not told of this evaluation" in caplog.text
    assert "in use by a run that is still going on" in caplog.text
    assert "prediction" in capsys.readouterr().out
    assert client.get_run(run_id).info.status == "RUNNING"
    assert points(client, run_id) == []


@pytest.mark.parametrize(
    "settings", [{"tracking_uri": "none"}, {"run_dir": None}, {"checkpoint": "/elsewhere/model.pt"}]
)
def test_nothing_is_told(evaluator, run_dir, run_id, client, settings):
    report(run_dir, **settings)(evaluator)
    assert points(client, run_id) == []


def test_untracked_training(evaluator, run_dir, run_id, client, caplog):
    (run_dir / RUN_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        report(run_dir)(evaluator)
    assert not caplog.records
    assert not (run_dir / RUN_FILE).exists()


def test_the_store_is_that_of_the_training(evaluator, run_dir, run_id, client, tmp_path):
    """Also where another one is configured by now."""
    report(run_dir, tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")(evaluator)
    assert points(client, run_id) == [(120, 25.0)]
    assert not (tmp_path / "other.db").exists()


def test_weights_without_a_position_count_as_step_0(evaluator, run_dir, run_id, client):
    torch.save({"target_window": torch.zeros(2)}, run_dir / "model.pt")
    report(run_dir, checkpoint=run_dir / "model.pt")(evaluator)
    assert points(client, run_id) == [(0, 25.0)]
