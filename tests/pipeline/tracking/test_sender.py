"""What a store refuses does not hold up the rest, and what it has already is not sent twice."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipeline.handlers import MLflowTracker
from pipeline.tracking import sender as mlflow_sender
from pipeline.tracking.journal import Journal, RunRecord
from pipeline.tracking.rules import dataset_input
from pipeline.tracking.sender import RunSender

pytestmark = pytest.mark.usefixtures("mlflow_environment")


@pytest.fixture
def sender(tmp_path: Path, store: str) -> RunSender:
    journal = Journal(tmp_path / "mlflow_unsent" / "key", RunRecord(store, "study"))
    return RunSender(journal, store)


def say(sender: RunSender, key: str, steps: list[int], time: int = 1) -> None:
    sender.journal.append("metrics", time=time, steps=steps, values={key: [float(step) for step in steps]})


def steps_of(sender: RunSender, key: str) -> list[int]:
    client = mlflow_sender.make_client(sender.tracking_uri)
    return sorted(metric.step for metric in client.get_metric_history(sender.journal.record.run_id, key))


def rejected(tmp_path: Path) -> list[dict[str, Any]]:
    (path,) = (tmp_path / "mlflow_unsent").glob("*.rejected.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


class Client:
    """A client that counts and fails as told, in front of a real one."""

    def __init__(self, real: Any, failing: dict[str, list[Exception]]) -> None:
        self.real, self.failing, self.calls = real, failing, []

    def __getattr__(self, name: str) -> Any:
        def call(*words: Any, **options: Any) -> Any:
            self.calls.append((name, options))
            if self.failing.get(name):
                raise self.failing[name].pop(0)
            return getattr(self.real, name)(*words, **options)

        return call


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, store: str) -> Client:
    """The client that each sender gets."""
    client = Client(mlflow_sender.make_client(store), {})
    monkeypatch.setattr(mlflow_sender, "make_client", lambda uri: client)
    return client


def test_telemetry_is_off_and_waits_are_short_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    mlflow_sender.prepare_environment()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"


def test_more_than_a_batch_is_sent_in_several(sender: RunSender, client: Client) -> None:
    say(sender, "a", list(range(2500)))
    sender.journal.append("params", values={f"p{n}": "1" for n in range(150)})
    sender.journal.append("tags", values={f"t{n}": "1" for n in range(150)})
    sender.deliver()
    sizes = [len(values) for name, options in client.calls if name == "log_batch" for values in options.values()]
    assert sizes == [1000, 1000, 500, 100, 50, 100, 50]
    assert steps_of(sender, "a") == list(range(2500))


def test_neighbouring_metrics_share_a_batch(sender: RunSender, client: Client) -> None:
    for step in range(10):
        say(sender, "a", [step])
    sender.deliver()
    assert len([name for name, _ in client.calls if name == "log_batch"]) == 1


def test_a_delivery_that_was_cut_short_is_repeated_without_doubles(sender: RunSender, client: Client) -> None:
    say(sender, "a", list(range(1500)))
    sender.deliver()
    say(sender, "a", list(range(1500, 4000)))
    real = client.real.log_batch
    answers = iter([None, ConnectionError("the line was cut")])

    def log_batch(*words: Any, **options: Any) -> None:
        real(*words, **options)  # the store has it, but we never learn that
        answer = next(answers, None)
        if answer is not None:
            raise answer

    client.real.log_batch = log_batch
    with pytest.raises(ConnectionError):
        sender.deliver()
    sender.deliver()
    assert steps_of(sender, "a") == list(range(4000))
    assert not sender.journal.segments()


def test_replayed_steps_of_several_deaths_are_left_out(sender: RunSender, store: str) -> None:
    say(sender, "a", list(range(1, 11)))
    sender.deliver()
    sender.journal.append("resume")
    say(sender, "a", list(range(6, 9)), time=2)
    sender.deliver()
    sender.journal.append("resume")
    say(sender, "a", list(range(6, 13)), time=3)
    say(sender, "b", [1], time=3)
    sender.journal.close()
    # A third process finds what the second one did not send.
    again = RunSender(Journal(sender.journal.folder), store)
    again.deliver()
    assert steps_of(again, "a") == list(range(1, 13))
    assert steps_of(again, "b") == [1]


def test_what_the_store_refuses_is_put_aside(
    sender: RunSender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    say(sender, "bad#key", [1])
    for key in "abc":
        say(sender, key, [1])
    sender.journal.append("tags", values={"good": "1", "also#bad": "2"})
    sender.deliver()
    assert [steps_of(sender, key) for key in "abc"] == [[1]] * 3
    assert not sender.journal.segments()
    assert [entry["key"] for entry in rejected(tmp_path)] == ["bad#key", "also#bad"]
    assert all("Invalid" in entry["reason"] for entry in rejected(tmp_path))
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


def test_a_data_set_is_there_once_however_often_it_is_sent(sender: RunSender, client: Client, tmp_path: Path) -> None:
    for name in ("brains", "brains", "hips", "x" * 600):
        sender.journal.append("inputs", **dataset_input({"name": name, "digest": "a" * 64}, "training"))
    sender.deliver()
    found = client.real.get_run(sender.journal.record.run_id).inputs.dataset_inputs
    assert sorted(item.dataset.name for item in found) == ["brains", "hips"]
    assert all({tag.key: tag.value for tag in item.tags}["sha256"] == "a" * 64 for item in found)
    [refused] = rejected(tmp_path)
    assert "x" * 600 in refused["dataset"]


def test_records_of_another_version_are_left_out(sender: RunSender) -> None:
    sender.journal.append("unheard_of", value=1)
    say(sender, "a", [1])
    sender.deliver()
    assert steps_of(sender, "a") == [1]


def test_a_broken_artifact_store_does_not_hold_up_the_metrics(
    tmp_path: Path, store: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.failing["log_artifact"] = [PermissionError("no entry")] * 30
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"png")
    tracker = MLflowTracker(tmp_path, tracking_uri=store)
    tracker.start()
    tracker.log_artifact("a.png")
    tracker.log_metrics({"a": 1.0}, step=1)
    tracker.close()
    found = client.real.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"a": 1.0}
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert [artifact.path for artifact in client.real.list_artifacts(tracker.run_id)] == []
    # Kept, however long that takes: the next run in this folder brings it, as soon as it is taken.
    client.failing.clear()
    following = MLflowTracker(tmp_path, tracking_uri=store)
    following.start()
    following.close()
    assert [artifact.path for artifact in client.real.list_artifacts(tracker.run_id)] == ["a.png"]
    assert client.real.get_run(tracker.run_id).info.status == "FINISHED"
    assert not (tmp_path / "mlflow_unsent").exists()


def test_an_artifact_that_the_store_will_never_take_is_put_aside(
    tmp_path: Path, store: str, client: Client, sender: RunSender
) -> None:
    client.failing["log_artifact"] = [MlflowException("too long", INVALID_PARAMETER_VALUE)]
    (tmp_path / "a.png").write_bytes(b"png")
    sender.journal.append_file(tmp_path / "a.png", None)
    sender.deliver()
    assert [entry["artifact"] for entry in rejected(tmp_path)] == ["a.png"]


def test_a_file_is_sent_as_it_was_when_it_was_logged(sender: RunSender, tmp_path: Path, client: Client) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"first run")
    sender.journal.append_file(picture, "pictures")
    picture.unlink()
    picture.write_bytes(b"second run")
    sender.journal.append_file(tmp_path / "never_written.png", None)
    sender.deliver()
    sent = client.real.download_artifacts(sender.journal.record.run_id, "pictures/picture.png", str(tmp_path))
    assert Path(sent).read_bytes() == b"first run"
    assert not list(sender.journal.folder.glob("files/*"))


def test_a_file_is_copied_where_it_cannot_be_linked(
    sender: RunSender, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "config.json").write_text("{}")
    sender.journal.append_file(tmp_path / "config.json", None)
    sender.deliver()
    assert [artifact.path for artifact in client.real.list_artifacts(sender.journal.record.run_id)] == ["config.json"]


def test_a_busy_store_is_not_worth_a_warning(
    tmp_path: Path, store: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.failing["get_experiment_by_name"] = [ConnectionError("database is locked")]
    tracker = MLflowTracker(tmp_path, tracking_uri=store, send_interval=0.01)
    tracker.start()
    while tracker.run_id is None:
        pass
    tracker.close()
    assert client.real.get_run(tracker.run_id).info.status == "FINISHED"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_experiment_that_somebody_else_makes_first_is_used(tmp_path: Path, store: str, client: Client) -> None:
    other = client.real.create_experiment("study")
    real, answers = client.real.get_experiment_by_name, iter([None])
    client.real.get_experiment_by_name = lambda name: next(answers, real(name))
    tracker = MLflowTracker(tmp_path, tracking_uri=store, experiment_name="study")
    tracker.start()
    tracker.close()
    assert client.real.get_run(tracker.run_id).info.experiment_id == other
