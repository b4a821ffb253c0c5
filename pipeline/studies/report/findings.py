"""What a study found, in words that follow from its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product

import pandas as pd

from pipeline.metrics.catalogue import BASELINES, CATALOGUE, Metric
from pipeline.studies.report.figures import method_order
from pipeline.studies.report.statistics import CLEAN, REFERENCES, differences, falls, left_out, summarise, unit_values

KIND_TITLES = {"affine": "affine", "nonaffine": "non-affine"}
MOST_COMPARED = 4  # methods that are compared in words; the tables have all
MOST_NAMED = 12  # missing cells that are named

Condition = tuple[str, float]


class Findings:
    """A study's statistics, and sentences about them.

    Args:
        results: long form, see ``statistics.check_results``; may be empty.
        references: methods to compare with.

    Attributes:
        units: see ``unit_values``.
        summary: see ``summarise``.
        methods: in the paper's order.
        conditions: (noise kind, noise level), affine first, levels rising.
    """

    def __init__(self, results: pd.DataFrame, references: Sequence[str] = REFERENCES) -> None:
        self.results = results
        self.references = [name for name in references if not results.empty and name in set(results["method"])]
        self.units = unit_values(results)
        self.summary = summarise(self.units)
        self.methods = method_order(self.units["method"])
        pairs = self.units[["noise_kind", "noise_level"]].drop_duplicates().itertuples(index=False, name=None)
        self.conditions: list[Condition] = sorted((str(kind), float(level)) for kind, level in pairs)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """See ``statistics.differences``."""
        return differences(self.units, self.references)

    @cached_property
    def falls(self) -> pd.DataFrame:
        """See ``statistics.falls``."""
        return falls(self.units)

    @property
    def hardest(self) -> list[Condition]:
        """The highest level of each noise kind."""
        return list({kind: (kind, level) for kind, level in self.conditions}.values())

    def row(self, table: pd.DataFrame, **keys: object) -> pd.Series | None:
        """The one row of a table of statistics that has these keys, None if there is none."""
        chosen = table
        for name, value in keys.items():
            chosen = chosen[chosen[name] == value]
        return None if chosen.empty else chosen.iloc[0]

    def mean(self, method: str, condition: Condition, metric: str) -> pd.Series | None:
        """The row of the summary."""
        kind, level = condition
        return self.row(self.summary, method=method, noise_kind=kind, noise_level=level, metric=metric)

    def sentences(self) -> list[str]:
        """What came out, the most important first."""
        if self.units.empty:
            return ["There are no results."]
        found = []
        for condition in self.hardest:
            found += [*self._best(condition), *self._comparisons(condition)]
        found += list(self._falls())
        for condition in self.hardest:
            found += [*self._baselines(condition), *self._registration(condition)]
        return [*found, *self._leak_and_blur()]

    def _ranked(self, condition: Condition, metric: Metric) -> list[tuple[str, pd.Series]]:
        known = [(method, self.mean(method, condition, metric.name)) for method in self.methods]
        sign = -1 if metric.direction == "higher" else 1
        return sorted(
            ((method, row) for method, row in known if row is not None), key=lambda item: sign * item[1]["mean"]
        )

    def _comparisons(self, condition: Condition) -> Iterator[str]:
        kind, level = condition
        methods = [method for method, _ in self._ranked(condition, CATALOGUE["psnr"])] or self.methods
        said: set[frozenset[str]] = set()
        for reference in self.references:
            for method in [name for name in methods if name != reference][:MOST_COMPARED]:
                parts = []
                for metric in (CATALOGUE["psnr"], CATALOGUE["ssim"], CATALOGUE["nmae"]):
                    keys = {"method": method, "reference": reference, "noise_kind": kind, "noise_level": level}
                    row = self.row(self.differences, **keys, metric=metric.name)
                    if row is not None:
                        parts.append(_difference(row, metric))
                if parts and frozenset((method, reference)) not in said:
                    yield f"At {_name(condition)} {method} is, against {reference}, {_listed(parts)}."
                said.add(frozenset((method, reference)))

    def _best(self, condition: Condition) -> Iterator[str]:
        metric = CATALOGUE["psnr"]
        ranked = self._ranked(condition, metric)
        if len(ranked) > 1:
            (best, row), (second, other) = ranked[:2]
            yield (
                f"At {_name(condition)} {best} has the highest {metric.title}, {interval(row, metric, unit=True)}; "
                f"{second} follows with {interval(other, metric, unit=True)}."
            )

    def _falls(self) -> Iterator[str]:
        for (kind, level), metric in product(self.hardest, (CATALOGUE["psnr"], CATALOGUE["ssim"])):
            rows = {
                method: self.row(self.falls, method=method, noise_kind=kind, noise_level=level, metric=metric.name)
                for method in self.methods
            }
            first = next((name for name in self.references if rows.get(name) is not None), None)
            parts = []
            for method, row in rows.items():
                if row is None:
                    continue
                falling = (row["mean"] >= 0) == (metric.direction == "higher")
                part = f"that of {method} {'falls' if falling else 'rises'} by {_size(row, metric)}"
                against = None if first is None or first == method else rows[first]
                if against is not None and against["mean"] > 0 and row["mean"] > 0:
                    part += f" ({row['mean'] / against['mean']:.2f} times the loss of {first})"
                parts.append(part)
            if parts:
                yield f"{metric.title} from level {CLEAN:g} to {_name((kind, level))}: {'; '.join(parts)}."

    def _baselines(self, condition: Condition) -> Iterator[str]:
        metric = CATALOGUE["psnr"]
        ranked = self._ranked(condition, metric)
        parts = []
        for prefix, title in BASELINES.items():
            values = [self.mean(method, condition, prefix + metric.name) for method in self.methods]
            known = [row["mean"] for row in values if row is not None]
            if known and ranked:
                mean = sum(known) / len(known)
                below = [method for method, row in ranked if row["mean"] < mean]
                behind = f"above {_listed(below)}" if below else "below all methods"
                parts.append(f"the {title} has {metric.number(mean)} dB {metric.title}, {behind}")
        if parts:
            yield f"At {_name(condition)} {'; '.join(parts)}."

    def _registration(self, condition: Condition) -> Iterator[str]:
        metric = CATALOGUE["endpoint_error"]
        for method in self.methods:
            row, nothing = (self.mean(method, condition, name) for name in (metric.name, f"identity_{metric.name}"))
            folded = self.mean(method, condition, "folded")
            if row is None:
                continue
            text = f"At {_name(condition)} the registration of {method} is off by {interval(row, metric, unit=True)}"
            if nothing is not None and nothing["mean"] > 0:
                text += (
                    f", {row['mean'] / nothing['mean']:.2f} times the {metric.number(nothing['mean'])} of doing nothing"
                )
            if folded is not None:
                text += f"; {CATALOGUE['folded'].number(folded['mean'])} of its pixels are folded"
            yield f"{text}."

    def _leak_and_blur(self) -> Iterator[str]:
        for name, meaning in (
            ("source_information", "a loss against level 0 means that predictions follow the source's geometry less"),
            ("high_frequency", "1 is the target's, less is blur, more is noise"),
        ):
            metric = CATALOGUE[name]
            for condition in self.hardest:
                parts = []
                for method in self.methods:
                    row, clean = self.mean(method, condition, name), self.mean(method, ("affine", CLEAN), name)
                    if row is not None:
                        before = (
                            ""
                            if clean is None or condition[1] == CLEAN
                            else f" (level 0: {metric.number(clean['mean'])})"
                        )
                        parts.append(f"{method} {metric.number(row['mean'])}{before}")
                if parts:
                    yield f"{metric.title} at {_name(condition)}: {_listed(parts)}; {meaning}."

    def certainty(self) -> list[str]:
        """How the intervals came about, and where there are none."""
        if self.units.empty:
            return []
        patients = self.units.groupby("dataset", sort=False)["case"].nunique()
        seeds = self.units["seed"].nunique()
        datasets = "; ".join(f"{name}: {count} {_plural(count, 'patient')}" for name, count in patients.items())
        text = [
            "Each number is a mean over patients and seeds; a patient counts with the mean of its slices, each pair of "
            f"patient and seed once. Test patients by data set: {datasets}. {seeds} {_plural(seeds, 'seed')}."
        ]
        if seeds == 1 and patients.sum() == 1:
            text.append("With one patient and one seed there are no intervals.")
            return text
        text.append(
            "In brackets are 95 % bootstrap intervals: patients (within their data set, or among all where each data "
            "set has one) and seeds are drawn with replacement, each apart from the other. Differences and falls are "
            "paired by patient and seed. With few patients and seeds such intervals are too short."
        )
        if seeds == 1:
            text.append("There is one seed: the intervals say nothing of how another training would come out.")
        alone = [str(name) for name, count in patients.items() if count == 1]
        if alone:
            text.append(f"One patient only: {_listed(alone)}; the intervals say nothing of other patients there.")
        return text

    def gaps(self) -> list[str]:
        """Which cells have no results, and which values are not in the means."""
        if self.units.empty:
            return []
        runs = list(self.units[["dataset", "seed"]].drop_duplicates().itertuples(index=False, name=None))
        columns = ["method", "noise_kind", "noise_level", "dataset", "seed"]
        there = set(self.units[columns].itertuples(index=False, name=None))
        expected = [
            (method, *condition, *run) for method in self.methods for condition in self.conditions for run in runs
        ]
        missing = [cell for cell in expected if cell not in there]
        notes = []
        if missing:
            named = [
                f"{method}, {_name((kind, level))}, {name}, seed {seed}" for method, kind, level, name, seed in missing
            ]
            more = f"; and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
            notes.append(
                f"{len(there)} of {len(expected)} combinations of method, noise, data set and seed have results. "
                f"Without: {'; '.join(named[:MOST_NAMED])}{more}."
            )
        return [*notes, *left_out(self.results)]


def interval(row: pd.Series, metric: Metric, unit: bool = False, sign: str = "") -> str:
    """Mean and interval to read: "24.51 [23.90, 25.10]", "24.51 dB [23.90, 25.10]" or, where there is none, "24.51".

    Args:
        row: of a table of statistics.
        metric: gives the format.
        unit: whether to name the unit.
        sign: "+" writes the sign of positive numbers too.
    """
    form = sign + metric.form
    text = format(row["mean"], form) + (f" {metric.unit}" if unit and metric.unit else "")
    return text if pd.isna(row["low"]) else f"{text} [{row['low']:{form}}, {row['high']:{form}}]"


def _size(row: pd.Series, metric: Metric) -> str:
    """How large a difference is, whatever its sign."""
    if row["mean"] < 0:
        row = pd.Series({"mean": -row["mean"], "low": -row["high"], "high": -row["low"]})
    return interval(row, metric, unit=True)


def _difference(row: pd.Series, metric: Metric) -> str:
    better = (row["mean"] > 0) == (metric.direction == "higher")
    text = f"{_size(row, metric)} {'better' if better else 'worse'} in {metric.title}"
    return f"{text} (the interval includes 0)" if row["low"] <= 0 <= row["high"] else text


def condition_name(condition: Condition, several: bool = False) -> str:
    """A short title: "0", "5", "non-affine", and with its level where there are several non-affine ones."""
    kind, level = condition
    if kind == "affine":
        return f"{level:g}"
    return f"{KIND_TITLES[kind]} {level:g}" if several else KIND_TITLES[kind]


def _name(condition: Condition) -> str:
    kind, level = condition
    return f"noise level {level:g}" if kind == "affine" else f"{KIND_TITLES[kind]} noise (level {level:g})"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
