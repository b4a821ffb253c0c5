"""A real MLflow server comes, goes and comes back; the runs notice nothing and the server misses nothing."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from pipeline.tracking import sender as mlflow_sender

_spec = importlib.util.spec_from_file_location("tracked_run", Path(__file__).with_name("tracked_run.py"))
tracked_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tracked_run)
build, run, unsent, wait_until = tracked_run.build, tracked_run.run, tracked_run.unsent, tracked_run.wait_until

pytestmark = pytest.mark.usefixtures("mlflow_environment")


class Server:
    """An MLflow server that can be killed and started again on the same port, over the same store."""

    def __init__(self, folder: Path, empty_database: Path) -> None:
        self.folder = folder
        shutil.copy(empty_database, folder / "server.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # several processes less
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self.answers)

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """Kills the server with its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    server = Server(tmp_path, empty_database)
    yield server
    server.kill()


def history(client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((m.step, m.value) for m in client.get_metric_history(run_id, key)) for key in keys}


def warnings_in(log: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in log.records if record.name.startswith("pipeline") and record.levelno >= 30
    ]


@pytest.mark.skipif(os.name == "nt", reason="the server is killed by its process group")
def test_a_server_that_comes_and_goes_gets_everything(
    tmp_path: Path, store: str, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    output_dir = tmp_path / "out"
    expected_run, expected = build(tmp_path / "expected", store)
    run(expected_run)
    expected_history = history(mlflow_sender.make_client(store), expected.run_id)

    # Not there at all: the run ends as usual, says so once, and keeps everything.
    first, absent = build(output_dir, server.uri, params={"which": "first"})
    run(first)
    assert absent.run_id is None
    assert len(unsent(output_dir)) > 0
    assert len(warnings_in(caplog)) == 1
    assert server.uri in warnings_in(caplog)[0]

    # There for the next run, which brings what was kept; then gone in the middle, and back before the end.
    caplog.clear()
    server.start()
    second, tracker = build(output_dir, server.uri, params={"which": "second"})

    @second.on(Events.ITERATION_COMPLETED(once=7))
    def vanish(engine: Engine) -> None:
        wait_until(lambda: not unsent(output_dir))
        server.kill()

    @second.on(Events.ITERATION_COMPLETED(once=14))
    def come_back(engine: Engine) -> None:
        wait_until(lambda: bool(warnings_in(caplog)))
        server.start()

    run(second)
    assert len(warnings_in(caplog)) == 1
    assert "takes values again" in caplog.text

    client = mlflow_sender.make_client(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("reggan").experiment_id])
    assert {found.data.params["which"]: found.info.status for found in runs} == {
        "first": "FINISHED",
        "second": "FINISHED",
    }
    for found in runs:
        assert history(client, found.info.run_id) == expected_history
        pictures = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "pictures")}
        assert pictures == {f"pictures/epoch{epoch}.png" for epoch in (1, 2, 3)}
        assert found.data.tags["env.device"] == "cpu"
    assert tracker.run_id in {found.info.run_id for found in runs}
    assert not (output_dir / "mlflow_unsent").exists()
