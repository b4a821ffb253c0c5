"""The report of a study: tables, curves and galleries, as Markdown, CSV, PNG and one HTML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.files import replacing
from pipeline.metrics.catalogue import BASELINES, CATALOGUE, Metric, columns, metrics_in, names_in
from pipeline.reporting.tables import MISSING
from pipeline.studies.report.claims import claims
from pipeline.studies.report.document import Picture, Section, Table, as_html, as_markdown
from pipeline.studies.report.exhibits import SHOWN, draw_exhibits
from pipeline.studies.report.figures import draw_curves
from pipeline.studies.report.findings import Findings, condition_name, interval
from pipeline.studies.report.galleries import CellSamples
from pipeline.studies.report.statistics import CLEAN, REFERENCES

CLAIMS_NOTE = [
    "A claim is supported or contradicted where the whole interval is on one side of it, and undecided otherwise. "
    "Numbers are positive where a method falls, is below another, or, in claims that it is better, is better."
]
MECHANISM = ("endpoint_error", "folded", "source_information", "high_frequency")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        html: the page that holds everything.
        files: all files, the page among them.
        findings: the statistics behind it.
        sentences: what came out, in words.
    """

    html: Path
    files: list[Path]
    findings: Findings
    sentences: list[str]


def write_report(
    results: pd.DataFrame,
    folder: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    galleries: Sequence[CellSamples] = (),
    failures: Iterable[tuple[str, str]] = (),
    references: Sequence[str] = REFERENCES,
    shown: Sequence[str] = SHOWN,
    source: str = "source",
    target: str = "target",
) -> Report:
    """Write ``summary.md``, ``summary.csv``, ``differences.csv``, ``falls.csv``, the pictures and ``report.html``.

    It works with whatever is there: cells, methods, levels, metrics, samples or registrations may be missing.

    Args:
        results: long form, see ``statistics.check_results``; may be empty.
        folder: where the files go; pictures of an older report that are not drawn again are removed.
        title: of the report.
        facts: what a reader must know of the run, by name: command, duration, commit, data, settings.
        galleries: samples of the finished cells.
        failures: name of a broken cell and the cause.
        references: methods that the others are compared with.
        shown: methods of the galleries, see ``draw_exhibits``.
        source: what the source is, such as "T1".
        target: what the target is, such as "T2".

    Raises:
        ValueError: the results are no long form.
    """
    folder = Path(folder)
    findings = Findings(results, references)
    curves = _curves(findings, folder)
    pictures, notes = draw_exhibits(galleries, folder, shown, source, target)
    sentences = findings.sentences()
    sections = [
        Section("What came out", points=sentences),
        Section("How it was run", tables=[Table("The run", [["", ""], *map(list, facts.items())], words=True)])
        if facts
        else Section("How it was run"),
        Section(
            "Quality against noise",
            text=findings.certainty(),
            pictures=curves["quality"],
            tables=_level_tables(findings, metrics_in("quality"), baselines=True),
        ),
        Section("What the intervals say of the claims", text=CLAIMS_NOTE, tables=_claim_tables(findings)),
        Section("Loss from aligned to misaligned training", tables=_fall_tables(findings)),
        Section("Paired differences", tables=_difference_tables(findings)),
        Section("Galleries", pictures=pictures),
        Section(
            "Registration, leaking geometry and blur",
            pictures=curves["mechanism"],
            tables=_level_tables(findings, [CATALOGUE[name] for name in MECHANISM]),
        ),
        Section("Each data set", tables=_dataset_tables(findings)),
        Section("What is missing", points=[*findings.gaps(), *notes], tables=_failure_tables(failures)),
    ]
    files = [folder / picture.file for section in sections for picture in section.pictures]
    for name in ("summary", "differences", "falls"):
        with replacing(folder / f"{name}.csv") as path:
            getattr(findings, name).to_csv(path, index=False, float_format="%.9g")
        files.append(folder / f"{name}.csv")
    page = folder / "report.html"
    for target_file, text in (
        (folder / "summary.md", as_markdown(title, sections)),
        (page, as_html(title, sections, folder)),
    ):
        with replacing(target_file) as path:
            path.write_text(text, encoding="utf-8")
        files.append(target_file)
    for old in set(folder.glob("*.png")) - set(files):
        old.unlink()
    return Report(page, files, findings, sentences)


