"""A study in MLflow: one parent run that carries the summary, and each cell's run below it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bundle import project_dir
from pipeline.studies.noise.grid import Cell, Study
from pipeline.tracking import MLflowRun
from pipeline.tracking.journal import RUN_FILE
from pipeline.tracking.rules import without_credentials
from pipeline.tracking.sender import PARENT_TAG

PATIENCE = 90.0  # seconds to wait for the store; a new database takes some


class StudyTracker(MLflowRun):
    """Tells MLflow about a study. A store that does not answer costs the cells their parent, nothing else.

    Args:
        study: its name is the experiment's.
        output_dir: folder of the study. If it holds the record of a run, that run is continued.
        tracking_uri: see `MLflowRun`; "none" turns tracking off, for the cells as well.
        facts: further parameters of the parent run.
    """

    def __init__(
        self, study: Study, output_dir: Path, tracking_uri: str | None, facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(
            output_dir,
            tracking_uri,
            default_store=project_dir() / "outputs" / "mlflow.db",
            experiment_name=study.name,
            run_name=f"{study.name} (study)",
            params={**study.describe(), **(facts or {})},
            tags={"study": study.name},
            resume=(output_dir / RUN_FILE).is_file(),
        )
        if tracking_uri is not None and without_credentials(tracking_uri) != tracking_uri:
            os.environ["MLFLOW_TRACKING_URI"] = tracking_uri  # a cell's settings lie on disk
            tracking_uri = None
        self._study, self._given_uri = study, tracking_uri

    def start(self) -> None:
        """Begin the parent run, and wait until the store knows it."""
        super().start()
        deadline = time.monotonic() + PATIENCE
        while self.tracking_uri and self.run_id is None and not self.unreachable and time.monotonic() < deadline:
            time.sleep(0.1)

    def run_settings(self, cell: Cell) -> dict[str, Any]:
        """What a cell's config is told, so that its run lies below the parent."""
        settings: dict[str, Any] = {"experiment_name": self._study.name, "tracking_uri": self._given_uri}
        if self._given_uri is None and self.tracking_uri is None:
            settings["tracking_uri"] = "none"
        settings["tracker#tags#study"] = self._study.name
        settings["tracker#tags#noise_kind"] = cell.noise_kind
        if self.run_id is not None:
            settings[f"tracker#tags#{PARENT_TAG}"] = self.run_id
        return settings

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        """Add the summary and the report to the parent run, and end it.

        Args:
            summary: numbers by name, such as ``psnr/reggan/affine5``.
            files: of the report, below the study's folder.
        """
        self.log_metrics(summary)
        for path in files:
            folder = path.resolve().relative_to(self.output_dir).parent.as_posix()
            self.log_artifact(path, None if folder == "." else folder)
        self.close("FINISHED")
