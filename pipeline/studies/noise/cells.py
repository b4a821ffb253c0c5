"""One cell of a study: a training and its evaluation, in a process of its own.

``python -m pipeline.studies.noise.cells FOLDER PARENT`` does what ``FOLDER/cell.json`` says, while the process PARENT
lives. A cell that was stopped goes on from its last checkpoint, and ends with the very numbers of one that was not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events

from pipeline.errors import cause
from pipeline.files import ProcessLock, replacing
from pipeline.jobs import end_with_parent, interrupt, start_module
from pipeline.models import LAST
from pipeline.provenance import git_state
from pipeline.workflow import ConfigWorkflow, run_chain

CELL_FILE, DONE_FILE, PROGRESS_FILE, ERROR_FILE, LOG_FILE = "cell.json", "done.json", "progress", "error.txt", "log.txt"
LOCK_FILE, STOP_FILE = ".cell.lock", ".stop"
CASES = Path("evaluation", "cases.csv")
SAMPLES = Path("evaluation", "samples.npz")
PROGRESS_INTERVAL = 1.0  # seconds
# How long a cell waits for the process of a killed study that still holds its folder; that one ends at its next step.
PATIENCE = 120.0
EVALUATION_SHARE = 0.03  # of a cell's time, roughly
WATCH_INTERVAL = 0.2  # seconds
GRACE = 60.0  # seconds that an interrupted cell has to end its MLflow run


def run_apart(folder: str, content: Mapping[str, Any], environment: Mapping[str, str], device: str) -> int:
    """Run a cell in a process of its own, and wait for its end, or for a file ``.stop`` in its folder.

    Args:
        folder: of the cell.
        content: of its ``cell.json``, but for the device.
        environment: of the process, beside that of this one.
        device: that the cell runs on.

    Returns:
        The exit code of the process.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / CELL_FILE) as path:
        written = {**content, "run": {**content["run"], "device": device}}
        path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    process = start_module(__name__, folder, log=place / LOG_FILE, environment=environment)
    while process.poll() is None:
        if (place / STOP_FILE).exists():
            interrupt(process, GRACE)
        time.sleep(WATCH_INTERVAL)
    return process.returncode


def run_cell(folder: Path, parent: int) -> None:
    """Train what is left to train, evaluate, and say that it is done.

    Args:
        folder: of the cell; its ``cell.json`` holds ``chain``, the configs to train with, ``settings`` for all of them,
            ``run``, further settings of this training and evaluation alone, and ``split``.
        parent: id of the process that this one shall not outlive.

    Raises:
        TimeoutError: if another process does not let go of the folder.
        Exception: whatever the bundle raises.
    """
    cell = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))
    with ProcessLock(folder / LOCK_FILE).waiting(PATIENCE):
        if is_finished(folder):
            return
        (folder / ERROR_FILE).unlink(missing_ok=True)
        end_with_parent(parent)
        progress = Progress(folder)
        settings = {**cell["settings"], **cell["run"], "output_dir": str(folder)}
        steps = train(cell["chain"], settings, folder, progress)
        evaluate(cell["chain"], settings, folder, cell["split"])
        progress.write(1.0)
        state = git_state(Path(__file__).resolve())
        done = {
            "steps": steps,
            "seconds": round(progress.seconds, 1),
            "commit": None if state is None else state[0],
            "changed": None if state is None else state[1],
        }
        with replacing(folder / DONE_FILE) as path:
            path.write_text(json.dumps(done) + "\n", encoding="utf-8")


def train(chain: Sequence[str], settings: Mapping[str, Any], folder: Path, progress: Progress) -> int:
    """Train, from the last checkpoint where there is one; returns the number of steps."""
    workflow = ConfigWorkflow(chain, **settings, resume=last_checkpoint(folder).is_file())
    workflow.initialize()
    trainer: Engine = workflow.part("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, progress)
    workflow.run()
    progress.write(1 - EVALUATION_SHARE)
    return int(trainer.state.iteration)


def evaluate(chain: Sequence[str], settings: Mapping[str, Any], folder: Path, split: str) -> None:
    """Score the last checkpoint on aligned pairs; the best one would have been chosen by looking at others."""
    run_chain(
        [*chain, "evaluate.json"],
        **settings,
        split=split,
        checkpoint=str(last_checkpoint(folder)),
    )


def last_checkpoint(folder: Path) -> Path:
    """File that a cell goes on from, and that is scored; there once the first has been written."""
    return folder / "checkpoints" / LAST


def is_finished(folder: Path) -> bool:
    """Whether the cell of a folder is trained and evaluated."""
    return (folder / DONE_FILE).is_file()


def read_done(folder: Path) -> dict[str, Any]:
    """What a finished cell says of its run: ``steps``, ``seconds`` in all its processes, ``commit``, ``changed``."""
    return json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))


def read_cases(folder: Path) -> pd.DataFrame:
    """The scores of a finished cell, one row per slice, with the cell's coordinates in front.

    Returns:
        Columns ``method``, ``noise_level``, ``noise_kind``, ``seed``, ``dataset``, ``case``, ``slice``, and one per
        metric.
    """
    cell = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))["cell"]
    cases = pd.read_csv(folder / CASES, dtype={"case": str})
    for place, (name, value) in enumerate(cell.items()):
        cases.insert(place, name, value)
    return cases


class Progress:
    """Writes how far a cell is into a file, now and then; goes on where an earlier process stopped.

    Args:
        folder: of the cell.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before = read_progress(folder)[1]
        self._start = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent on the cell, by this process and those before it."""
        return self._before + time.monotonic() - self._start

    def __call__(self, engine: Engine) -> None:
        """Write the share of the iterations that are done, at most once a second."""
        if time.monotonic() - self._last >= PROGRESS_INTERVAL:
            total = engine.state.max_epochs * engine.state.epoch_length
            self.write((1 - EVALUATION_SHARE) * engine.state.iteration / total)

    def write(self, share: float) -> None:
        """Write a share of all the work, and the seconds spent on it."""
        self._last = time.monotonic()
        with replacing(self.folder / PROGRESS_FILE) as path:
            path.write_text(f"{share:.4f} {self.seconds:.1f}\n", encoding="utf-8")


def read_progress(folder: Path) -> tuple[float, float]:
    """Share of a cell's work that is done, and the seconds spent on it; zeros where it has not begun."""
    try:
        share, seconds = (folder / PROGRESS_FILE).read_text(encoding="utf-8").split()
        return float(share), float(seconds)
    except (OSError, ValueError):
        return 0.0, 0.0


def main(folder: str, parent: str) -> int:
    """Run the cell of that folder for the process of that id."""
    try:
        run_cell(Path(folder), int(parent))
    except Exception as error:
        with replacing(Path(folder) / ERROR_FILE) as path:
            path.write_text(f"{cause(error)}\n", encoding="utf-8")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
