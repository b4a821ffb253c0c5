"""Runs the cells of a study side by side, each in a process of its own; what is finished is not run again."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline.files import ProcessLock, replacing
from pipeline.metrics.catalogue import CATALOGUE
from pipeline.studies.noise.cells import (
    CELL_FILE,
    ERROR_FILE,
    LOG_FILE,
    is_finished,
    read_cases,
    read_done,
    read_progress,
)
from pipeline.studies.noise.grid import Cell, Study
from pipeline.studies.processes import interrupt, part_of_cores, start_module

STUDY_FILE, RESULTS_FILE, CELLS_FOLDER = "study.json", "results.csv", "cells"
POLL_INTERVAL = 0.2  # seconds
# Between two updates of the bar: in a terminal, and in a file, where each is a line more.
SHOW_INTERVAL = {True: 1.0, False: 60.0}
GRACE = 60.0  # seconds that interrupted cells have to end their MLflow runs


def cell_folder(study_folder: Path, cell: Cell) -> Path:
    """Folder of a cell in that of its study."""
    return study_folder / CELLS_FOLDER / cell.name


@dataclass
class _Running:
    """A cell at work."""

    cell: Cell
    slot: int
    process: subprocess.Popen[bytes]


class StudyRunner:
    """Run a study's cells, ``jobs`` at a time, and gather what they scored.

    A cell that breaks is reported, and does not stop the others. Stopped in whatever way and started again, the study
    goes on: finished cells are left as they are, begun ones continue from their last checkpoint, broken ones are tried
    again. On the same number of processor cores per job, the results are those of an undisturbed study.

    Args:
        study: what to run.
        output_dir: folder of the study; made where it is missing.
        jobs: cells at a time.
        devices: where they run, in turns, such as ``("cuda:0", "cuda:1")``. Jobs on the CPU get equal parts of the
            processor cores that this process may use, see `part_of_cores`.
        run_settings: makes the settings of a single cell's run, such as its MLflow parent; they are no part of what
            makes the cell what it is.

    Raises:
        ValueError: if ``jobs`` is not positive, or the folder holds cells of other settings.
        RuntimeError: if another process is running a study in the folder.
    """

    def __init__(
        self,
        study: Study,
        output_dir: str | Path,
        jobs: int = 1,
        devices: Sequence[str] = ("auto",),
        run_settings: Callable[[Cell], Mapping[str, Any]] = lambda cell: {},
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        if not devices:
            raise ValueError("devices must name at least one device, got none")
        self.study = study
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.jobs = jobs
        self.devices = tuple(devices)
        self.run_settings = run_settings
        self.cells = list(study.cells())
        self.failures: dict[Cell, str] = {}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._lock = ProcessLock(self.output_dir / ".lock")
        if not self._lock.acquire():
            raise RuntimeError(f"{self.output_dir} is in use by another running study; choose another output folder")
        try:
            self._check_cells()
        except ValueError:
            self._lock.release()
            raise
        with replacing(self.output_dir / STUDY_FILE) as path:
            path.write_text(json.dumps(study.describe(), indent=2) + "\n", encoding="utf-8")

    def folder(self, cell: Cell) -> Path:
        """Folder of a cell."""
        return cell_folder(self.output_dir, cell)

    def finished(self, cell: Cell) -> bool:
        """Whether a cell is trained and evaluated."""
        return is_finished(self.folder(cell))

    def run(self) -> None:
        """Run what is not finished. At Ctrl-C the cells at work are stopped in good order, and the study with them."""
        waiting = [cell for cell in self.cells if not self.finished(cell)]
        running: list[_Running] = []
        done = len(self.cells) - len(waiting)
        interval, shown = SHOW_INTERVAL[sys.stderr.isatty()], -math.inf
        try:
            with tqdm(total=len(self.cells), initial=done, desc=self.study.name, unit="cell", bar_format=BAR) as bar:
                while waiting or running:
                    free = sorted(set(range(self.jobs)) - {entry.slot for entry in running})
                    for slot in free[: len(waiting)]:
                        running.append(self._start(waiting.pop(0), slot))
                    time.sleep(POLL_INTERVAL)
                    for entry in [entry for entry in running if entry.process.poll() is not None]:
                        running.remove(entry)
                        self._note(entry, bar)
                    if time.monotonic() - shown >= interval or not (waiting or running):
                        shown = time.monotonic()
                        self._show(bar, waiting, running)
        finally:
            # As Ctrl-C would, so that their MLflow runs are ended.
            interrupt((entry.process for entry in running), GRACE)

    def results(self) -> pd.DataFrame:
        """The scores of all finished cells, one row per cell and slice; also written to ``results.csv``."""
        frames = [read_cases(self.folder(cell)) for cell in self.cells if self.finished(cell)]
        results = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        with replacing(self.output_dir / RESULTS_FILE) as path:
            results.to_csv(path, index=False, float_format="%.9g")
        return results

    def describe(self, cell: Cell) -> dict[str, Any]:
        """Everything that the cell's result depends on, safe for JSON."""
        content = {
            "cell": asdict(cell),
            "chain": self.study.chain(cell),
            "settings": self.study.run_settings(cell),
            "split": self.study.split,
        }
        return json.loads(json.dumps(content))

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def _check_cells(self) -> None:
        for cell in self.cells:
            path = self.folder(cell) / CELL_FILE
            if not path.is_file():
                continue
            there = json.loads(path.read_text(encoding="utf-8"))
            wanted = self.describe(cell)
            changed = _first_difference(there, wanted)
            if changed is not None:
                name, before, now = changed
                raise ValueError(
                    f"{path.parent} holds a run of other settings: {name} is {before!r}, now {now!r}; choose another "
                    "output folder, or delete that one"
                )

    def _start(self, cell: Cell, slot: int) -> _Running:
        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        device = self.devices[slot % len(self.devices)]
        content = {**self.describe(cell), "run": {**self.run_settings(cell), "device": device, "run_name": cell.name}}
        with replacing(folder / CELL_FILE) as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        cores = part_of_cores(slot, self.jobs)
        process = start_module("pipeline.studies.noise.cells", str(folder), log=folder / LOG_FILE, cores=cores)
        return _Running(cell, slot, process)

    def _note(self, entry: _Running, bar: Any) -> None:
        """Say how a cell ended."""
        folder, cell = self.folder(entry.cell), entry.cell
        if self.finished(cell):
            self.failures.pop(cell, None)
            bar.write(
                f"{cell.name}: {_headline(read_cases(folder))}, {duration(read_done(folder)['seconds'])}",
                file=sys.stderr,
            )
        else:
            self.failures[cell] = _cause(folder, entry.process.returncode)
            bar.write(f"{cell.name}: failed: {self.failures[cell]}\n  log: {folder / LOG_FILE}", file=sys.stderr)

    def _show(self, bar: Any, waiting: Sequence[Cell], running: Sequence[_Running]) -> None:
        shares = {entry.cell: read_progress(self.folder(entry.cell)) for entry in running}
        ended = len(self.cells) - len(waiting) - len(running)
        bar.n = round(ended + sum(share for share, _ in shares.values()), 2)
        bar.set_postfix_str(self._time_left(waiting, shares), refresh=True)

    def _time_left(self, waiting: Sequence[Cell], running: Mapping[Cell, tuple[float, float]]) -> str:
        """Time that the rest takes, after what cells of the same method took so far."""
        known: dict[str, list[float]] = {}
        for cell in self.cells:
            if self.finished(cell):
                known.setdefault(cell.method, []).append(read_done(self.folder(cell))["seconds"])
        for cell, (share, seconds) in running.items():
            if share > 0.02:  # before that, loading weighs too much
                known.setdefault(cell.method, []).append(seconds / share)
        if not known:
            return "time left unknown yet"
        overall = sum(map(sum, known.values())) / sum(map(len, known.values()))
        expected = {cell: _mean(known.get(cell.method, [overall])) for cell in (*waiting, *running)}
        left = sum(expected[cell] * (1 - running.get(cell, (0.0, 0.0))[0]) for cell in expected)
        return f"about {duration(left / min(self.jobs, max(1, len(expected))))} left"


BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:g}/{total} cells, {elapsed} spent{postfix}"


def _first_difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The path of the first entry of ``wanted`` that differs, with both values; None where all are the same."""
    for name in wanted:
        before, now = there.get(name), wanted[name]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            keys = dict.fromkeys((*before, *now))
            for key in keys:
                if before.get(key) != now.get(key):
                    return f"{name}#{key}", before.get(key), now.get(key)
        elif before != now:
            return name, before, now
    return None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def duration(seconds: float) -> str:
    """A time to read, such as "3 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _headline(cases: pd.DataFrame) -> str:
    return ", ".join(CATALOGUE[name].said(cases[name].mean()) for name in ("psnr", "ssim"))


def _cause(folder: Path, code: int) -> str:
    """Why a cell ended without a result, in one line."""
    error = folder / ERROR_FILE
    if error.is_file():
        return error.read_text(encoding="utf-8").strip()
    last = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{ended}; last line of its log: {last[0] if last else '(nothing)'}"
