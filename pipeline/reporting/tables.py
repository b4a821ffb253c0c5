"""Tables of scores: on the console, and summed up to read or to go on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from pipeline.metrics.catalogue import CANDIDATES, Metric, metrics_in

MISSING = "-"


class SideTable(NamedTuple):
    """A small table beside that of the scores, shown where its metrics were measured.

    Args:
        title: what it is about.
        rows: prefix of a row's metrics -> what readers call it.
        group: of the catalogue's metrics.
        note: what one has to know to read it.
    """

    title: str
    rows: Mapping[str, str]
    group: str
    note: str


SIDE_TABLES = (
    SideTable(
        "Leak, blur and scale",
        {"": "prediction", "label_": "true target"},
        "content",
        "Less shared with the source than the true target has: the geometry is not the source's. "
        "Detail below 1 is blur, above 1 noise or artefacts. What the linear map gains is scale.",
    ),
    SideTable(
        "Registration",
        {"": "registration network", "identity_": "no registration"},
        "registration",
        "Test pairs misaligned at this config's noise level; errors over the foreground of the misaligned target, as "
        "far as its counterpart lies in the image.",
    ),
    SideTable(
        "Drift",
        {"": "generator"},
        "drift",
        "How far the generator moves, turns and sizes its output, without a target, by what it does to moved sources. "
        "Its size is told from how it follows shifts, and is not part of the pixels.",
    ),
)

Row = Sequence[str]


def plain_table(rows: Sequence[Row]) -> str:
    """Align rows for a console: first column to the left, the others (numbers) to the right, a rule under the header.

    Args:
        rows: header first, all of one length.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table, numbers to the right.

    Args:
        rows: header first, all of one length.
    """
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in (rows[0], rule, *rows[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _number(value: Any, form: str) -> str:
    return format(float(value), form)


def _rows(
    entries: Mapping[str, Any],
    cell: Callable[[Any, str], str],
    metrics: Sequence[Metric],
    candidates: Mapping[str, str] = CANDIDATES,
) -> list[list[str]]:
    rows = [["", *(metric.head for metric in metrics)]]
    for prefix, candidate in candidates.items():
        found = [(entries.get(prefix + metric.name), metric.form) for metric in metrics]
        if any(entry is not None for entry, _ in found):
            rows.append([candidate, *(MISSING if entry is None else cell(entry, form) for entry, form in found)])
    return rows


def _side_tables(
    entries: Mapping[str, Any], cell: Callable[[Any, str], str]
) -> Iterator[tuple[SideTable, list[list[str]]]]:
    for table in SIDE_TABLES:
        prefixes = tuple(filter(None, table.rows))  # the error of doing nothing is a row of the column of errors
        columns = [metric for metric in metrics_in(table.group) if not metric.name.startswith(prefixes)]
        rows = _rows(entries, cell, columns, table.rows)
        if len(rows) > 1:
            yield table, rows


def volume_metrics(entries: Mapping[str, Any]) -> list[Metric]:
    """The metrics that whole volumes were scored by.

    Args:
        entries: scores by name.
    """
    return [metric for metric in (*metrics_in("volume"), *metrics_in("quality")) if metric.name in entries]


class ScoreTable:
    """The prediction's scores beside those of both baselines, and small tables of what else was measured.

    Args:
        metrics: scalars by name as the evaluator keeps them: ``psnr``, ``source_psnr``, ``intensity_map_psnr``, and the
            same for ``nmae`` and ``ssim``, and those of ``SIDE_TABLES``. What is not there is shown as "-", a candidate
            without scores not at all.
        columns: metrics of the first table; None for the catalogue's of the group "quality".
    """

    def __init__(self, metrics: Mapping[str, Any], columns: Sequence[Metric] | None = None) -> None:
        self.metrics = dict(metrics)
        self.rows = _rows(self.metrics, _number, metrics_in("quality") if columns is None else columns)

    def text(self) -> str:
        """Aligned for a console, with the gain over each baseline below."""
        return self._page(plain_table)

    def markdown(self) -> str:
        """As Markdown tables, with the gain over each baseline below the first."""
        return self._page(markdown_table)

    def _page(self, table: Callable[[Sequence[Row]], str]) -> str:
        side = (["", f"{kind.title}:", "", table(rows)] for kind, rows in _side_tables(self.metrics, _number))
        return "\n".join([table(self.rows), "", *self.gains(), *chain.from_iterable(side)]).rstrip()

    def gains(self) -> list[str]:
        """One sentence per baseline: by how many dB of PSNR the prediction is better or worse."""
        gains = []
        for prefix, candidate in CANDIDATES.items():
            if prefix and "psnr" in self.metrics and f"{prefix}psnr" in self.metrics:
                gain = float(self.metrics["psnr"]) - float(self.metrics[f"{prefix}psnr"])
                if math.isfinite(gain):
                    gains.append(f"Prediction against {candidate}: {gain:+.2f} dB PSNR.")
        return gains


def summarise(cases: Sequence[str], columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Statistics over slices and over patients.

    Args:
        cases: patient of each slice, N.
        columns: values (N,) of each metric.

    Returns:
        ``slices`` and ``over_patients``: statistics by metric; ``patients``: number of slices and mean of each metric
        by patient; ``notes``: what was left out. Safe for JSON.
    """
    patients = list(dict.fromkeys(cases))
    of_patient = {patient: np.array([case == patient for case in cases]) for patient in patients}
    notes: list[str] = []
    means: dict[str, dict[str, Any]] = {patient: {"slices": int(of_patient[patient].sum())} for patient in patients}
    slices, over_patients = {}, {}
    for name, values in columns.items():
        slices[name] = _statistics(values)
        for patient in patients:
            means[patient][name] = _statistics(values[of_patient[patient]])["mean"]
        finite_means = [means[patient][name] for patient in patients if means[patient][name] is not None]
        over_patients[name] = _statistics(np.array(finite_means, dtype=float))
        left_out = len(values) - slices[name]["count"]
        if left_out:
            infinite, undefined = int(np.isinf(values).sum()), int(np.isnan(values).sum())
            notes.append(
                f"{name}: {left_out} of {len(values)} values are not finite ({infinite} infinite, {undefined} not a "
                "number) and are left out of the statistics"
            )
    return {"slices": slices, "over_patients": over_patients, "patients": means, "notes": notes}


