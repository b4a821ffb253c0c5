"""An MLflow run says what happened: settings, numbers, files, origin and end."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from pipeline.ending import Terminated
from pipeline.handlers import MLflowTracker, tracking
from pipeline.tracking import sender as mlflow_sender
from pipeline.tracking.journal import RunRecord

_spec = importlib.util.spec_from_file_location("tracked_run", Path(__file__).with_name("tracked_run.py"))
tracked_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tracked_run)
build, run, unsent, wait_until = tracked_run.build, tracked_run.run, tracked_run.unsent, tracked_run.wait_until
ITERATIONS = tracked_run.EPOCHS * tracked_run.EPOCH_LENGTH

pytestmark = pytest.mark.usefixtures("mlflow_environment")
Step = Callable[[Engine], None]


def client_of(uri: str) -> Any:
    return mlflow_sender.make_client(uri)


def warnings_in(log: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in log.records if record.levelno >= logging.WARNING and "pipeline" in record.name
    ]


def history(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Each metric's (step, value) in order."""
    client = client_of(uri)
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) for key in keys}


EXPECTED_HISTORY = {
    "train/generator/adversarial": [(i, i / 8) for i in range(1, ITERATIONS + 1)],
    "train/generator/correction": [(i, 1.0) for i in range(1, ITERATIONS + 1)],
    "learning_rate/generator": [(0, 0.5), (6, 0.5), (12, 0.5)],
    "val/psnr": [(6, 21.0), (12, 22.0), (18, 23.0)],
    "val/ssim": [(6, pytest.approx(0.1)), (12, pytest.approx(0.2)), (18, pytest.approx(0.3))],
    "epoch": [(6, 1.0), (12, 2.0), (18, 3.0)],
}


def test_a_run_holds_settings_numbers_files_and_origin(tmp_path: Path, store: str, mlflow_environment: Path) -> None:
    output_dir = tmp_path / "out"
    output_dir.mkdir()
    (output_dir / "config.json").write_text("{}")
    trainer, tracker = build(
        output_dir,
        store,
        experiment_name="study",
        run_name="first",
        params={"max_epochs": 3, "weights": {"adversarial": 1}, "train#handlers": "a" * 7000, "b" * 300: 1},
        tags={"purpose": "test"},
        dataset={"name": "/data/brains", "digest": "0f" * 32, "pairs": {"training": 8, "test": 0}},
        artifacts=("config.json", "pictures", "never_written"),
    )
    run(trainer)

    found = client_of(store).get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    params = found.data.params
    assert params["max_epochs"] == "3"
    assert params["weights.adversarial"] == "1"
    assert len(params["train_handlers"]) == 6000
    assert any(key.startswith("bbb") and len(key) == 250 for key in params)
    tags = found.data.tags
    assert tags["purpose"] == "test"
    assert tags["dataset.digest"] == "0f" * 32
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("brains", "0f" * 18)
    assert json.loads(dataset.dataset.source) == {"uri": "brains"}
    facts = {"training_pairs": 8, "test_pairs": 0, "sha256": "0f" * 32}
    assert json.loads(dataset.dataset.profile) == facts
    assert {tag.key: tag.value for tag in dataset.tags} == {
        "mlflow.data.context": "training",
        **{name: str(fact) for name, fact in facts.items()},
    }
    assert tags["env.device"] == "cpu"
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == (Path(sys.argv[0]).name, "LOCAL")
    assert {"env.python", "env.torch", "env.monai", "env.mlflow", "env.ignite", "env.os"} <= set(tags)
    assert history(store, tracker.run_id) == EXPECTED_HISTORY
    artifacts = Path(tmp_path / "store" / "mlartifacts" / tracker.run_id / "artifacts")
    assert {file.relative_to(artifacts).as_posix() for file in artifacts.rglob("*.*")} == {
        "config.json",
        *(f"pictures/epoch{epoch}.png" for epoch in (1, 2, 3)),
    }
    assert not list(mlflow_environment.iterdir())
    assert not (output_dir / "mlflow_unsent").exists()
    assert json.loads((output_dir / "mlflow_run.json").read_text())["run_id"] == tracker.run_id


def test_each_version_of_a_file_is_sent_once(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(
        mlflow_sender.RunSender, "_send_artifact", lambda self, path, folder, tries=0: sent.append(Path(path).name)
    )
    trainer, _ = build(tmp_path, store, artifacts=("pictures", "config.json"))

    @trainer.on(Events.EPOCH_COMPLETED)
    def write(engine: Engine) -> None:
        if engine.state.epoch != 2:
            (tmp_path / "config.json").write_text("x" * engine.state.epoch)

    run(trainer)
    assert sorted(sent) == ["config.json"] * 2 + [f"epoch{epoch}.png" for epoch in (1, 2, 3)]


@pytest.mark.parametrize(
    ("error", "status", "tag"),
    [
        (RuntimeError("no more memory"), "FAILED", "RuntimeError: no more memory"),
        (KeyboardInterrupt(), "KILLED", None),
        (Terminated(), "KILLED", None),
    ],
)
def test_a_run_that_breaks_off_says_why(
    tmp_path: Path, store: str, error: BaseException, status: str, tag: str | None
) -> None:
    trainer, tracker = build(tmp_path, store)

    @trainer.on(Events.ITERATION_STARTED(once=9))
    def fail(engine: Engine) -> None:
        raise error

    with pytest.raises(type(error)):
        run(trainer)
    found = client_of(store).get_run(tracker.run_id)
    assert found.info.status == status
    assert found.data.tags.get("error") == tag
    assert [step for step, _ in history(store, tracker.run_id)["train/generator/adversarial"]] == list(range(1, 9))


@pytest.mark.parametrize("skip_completed", [False, True])
def test_a_run_that_was_stopped_early_is_finished(tmp_path: Path, store: str, skip_completed: bool) -> None:
    trainer, tracker = build(tmp_path, store)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.terminate(skip_completed))
    run(trainer)
    assert client_of(store).get_run(tracker.run_id).info.status == "FINISHED"


