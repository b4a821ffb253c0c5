"""The columns of a study's results."""

from __future__ import annotations

import pandas as pd

from pipeline.metrics.catalogue import Metric, columns

KEYS = ("method", "noise_level", "noise_kind", "seed", "dataset", "case")
"""Columns that name a unit: one patient as one trained cell translates it."""
KINDS = ("affine", "nonaffine")
KIND_TITLES = {"affine": "affine", "nonaffine": "non-affine"}


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
