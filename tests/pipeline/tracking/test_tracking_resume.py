"""Runs that die, go on, or run at once: one MLflow run each, each value once."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from pipeline.handlers import MLflowTracker
from pipeline.tracking import sender as mlflow_sender

_spec = importlib.util.spec_from_file_location("tracked_run", Path(__file__).with_name("tracked_run.py"))
tracked_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tracked_run)
build, run, unsent = tracked_run.build, tracked_run.run, tracked_run.unsent

JOBS = ("killed_after_sending", "killed_before_sending", "terminated", "forgotten", "complete", "complete")

pytestmark = [
    pytest.mark.usefixtures("mlflow_environment"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes of these tests are forked"),
]


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A folder with what the processes of all `JOBS` left behind, numbered ``0/out``, ``1/out``, ...

    The last two ran at once, into one database that did not exist.
    """
    root = tmp_path_factory.mktemp("dead")
    jobs = []
    for number, how in enumerate(JOBS):
        folder = root / str(number)
        folder.mkdir()
        store = root / "new" / "mlflow.db" if how == "complete" else folder / "mlflow.db"
        if how != "complete":
            shutil.copy(empty_database, store)
        jobs.append({"how": how, "output_dir": str(folder / "out"), "uri": f"sqlite:///{store}"})
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | mlflow_sender.ENVIRONMENT_DEFAULTS | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, tracked_run.__file__, root / "jobs.json"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    killed, ended = -signal.SIGKILL, 128 + signal.SIGTERM
    assert json.loads(done.stdout.splitlines()[-1]) == [killed, killed, ended, 0, 0, 0], done.stderr
    print(done.stderr)
    return root


@pytest.fixture
def left(dead: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """The output directory and the store that the job numbered by the parameter left behind; the job's own files."""
    folder = dead / str(request.param)
    return folder / "out", f"sqlite:///{folder / 'mlflow.db'}"


def client_of(uri: str) -> Any:
    return mlflow_sender.make_client(uri)


def runs_in(uri: str) -> list[Any]:
    client = client_of(uri)
    experiment = client.get_experiment_by_name("reggan")
    return client.search_runs([experiment.experiment_id]) if experiment else []


def history(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = client_of(uri)
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) for key in keys}


@pytest.fixture
def uninterrupted(tmp_path: Path, store: str) -> dict[str, list[tuple[int, float]]]:
    trainer, tracker = build(tmp_path / "uninterrupted", store)
    run(trainer)
    return history(store, tracker.run_id)


@pytest.mark.parametrize("left", [0, 1], indirect=True, ids=JOBS[:2])
def test_a_killed_run_that_is_resumed_has_the_history_of_an_uninterrupted_one(
    left: tuple[Path, str], uninterrupted: dict[str, list[tuple[int, float]]]
) -> None:
    output_dir, uri = left
    before = runs_in(uri)
    assert {found.info.status for found in before} <= {"RUNNING"}
    trainer, tracker = build(output_dir, uri, resume=True, params={"max_epochs": 3})
    run(trainer, from_epoch=1)  # as if the second epoch's checkpoint had been lost
    (output_dir / "resumed").touch()
    (after,) = runs_in(uri)
    assert after.info.run_id == tracker.run_id
    assert {found.info.run_id for found in before} <= {tracker.run_id}
    assert after.info.status == "FINISHED"
    assert after.data.params == {"max_epochs": "3"}
    assert history(uri, tracker.run_id) == uninterrupted
    assert not unsent(output_dir)


@pytest.mark.parametrize("left", [2], indirect=True, ids=["terminated"])
def test_sigterm_leaves_a_killed_run(left: tuple[Path, str]) -> None:
    output_dir, uri = left
    (found,) = runs_in(uri)
    assert found.info.status == "KILLED"
    steps = [step for step, _ in history(uri, found.info.run_id)["train/generator/adversarial"]]
    assert steps == list(range(1, tracked_run.EPOCH_LENGTH + 3))
    assert not unsent(output_dir)


@pytest.mark.parametrize("left", [3], indirect=True, ids=["forgotten"])
def test_work_that_nobody_closed_is_closed_with_the_process(left: tuple[Path, str]) -> None:
    (found,) = runs_in(left[1])
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"score": 1.0}


def test_two_processes_into_one_new_store_do_not_mix(
    dead: Path, uninterrupted: dict[str, list[tuple[int, float]]]
) -> None:
    uri = f"sqlite:///{dead / 'new' / 'mlflow.db'}"
    runs = runs_in(uri)
    assert [found.info.status for found in runs] == ["FINISHED"] * 2
    assert all(history(uri, found.info.run_id) == uninterrupted for found in runs)


