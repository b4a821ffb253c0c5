"""What an evaluation came to: said on the console, and told to the MLflow run of the training."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from pipeline.handlers.checkpoint import load_checkpoint
from pipeline.handlers.mlflow_journal import RUN_FILE, UNSENT_FOLDER, Journal, RunRecord
from pipeline.handlers.mlflow_rules import clean_key, resolve_tracking_uri, without_credentials
from pipeline.handlers.mlflow_sender import RunSender, prepare_environment
from pipeline.handlers.tables import ScoreTable

logger = logging.getLogger(__name__)

# What the other handlers of an evaluation write, below its folder.
PLACES = {
    "scores per slice": "cases.csv",
    "summary": "summary.md",
    "summary as JSON": "summary.json",
    "error maps": "pictures/error_maps.png",
}


class EvaluationReport:
    """Say what an evaluation came to and where its files are, and add it to the MLflow run of the training.

    Prints prediction and baselines side by side. Then, if ``run_dir`` holds the record of a tracked run and the
    checkpoint is that run's, that run gets each metric as ``<split>/<metric>`` at the iteration of the checkpoint, and
    the tables and pictures as artifacts. Its status and its other entries stay as they are. A store that cannot be
    reached costs a warning: what is unsent is kept, and sent by the next training or evaluation of that folder.

    Attach it behind the handlers that write the files.

    Args:
        output_dir: where `CaseTable` and `EvaluationPictures` write.
        checkpoint: the file that is evaluated.
        split: which list of the data set is evaluated.
        run_dir: folder of the training run; None tells MLflow nothing.
        tracking_uri: ``"none"`` tells MLflow nothing; else only taken for its user name and password, since the store
            is the one of the training. None takes the environment variable ``MLFLOW_TRACKING_URI``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        checkpoint: str | Path,
        split: str = "test",
        run_dir: str | Path | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.checkpoint = Path(checkpoint).expanduser().absolute()
        self.split = split
        self.run_dir = None if run_dir is None else Path(run_dir).expanduser().absolute()
        self.tracking_uri = tracking_uri

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print the scores, then tell MLflow."""
        tqdm.write(self.text(engine), file=sys.stdout)
        try:
            self._track(engine)
        except Exception as error:  # of whatever kind: the evaluation itself is complete
            logger.warning("MLflow was not told of this evaluation: %s", error)

    def text(self, engine: Engine) -> str:
        """What is printed, for an evaluator in the state that it is in."""
        slices = len(engine.state.case_ids)
        patients = len({case for case, _ in engine.state.case_ids})
        title = f"{self.split.capitalize()}: {slices} slices of {patients} patients, translated by {self.checkpoint}"
        width = max(len(label) for label in PLACES) + 1
        where = [
            f"{(label + ':').ljust(width)} {self.output_dir / name}"
            for label, name in PLACES.items()
            if (self.output_dir / name).is_file()
        ]
        return "\n".join(["", f"{title}:", "", ScoreTable(engine.state.metrics).text(), "", *where])

    def _track(self, engine: Engine) -> None:
        record = None if self.run_dir is None else RunRecord.load(self.run_dir / RUN_FILE)
        if record is None or self.run_dir is None:
            return
        uri = resolve_tracking_uri(self.tracking_uri, record.tracking_uri)
        if uri is None:
            return
        if not self.checkpoint.is_relative_to(self.run_dir):
            logger.info("MLflow is not told: %s is not of the run in %s", self.checkpoint, self.run_dir)
            return
        journal = Journal(self.run_dir / UNSENT_FOLDER / record.key, record)
        try:
            self._write(journal, engine)
            self._send(journal, uri if without_credentials(uri) == record.tracking_uri else record.tracking_uri)
        finally:
            journal.close()

    def _write(self, journal: Journal, engine: Engine) -> None:
        step = load_checkpoint(self.checkpoint).get("trainer", {}).get("iteration", 0)
        metrics = {clean_key(f"{self.split}/{name}"): [float(value)] for name, value in engine.state.metrics.items()}
        journal.append("metrics", time=int(time.time() * 1000), steps=[step], values=metrics)
        journal.append("tags", values={f"{self.split}.checkpoint": str(self.checkpoint)})
        for path in (self.output_dir / name for name in PLACES.values()):
            if path.is_file():
                folder = Path(self.output_dir.name, path.relative_to(self.output_dir)).parent
                journal.append_file(path, folder.as_posix())

    def _send(self, journal: Journal, uri: str) -> None:
        prepare_environment()
        sender = _RepeatingSender(journal, uri, f"{self.split}/")
        try:
            sender.deliver()
            sender.end_as_killed()  # the lock was free: a training that still counts as running is dead
        except Exception as error:
            logger.warning(
                "MLflow store %s cannot be used: %s. What is unsent is kept in %s and sent by the next training or "
                "evaluation of that folder",
                without_credentials(uri),
                error,
                journal.folder,
            )
            return
        logger.info("added to MLflow run %s in %s", journal.record.run_id, without_credentials(uri))


class _RepeatingSender(RunSender):
    """Sends an evaluation's scores also where that checkpoint was evaluated before: data or settings may have changed.

    Args:
        journal: the records.
        tracking_uri: the store.
        prefix: how the names of the evaluation's metrics begin.
    """

    def __init__(self, journal: Journal, tracking_uri: str, prefix: str) -> None:
        super().__init__(journal, tracking_uri)
        self._prefix = prefix

    def _adopt(self, run: Any) -> None:
        super()._adopt(run)
        self._last_steps = {key: step for key, step in self._last_steps.items() if not key.startswith(self._prefix)}
