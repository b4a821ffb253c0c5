"""Sends the journals of runs to MLflow, in a thread of its own."""

from __future__ import annotations

import itertools
import logging
import os
import posixpath
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import ProcessLock
from pipeline.provenance import redact
from pipeline.tracking.journal import Journal, leftovers, read_records, read_segment
from pipeline.tracking.rules import METRICS_PER_BATCH, PARAMS_AND_TAGS_PER_BATCH, sqlite_path

logger = logging.getLogger(__name__)

KEY_TAG = "reggan.key"  # finds a run whose creation was never confirmed to us
PARENT_TAG = "mlflow.parentRunId"  # what MLflow's own pages nest runs by
ERROR_TAG = "error"

CLOSING_TRIES = 3
UNSAID = 3.0  # seconds of waiting that nobody needs to be told of
DATABASE_PATIENCE = 60.0  # seconds that another process may take to make the database
LONGEST_WAIT = 60.0  # seconds between two attempts to reach a store

# MLflow's own defaults keep a client busy with a dead server for minutes; telemetry would reach for the internet.
ENVIRONMENT_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

LOG_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for a server that asks"
_UNKNOWN = re.compile(
    r"\b40[13]\b|unauthori|authenti|forbidden|password", re.IGNORECASE
)  # whom the store does not know

# The store understood the request and will never accept it; anything else may go better later.
REJECTIONS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


def prepare_environment() -> None:
    """Sets MLflow's environment variables in `ENVIRONMENT_DEFAULTS`, where they are not set yet."""
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)


def make_client(tracking_uri: str) -> Any:
    """Builds a client; the first one of a new SQLite store also builds the database, which takes seconds."""
    import mlflow  # slow to import: only the sending thread waits for it

    for name in ("alembic", "mlflow.store.db.utils"):  # dozens of lines about each new database
        logging.getLogger(name).setLevel(logging.WARNING)
    database = sqlite_path(tracking_uri)
    if database is None:
        return mlflow.MlflowClient(tracking_uri=tracking_uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that make the tables of one database at once get into each other's way.
    with ProcessLock(database.with_name(f".{database.name}.lock")).waiting(DATABASE_PATIENCE):
        client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)  # some versions wait for the first call
        return client


