"""Means, paired differences and falls of a study's methods, with bootstrap intervals over patients and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from pipeline.metrics.catalogue import Metric, columns

KEYS = ("method", "noise_level", "noise_kind", "seed", "dataset", "case")
"""Columns that name a unit: one patient as one trained cell translates it."""
KINDS = ("affine", "nonaffine")
RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0
REFERENCES = ("pix2pix", "cyclegan")
CLEAN = 0.0  # the noise level at which training pairs are aligned
_PAIR = ["dataset", "case", "seed"]


def metrics_of(results: pd.DataFrame) -> list[Metric]:
    """The metrics that results hold: the known ones in their order, then any other column of numbers.

    Args:
        results: long form, or units.
    """
    measured = [
        str(name)
        for name in results.columns
        if name not in (*KEYS, "slice") and pd.api.types.is_numeric_dtype(results[name]) and results[name].notna().any()
    ]
    known = columns()
    return [metric for name, metric in known.items() if name in measured] + [
        Metric(name, name.replace("_", " ")) for name in measured if name not in known
    ]


@dataclass(frozen=True)
class Estimate:
    """A mean over units and how well it is known.

    Attributes:
        mean: over the units; nan if there are none.
        low: lower end of the interval; nan where one patient and one seed tell nothing of it.
        high: upper end.
        patients: how many entered.
        seeds: how many entered.
        units: pairs of patient and seed that entered.
    """

    mean: float
    low: float
    high: float
    patients: int
    seeds: int
    units: int


def check_results(results: pd.DataFrame) -> None:
    """Refuse what is no long form.

    Args:
        results: a row per cell and test slice, with the columns of ``KEYS``, ``slice`` and the metrics.

    Raises:
        ValueError: a column is missing, a noise kind unknown, a level no number, or a slice there twice.
    """
    missing = [name for name in (*KEYS, "slice") if name not in results.columns]
    if missing:
        raise ValueError(f"results lack the columns {missing}, got {list(results.columns)}")
    unknown = sorted(set(results["noise_kind"].astype(str)) - set(KINDS))
    if unknown:
        raise ValueError(f"noise_kind must be one of {KINDS}, got {unknown}")
    if results[list(KEYS)].isna().any(axis=None):
        raise ValueError(f"results have rows without a value in {list(KEYS)}")
    if not pd.api.types.is_numeric_dtype(results["noise_level"]):
        raise ValueError(f"noise_level must be a number, got a column of type {results['noise_level'].dtype}")
    twice = results.duplicated([*KEYS, "slice"])
    if twice.any():
        raise ValueError(f"results have a slice twice: {results.loc[twice, [*KEYS, 'slice']].iloc[0].to_dict()}")


def unit_values(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over the slices of each patient in each cell.

    Values that are not finite (the PSNR of a perfect slice, a metric that a method lacks) are left out of the means;
    ``left_out`` says how many.

    Args:
        results: long form.

    Returns:
        A row per unit: the columns of ``KEYS`` and a mean per metric, nan where no slice has a finite value.

    Raises:
        ValueError: see ``check_results``.
    """
    if results.empty:
        return pd.DataFrame(columns=list(KEYS))
    check_results(results)
    results = results.astype(dict.fromkeys(("method", "noise_kind", "dataset", "case"), str))
    names = [metric.name for metric in metrics_of(results)]
    finite = results[[*KEYS, *names]].replace([np.inf, -np.inf], np.nan)
    units = finite.groupby(list(KEYS), as_index=False, sort=True)[names].mean()
    return units.astype({"noise_level": float, "seed": int, **dict.fromkeys(names, float)})


def left_out(results: pd.DataFrame) -> list[str]:
    """One sentence per method and metric of which some values are not finite though others are."""
    notes: list[str] = []
    if results.empty:
        return notes
    for metric in metrics_of(results):
        for method, values in results.groupby("method", sort=False)[metric.name]:
            infinite, undefined = int(np.isinf(values).sum()), int(values.isna().sum())
            if infinite or 0 < undefined < len(values):
                notes.append(
                    f"{metric.title} of {method}: {infinite} infinite and {undefined} undefined of {len(values)} "
                    "slices are left out of the means."
                )
    return notes


