"""MLflow: what is told, how runs are told apart, and stores that are slow, strange or gone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from faults.kinds import cause
from faults.trial import Done, Trial, silent

KIND = "MLflow"
UNSENT = ("MLflow",)
SECONDS_TO_END = 6.0  # schedulers kill after 30; at most 5 are spent on a store, one on the rest


def tracked(trial: Trial, *more: str, out: str = "out", uri: str | None = None, **settings: Any) -> Done:
    """Train with a store, and expect that the training itself ends well."""
    done = trial.train(*more, out=out, settings={"tracking_uri": uri or trial.store, **settings})
    if done.code != 0:
        silent("the training did not end well", done)
    return done


def runs(uri: str) -> list[Any]:
    """All runs of the store, the first first."""
    client = MlflowClient(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return sorted(found, key=lambda run: run.info.start_time)


@cause(KIND, "parameters are values, few, and named as the settings", reported=True)
def _(trial: Trial) -> str:
    tracked(trial)
    [run] = runs(trial.store)
    parameters = run.data.params
    odd = [
        f"{k}={v}"
        for k, v in parameters.items()
        if re.search(r"_target_|^[$@%]|\$import", f"{k} {v}") or v[:1] in "$@%"
    ]
    if odd or len(parameters) > 60:
        silent(f"{len(parameters)} parameters, {len(odd)} no values: {odd[:3]}")
    missing = [
        n
        for n in ("max_epochs", "learning_rate", "batch_size", "noise_level", "spatial_size", "seed")
        if n not in parameters
    ]
    return "right" if not missing else silent(f"no parameter {missing}")


@cause(KIND, "the whole config is an artifact", reported=True)
def _(trial: Trial) -> str:
    tracked(trial)
    [run] = runs(trial.store)
    names = [item.path for item in MlflowClient(trial.store).list_artifacts(run.info.run_id)]
    return "right" if any("config" in name for name in names) else silent(f"artifacts: {names}")


@cause(KIND, "the source of a run is filled", reported=True)
def _(trial: Trial) -> str:
    tracked(trial)
    [run] = runs(trial.store)
    source = run.data.tags.get("mlflow.source.name", "")
    return "right" if source else silent("mlflow.source.name is empty")


@cause(KIND, "names tell two runs apart", reported=True)
def _(trial: Trial) -> str:
    tracked(trial)
    tracked(trial, out="out2", noise_level=2)
    names = [run.info.run_name for run in runs(trial.store)]
    return "right" if len(set(names)) == 2 else silent(f"both are called {names[0]}")


@cause(KIND, "names tell two evaluations apart")
def _(trial: Trial) -> str:
    tracked(trial)
    for more in ((), ("--split", "validation")):
        done = trial.evaluate("--dataset_dir", trial.data, *more, run=trial.folder / "out", tracking_uri=trial.store)
        if done.code != 0:
            silent("an evaluation did not end well", done)
    names = [run.info.run_name for run in runs(trial.store)]
    return "right" if len(set(names)) == 3 else silent(f"they are called {names}")


@cause(KIND, "losses are means of 30 iterations", reported=True)
def _(trial: Trial) -> str:
    tracked(trial, max_epochs=10)
    [run] = runs(trial.store)
    iterations = torch.load(trial.folder / "out/checkpoints/last.pt", weights_only=True)["trainer"]["iteration"]
    client = MlflowClient(trial.store)
    counts = {}
    for name in run.data.metrics:
        if re.search(r"loss|adversarial|correction|smoothness", name):
            counts[name] = len(client.get_metric_history(run.info.run_id, name))
    if not counts or max(counts.values()) > iterations / 30 + 10:
        silent(f"{iterations} iterations, values of {counts}")
    return "right"


@cause(KIND, "the address that is printed opens the charts", reported=True)
def _(trial: Trial) -> str:
    done = tracked(trial)
    if "compareRunsMode=CHART" not in done.text or "workflowType=machine_learning" not in done.text:
        silent("it does not", done)
    return "right"


@cause(KIND, "the command that is printed has one worker", reported=True)
def _(trial: Trial) -> str:
    done = tracked(trial)
    return "right" if "--workers 1" in done.text else silent("no --workers 1", done)


@cause(KIND, "an evaluation prints where to look, too")
def _(trial: Trial) -> str:
    tracked(trial)
    done = trial.evaluate("--dataset_dir", trial.data, run=trial.folder / "out", tracking_uri=trial.store)
    return (
        "right" if "compareRunsMode=CHART" in done.text and "--workers 1" in done.text else silent("it does not", done)
    )


@cause(KIND, "artifacts wait while their store is away", reported=True)
def _(trial: Trial) -> str:
    client = MlflowClient(trial.store)
    away = trial.folder / "artifacts"
    client.create_experiment("reggan", artifact_location=f"file://{away}/x")
    away.write_text("a file where the folder shall be")
    done = tracked(trial)
    if not done.says("artifact", "MLflow"):
        silent("nothing was said of files that were not stored", done)
    away.unlink()
    again = tracked(trial, "--resume", "true", max_epochs=2)
    [run] = runs(trial.store)
    stored = [path.name for path in away.rglob("*") if path.is_file()]
    if not stored or "config.json" not in " ".join(stored):
        silent(f"stored afterwards: {stored}; {run.info.status}", again)
    return "warned"


class Answer(BaseHTTPRequestHandler):
    """Answers everything alike; the server says what."""

    def do_GET(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code, kind, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answer."""
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def answering(code: int, kind: str = "application/json", body: bytes = b"{}") -> Iterator[str]:
    """A server that answers everything alike."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.answer = (code, kind, body)  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def hung() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def goes_on_without(trial: Trial, uri: str, *patterns: str) -> str:
    """Training ends well, says that the store cannot be used, and keeps what it would have been told."""
    done = tracked(trial, uri=uri)
    kept = [path for path in (trial.folder / "out").rglob("*") if "unsent" in str(path) or "journal" in str(path)]
    if not done.says(*(patterns or UNSENT)):
        silent("nothing was said of the store", done)
    return "warned" if kept or "unsent" in done.text.lower() else silent("what was not sent is not kept", done)


@cause(KIND, "a server that never answers")
def _(trial: Trial) -> str:
    with hung() as uri:
        return goes_on_without(trial, uri)


@cause(KIND, "a server that answers 500")
def _(trial: Trial) -> str:
    with answering(500, body=b'{"error_code": "INTERNAL_ERROR", "message": "no"}') as uri:
        return goes_on_without(trial, uri)


@cause(KIND, "a server that wants a password")
def _(trial: Trial) -> str:
    with answering(401, "text/plain", b"You are not authenticated.") as uri:
        return goes_on_without(trial, uri)


@cause(KIND, "a proxy that answers with its page for logging in")
def _(trial: Trial) -> str:
    with answering(200, "text/html", b"<html>please log in</html>") as uri:
        return goes_on_without(trial, uri)


@cause(KIND, "a server of another kind that answers 404")
def _(trial: Trial) -> str:
    with answering(404, "text/html", b"<html>no such page</html>") as uri:
        return goes_on_without(trial, uri)


@cause(KIND, "nobody listens")
def _(trial: Trial) -> str:
    return goes_on_without(trial, "http://127.0.0.1:9")


@cause(KIND, "SIGTERM while a server never answers", reported=True)
def _(trial: Trial) -> str:
    with hung() as uri:
        return stopped_in_time(trial, uri, signal.SIGTERM)


@cause(KIND, "Ctrl-C while a server never answers")
def _(trial: Trial) -> str:
    with hung() as uri:
        return stopped_in_time(trial, uri, signal.SIGINT)


@cause(KIND, "SIGTERM while nobody listens")
def _(trial: Trial) -> str:
    return stopped_in_time(trial, "http://127.0.0.1:9", signal.SIGTERM)


def stopped_in_time(trial: Trial, uri: str, by: signal.Signals) -> str:
    """A signal ends a training within seconds, whatever its store does."""
    asked: list[float] = []

    def stop(child: int) -> None:
        deadline = time.monotonic() + 40
        while not (trial.folder / "out/checkpoints/last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        asked.append(time.monotonic())
        os.kill(child, by)

    begun = time.monotonic()
    settings = {"tracking_uri": uri, "max_epochs": 100000, "val_interval": 5, "picture_interval": 100000}
    done = trial.train(settings=settings, meanwhile=stop, timeout=100)
    took = begun + done.seconds - asked[0]
    if took > SECONDS_TO_END:
        silent(f"it took {took:.1f} s to end", done)
    return "right" if done.code != 0 else silent("ended with exit 0", done)


def store_of(trial: Trial, spoil: Any) -> str:
    """A store that is a file of something else, or may not be written."""
    path = trial.folder / "spoilt.db"
    spoil(path)
    before = path.read_bytes()
    done = tracked(trial, uri=f"sqlite:///{path}")
    if not done.says(*UNSENT):
        silent("nothing was said of the store", done)
    return "warned" if path.read_bytes() == before else silent("the file was changed", done)


@cause(KIND, "a store that is no database")
def _(trial: Trial) -> str:
    return store_of(trial, lambda path: path.write_text("notes, no database " * 100))


@cause(KIND, "a store of a newer MLflow")
def _(trial: Trial) -> str:
    def spoil(path: Path) -> None:
        path.write_bytes(Path(trial.store.removeprefix("sqlite:///")).read_bytes())
        with sqlite3.connect(path) as database:
            database.execute("UPDATE alembic_version SET version_num = 'fffffffffff1'")
        database.close()

    return store_of(trial, spoil)


@cause(KIND, "a store that another program has locked")
def _(trial: Trial) -> str:
    path = trial.store.removeprefix("sqlite:///")
    with sqlite3.connect(path, isolation_level=None, timeout=1) as database:
        database.execute("BEGIN EXCLUSIVE")
        done = tracked(trial)
        database.execute("ROLLBACK")
    database.close()
    return "warned" if done.says("MLflow", "locked") else silent("nothing was said of the store", done)


@cause(KIND, "a folder of the store that is not there")
def _(trial: Trial) -> str:
    uri = f"sqlite:///{trial.folder}/deep/er/mlflow.db"
    done = trial.train(settings={"tracking_uri": uri})
    return trial.right_or_said(done, lambda: len(runs(uri)) == 1, "tracking_uri", "MLflow")


@cause(KIND, "an experiment that was deleted")
def _(trial: Trial) -> str:
    client = MlflowClient(trial.store)
    client.delete_experiment(client.create_experiment("reggan"))
    done = tracked(trial)
    return trial.right_or_said(done, lambda: len(runs(trial.store)) == 1, "experiment", "MLflow")


@cause(KIND, "a run that was deleted before its evaluation")
def _(trial: Trial) -> str:
    tracked(trial)
    [run] = runs(trial.store)
    MlflowClient(trial.store).delete_run(run.info.run_id)
    done = trial.evaluate("--dataset_dir", trial.data, run=trial.folder / "out", tracking_uri=trial.store)
    return trial.right_or_said(done, lambda: len(runs(trial.store)) == 1, "MLflow")


@cause(KIND, "names with line breaks, quotes and 2000 letters")
def _(trial: Trial) -> str:
    name = 'a "run"\n\tof\x00 ' + "x" * 2000
    done = trial.train(settings={"tracking_uri": trial.store, "experiment_name": name.replace("\x00", "")})
    return trial.right_or_said(done, lambda: len(runs(trial.store)) == 1, "experiment_name", "MLflow")


@cause(KIND, "two trainings that tell one new store at once")
def _(trial: Trial) -> str:
    uri = trial.store
    results: list[Done] = []

    def one(out: str) -> None:
        results.append(trial.train(out=out, settings={"tracking_uri": uri, "run_name": out}))

    threads = [threading.Thread(target=one, args=(f"o{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(done.code for done in results):
        silent("one of them failed", next(done for done in results if done.code))
    values = {run.info.run_name: run.info.status for run in runs(uri)}
    return "right" if list(values.values()) == ["FINISHED"] * 2 else silent(json.dumps(values))