def _curves(findings: Findings, folder: Path) -> dict[str, list[Picture]]:
    pictures: dict[str, list[Picture]] = {"quality": [], "mechanism": []}
    for name, metrics, width in (("quality", names_in("quality"), 3), ("mechanism", MECHANISM, 2)):
        drawn = draw_curves(findings.summary, metrics, folder / f"{name}.png", width)
        if drawn:
            titles = ", ".join(CATALOGUE[metric].title for metric in drawn)
            bars = " Bars are 95 % intervals." if findings.summary["low"].notna().any() else ""
            what = f"{titles} against noise level, for {', '.join(findings.methods)}"
            pictures[name].append(Picture(f"{name}.png", what, f"{what}.{bars}"))
    return pictures


def _level_tables(findings: Findings, metrics: Sequence[Metric], baselines: bool = False) -> list[Table]:
    tables = []
    for metric in metrics:
        rows = [(method, metric.name, method) for method in findings.methods]
        if metric.name == "endpoint_error":
            rows += [(method, f"identity_{metric.name}", f"doing nothing ({method})") for method in findings.methods]
        body = [_level_row(findings, *row) for row in rows]
        body = [row for row in body if set(row[1:]) != {MISSING}]
        if body and baselines:
            body += [
                row
                for prefix, title in BASELINES.items()
                for row in [_baseline_row(findings, prefix + metric.name, title)]
                if set(row[1:]) != {MISSING}
            ]
        if body:
            tables.append(Table(f"{metric.label}, by noise level", [["method", *_heads(findings)], *body]))
    return tables


def _heads(findings: Findings) -> list[str]:
    several = sum(kind != "affine" for kind, _ in findings.conditions) > 1
    return [condition_name(condition, several) for condition in findings.conditions]


def _level_row(findings: Findings, method: str, metric: str, title: str) -> list[str]:
    rows = [findings.mean(method, condition, metric) for condition in findings.conditions]
    return [title, *(MISSING if row is None else interval(row, CATALOGUE[metric]) for row in rows)]


def _baseline_row(findings: Findings, metric: str, title: str) -> list[str]:
    means = findings.summary[findings.summary["metric"] == metric].groupby(["noise_kind", "noise_level"])["mean"].mean()
    return [title, *(columns()[metric].number(means.get(condition, float("nan"))) for condition in findings.conditions)]


def _fall_tables(findings: Findings) -> list[Table]:
    tables = []
    for kind, level in findings.hardest:
        body = []
        for method in findings.methods:
            keys = {"method": method, "noise_kind": kind, "noise_level": level}
            rows = [
                (findings.row(findings.falls, **keys, metric=metric.name), metric) for metric in metrics_in("quality")
            ]
            if any(row is not None for row, _ in rows):
                cells = [MISSING if row is None else interval(row, metric, sign="+") for row, metric in rows]
                body.append([method, *cells])
        if body:
            heads = [metric.axis for metric in metrics_in("quality")]
            caption = f"From level {CLEAN:g} to {'' if kind == 'affine' else 'non-affine '}level {level:g}; + is worse"
            tables.append(Table(caption, [["method", *heads], *body]))
    return tables


def _claim_tables(findings: Findings) -> list[Table]:
    rows = [[claim.text, claim.found, claim.verdict] for claim in claims(findings)]
    return [Table("Claims", [["claim", "found", "by its interval"], *rows])] if rows else []


def _difference_tables(findings: Findings) -> list[Table]:
    tables = []
    for reference in findings.references:
        for metric in metrics_in("quality"):
            body = []
            for method in findings.methods:
                cells = []
                for kind, level in findings.conditions:
                    keys = {"method": method, "reference": reference, "noise_kind": kind, "noise_level": level}
                    row = findings.row(findings.differences, **keys, metric=metric.name)
                    cells.append(MISSING if row is None else interval(row, metric, sign="+"))
                if set(cells) != {MISSING}:
                    body.append([method, *cells])
            if body:
                caption = f"{metric.label}: method minus {reference}, by noise level"
                tables.append(Table(caption, [["method", *_heads(findings)], *body]))
    return tables


def _dataset_tables(findings: Findings) -> list[Table]:
    datasets = list(dict.fromkeys(findings.results["dataset"])) if not findings.results.empty else []
    if len(datasets) < 2:
        return []
    tables = []
    for dataset in datasets:
        part = Findings(findings.results[findings.results["dataset"] == dataset])
        for table in _level_tables(part, metrics_in("quality"), baselines=True):
            tables.append(Table(f"{dataset}: {table.caption}", table.rows))
    return tables


def _failure_tables(failures: Iterable[tuple[str, str]]) -> list[Table]:
    rows = [[str(cell), str(cause)] for cell, cause in failures]
    return [Table("Cells that failed", [["cell", "cause"], *rows], words=True)] if rows else []
