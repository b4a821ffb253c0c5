"""One run in MLflow, told of without slowing the work down and without ever stopping it."""

from __future__ import annotations

import atexit
import functools
import getpass
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

from pipeline.ending import SigtermGuard, Terminated
from pipeline.provenance import environment, flatten, git_state, redact, source_name
from pipeline.tracking.journal import RUN_FILE, UNSENT_FOLDER, Journal, RunRecord
from pipeline.tracking.rules import (
    PARAM_LENGTH,
    TAG_LENGTH,
    clean_key,
    clean_values,
    dataset_input,
    resolve_tracking_uri,
    sqlite_path,
    without_credentials,
)
from pipeline.tracking.sender import ERROR_TAG, RunSender, SendingThread, prepare_environment

logger = logging.getLogger(__name__)

ARTIFACT_FOLDER = "mlartifacts"  # beside an SQLite store
STATUSES = ("FINISHED", "FAILED", "KILLED")
SILENT_SERVER = 10.0
KILLED, KILLED_BESIDE_A_FILE = 3.5, 20.0
CHARTS = "compareRunsMode=CHART&workflowType=machine_learning"
LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` is found


class HowToLook:
    """How to see a run beside the others of its experiment, whose id is known once the store has been reached.

    Args:
        run: the run.
    """

    def __init__(self, run: MLflowRun) -> None:
        self._run = run

    def __str__(self) -> str:
        uri, experiment = self._run.tracking_uri or "", self._run.experiment_id
        page = f"#/experiments/{experiment}/runs?{CHARTS}" if experiment is not None else ""
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/{page}" if page else uri
        command = f"mlflow ui --workers 1 --backend-store-uri {uri}"
        return f"{command}, then {LOCAL}/{page}"


class MLflowRun:
    """Tells MLflow about one piece of work.

    Into one MLflow run go: the settings as parameters; numbers by step; software, machine and git commit as tags;
    files; and how it ended, FINISHED, FAILED (with the error as a tag) or KILLED (Ctrl-C or SIGTERM).

    All that is said is appended to a journal below ``output_dir`` (see `pipeline.tracking.journal`), and a thread
    sends it in batches. So no step waits for the store, which may even be gone: that is warned of once, and the
    values are sent when it is back, at the end, or by the next run with this ``output_dir``.

    Each run has an MLflow run of its own. Only ``resume=True`` continues one: the run named by ``mlflow_run.json`` in
    ``output_dir``, if it is in the same store. Steps that a resumed run replays are not sent twice.

    Call `start`, `log_metrics`, `log_artifact` and `close`. In distributed training only the process of rank 0 tracks.

    The MLflow variables in `pipeline.tracking.sender.ENVIRONMENT_DEFAULTS` are set unless they are set already:
    telemetry off, and short waits for a server that does not answer.

    Args:
        output_dir: output directory of the run.
        tracking_uri: MLflow store, such as ``sqlite:////data/mlflow.db`` or ``http://host:5000``. None takes the
            environment variable ``MLFLOW_TRACKING_URI``, and if that is not set ``default_store``. ``"none"`` or an
            empty string turns tracking off.
        default_store: store, or path of an SQLite file; ``mlflow.db`` in ``output_dir`` if None. The folder
            ``mlartifacts`` beside an SQLite file takes its artifacts.
        experiment_name: MLflow experiment, made if it is missing.
        run_name: name of the run; MLflow makes one up if None.
        params: settings, already resolved; nested ones get dotted names.
        tags: more tags.
        dataset: the data set, as `log_dataset` takes it.
        resume: whether the run is continued from a checkpoint.
        artifacts: files and folders below ``output_dir`` to send, new and changed files at each `log_new_files` and at
            the end of the run.
        device: where the work is done, for the tags.
        send_interval: seconds between two deliveries to the store.
        close_timeout: seconds that the end of the run waits for the last delivery. A server that has not answered gets
            `SILENT_SERVER` seconds at most, and a run that is killed waits `KILLED` seconds for a server.

    Raises:
        ValueError: the store is of a kind that cannot be used, or a duration is not positive.
    """

    def __init__(
        self,
        output_dir: str | Path,
        tracking_uri: str | None = None,
        default_store: str | Path | None = None,
        experiment_name: str = "reggan",
        run_name: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        resume: bool = False,
        artifacts: Sequence[str] = (),
        device: torch.device | None = None,
        send_interval: float = 5.0,
        close_timeout: float = 60.0,
    ) -> None:
        for name, duration in (("send_interval", send_interval), ("close_timeout", close_timeout)):
            if duration <= 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {duration}")
        self.output_dir = Path(output_dir).resolve()
        self._uri = resolve_tracking_uri(tracking_uri, default_store or self.output_dir / "mlflow.db")
        if self._uri is not None and without_credentials(self._uri) != self._uri:
            logger.info(
                "user name and password of tracking_uri are written nowhere: to resume, give them again. Better, set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: what is on a command line others can see"
            )
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._params = dict(params or {})
        self._tags = dict(tags or {})
        self._dataset = dataset
        self._resume = resume
        self._artifacts = tuple(artifacts)
        self._device = device
        self._send_interval = send_interval
        self._close_timeout = close_timeout
        self._journal: Journal | None = None
        self._thread: SendingThread | None = None
        self._record: RunRecord | None = None
        self._sigterm = SigtermGuard()
        self._sent_files: dict[str, tuple[int, int]] = {}
        self._unended = "FINISHED"  # what a run is that nobody closed before the process ended

    @property
    def tracking_uri(self) -> str | None:
        """The store, without user name and password; None if tracking is off."""
        return None if self._uri is None else without_credentials(self._uri)

    @property
    def how_to_look(self) -> HowToLook | None:
        """Says, as a text, how to see the experiment's charts in a browser; None if tracking is off."""
        return None if self.tracking_uri is None else HowToLook(self)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store has been reached."""
        return None if self._record is None else self._record.run_id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None until the store has been reached."""
        return None if self._record is None else self._record.experiment_id

    @property
    def unreachable(self) -> bool:
        """Whether the store has been asked in vain more than once."""
        return self._thread is not None and self._thread.unreachable

    def start(self) -> None:
        """Begins the run; does nothing if it has begun or if tracking is off."""
        if self._uri is None or self._journal is not None or idist.get_rank() != 0:
            return
        try:
            self._journal, resumed = self._open_journal(self._uri)
        except OSError as error:
            logger.warning("this run is not tracked by MLflow: %s cannot be written to: %s", self.output_dir, error)
            return
        self._record = self._journal.record
        prepare_environment()
        if resumed:
            self._say("resume")
        self._say("params", values=clean_values(flatten(self._params), PARAM_LENGTH))
        if self._dataset is not None:
            self.log_dataset(self._dataset)
        sender = RunSender(self._journal, self._uri)
        describe = functools.partial(self._describe, self._journal)
        self._thread = SendingThread(sender, self.output_dir, self._send_interval, describe)
        self._thread.start()
        self._sigterm.install()
        atexit.register(self._close_at_exit)

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Logs numbers.

        Args:
            metrics: name -> number or tensor of one element; other values are left out.
            step: step on MLflow's axis.
        """
        numbers = {name: as_float(value) for name, value in metrics.items()}
        self.log_series([step], {name: [number] for name, number in numbers.items() if number is not None})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Sends a file.

        Args:
            path: the file; a relative path is one below the output directory. It may be moved or deleted afterwards.
            folder: folder among the artifacts; its root if None.
        """
        if self._journal is not None:
            self._journal.append_file(self.output_dir / path, folder)

    def log_dataset(self, dataset: Mapping[str, Any], context: str = "training") -> None:
        """Says which data set is used; its digest is also a tag of the run, ``dataset.digest``.

        Args:
            dataset: ``name``, of its folder, ``digest``, SHA-256 or None, and ``pairs``, their number by split, as
                `pipeline.data.Cases.describe` gives them.
            context: what for: "training", "validation" or "testing".
        """
        self._say("inputs", **dataset_input(dataset, context))
        if dataset.get("digest"):
            self.log_tags({"dataset.digest": dataset["digest"]})

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags."""
        self._say("tags", values=clean_values(flatten(tags), TAG_LENGTH))

    def close(self, status: str = "FINISHED", error: BaseException | None = None) -> None:
        """Ends the run; waits for the last delivery, but no longer than ``close_timeout``.

        Args:
            status: FINISHED, FAILED or KILLED.
            error: why it failed.

        Raises:
            ValueError: the status is none of these.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        if self._journal is None or self._thread is None:
            return
        if error is not None:
            self.log_tags({ERROR_TAG: f"{type(error).__name__}: {error}"})
        self.log_new_files()
        self._say("end", status=status, time=now())
        # From here on the thread owns the journal.
        thread, self._thread, self._journal = self._thread, None, None
        atexit.unregister(self._close_at_exit)
        try:
            thread.close(min(self._close_timeout, self._patience(thread, status)))
        finally:
            self._sigterm.remove()

    def _patience(self, thread: SendingThread, status: str) -> float:
        """Seconds that are spent on the last delivery, whatever `close_timeout` allows."""
        if status == "KILLED":  # whoever ends a process kills it soon
            return KILLED if sqlite_path(str(self._uri)) is None else KILLED_BESIDE_A_FILE
        away = str(self._uri).startswith("http") and not thread.healthy
        return SILENT_SERVER if away else self._close_timeout

    def _open_journal(self, uri: str) -> tuple[Journal, bool]:
        """The journal of the run to continue, or of a new one; and whether it continues one."""
        run_file = self.output_dir / RUN_FILE
        unsent = self.output_dir / UNSENT_FOLDER
        record = RunRecord.load(run_file) if self._resume else None
        if record is not None and record.tracking_uri != without_credentials(uri):
            logger.warning("the run to resume is tracked in %s, the rest of it in %s", record.tracking_uri, redact(uri))
            record = None
        if record is not None:
            try:
                return Journal(unsent / record.key, record, run_file), True
            except BlockingIOError as error:
                logger.warning("a new MLflow run is begun: %s", error)
        record = self._new_record(uri)
        return Journal(unsent / record.key, record, run_file), False

    def _new_record(self, uri: str) -> RunRecord:
        database = sqlite_path(uri)
        return RunRecord(
            tracking_uri=without_credentials(uri),
            experiment=self._experiment_name,
            artifact_location=None if database is None else (database.parent / ARTIFACT_FOLDER).as_uri(),
            run_name=self._run_name,
        )

    def _describe(self, journal: Journal) -> None:
        """Tags the run with its origin; calls git, so it belongs into the thread."""
        try:
            tags: dict[str, Any] = {f"env.{name}": value for name, value in environment(self._device).items()}
            tags |= {
                "mlflow.source.name": source_name(),
                "mlflow.source.type": "LOCAL",
                "mlflow.user": getpass.getuser(),
            }
            state = git_state(Path(__file__).resolve())
            if state is not None:
                tags |= {"mlflow.source.git.commit": state[0], "git.commit": state[0], "git.dirty": state[1]}
            journal.append("tags", values=clean_values(flatten(tags | self._tags), TAG_LENGTH))
        except Exception as error:
            logger.warning("the origin of the run could not be told to MLflow: %s", error)

    def close_after(self, error: BaseException) -> None:
        """Ends a run that an error has stopped: as KILLED by who asked for it, else as FAILED."""
        if isinstance(error, (KeyboardInterrupt, Terminated, GeneratorExit)):
            self.close("KILLED")
        else:
            self.close("FAILED", error)

    def _close_at_exit(self) -> None:
        """Ends a run that nobody has ended."""
        error = getattr(sys, "last_value", None)
        if error is not None:
            self.close_after(error)
        else:
            self.close(self._unended)

    def log_new_files(self) -> None:
        """Sends those of the artifacts that are new or have changed."""
        for name in self._artifacts:
            top = self.output_dir / name
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.is_file() and not path.name.startswith("."):
                    self._log_file_once(path)

    def _log_file_once(self, path: Path) -> None:
        relative = path.relative_to(self.output_dir)
        status = path.stat()
        if self._sent_files.get(str(relative)) == (status.st_mtime_ns, status.st_size):
            return
        self._sent_files[str(relative)] = (status.st_mtime_ns, status.st_size)
        folder = relative.parent.as_posix()
        self.log_artifact(relative, None if folder == "." else folder)

    def log_series(self, steps: list[int], values: Mapping[str, list[float]]) -> None:
        """Logs numbers by name, one for each step."""
        if values:
            named = {clean_key(name): numbers for name, numbers in values.items()}
            self._say("metrics", time=now(), steps=steps, values=named)

    def _say(self, kind: str, **content: Any) -> None:
        if self._journal is not None:
            self._journal.append(kind, **content)


def as_float(value: Any) -> float | None:
    """The number that a number or a tensor of one element is; None for anything else."""
    if isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # NumPy's and PyTorch's words for "more than one element"
        return None


def now() -> int:
    """Milliseconds since the epoch, MLflow's clock."""
    return int(time.time() * 1000)