def summarise_volumes(volumes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Statistics of whole volumes.

    Args:
        volumes: rows with ``case`` and scores by name.

    Returns:
        ``over_patients``: statistics by score, each patient counting once; ``patients``: number of volumes and mean of
        each score by patient. And notes on what was left out.
    """
    scores = [name for name in volumes[0] if name not in ("case", "volume")]
    columns = {name: np.array([volume[name] for volume in volumes], dtype=float) for name in scores}
    summary = summarise([str(volume["case"]) for volume in volumes], columns)
    patients = {case: {"volumes": means.pop("slices"), **means} for case, means in summary["patients"].items()}
    notes = [f"volumes: {note}" for note in summary["notes"]]
    return {"over_patients": summary["over_patients"], "patients": patients}, notes


def _statistics(values: np.ndarray) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {"mean": None, "std": None, "median": None, "count": 0}
    return {
        "mean": float(finite.mean()),
        "std": float(finite.std(ddof=1)) if finite.size > 1 else None,
        "median": float(np.median(finite)),
        "count": int(finite.size),
    }


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a page to read.

    Args:
        summary: as returned by ``summarise``.
    """
    patients = summary["patients"]
    quality = metrics_in("quality")
    slices = sum(patient["slices"] for patient in patients.values())
    parts = ["# Evaluation"]
    if "volumes" in summary:
        volumes = summary["volumes"]
        columns = volume_metrics(volumes["over_patients"])
        count = sum(patient["volumes"] for patient in volumes["patients"].values())
        parts += [
            "## Whole volumes",
            f"Volumes: {count}. Patients: {len(volumes['patients'])}, each counting once. Translated as for use, and "
            "compared in the source's geometry and in physical units, nothing left out: MAE, NMAE and PSNR over the "
            "target's foreground, SSIM over the whole volume; the range is the model's target window. Given are mean ± "
            "standard deviation.",
            markdown_table(_rows(volumes["over_patients"], _mean_and_std, columns)),
            markdown_table(_patient_rows(volumes["patients"], "volumes", columns)),
        ]
    parts += [
        "## Over slices",
        f"Slices: {slices}. Patients: {len(patients)}. At the size of the training, scaled to [-1, 1], without the "
        "slices that show too little, as in the paper. Given are mean ± standard deviation.",
        markdown_table(_rows(summary["slices"], _mean_and_std, quality)),
        "## Over patients",
        "Each patient counts once, with the mean of its slices.",
        markdown_table(_rows(summary["over_patients"], _mean_and_std, quality)),
        *chain.from_iterable(
            (f"## {table.title}", f"Over slices. {table.note}", markdown_table(rows))
            for table, rows in _side_tables(summary["slices"], _mean_and_std)
        ),
        "## Each patient",
        markdown_table(_patient_rows(patients, "slices", quality)),
    ]
    if summary["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}." for note in summary["notes"])]
    return "\n\n".join(parts) + "\n"


def _mean_and_std(entry: Mapping[str, Any], form: str) -> str:
    if entry["mean"] is None:
        return MISSING
    spread = "" if entry["std"] is None else f" ± {entry['std']:{form}}"
    return f"{entry['mean']:{form}}{spread}"


def _patient_rows(
    patients: Mapping[str, Mapping[str, Any]], counted: str, metrics: Sequence[Metric]
) -> list[list[str]]:
    rows = [["patient", counted, *(metric.title for metric in metrics)]]
    for name, means in patients.items():
        found = [(means.get(metric.name), metric.form) for metric in metrics]
        rows.append([name, str(means[counted]), *(MISSING if v is None else format(v, form) for v, form in found)])
    return rows
