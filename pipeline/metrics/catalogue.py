"""Every metric of the project, once: what computes it, what it is called, and how its numbers are written.

The evaluator, the tables, the progress, MLflow, the report of a study and a package's provenance read it; a metric is
added by an entry here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pipeline.metrics.content import high_frequency_ratio, linear_psnr, mutual_information
from pipeline.metrics.image import mae, nmae, psnr, ssim

Score = Callable[..., torch.Tensor]
PREDICTION, TARGET, SOURCE = "pred", "label", "image"
CANDIDATES = {"": "prediction", "source_": "source as it is", "intensity_map_": "intensity map"}
"""What begins the names of a candidate's metrics -> what readers call it."""
BASELINES = {prefix: title for prefix, title in CANDIDATES.items() if prefix}
"""The same of the predictions without a network."""
VOLUME = "volume_"
"""How the names of the metrics of whole volumes begin, to tell them from those of slices."""


@dataclass(frozen=True)
class Metric:
    """One metric, a column of the results.

    Attributes:
        name: of its column, without what says the candidate.
        title: to read, without its unit.
        score: function ``score(candidate, reference, *, data_range, mask)`` -> (B,); None for what is not measured on
            images: on displacement fields by `pipeline.metrics.RegistrationMetric`, or on the generator itself, for
            `pipeline.metrics.DriftMetric`.
        unit: "dB", "pixels", "degrees", "nats" or empty.
        form: number format.
        direction: what is better: "higher", "lower" or "neutral".
        group: "quality" is measured for the prediction and every baseline, in each validation; "content" in an
            evaluation alone, for ``candidates``; "registration" where there is a registration network; "drift" where it
            is asked for; "volume" of whole volumes alone.
        candidates: of "content": keys of the engine's output.
        reference: key of the image to compare with.
        masked: whether it keeps to the target's foreground, or is one of the whole image.
        column: head of its column in printed tables; made of title, unit and direction if empty.
    """

    name: str
    title: str
    score: Score | None = None
    unit: str = ""
    form: str = ".4f"
    direction: str = "neutral"
    group: str = "quality"
    candidates: tuple[str, ...] = ()
    reference: str = TARGET
    masked: bool = True
    column: str = ""

    @property
    def head(self) -> str:
        """Head of its column in a printed table."""
        unit = f" in {self.unit}" if self.unit else ""
        direction = "" if self.direction == "neutral" else f" ({self.direction})"
        return self.column or f"{self.title}{unit}{direction}"

    @property
    def label(self) -> str:
        """Title, unit and direction, as a report's table has them."""
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
        return "-" if math.isnan(value) else format(value, self.form)

    def said(self, value: float) -> str:
        """Title, value and unit, such as "PSNR 21.50 dB"."""
        return f"{self.title} {value:{self.form}}{f' {self.unit}' if self.unit else ''}"


_ERROR = "endpoint error in pixels (lower is better)"
_METRICS = (
    # What the paper compares methods by; SSIM is over the whole image there.
    Metric("nmae", "NMAE", nmae, direction="lower", column="NMAE (lower is better)"),
    Metric("psnr", "PSNR", psnr, "dB", ".2f", "higher"),
    Metric("ssim", "SSIM", ssim, direction="higher", masked=False),
    Metric("endpoint_error", "Endpoint error of R", None, "pixels", ".3f", "lower", "registration", column=_ERROR),
    Metric("identity_endpoint_error", "Endpoint error of doing nothing", None, "pixels", ".3f", group="registration"),
    Metric("folded", "Folded share", None, "", ".2%", "lower", "registration", column="folded pixels"),
    # Neither more nor less is better of the next two: what the target itself has is right.
    Metric(
        "source_information",
        "Mutual information with the source",
        mutual_information,
        "nats",
        ".3f",
        group="content",
        candidates=(PREDICTION, TARGET),
        reference=SOURCE,
        column="information shared with the source, nats",
    ),
    Metric(
        "high_frequency",
        "High frequency share against the target's",
        high_frequency_ratio,
        form=".3f",
        group="content",
        candidates=(PREDICTION,),
        column="fine detail against the target's",
    ),
    Metric(
        "linear_psnr",
        "PSNR after the best linear map of intensities",
        linear_psnr,
        "dB",
        ".2f",
        "higher",
        "content",
        candidates=(PREDICTION,),
        column="PSNR after the best linear map",
    ),
    # Without a target: by what the generator does to moved sources, see `pipeline.engines.drift`.
    Metric("drift", "Drift", None, "pixels", ".2f", "lower", "drift", column="drift in pixels"),
    Metric("drift_shift", "Drift, its shift", None, "pixels", ".2f", "lower", "drift", column="shift in pixels"),
    Metric("drift_turn", "Drift, its turn", None, "degrees", "+.2f", group="drift", column="turn in degrees"),
    Metric("drift_size", "Drift in size", None, "", "+.2%", group="drift", column="size"),
    Metric(
        "drift_scaling", "Share of a scaling not followed", None, "", ".1%", group="drift", column="scaling ignored"
    ),
    Metric("equivariance", "Mean |G(Px) - P G(x)|", None, "", ".4f", "lower", "drift", column="|G(Px) - P G(x)|"),
    Metric("mae", "MAE", mae, "the target's units", ".2f", "lower", "volume"),
)
CATALOGUE = {metric.name: metric for metric in _METRICS}
"""By name."""


def metrics_in(group: str) -> list[Metric]:
    """The metrics of a group, in their order."""
    return [metric for metric in CATALOGUE.values() if metric.group == group]


def names_in(group: str) -> tuple[str, ...]:
    """The names of the metrics of a group, in their order."""
    return tuple(metric.name for metric in metrics_in(group))


def columns() -> dict[str, Metric]:
    """The metrics by column of an evaluation of slices: those of the catalogue, and then those of the baselines."""
    of_baselines = (
        replace(metric, name=prefix + metric.name, title=f"{metric.title} of the {title}")
        for prefix, title in BASELINES.items()
        for metric in metrics_in("quality")
    )
    return {**CATALOGUE, **{metric.name: metric for metric in of_baselines}}


KEYS = (*names_in("quality"), "drift", "equivariance")
"""The metrics that may say which epoch is the best."""


def is_better(name: str) -> Callable[[float, float], bool]:
    """What compares two values of a metric: whether the first is better than the second; NaN never is.

    Args:
        name: among ``KEYS``.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in KEYS:
        raise ValueError(f"the best epoch can be told by {', '.join(KEYS)}, got {name!r}")
    sign = 1 if CATALOGUE[name].direction == "higher" else -1
    return lambda now, best: not math.isnan(now) and (math.isnan(best) or sign * now > sign * best)