def test_steps_do_not_wait_for_the_store(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    make_client = mlflow_sender.make_client

    def blocked(uri: str) -> Any:
        answer.wait()
        return make_client(uri)

    monkeypatch.setattr(mlflow_sender, "make_client", blocked)
    trainer, tracker = build(tmp_path, store, close_timeout=0.01)
    run(trainer)  # would hang
    assert trainer.state.iteration == ITERATIONS
    assert tracker.run_id is None
    assert len(unsent(tmp_path)) == 1
    assert len(warnings_in(caplog)) == 1
    assert "is kept in" in warnings_in(caplog)[0]

    answer.set()
    wait_until(lambda: not (tmp_path / "mlflow_unsent").exists())
    assert history(store, tracker.run_id) == EXPECTED_HISTORY


def test_it_works_without_an_engine(tmp_path: Path, store: str) -> None:
    table = tmp_path / "elsewhere.csv"
    table.write_text("case,psnr\n")
    tracker = MLflowTracker(tmp_path / "out", tracking_uri=store, params={"split": "test"})
    tracker.start()
    tracker.start()
    tracker.log_metrics({"psnr": 30.5, "cases": 3, "note": "no number", "curve": [1, 2]}, step=7)
    tracker.log_artifact(table, "tables")
    tracker.close()
    tracker.close()
    assert history(store, tracker.run_id) == {"psnr": [(7, 30.5)], "cases": [(7, 3.0)]}
    artifacts = client_of(store).list_artifacts(tracker.run_id, "tables")
    assert [artifact.path for artifact in artifacts] == ["tables/elsewhere.csv"]
    assert len(client_of(store).search_runs([client_of(store).get_run(tracker.run_id).info.experiment_id])) == 1
    with pytest.raises(ValueError, match="status must be one of FINISHED, FAILED, KILLED, got 'DONE'"):
        tracker.close("DONE")


@pytest.mark.parametrize("uri", ["none", "None", ""])
def test_it_can_be_turned_off(tmp_path: Path, uri: str) -> None:
    trainer, tracker = build(tmp_path / "out", uri)
    tracker.start()
    tracker.log_metrics({"a": 1})
    run(trainer)
    assert tracker.tracking_uri is None
    assert tracker.how_to_look is None
    assert tracker.run_id is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pictures"}


def test_an_output_directory_that_cannot_be_written_stops_tracking_but_not_the_run(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").write_text("a file")
    tracker = MLflowTracker(tmp_path / "out", tracking_uri=store)
    tracker.start()
    tracker.log_metrics({"a": 1})
    tracker.close()
    assert tracker.run_id is None
    assert len(warnings_in(caplog)) == 1


def test_a_full_disk_does_not_stop_the_run(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, tracker = build(tmp_path, store)

    @trainer.on(Events.EPOCH_STARTED(once=2))
    def fill_disk(engine: Engine) -> None:
        def refuse(*words: Any, **content: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tracker._journal, "_write", refuse)

    run(trainer)
    assert trainer.state.iteration == ITERATIONS
    assert len(warnings_in(caplog)) == 1
    assert "No space left" in warnings_in(caplog)[0]


@pytest.mark.parametrize("name", ["send_interval", "close_timeout"])
def test_durations_must_be_positive(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number of seconds, got 0"):
        MLflowTracker(tmp_path, **{name: 0})


def test_it_says_how_to_look_at_the_store(tmp_path: Path) -> None:
    database = MLflowTracker(tmp_path, tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    command = f"mlflow ui --workers 1 --backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}"
    assert str(database.how_to_look) == f"{command}, then http://127.0.0.1:5000/"
    server = MLflowTracker(tmp_path, tracking_uri="http://127.0.0.1:5000")
    assert str(server.how_to_look) == "http://127.0.0.1:5000"
    page = "/#/experiments/7/runs?compareRunsMode=CHART&workflowType=machine_learning"
    for tracker in (database, server):
        tracker._record = RunRecord(tracker.tracking_uri, "reggan", experiment_id="7")
        assert str(tracker.how_to_look).endswith(f"http://127.0.0.1:5000{page}")


def test_losses_are_told_as_means(tmp_path: Path, store: str) -> None:
    """Of an even share of an epoch's iterations, whatever the collector brings at a time."""
    trainer, tracker = build(tmp_path, store, loss_interval=3)
    run(trainer)
    found = history(store, tracker.run_id)["train/generator/adversarial"]
    windows = [(1, 3), (4, 6), (7, 9), (10, 12), (13, 15), (16, 18)]
    assert found == [(last, sum(range(first, last + 1)) / 8 / (last - first + 1)) for first, last in windows]
    with pytest.raises(ValueError, match="loss_interval must be a whole number of at least 1, got 0"):
        build(tmp_path, store, loss_interval=0)


@pytest.mark.parametrize(
    ("interval", "length", "ends"),
    [
        (2, 7, [3, 5, 7, 10, 12, 14]),
        (5, 6, [6, 12]),
        (9, 6, [6, 12]),
        (1, 4, [1, 2, 3, 4, 5, 6, 7, 8]),
        (5, None, [5, 10]),
    ],
)
def test_means_divide_an_epoch_evenly(interval: int, length: int | None, ends: list[int]) -> None:
    """None is of fewer iterations than was asked for, unless the epoch is, and none is of two epochs."""
    steps = range(1, 2 * (length or interval) + 1)
    assert [step for step in steps if tracking._is_last(step, interval, length)] == ends
