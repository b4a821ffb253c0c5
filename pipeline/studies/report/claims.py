"""What a noise study is there to find out, claim by claim, each with what its interval says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from pipeline.metrics.catalogue import CATALOGUE, Metric
from pipeline.studies.report.findings import Condition, Findings, interval
from pipeline.studies.report.statistics import falls

MARGINS = {"psnr": 0.5, "ssim": 0.015}
"""How far below another method is as good as it, by metric: below what two trainings that differ by chance do."""
FALL = {"psnr": 0.25}
"""How much a curve that is called flat may fall."""


@dataclass(frozen=True)
class Claim:
    """One claim about one method.

    Attributes:
        text: what is claimed.
        found: the number that it stands on, with its interval.
        verdict: "supported" or "contradicted" where the whole interval is, "undecided" where it is on both sides, "no
            interval" where one patient and one seed tell nothing of it.
    """

    text: str
    found: str
    verdict: str


def claims(findings: Findings) -> list[Claim]:
    """The claims that can be judged by what there is of a study, at the highest level of each noise kind.

    Of every method that was run there: that its curve is flat (Kong et al., NeurIPS 2021, section 4.2, of RegGAN); that
    it is better than each reference at that level; and that it is as good as the first reference on aligned pairs.

    Args:
        findings: of the study.
    """
    return [claim for condition in findings.hardest if condition[1] > 0 for claim in _at(findings, condition)]


def _at(findings: Findings, condition: Condition) -> Iterator[Claim]:
    kind, level = condition
    where = f"{'' if kind == 'affine' else 'non-affine '}level {level:g}"
    keys = {"noise_kind": kind, "noise_level": level}
    for method in findings.methods:
        for name, most in FALL.items():
            metric = CATALOGUE[name]
            row = findings.row(findings.falls, **keys, method=method, metric=name)
            yield from _limited(
                f"{method} falls by at most {_amount(metric, most)} from level 0 to {where}", row, metric, most
            )
    for reference in findings.references:
        metric = CATALOGUE["psnr"]
        for method in findings.methods:
            row = findings.row(findings.differences, **keys, method=method, reference=reference, metric="psnr")
            if row is not None:
                verdict = _verdict(row, row["low"] > 0, row["high"] < 0)
                text = f"{method} is better than {reference} at {where}, in {metric.title}"
                yield Claim(text, interval(row, metric, unit=True, sign="+"), verdict)
    for reference in findings.references[:1]:
        below = falls(findings.units, reference)
        for method in findings.methods:
            for name, most in MARGINS.items():
                metric = CATALOGUE[name]
                row = findings.row(below, **keys, method=method, metric=name)
                text = f"{method} at {where} is at most {_amount(metric, most)} below {reference} on aligned pairs"
                yield from _limited(text, row, metric, most)


def _limited(text: str, row: pd.Series | None, metric: Metric, most: float) -> Iterator[Claim]:
    if row is not None:
        verdict = _verdict(row, row["high"] <= most, row["low"] > most)
        yield Claim(text, interval(row, metric, unit=True, sign="+"), verdict)


def _verdict(row: pd.Series, supported: bool, contradicted: bool) -> str:
    if pd.isna(row["low"]):
        return "no interval"
    return "supported" if supported else "contradicted" if contradicted else "undecided"


def _amount(metric: Metric, value: float) -> str:
    return f"{value:g} {metric.unit} {metric.title}" if metric.unit else f"{value:g} {metric.title}"
