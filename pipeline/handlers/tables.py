"""Tables of scores, written by an evaluation and printed by a training."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from pipeline.files import replacing
from pipeline.reporting.tables import ScoreTable, summarise, summarise_volumes, summary_markdown


class CaseTable:
    """Write what the evaluator measured on each slice, and what it comes to.

    At the end of an evaluation it writes into ``output_dir``:

    - ``cases.csv``: one row per slice, with ``case``, ``slice`` and a column per metric and candidate (``psnr``,
      ``source_psnr``, ``intensity_map_psnr``, ...). Numbers that are not finite stay what they are: ``inf``, ``nan``.
    - ``volumes.csv``, where whole volumes were scored: one row per volume, with ``case``, ``volume`` and a column per
      score and candidate.
    - ``summary.json``: mean, sample standard deviation, median and count of each metric over the ``slices``; the
      ``patients``' means; the same statistics ``over_patients``, where each patient counts once; and under
      ``volumes`` the statistics of whole volumes over patients, and each patient's. Values that are not
      finite, which JSON cannot hold, are left out, and ``notes`` says so; what cannot be computed then is null.
    - ``summary.md``: the same to read.

    It reads ``engine.state.metric_details[name]``, a tensor (N,) each, ``engine.state.case_ids``, a list of N
    (case, slice), and ``engine.state.volumes``, the rows of `pipeline.handlers.VolumeScores`.

    Args:
        output_dir: the run's folder.
        filename: of the CSV file.
    """

    def __init__(self, output_dir: str | Path, filename: str = "cases.csv") -> None:
        self.output_dir = Path(output_dir)
        self.filename = filename

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files.

        Raises:
            ValueError: if a metric has another number of values than there are slices.
        """
        case_ids = [(str(case), int(index)) for case, index in engine.state.case_ids]
        columns = {name: _values(name, details, len(case_ids)) for name, details in engine.state.metric_details.items()}
        rows = [
            {"case": case, "slice": index, **{name: float(values[row]) for name, values in columns.items()}}
            for row, (case, index) in enumerate(case_ids)
        ]
        _write_csv(self.output_dir / self.filename, ["case", "slice", *columns], rows)
        summary = summarise([case for case, _ in case_ids], columns)
        volumes = getattr(engine.state, "volumes", None)
        if volumes:
            _write_csv(self.output_dir / "volumes.csv", list(volumes[0]), volumes)
            summary["volumes"], notes = summarise_volumes(volumes)
            summary["notes"] += notes
        with replacing(self.output_dir / "summary.json") as path:
            path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        with replacing(self.output_dir / "summary.md") as path:
            path.write_text(summary_markdown(summary), encoding="utf-8")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = (row[name] for name in columns)
            writer.writerow(f"{cell:.9g}" if isinstance(cell, float) else cell for cell in cells)


def _values(name: str, details: Any, expected: int) -> np.ndarray:
    values = torch.as_tensor(details).detach().cpu().double().numpy()
    if values.shape != (expected,):
        raise ValueError(
            f"metric {name} has values of shape {values.shape}, expected one for each of {expected} slices"
        )
    return values


class SummaryHandler:
    """Say at the end of training what came out of it and where it lies.

    Prints the validation scores of the best epoch (``engine.state.best_epoch`` and ``engine.state.best_metrics``, where
    a checkpoint handler keeps them) or else of the last, beside both baselines, then each place.

    Args:
        evaluator: its ``state.metrics`` are the last validation's; None where there is no validation.
        places: label -> path or address, such as ``{"best weights": "runs/a/model.pt"}``; None values are left
            out. Made a text when it is printed.
    """

    def __init__(self, evaluator: Engine | None, places: Mapping[str, Any]) -> None:
        self.evaluator = evaluator
        self.places = {label: place for label, place in places.items() if place is not None}

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print the summary to standard output."""
        # Through tqdm, which keeps its bars out of the way where one is still open.
        tqdm.write(self.text(engine), file=sys.stdout)

    def text(self, engine: Engine) -> str:
        """What is printed, for a trainer in the state that it is in."""
        epoch = engine.state.epoch
        metrics: Mapping[str, Any] = {} if self.evaluator is None else self.evaluator.state.metrics
        title = f"Validation after epoch {epoch}"
        best_metrics = getattr(engine.state, "best_metrics", None)
        if best_metrics:
            metrics, title = best_metrics, f"Validation after epoch {engine.state.best_epoch}, the best of {epoch}"
        table = ScoreTable(metrics).text() if metrics else "no validation was run"
        width = max((len(label) for label in self.places), default=0)
        where = [f"{(label + ':').ljust(width + 1)} {place}" for label, place in self.places.items()]
        return "\n".join(["", f"{title}:", "", table, "", *where])
