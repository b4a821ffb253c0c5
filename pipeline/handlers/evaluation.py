"""What an evaluation came to: said on the console, and told to MLflow, in a run of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from pipeline.handlers.mlflow_journal import RUN_FILE, UNSENT_FOLDER, Journal, RunRecord
from pipeline.handlers.mlflow_rules import PARAM_LENGTH, clean_values, resolve_tracking_uri, without_credentials
from pipeline.handlers.tables import VOLUME, VOLUME_METRICS, ScoreTable
from pipeline.handlers.tracking import MLflowTracker, as_float
from pipeline.models import file_digest
from pipeline.provenance import flatten

logger = logging.getLogger(__name__)

# What the other handlers of an evaluation write, below its folder.
PLACES = {
    "scores per volume": "volumes.csv",
    "scores per slice": "cases.csv",
    "summary": "summary.md",
    "summary as JSON": "summary.json",
    "error maps": "pictures/error_maps.png",
}

# MLflow's words for what a data set is used for, by split.
CONTEXTS = {"test": "testing"}


class EvaluationReport:
    """Say what an evaluation came to and where its files are, and tell MLflow, in a run of its own.

    Prints prediction and baselines side by side, of whole volumes and then of slices. Then, if ``run_dir`` holds the
    record of a tracked training and the checkpoint is that training's, the evaluation becomes a run below that of the
    training, which stays as it is. Its name is like ``reggan: test of best.pt``, and it holds:

    - all parameters of the training, and of its own ``split``, ``checkpoint``, ``evaluated_noise_level``,
      ``evaluated_noise_kind``, ``dataset`` and ``dataset_digest``;
    - each metric as ``<split>/<metric>`` at the iteration of the checkpoint;
    - the data set, the tables and pictures, and where it comes from: checkpoint, software, machine and git commit.

    So two evaluations never share a curve. The very same one (checkpoint, settings, data and scores are equal) is no
    second run: it refreshes the first. A store that cannot be reached costs a warning: what is unsent is kept, and sent
    by the next training or evaluation of that folder, the training's own run first.

    Attach it behind the handlers that write the files.

    Args:
        output_dir: where `CaseTable` and `EvaluationPictures` write.
        checkpoint: the file that is evaluated.
        split: which list of the data set is evaluated.
        run_dir: folder of the training run; None if there is none.
        tracking_uri: ``"none"`` tells MLflow nothing. The store is that of the training; only user name and password
            are taken from here, or, if it is None, from the environment variable ``MLFLOW_TRACKING_URI``. Where there
            is no tracked training, None tells MLflow nothing, and a store gets a run without a parent.
        experiment_name: MLflow experiment of a run without a parent.
        dataset: ``name``, of the data set's folder, ``digest``, SHA-256 or None, and ``pairs``, their number by split,
            as `pipeline.data.Cases.describe` gives them.
        noise: ``level`` and ``kind`` of the misalignment that the registration network is measured on.
        params: further parameters of a run without a parent.
        step: of the training that the checkpoint is of, the place of the scores on MLflow's axis.
    """

    def __init__(
        self,
        output_dir: str | Path,
        checkpoint: str | Path,
        split: str = "test",
        run_dir: str | Path | None = None,
        tracking_uri: str | None = None,
        experiment_name: str = "reggan",
        dataset: Mapping[str, Any] | None = None,
        noise: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.checkpoint = Path(checkpoint).expanduser().absolute()
        self.split = split
        self.run_dir = None if run_dir is None else Path(run_dir).expanduser().absolute()
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.dataset = dataset
        self.noise = noise
        self.params = params
        self.step = step or 0
        self._start_time = _now()

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._on_started)
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
        of = "" if self.dataset is None else f" of {self.dataset['name']}"
        lines = ["", f"{self.split.capitalize()} cases{of}, translated by {self.checkpoint}"]
        volumes = getattr(engine.state, "volumes", None)
        if volumes:
            count = len({row["case"] for row in volumes})
            scores = {
                name.removeprefix(VOLUME): value
                for name, value in engine.state.metrics.items()
                if name.startswith(VOLUME)
            }
            lines += ["", f"{len(volumes)} whole volumes of {count} patients, in physical units:", ""]
            lines.append(ScoreTable(scores, VOLUME_METRICS).text())
        width = max(len(label) for label in PLACES) + 1
        where = [
            f"{(label + ':').ljust(width)} {self.output_dir / name}"
            for label, name in PLACES.items()
            if (self.output_dir / name).is_file()
        ]
        lines += ["", f"{slices} slices of {patients} patients, at the size of the training, scaled to [-1, 1]:", ""]
        return "\n".join([*lines, ScoreTable(engine.state.metrics).text(), "", *where])

    def _on_started(self, engine: Engine) -> None:
        self._start_time = _now()

    def _track(self, engine: Engine) -> None:
        training = self._training()
        uri = self._store(training)
        if uri is None:
            return
        digest = file_digest(self.checkpoint)
        params = self._own_params()
        metrics = {f"{self.split}/{name}": as_float(value) for name, value in sorted(engine.state.metrics.items())}
        # The scores are among what makes it the same evaluation: whatever else changed, such as code, shows in them.
        identity = json.dumps([training and training.key, digest, params, metrics], default=str)
        tracker = _EvaluationTracker(
            {
                "key": hashlib.sha256(identity.encode()).hexdigest()[:32],
                "start_time": self._start_time,
                "parent": training and training.key,
            },
            getattr(engine.state, "device", None),
            output_dir=self.run_dir or self.output_dir,
            tracking_uri=uri,
            experiment_name=self.experiment_name if training is None else training.experiment,
            run_name=self._run_name(training),
            params=params,
            tags={"checkpoint": self.checkpoint, "checkpoint.sha256": digest},
        )
        tracker.start()
        tracker.inherit(self.params or {})
        if self.dataset is not None:
            tracker.log_dataset(self.dataset, CONTEXTS.get(self.split, self.split))
        tracker.log_metrics(metrics, self.step)
        for path in (self.output_dir / name for name in PLACES.values()):
            if path.is_file():
                folder = Path(self.output_dir.name, path.relative_to(self.output_dir)).parent
                tracker.log_artifact(path, folder.as_posix())
        tracker.close()
        if tracker.run_id is not None:
            logger.info("this evaluation is MLflow run %s in %s", tracker.run_id, tracker.tracking_uri)

    def _training(self) -> RunRecord | None:
        """The record of the training that the checkpoint is of, if that is tracked."""
        record = None if self.run_dir is None else RunRecord.load(self.run_dir / RUN_FILE)
        if record is None or self.run_dir is None or self.checkpoint.is_relative_to(self.run_dir):
            return record
        logger.info("%s is not of the run in %s", self.checkpoint, self.run_dir)
        return None

    def _store(self, training: RunRecord | None) -> str | None:
        if training is None:
            return None if self.tracking_uri is None else resolve_tracking_uri(self.tracking_uri, "")
        uri = resolve_tracking_uri(self.tracking_uri, training.tracking_uri)
        return uri if uri is None or without_credentials(uri) == training.tracking_uri else training.tracking_uri

    def _run_name(self, training: RunRecord | None) -> str:
        name = f"{self.split} of {self.checkpoint.name}"
        if training is None or self.run_dir is None:
            return name
        return f"{training.run_name or self.run_dir.name}: {name}"

    def _own_params(self) -> dict[str, Any]:
        dataset, noise = self.dataset or {}, self.noise or {}
        place = Path(self.checkpoint.name)
        if self.run_dir is not None and self.checkpoint.is_relative_to(self.run_dir):
            place = self.checkpoint.relative_to(self.run_dir)
        params = {
            "split": self.split,
            "checkpoint": place.as_posix(),
            "evaluated_noise_level": noise.get("level"),
            "evaluated_noise_kind": noise.get("kind"),
            "dataset": dataset.get("name"),
            "dataset_digest": dataset.get("digest"),
        }
        return {name: value for name, value in params.items() if value is not None}


class _EvaluationTracker(MLflowTracker):
    """Tells MLflow of an evaluation; the record in the folder stays that of the training.

    Args:
        record: what is the evaluation's own in its `RunRecord`.
        device: where the networks are.
        **options: of `MLflowTracker`.
    """

    def __init__(self, record: Mapping[str, Any], device: torch.device | None, **options: Any) -> None:
        super().__init__(**options)
        self._own_record = record
        self._device = device

    def inherit(self, params: Mapping[str, Any]) -> None:
        """Take over the parent's parameters, or the given ones where there is no parent."""
        self._say("inherit", values=clean_values(flatten(params), PARAM_LENGTH))

    def _open_journal(self, uri: str) -> tuple[Journal, bool]:
        record = replace(self._new_record(uri), **self._own_record)
        # As if resumed: the store may have had this very evaluation before, and each score is to be there once.
        return Journal(self.output_dir / UNSENT_FOLDER / record.key, record), True


def _now() -> int:
    return int(time.time() * 1000)