class RunSender:
    """Brings the records of one journal into its MLflow run, each value once.

    Kinds of records, with their content:

    - ``resume``: the run is continued from a checkpoint, and replays what came after it
    - ``params`` and ``tags``: ``values``, a dict of strings
    - ``inherit``: the parent's parameters are taken over where the run has none of that name; ``values`` if it has no
      parent
    - ``inputs``: ``dataset`` and ``tags``, see `pipeline.tracking.rules.dataset_input`
    - ``metrics``: ``time`` in milliseconds, ``steps``, a list, and ``values``, a dict of lists of the same length
    - ``artifact``: ``path`` of a file below the journal's folder, and the artifacts' ``folder`` to put it in
    - ``end``: ``status`` and ``time`` in milliseconds

    A value can reach the store twice in two ways, and both are caught. A segment is sent again if its sending was cut
    short: MLflow leaves out values that are equal in time stamp and step, and a data set that the run has already. A
    resumed run replays steps: for each metric, steps up to the last one that the store already had at that point are
    left out.

    Args:
        journal: the records.
        tracking_uri: the store; may hold a user name and a password, unlike the journal.
    """

    def __init__(self, journal: Journal, tracking_uri: str) -> None:
        self.journal = journal
        self.tracking_uri = tracking_uri
        self._client: Any = None
        self._last_steps: dict[str, int] = {}
        self._waiting: Exception | None = None  # why files of this delivery have to wait for the next
        self._params: dict[str, str] = {}
        self._kinds: dict[str, Callable[..., None]] = {
            "resume": self._resume,
            "params": self._send_params,
            "tags": self._send_tags,
            "inherit": self._inherit,
            "inputs": self._send_inputs,
            "metrics": self._send_metrics,
            "artifact": self._send_artifact,
            "end": self._end,
        }

    def deliver(self) -> None:
        """Sends all that the journal holds now.

        Raises:
            Exception: of whatever kind MLflow raises when the store, or that of its artifacts, cannot be reached; what
                was not sent stays in the journal.
        """
        if self._client is None:
            self._open()
        self._waiting = None
        for segment in self.journal.closed_segments():
            self._send(read_segment(segment), segment)
            segment.unlink(missing_ok=True)
        unwritten = self.journal.in_memory()
        if unwritten:
            self._send(read_records(unwritten, "memory"), "memory")
            self.journal.forget(unwritten)
        if self._waiting is not None:
            raise self._waiting

    def _send(self, records: Iterable[dict[str, Any]], place: object) -> None:
        for kind, content in _grouped(records):
            if kind in self._kinds:
                self._kinds[kind](**content)
            else:
                logger.warning("a record of kind %r in %s is left out: unknown here", kind, place)

    def end_as_killed(self) -> None:
        """Closes the run of a process that died without a word."""
        if self._client.get_run(self._run_id).info.status == "RUNNING":
            self._end("KILLED", int(time.time() * 1000))

    @property
    def _run_id(self) -> str:
        return str(self.journal.record.run_id)

    def _open(self) -> None:
        client = make_client(self.tracking_uri)
        record = self.journal.record
        run = None
        if record.run_id is not None:
            run = _active_run(client, record.run_id)
            if run is None:
                logger.warning("MLflow run %s is gone from %s; a new one is made", record.run_id, record.tracking_uri)
        if run is None:
            run = self._find_or_create_run(client)
            record.run_id = run.info.run_id
            self.journal.save_record()
        if record.experiment_id != run.info.experiment_id:
            record.experiment_id = run.info.experiment_id
            self.journal.save_record()
        self._adopt(run)
        self._client = client

    def _find_or_create_run(self, client: Any) -> Any:
        record = self.journal.record
        experiment_id = _experiment_id(client, record.experiment, record.artifact_location)
        run = _find_run(client, experiment_id, record.key)
        if run is not None:
            return run
        tags = {KEY_TAG: record.key}
        if record.parent is not None:
            parent = _find_run(client, experiment_id, record.parent)
            if parent is not None:
                tags[PARENT_TAG] = parent.info.run_id
            elif (self.journal.folder.parent / record.parent).is_dir():
                raise LookupError("the run that it belongs to has not been sent yet")
            else:
                logger.warning("the run that %s belongs to is gone from %s", record.run_name, record.tracking_uri)
        return client.create_run(experiment_id, start_time=record.start_time, tags=tags, run_name=record.run_name)

    def _adopt(self, run: Any) -> None:
        self._last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._params = dict(run.data.params)

    def _resume(self) -> None:
        run = self._client.get_run(self._run_id)
        self._adopt(run)
        self._client.update_run(self._run_id, status="RUNNING")
        if ERROR_TAG in run.data.tags:
            self._client.delete_tag(self._run_id, ERROR_TAG)

    def _send_params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        new = {key: value for key, value in values.items() if key not in self._params}
        self._log_batches("params", [Param(key, value) for key, value in new.items()], PARAMS_AND_TAGS_PER_BATCH)
        # A parameter of a run can never change; a knob that was turned for the rest of the run is told by a tag.
        self._send_tags(
            {f"resumed.{key}": value for key, value in values.items() if self._params.get(key, value) != value}
        )
        self._params.update(new)

    def _send_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._log_batches("tags", [RunTag(key, value) for key, value in values.items()], PARAMS_AND_TAGS_PER_BATCH)

    def _inherit(self, values: dict[str, str]) -> None:
        parent_id = self._client.get_run(self._run_id).data.tags.get(PARENT_TAG)
        parent = None if parent_id is None else _active_run(self._client, parent_id)
        found = values if parent is None else parent.data.params
        self._send_params({key: value for key, value in found.items() if key not in self._params})

    def _send_inputs(self, dataset: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        labels = [InputTag(key, value) for key, value in tags.items()]
        self._log_batch("datasets", [DatasetInput(Dataset(**dataset), labels)])

    def _send_metrics(self, records: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, record["time"], step)
            for record in records
            for key, values in record["values"].items()
            for step, value in zip(record["steps"], values, strict=True)
            if step > self._last_steps.get(key, step - 1)
        ]
        self._log_batches("metrics", metrics, METRICS_PER_BATCH)

    def _send_artifact(self, path: str, folder: str | None) -> None:
        from mlflow.exceptions import MlflowException

        file = self.journal.folder / path
        if not file.exists():  # sent before, but we died before we could say so
            return
        try:
            if (
                self._waiting is None
            ):  # or else the store of the artifacts is away: once a delivery is enough to see that
                self._client.log_artifact(self._run_id, str(file), folder)
        except Exception as error:
            self._client.get_run(self._run_id)  # raises if it is not the artifact store alone that is out of reach
            if isinstance(error, MlflowException) and error.error_code in REJECTIONS:
                self._reject({"artifact": posixpath.join(folder or "", file.name)}, error)
            else:
                self._waiting = error
        if self._waiting is not None:
            self.journal.append("artifact", path=path, folder=folder)
            return
        shutil.rmtree(file.parent)

    def _end(self, status: str, time: int) -> None:
        self._client.set_terminated(self._run_id, status, time)

    def _log_batches(self, kind: str, entities: Sequence[Any], size: int) -> None:
        for start in range(0, len(entities), size):
            self._log_batch(kind, entities[start : start + size])

    def _log_batch(self, kind: str, entities: Sequence[Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            log = self._client.log_inputs if kind == "datasets" else self._client.log_batch
            log(self._run_id, **{kind: entities})
        except MlflowException as error:
            if error.error_code not in REJECTIONS or _active_run(self._client, self._run_id) is None:
                raise
            if len(entities) == 1:
                self._reject(dict(entities[0]), error)
                return
            half = len(entities) // 2
            self._log_batch(kind, entities[:half])
            self._log_batch(kind, entities[half:])

    def _reject(self, content: dict[str, Any], error: Exception) -> None:
        reason = redact(str(error))
        logger.warning("MLflow does not take %s: %s", content, reason)
        self.journal.reject(content, reason)


class SendingThread(threading.Thread):
    """Delivers the journal of the current run every few seconds, and those that earlier runs left behind.

    A store that cannot be reached is tried again, less and less often; that is said once, by a warning.

    Args:
        sender: the current run's.
        output_dir: output directory of the run, where earlier runs may have left something.
        interval: seconds between two deliveries.
        prepare: called once in the thread, before anything else.
    """

    def __init__(
        self, sender: RunSender, output_dir: Path, interval: float, prepare: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self._sender = sender
        self._output_dir = output_dir
        self._interval = interval
        self._prepare = prepare
        self._wake = threading.Event()
        self._closing = False
        self._failures = 0
        self._answered = False
        self._warned = False

    def close(self, timeout: float) -> bool:
        """Asks for a last delivery, waits for it, and says whether all was sent.

        Args:
            timeout: longest wait in seconds; the thread may go on behind it.
        """
        self._closing = True
        self._wake.set()
        self.join(min(timeout, UNSAID))
        if self.is_alive() and timeout > 2 * UNSAID:
            store = self._sender.journal.record.tracking_uri
            logger.info("waiting for MLflow store %s to take the last values, at most %.0f s", store, timeout)
        self.join(max(0.0, timeout - UNSAID))
        if self.is_alive():
            self._warn(f"it did not take everything within {timeout:g} s")
        return not self.is_alive() and self._failures == 0

    @property
    def healthy(self) -> bool:
        """Whether the store has answered, and did so last."""
        return self._answered and self._failures == 0

    @property
    def unreachable(self) -> bool:
        """Whether the store has been asked in vain more than once."""
        return self._failures > 1

    def run(self) -> None:
        """Delivers until closed."""
        self._prepare()
        waiting = self._deliver_leftovers(self._earlier_runs())
        while not self._closing:
            self._attempt(self._sender)
            self._wake.wait(min(self._interval * 2**self._failures, LONGEST_WAIT))
        self._deliver_last()
        for sender in waiting if self._failures else self._deliver_leftovers(waiting):
            sender.journal.close()
        self._sender.journal.close()

    def _earlier_runs(self) -> list[RunSender]:
        current = self._sender.journal.record
        return [
            # The journal has no password; this run's own address of the same store may have one.
            RunSender(
                journal,
                self._sender.tracking_uri
                if journal.record.tracking_uri == current.tracking_uri
                else journal.record.tracking_uri,
            )
            for journal in leftovers(self._output_dir, besides=current.key)
        ]

    def _deliver_leftovers(self, senders: Iterable[RunSender]) -> list[RunSender]:
        """Delivers what earlier runs left, and returns those that have to wait."""
        waiting = []
        for sender in senders:
            try:
                sender.deliver()
                sender.end_as_killed()
                sender.journal.close()
            except Exception as error:
                logger.info("%s has to wait: %s", sender.journal.folder, redact(str(error)))
                waiting.append(sender)
        return waiting

    def _deliver_last(self) -> None:
        tries = 1 if self._failures else CLOSING_TRIES  # no use in insisting where nobody has answered for long
        for attempt in range(tries):
            if attempt > 0:
                time.sleep(1.0)
            while self._attempt(self._sender):
                if not self._sender.journal.segments():
                    return

    def _attempt(self, sender: RunSender) -> bool:
        try:
            sender.deliver()
        except Exception as error:
            self._failures += 1
            if self._failures > 1 or self._closing:  # a single failure may be a busy database
                self._warn(str(error))
            return False
        if self._failures and self._warned:
            logger.info("MLflow store %s takes values again", sender.journal.record.tracking_uri)
        self._failures, self._answered = 0, True
        return True

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "MLflow store %s cannot be used: %s. The run goes on; what is unsent is kept in %s and sent later, at "
                "the latest by the next run with this output_dir",
                self._sender.journal.record.tracking_uri,
                redact(reason) + (f" ({LOG_IN})" if _UNKNOWN.search(reason) else ""),
                self._sender.journal.folder,
            )


def _grouped(records: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (kind, content), where neighbouring metrics are one: ``records``, a list."""
    for kind, group in itertools.groupby(records, key=lambda record: record.pop("kind")):
        if kind == "metrics":
            yield kind, {"records": list(group)}
        else:
            yield from ((kind, record) for record in group)


def _find_run(client: Any, experiment_id: str, key: str) -> Any:
    """The run of that name on our side, or None where the store has none."""
    found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0] if found else None


def _active_run(client: Any, run_id: str) -> Any:
    """The run, or None where the store has none of that id any more."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _experiment_id(client: Any, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # somebody else was faster
    return str(experiment.experiment_id)
