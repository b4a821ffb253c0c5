"""What a study measures: each metric's name, title, number format and direction."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

KEYS = ("method", "noise_level", "noise_kind", "seed", "dataset", "case")
"""Columns that name a unit: one patient as one trained cell translates it."""
KINDS = ("affine", "nonaffine")
KIND_TITLES = {"affine": "affine", "nonaffine": "non-affine"}


@dataclass(frozen=True)
class Metric:
    """One column of a study's results.

    Attributes:
        name: the column.
        title: to read, without its unit.
        unit: "dB", "pixels", "nats" or empty.
        form: number format.
        direction: what is better: "higher", "lower" or "neutral".
    """

    name: str
    title: str
    unit: str = ""
    form: str = ".4f"
    direction: str = "neutral"

    @property
    def label(self) -> str:
        """Title, unit and direction, as a table's head has them."""
        hints = [f"in {self.unit}"] if self.unit else []
        if self.direction != "neutral":
            hints.append(f"{self.direction} is better")
        return f"{self.title} ({', '.join(hints)})" if hints else self.title

    @property
    def axis(self) -> str:
        """Title and unit, as an axis has them."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def number(self, value: float) -> str:
        """A value to read, "-" where there is none."""
        return "-" if pd.isna(value) else format(value, self.form)


QUALITY = (
    Metric("nmae", "NMAE", form=".4f", direction="lower"),
    Metric("psnr", "PSNR", "dB", ".2f", "higher"),
    Metric("ssim", "SSIM", form=".4f", direction="higher"),
)
"""What the paper compares methods by."""
BASELINES = {"source_": "source as it is", "intensity_map_": "intensity map"}
"""Prefix of a column -> the prediction without a network that it scores."""
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *QUALITY,
        Metric("endpoint_error", "Endpoint error of R", "pixels", ".3f", "lower"),
        Metric("identity_endpoint_error", "Endpoint error of doing nothing", "pixels", ".3f"),
        Metric("folded", "Folded share", form=".2%", direction="lower"),
        # Neither more nor less is better: what the target itself shares with the source is right.
        Metric("source_information", "Mutual information with the source", "nats", ".3f"),
        Metric("high_frequency", "High frequency share against the target's", form=".3f"),
        *(
            Metric(prefix + metric.name, f"{metric.title} of the {title}", metric.unit, metric.form, metric.direction)
            for prefix, title in BASELINES.items()
            for metric in QUALITY
        ),
    )
}
"""By column."""


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
    known = [metric for metric in METRICS.values() if metric.name in measured]
    return known + [Metric(name, name.replace("_", " ")) for name in measured if name not in METRICS]
