"""Runs the cells of a study side by side, each in a process of its own; what is finished is not run again."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pandas as pd
from tqdm import tqdm

from pipeline.files import ProcessLock, cores, replacing
from pipeline.jobs import engine, task_key
from pipeline.metrics.catalogue import CATALOGUE
from pipeline.studies.noise.cells import (
    CELL_FILE,
    ERROR_FILE,
    LOG_FILE,
    STOP_FILE,
    is_finished,
    last_checkpoint,
    read_cases,
    read_done,
    read_progress,
    run_apart,
)
from pipeline.studies.noise.grid import Cell, Study

STUDY_FILE, RESULTS_FILE, CELLS_FOLDER = "study.json", "results.csv", "cells"
# Between two updates of the bar: in a terminal, and in a file, where each is a line more.
SHOW_INTERVAL = {True: 1.0, False: 60.0}
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:g}/{total} cells, {elapsed} spent, about {remaining} left"


def cell_folder(study_folder: Path, cell: Cell) -> Path:
    """Folder of a cell in that of its study."""
    return study_folder / CELLS_FOLDER / cell.name


class StudyRunner:
    """Run a study's cells, ``jobs`` at a time, and gather what they scored.

    A cell that breaks is reported, and does not stop the others. Stopped in whatever way and started again, the study
    goes on: finished cells are left as they are, begun ones continue from their last checkpoint, broken ones are tried
    again. On the same number of processor cores per job, the results are those of an undisturbed study.

    Args:
        study: what to run.
        output_dir: folder of the study; made where it is missing.
        jobs: cells at a time.
        devices: where they run, each job on its own, such as ``("cuda:0", "cuda:1")``. Jobs on the CPU have as many
            threads as there are processor cores for each.
        scheduler: of a cluster on which they run instead, see `pipeline.jobs.engine`; then as many at a time as it has
            threads of workers, on the first device, with the threads that ``OMP_NUM_THREADS`` of the workers says.
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
        scheduler: str | None = None,
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
        self.scheduler = scheduler
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
        """Run what is not finished. At Ctrl-C the cells at work are stopped in good order, and the study with them.

        Raises:
            ValueError: nobody answers at ``scheduler``.
        """
        waiting = [cell for cell in self.cells if not self.finished(cell)]
        finished = len(self.cells) - len(waiting)
        interval = SHOW_INTERVAL[sys.stderr.isatty()]
        running: dict[Future[int], Cell] = {}

        def begin() -> None:
            for cell in [cell for cell in waiting if self._can_start(cell)]:
                waiting.remove(cell)
                running[submit(cell)] = cell

        for cell in waiting:
            (self.folder(cell) / STOP_FILE).unlink(missing_ok=True)
        with ExitStack() as stack:
            submit = self._submitter(stack)
            bar = stack.enter_context(
                tqdm(total=len(self.cells), initial=finished, desc=self.study.name, unit="cell", bar_format=BAR)
            )
            try:
                begin()
                while running:
                    done = wait(running, interval, FIRST_COMPLETED).done
                    for future in done:
                        self._note(running.pop(future), future, bar)
                    if done:
                        begin()
                    shares = sum(read_progress(self.folder(cell))[0] for cell in running.values())
                    bar.n = round(len(self.cells) - len(running) - len(waiting) + shares, 2)
                    bar.refresh()
                for cell in waiting:
                    start = cast(Cell, self.study.start(cell))
                    self.failures[cell] = f"not run: it goes on from {start.name}, which failed"
                    bar.write(f"{cell.name}: {self.failures[cell]}", file=sys.stderr)
            finally:
                for future, cell in running.items():
                    if not future.cancel() and self.folder(cell).is_dir():
                        (self.folder(cell) / STOP_FILE).touch()  # so that its MLflow run is ended
                wait(running)

    def _submitter(self, stack: ExitStack) -> Callable[[Cell], Future[int]]:
        """What starts a cell as soon as there is room for it."""
        if self.scheduler is not None:
            cluster = stack.enter_context(engine(self.jobs, self.scheduler))
            return lambda cell: cluster.submit(
                run_apart, *self._task(cell), {}, self.devices[0], key=task_key("cell", cell.name)
            )
        free: queue.Queue[str] = queue.Queue()
        for job in range(self.jobs):
            free.put(self.devices[job % len(self.devices)])
        mine = threading.local()

        def take_device() -> None:
            mine.device = free.get()

        threads = {"OMP_NUM_THREADS": str(max(1, cores() // self.jobs))}
        pool = stack.enter_context(ThreadPoolExecutor(self.jobs, initializer=take_device))
        return lambda cell: pool.submit(lambda task: run_apart(*task, threads, mine.device), self._task(cell))

    def _task(self, cell: Cell) -> tuple[str, dict[str, Any]]:
        run = {**self.run_settings(cell), "run_name": cell.name}
        start = self.study.start(cell)
        if start is not None:
            run["start_from"] = str(last_checkpoint(self.folder(start)))
        return str(self.folder(cell)), {**self.describe(cell), "run": run}

    def _can_start(self, cell: Cell) -> bool:
        start = self.study.start(cell)
        return start is None or self.finished(start)

    def results(self) -> pd.DataFrame:
        """The scores of all finished cells, one row per cell and slice; also written to ``results.csv``."""
        frames = [read_cases(self.folder(cell)) for cell in self.cells if self.finished(cell)]
        results = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        with replacing(self.output_dir / RESULTS_FILE) as path:
            results.to_csv(path, index=False, float_format="%.9g")
        return results

    def describe(self, cell: Cell) -> dict[str, Any]:
        """Everything that the cell's result depends on, safe for JSON."""
        start = self.study.start(cell)
        content = {
            "cell": asdict(cell),
            "chain": self.study.chain(cell),
            "settings": self.study.run_settings(cell),
            "split": self.study.split,
            "start": None if start is None else start.name,
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

    def _note(self, cell: Cell, future: Future[int], bar: Any) -> None:
        """Say how a cell ended."""
        folder = self.folder(cell)
        if self.finished(cell):
            self.failures.pop(cell, None)
            took = duration(read_done(folder)["seconds"])
            bar.write(f"{cell.name}: {_headline(read_cases(folder))}, {took}", file=sys.stderr)
        else:
            fault = future.exception()
            self.failures[cell] = (
                _cause(folder, future.result()) if fault is None else f"{type(fault).__name__}: {fault}"
            )
            bar.write(f"{cell.name}: failed: {self.failures[cell]}\n  log: {folder / LOG_FILE}", file=sys.stderr)


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
