"""An evaluation as a run of its own in MLflow, below that of its training."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.models import file_digest
from pipeline.provenance import flatten
from pipeline.tracking.journal import RUN_FILE, UNSENT_FOLDER, Journal, RunRecord
from pipeline.tracking.rules import PARAM_LENGTH, clean_values, resolve_tracking_uri, without_credentials
from pipeline.tracking.run import MLflowRun, as_float

logger = logging.getLogger(__name__)

# MLflow's words for what a data set is used for, by split.
CONTEXTS = {"test": "testing"}


class TrackedEvaluation:
    """Tell MLflow of an evaluation.

    If ``run_dir`` holds the record of a tracked training and the checkpoint is that training's, the evaluation becomes
    a run below that of the training, which stays as it is. Its name is like ``reggan: test of best.pt``, and it holds:

    - all parameters of the training, and of its own ``split``, ``checkpoint``, ``evaluated_noise_level``,
      ``evaluated_noise_kind`` (and ``..._amplitude``, where it is not affine), ``dataset`` and ``dataset_digest``;
    - each metric as ``<split>/<metric>`` at the iteration of the checkpoint;
    - the data set, the tables and pictures, and where it comes from: checkpoint, software, machine and git commit.

    So two evaluations never share a curve. The very same one (checkpoint, settings, data and scores are equal) is no
    second run: it refreshes the first. A store that cannot be reached costs a warning: what is unsent is kept, and sent
    by the next training or evaluation of that folder, the training's own run first.

    Args:
        output_dir: of the evaluation.
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

    def tell(
        self, metrics: Mapping[str, Any], files: Iterable[Path], start_time: int, device: torch.device | None
    ) -> None:
        """Tell what it came to.

        Args:
            metrics: numbers by name.
            files: below the output directory.
            start_time: of the evaluation, in milliseconds since the epoch.
            device: that it ran on.
        """
        training = self._training()
        uri = self._store(training)
        if uri is None:
            return
        digest = file_digest(self.checkpoint)
        params = self._own_params()
        scores = {f"{self.split}/{name}": as_float(value) for name, value in sorted(metrics.items())}
        # The scores are among what makes it the same evaluation: whatever else changed, such as code, shows in them.
        identity = json.dumps([training and training.key, digest, params, scores], default=str)
        run = _EvaluationRun(
            {
                "key": hashlib.sha256(identity.encode()).hexdigest()[:32],
                "start_time": start_time,
                "parent": training and training.key,
            },
            device=device,
            output_dir=self.run_dir or self.output_dir,
            tracking_uri=uri,
            experiment_name=self.experiment_name if training is None else training.experiment,
            run_name=self._run_name(training),
            params=params,
            tags={"checkpoint": self.checkpoint, "checkpoint.sha256": digest},
        )
        run.start()
        run.inherit(self.params or {})
        if self.dataset is not None:
            run.log_dataset(self.dataset, CONTEXTS.get(self.split, self.split))
        run.log_metrics(scores, self.step)
        for path in files:
            folder = Path(self.output_dir.name, path.relative_to(self.output_dir)).parent
            run.log_artifact(path, folder.as_posix())
        run.close()
        if run.run_id is not None:
            logger.info("this evaluation is MLflow run %s in %s: %s", run.run_id, run.tracking_uri, run.how_to_look)

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
            "evaluated_noise_amplitude": noise.get("amplitude") if noise.get("kind") == "nonaffine" else None,
            "dataset": dataset.get("name"),
            "dataset_digest": dataset.get("digest"),
        }
        return {name: value for name, value in params.items() if value is not None}


class _EvaluationRun(MLflowRun):
    """Tells MLflow of an evaluation; the record in the folder stays that of the training.

    Args:
        record: what is the evaluation's own in its `RunRecord`.
        **options: of `MLflowRun`.
    """

    def __init__(self, record: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self._own_record = record

    def inherit(self, params: Mapping[str, Any]) -> None:
        """Take over the parent's parameters, or the given ones where there is no parent."""
        self._say("inherit", values=clean_values(flatten(params), PARAM_LENGTH))

    def _open_journal(self, uri: str) -> tuple[Journal, bool]:
        record = replace(self._new_record(uri), **self._own_record)
        # As if resumed: the store may have had this very evaluation before, and each score is to be there once.
        return Journal(self.output_dir / UNSENT_FOLDER / record.key, record), True