def estimate(units: pd.DataFrame, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean of one column over units, with a percentile bootstrap interval of `CONFIDENCE`.

    Patients and seeds are drawn with replacement, each apart from the other, and a unit counts as often as its patient
    was drawn times as often as its seed was: the crossed bootstrap of Owen (The pigeonhole bootstrap, Annals of Applied
    Statistics 2007). Patients are drawn within their data set, or among all where each data set has one, as folds that
    leave one out have. With two or three patients and seeds such an interval is too short.

    Args:
        units: ``dataset``, ``case``, ``seed`` and the column, each (dataset, case, seed) at most once.
        name: the column; nan values are left out.
        resamples: how often to draw.
        seed: of the draws; the same input gives the same interval.

    Raises:
        ValueError: if a unit is there twice.
    """
    known = units.loc[units[name].notna(), [*_PAIR, name]]
    if known.empty:
        return Estimate(np.nan, np.nan, np.nan, 0, 0, 0)
    if known.duplicated(_PAIR).any():
        raise ValueError(f"a (dataset, case, seed) is there twice among the values of {name}")
    grid = known.pivot(index=["dataset", "case"], columns="seed", values=name).sort_index()
    values = grid.to_numpy(dtype=float)
    present = ~np.isnan(values)
    patients_of = grid.groupby(level="dataset", sort=True).size().to_numpy()
    if patients_of.max() == 1:  # folds of one data set that each leave one patient out
        patients_of = patients_of.sum(keepdims=True)
    patients, seeds = values.shape
    low = high = np.nan
    if seeds > 1 or patients_of.max() > 1:
        random = np.random.default_rng(seed)
        of_patients = np.concatenate([_draws(random, size, resamples) for size in patients_of], axis=1)
        of_seeds = _draws(random, seeds, resamples)
        total = ((of_patients @ np.where(present, values, 0)) * of_seeds).sum(axis=1)
        count = ((of_patients @ present.astype(float)) * of_seeds).sum(axis=1)
        means = total[count > 0] / count[count > 0]  # a draw may hit only units that are missing
        tail = 50 * (1 - CONFIDENCE)
        low, high = (float(value) for value in np.percentile(means, [tail, 100 - tail]))
    return Estimate(float(values[present].mean()), low, high, patients, seeds, int(present.sum()))


def _draws(random: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """How often each of ``size`` items is drawn in ``size`` draws: (resamples, size)."""
    return random.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float)


def summarise(units: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of each metric, by method, noise kind and level.

    Args:
        units: see ``unit_values``.

    Returns:
        Columns ``method``, ``noise_kind``, ``noise_level``, ``metric`` and those of ``Estimate``; no row where a method
        has no value of a metric.
    """
    rows = []
    for (method, kind, level), group in units.groupby(["method", "noise_kind", "noise_level"], sort=False):
        for metric, result in _estimates(group, metrics_of(units)):
            cell = {"method": method, "noise_kind": kind, "noise_level": level, "metric": metric.name}
            rows.append({**cell, **asdict(result)})
    return _table(rows, ["method", "noise_kind", "noise_level", "metric"])


def differences(units: pd.DataFrame, references: Sequence[str] = REFERENCES) -> pd.DataFrame:
    """By how much each method differs from a reference at the same level: method minus reference, paired.

    Pairs are the same (dataset, case, seed); what only one of the two has is left out.

    Args:
        units: see ``unit_values``.
        references: methods to compare with; those without results are skipped.

    Returns:
        As ``summarise``, with the column ``reference``.
    """
    rows = []
    names = [metric.name for metric in metrics_of(units)]
    for (kind, level), group in units.groupby(["noise_kind", "noise_level"], sort=False):
        of_method = {method: part.set_index(_PAIR)[names] for method, part in group.groupby("method", sort=False)}
        for reference in references:
            for method in of_method:
                if reference == method or reference not in of_method:
                    continue
                paired = (of_method[method] - of_method[reference]).reset_index()
                cell = {"method": method, "reference": reference, "noise_kind": kind, "noise_level": level}
                for metric, result in _estimates(paired, metrics_of(units)):
                    rows.append({**cell, "metric": metric.name, **asdict(result)})
    return _table(rows, ["method", "reference", "noise_kind", "noise_level", "metric"])


def falls(units: pd.DataFrame, reference: str | None = None) -> pd.DataFrame:
    """By how much each method is worse at the highest level of each noise kind than on aligned pairs.

    Paired by (dataset, case, seed). Positive is worse: a metric of which higher is better falls, one of which lower is
    better rises. Of metrics without a direction it is the rise.

    Args:
        units: see ``unit_values``.
        reference: the method at level 0 that all are compared with; None for each method's own level 0.

    Returns:
        As ``summarise``, ``noise_level`` being the highest level of the kind in all results; no row for a method that
        lacks that level, or whose reference lacks level 0.
    """
    rows = []
    metrics = metrics_of(units)
    names = [metric.name for metric in metrics]
    signs = pd.Series({metric.name: -1.0 if metric.direction == "higher" else 1.0 for metric in metrics})
    # At level 0 no field is drawn, of whatever kind it would have been.
    aligned = units[units["noise_level"] == CLEAN].groupby(["method", *_PAIR])[names].mean()
    for kind, group in units[units["noise_level"] > CLEAN].groupby("noise_kind", sort=False):
        top = group["noise_level"].max()
        for method, part in group[group["noise_level"] == top].groupby("method", sort=False):
            against = str(method) if reference is None else reference
            if against not in aligned.index.get_level_values("method"):
                continue
            worse = ((part.set_index(_PAIR)[names] - aligned.loc[against]) * signs).reset_index()
            for metric, result in _estimates(worse, metrics):
                cell = {"method": method, "noise_kind": kind, "noise_level": top, "metric": metric.name}
                rows.append({**cell, **asdict(result)})
    return _table(rows, ["method", "noise_kind", "noise_level", "metric"])


def _estimates(units: pd.DataFrame, metrics: Sequence[Metric]) -> Iterator[tuple[Metric, Estimate]]:
    for metric in metrics:
        result = estimate(units, metric.name)
        if result.units:
            yield metric, result


def _table(rows: list[dict[str, object]], keys: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*keys, *Estimate.__dataclass_fields__]).sort_values(
        ["noise_kind", "noise_level"], kind="stable", ignore_index=True
    )