def test_two_threads_into_one_new_store_do_not_mix(
    tmp_path: Path, uninterrupted: dict[str, list[tuple[int, float]]]
) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    threads = [threading.Thread(target=run, args=(build(tmp_path / name, uri)[0],)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = runs_in(uri)
    assert [found.info.status for found in runs] == ["FINISHED"] * 2
    assert all(history(uri, found.info.run_id) == uninterrupted for found in runs)


def crash(output_dir: Path, uri: str, **options: Any) -> str:
    """Runs until an error in the third epoch; the run's id."""
    trainer, tracker = build(output_dir, uri, **options)

    @trainer.on(Events.ITERATION_STARTED(once=2 * tracked_run.EPOCH_LENGTH + 3))
    def fail(engine: Engine) -> None:
        raise RuntimeError("crashed")

    with pytest.raises(RuntimeError, match="crashed"):
        run(trainer)
    return tracker.run_id


def test_a_failed_run_that_is_resumed_is_finished_and_tells_of_turned_knobs(
    tmp_path: Path, store: str, uninterrupted: dict[str, list[tuple[int, float]]]
) -> None:
    run_id = crash(tmp_path, store, params={"max_epochs": 2, "seed": 0})
    assert client_of(store).get_run(run_id).data.tags["error"] == "RuntimeError: crashed"
    trainer, tracker = build(tmp_path, store, resume=True, params={"max_epochs": 3, "seed": 0, "amp": True})
    run(trainer, from_epoch=2)
    found = client_of(store).get_run(tracker.run_id)
    assert found.info.run_id == run_id
    assert found.info.status == "FINISHED"
    assert "error" not in found.data.tags
    assert found.data.params == {"max_epochs": "2", "seed": "0", "amp": "True"}
    assert found.data.tags["resumed.max_epochs"] == "3"
    assert history(store, run_id) == uninterrupted


def test_a_run_is_never_continued_unless_asked_for(tmp_path: Path, store: str) -> None:
    first = crash(tmp_path, store)
    trainer, tracker = build(tmp_path, store)
    run(trainer)
    assert tracker.run_id != first
    assert {found.info.run_id: found.info.status for found in runs_in(store)} == {
        first: "FAILED",
        tracker.run_id: "FINISHED",
    }


def test_a_killed_run_that_is_not_resumed_gets_its_values_and_its_end(
    tmp_path: Path, store: str, dead: Path, uninterrupted: dict[str, list[tuple[int, float]]]
) -> None:
    output_dir, old = tmp_path / "out", RunLeft(tmp_path / "out", store)
    old.leave_metrics("a", [1, 2])
    trainer, tracker = build(output_dir, store)
    run(trainer)
    runs = {found.info.run_id: found for found in runs_in(store)}
    assert history(store, tracker.run_id) == uninterrupted
    (killed,) = (found for found in runs.values() if found.data.tags["reggan.key"] == old.key)
    assert killed.info.status == "KILLED"
    assert history(store, killed.info.run_id) == {"a": [(1, 1.0), (2, 2.0)]}
    assert not (output_dir / "mlflow_unsent").exists()


class RunLeft:
    """What a process that never reached the store leaves when it is killed."""

    def __init__(self, output_dir: Path, uri: str) -> None:
        self.key = "0" * 32
        self.folder = output_dir / "mlflow_unsent" / self.key
        self.folder.mkdir(parents=True)
        record = json.dumps({"tracking_uri": uri, "experiment": "reggan", "key": self.key, "start_time": 1})
        for path in (output_dir / "mlflow_run.json", self.folder / "run.json"):
            path.write_text(record)

    def leave_metrics(self, key: str, steps: list[int]) -> None:
        content = {"kind": "metrics", "time": 1, "steps": steps, "values": {key: [float(step) for step in steps]}}
        path = self.folder / f"{len(list(self.folder.glob('*.jsonl'))) + 1:06d}.jsonl"
        path.write_text(json.dumps(content) + "\n" + '{"kind": "metr')


def test_a_run_whose_creation_was_not_confirmed_is_not_made_twice(tmp_path: Path, store: str) -> None:
    old = RunLeft(tmp_path / "out", store)
    client = client_of(store)
    created = client.create_run(client.create_experiment("reggan"), tags={"reggan.key": old.key})
    _, tracker = build(tmp_path / "out", store, resume=True)
    tracker.start()
    tracker.close()
    assert tracker.run_id == created.info.run_id
    assert len(runs_in(store)) == 1


@pytest.mark.parametrize("how", ["deleted", "unknown"])
def test_a_run_that_is_gone_from_the_store_begins_anew(
    tmp_path: Path, store: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = crash(tmp_path, store)
    if how == "deleted":
        client_of(store).delete_run(run_id)
    else:
        path = tmp_path / "mlflow_run.json"
        record = json.loads(path.read_text()) | {"run_id": "f" * 32, "key": "0" * 32}
        path.write_text(json.dumps(record))
    trainer, tracker = build(tmp_path, store, resume=True)
    run(trainer, from_epoch=2)
    assert tracker.run_id != run_id
    assert client_of(store).get_run(tracker.run_id).info.status == "FINISHED"
    assert any("is gone from" in record.getMessage() for record in caplog.records)


def test_a_run_in_another_store_is_not_continued(tmp_path: Path, store: str, empty_database: Path) -> None:
    run_id = crash(tmp_path, store)
    shutil.copy(empty_database, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    trainer, tracker = build(tmp_path, other, resume=True)
    run(trainer, from_epoch=2)
    assert [found.info.run_id for found in runs_in(store)] == [run_id]
    assert [found.info.run_id for found in runs_in(other)] == [tracker.run_id]


def test_a_run_that_is_still_going_on_is_not_continued(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    alive = MLflowTracker(tmp_path, tracking_uri=store)
    alive.start()
    alive.log_metrics({"a": 1})
    second = MLflowTracker(tmp_path, tracking_uri=store, resume=True)
    second.start()
    second.log_metrics({"b": 1})
    second.close()
    alive.close()
    assert alive.run_id != second.run_id
    assert set(history(store, alive.run_id)) == {"a"}
    assert set(history(store, second.run_id)) == {"b"}
    assert any(
        record.levelno == logging.WARNING and "still going on" in record.getMessage() for record in caplog.records
    )
