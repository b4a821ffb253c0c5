"""The noise study from end to end: run the grid, write the report, tell MLflow."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.bundle import project_dir
from pipeline.data import ensure_phantom
from pipeline.provenance import redact
from pipeline.reporting.tables import plain_table
from pipeline.studies.noise.cells import SAMPLES, is_finished, read_done, read_progress
from pipeline.studies.noise.grid import Cell, Study
from pipeline.studies.noise.runner import StudyRunner, cell_folder, duration
from pipeline.studies.noise.tracking import StudyTracker
from pipeline.studies.report.galleries import CellSamples
from pipeline.studies.report.writer import Report, write_report

REPORT_FOLDER = "report"


def parse_datasets(pairs: Sequence[str]) -> dict[str, str]:
    """Data sets of the command line.

    Args:
        pairs: ``NAME=FOLDER`` each.

    Returns:
        Absolute folders by name.

    Raises:
        ValueError: if an entry is no such pair, a name is there twice, or a folder is missing.
    """
    datasets: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"data sets are given as NAME=FOLDER, got {pair!r}")
        if name in datasets:
            raise ValueError(f"data set {name!r} is there twice")
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise ValueError(f"data set {name!r}: {path} is no folder")
        datasets[name] = str(path)
    return datasets


def listing(study: Study, folder: Path) -> str:
    """The cells as a table: configs, and how much of each is done."""
    rows = [("cell", "configs", "done")]
    for cell in study.cells():
        share = 1.0 if is_finished(cell_folder(folder, cell)) else read_progress(cell_folder(folder, cell))[0]
        rows.append((cell.name, " ".join(study.chain(cell)), f"{share:.0%}"))
    return plain_table(rows)


def run_study(
    study: Study,
    folder: Path,
    jobs: int = 1,
    devices: Sequence[str] = ("auto",),
    tracking_uri: str | None = None,
    command: str = "",
    only_report: bool = False,
    scheduler: str | None = None,
) -> int:
    """Run what is not finished of a study, and write its report.

    Args:
        study: what to run.
        folder: of the study.
        jobs: cells at a time.
        devices: where they run, in turns.
        tracking_uri: MLflow store, see `StudyTracker`.
        command: that the user gave, for the report.
        only_report: run nothing, and tell MLflow nothing.
        scheduler: see `StudyRunner`.

    Returns:
        0 if every cell is finished, else 1.

    Raises:
        ValueError: see `StudyRunner`.
        RuntimeError: see `StudyRunner`.
    """
    study = _with_phantom(study, folder)
    runner = StudyRunner(study, folder, jobs, devices, scheduler)
    try:
        command = redact(command)
        report = _report(runner, command) if only_report else _tracked(runner, tracking_uri, command)
    finally:
        runner.close()
    missing = [cell for cell in runner.cells if not runner.finished(cell)]
    print(f"\n{len(runner.cells) - len(missing)} of {len(runner.cells)} cells are finished.\nReport: {report.html}")
    return 1 if missing else 0


def _with_phantom(study: Study, folder: Path) -> Study:
    """The study with its phantom made: once, before cells could make it at the same time."""
    if None not in study.datasets.values():
        return study
    if study.phantom is None:
        ensure_phantom(project_dir() / "data" / "phantom")
        return study
    made = ensure_phantom(folder / "phantom", **study.phantom)
    return replace(study, datasets={name: made if path is None else path for name, path in study.datasets.items()})


def _tracked(runner: StudyRunner, tracking_uri: str | None, command: str) -> Report:
    tracker = StudyTracker(runner.study, runner.output_dir, tracking_uri, {"command": command, "jobs": runner.jobs})
    tracker.start()
    runner.run_settings = tracker.run_settings
    try:
        runner.run()
        report = _report(runner, command)
    except BaseException as error:
        tracker.close_after(error)
        raise
    tracker.finish(summary_metrics(report.findings.summary), report.files)
    if tracker.how_to_look:
        print(f"MLflow: {tracker.how_to_look}")
    return report


def _report(runner: StudyRunner, command: str) -> Report:
    finished = [cell for cell in runner.cells if runner.finished(cell)]
    samples = [
        CellSamples(
            runner.folder(cell) / SAMPLES, cell.method, cell.noise_level, cell.noise_kind, cell.seed, cell.dataset
        )
        for cell in finished
        if (runner.folder(cell) / SAMPLES).is_file()
    ]
    return write_report(
        runner.results(),
        runner.output_dir / REPORT_FOLDER,
        title=f"Noise study {runner.study.name}",
        facts=_facts(runner, finished, command),
        galleries=samples,
        failures=[(cell.name, cause) for cell, cause in runner.failures.items()],
        shown=runner.study.gallery,
        source=runner.study.source,
        target=runner.study.target,
    )


def _facts(runner: StudyRunner, finished: Sequence[Cell], command: str) -> dict[str, str]:
    """What a reader must know of the run."""
    study = runner.study
    done = [read_done(runner.folder(cell)) for cell in finished]
    seconds = sum(entry["seconds"] for entry in done)
    commits = {entry["commit"] + (" with changes" if entry["changed"] else "") for entry in done if entry["commit"]}
    settings = {
        **study.settings,
        **{
            f"{name}: {key}": value for name, entries in study.method_settings.items() for key, value in entries.items()
        },
    }
    facts = {
        "command": command,
        "cells": f"{len(finished)} of {len(runner.cells)} finished",
        "time": f"{duration(seconds)} in all cells together, {runner.jobs} at a time",
        "steps of each training": "as the configs have it"
        if study.steps is None
        else f"{study.steps}, in whole epochs",
        "data": ", ".join(f"{name}: {folder or 'digital phantom'}" for name, folder in study.datasets.items()),
        "scored on": f"aligned pairs of the {study.split} patients, by the last checkpoint",
        "seeds": ", ".join(map(str, study.seeds)),
        "overlays": " ".join(study.overlays),
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "commit": ", ".join(sorted(commits)),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, devices {' '.join(runner.devices)}",
    }
    return {name: value for name, value in facts.items() if value}


def summary_metrics(summary: pd.DataFrame) -> dict[str, float]:
    """The summary as numbers by name for MLflow, such as ``psnr/reggan/affine5``."""
    return {
        f"{row.metric}/{row.method}/{row.noise_kind}{row.noise_level:g}": float(row.mean)
        for row in summary.itertuples()
    }
