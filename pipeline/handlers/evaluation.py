"""What an evaluation came to: said on the console, and told to MLflow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from pipeline.metrics.catalogue import VOLUME
from pipeline.reporting.tables import ScoreTable, volume_metrics
from pipeline.tracking import TrackedEvaluation, now

logger = logging.getLogger(__name__)

# What the other handlers of an evaluation write, below its folder.
PLACES = {
    "scores per volume": "volumes.csv",
    "scores per slice": "cases.csv",
    "summary": "summary.md",
    "summary as JSON": "summary.json",
    "error maps": "pictures/error_maps.png",
}


class EvaluationReport:
    """Say what an evaluation came to and where its files are, and tell MLflow.

    Prints prediction and baselines side by side, of whole volumes and then of slices. MLflow is told as
    `pipeline.tracking.TrackedEvaluation` does it.

    Attach it behind the handlers that write the files.

    Args:
        output_dir: where `CaseTable` and `EvaluationPictures` write.
        checkpoint: the file that is evaluated.
        split: which list of the data set is evaluated.
        dataset: its ``name`` is said; more of it is for MLflow.
        **tracking: of `TrackedEvaluation`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        checkpoint: str | Path,
        split: str = "test",
        dataset: Mapping[str, Any] | None = None,
        **tracking: Any,
    ) -> None:
        self.tracked = TrackedEvaluation(output_dir, checkpoint, split, dataset=dataset, **tracking)
        self.output_dir, self.checkpoint = self.tracked.output_dir, self.tracked.checkpoint
        self.split, self.dataset = split, dataset
        self._start_time = now()

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._on_started)
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print the scores, then tell MLflow."""
        tqdm.write(self.text(engine), file=sys.stdout)
        try:
            device = getattr(engine.state, "device", None)
            self.tracked.tell(engine.state.metrics, self._files().values(), self._start_time, device)
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
            lines.append(ScoreTable(scores, volume_metrics(scores)).text())
        width = max(len(label) for label in PLACES) + 1
        where = [f"{(label + ':').ljust(width)} {path}" for label, path in self._files().items()]
        lines += ["", f"{slices} slices of {patients} patients, at the size of the training, scaled to [-1, 1]:", ""]
        return "\n".join([*lines, ScoreTable(engine.state.metrics).text(), "", *where])

    def _on_started(self, engine: Engine) -> None:
        self._start_time = now()

    def _files(self) -> dict[str, Path]:
        return {label: self.output_dir / name for label, name in PLACES.items() if (self.output_dir / name).is_file()}
