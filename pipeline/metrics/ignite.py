"""The scores as Ignite metrics: per case, kept on the device, fetched once at the end of an epoch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather

from pipeline.metrics.catalogue import CATALOGUE, PREDICTION, TARGET, Score, metrics_in, names_in
from pipeline.metrics.image import foreground_mask
from pipeline.metrics.registration import endpoint_error, folded_fraction, points_inside
from transforms.scale import DATA_RANGE


class ValuePerCase(Metric):
    """What all metrics here share: one value per case, kept on the device, fetched once at the end of an epoch.

    At the end of an epoch `engine.state.metrics[name]` is the mean over the cases and
    `engine.state.metric_details[name]` their values, (N,) on the CPU, in order; in a distributed run those of rank 0
    first. Until then nothing is copied to the host.

    Cases without foreground have no masked score: they are nan in the details and left out of the mean. Any other nan
    or inf reaches the mean, so that a diverged network is not taken for a good one.

    Args:
        keys: what of `engine.state.output` the metric is made from, as `values` takes it.
        once: these are the same in every epoch: what the first one came to is given again at later ones.
    """

    def __init__(self, keys: Sequence[str], once: bool = False) -> None:
        self.keys = tuple(keys)
        self.once = once
        self._known: list[torch.Tensor] = []  # of an epoch before, by batch
        self.case_values = torch.empty(0)
        super().__init__(output_transform=self._select)

    def values(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values of a batch, (B,), and whether each counts, (B,); None where all do."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the cases seen so far."""
        self._batches: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, output: Sequence[torch.Tensor]) -> None:
        """Score a batch.

        Args:
            output: the tensors of `keys`.
        """
        number = len(self._batches)
        if number < len(self._known):
            if len(self._known[number]) == len(output[0]):
                self._batches.append(self._known[number])
                return
            self._known = []  # these are others
        values, counts = self.values(*output)
        counts = torch.ones_like(values) if counts is None else counts.to(values.dtype)
        self._batches.append(torch.stack([values, counts], dim=1))

    def compute(self) -> float:
        """Return the mean over all cases of all processes; their values are then in `case_values`.

        Raises:
            NotComputableError: when there was no case at all.
        """
        local = torch.cat(self._batches) if self._batches else torch.empty(0, 2, device=idist.device())
        scored = evenly_divisible_all_gather(local)
        if len(scored) == 0:
            raise NotComputableError(f"{type(self).__name__} of {self.keys[0]!r} has seen no case")
        if self.once:
            self._known = self._batches
        self.case_values, counts = scored.cpu().unbind(1)
        return float(self.case_values[counts > 0].double().mean())

    def completed(self, engine: Engine, name: str) -> None:
        """Write mean and values into the state of the engine; Ignite calls this at the end of an epoch."""
        super().completed(engine, name)
        if not hasattr(engine.state, "metric_details"):
            engine.state.metric_details = {}
        engine.state.metric_details[name] = self.case_values

    def _select(self, output: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        for key in self.keys:
            if key not in output:
                raise KeyError(f"the engine's output has no {key!r} to score; it holds {', '.join(map(str, output))}")
        return tuple(output[key] for key in self.keys)


class CaseMetric(ValuePerCase):
    """Score one candidate against a reference image, case by case.

    Reads `engine.state.output[candidate]`, `[reference]` and `["label"]`, (B, C, *spatial) each.

    Args:
        score: a name in the catalogue, or a function `score(candidate, reference, *, data_range, mask)` -> (B,).
        candidate: key of the image to score: "pred", or a baseline's.
        masked: whether to keep to the target's foreground; None for the catalogue's word, or True of a function.
        reference: key of the image to compare with; None for the catalogue's word, or the target ("label") of a
            function.
        once: see `ValuePerCase`.

    Raises:
        ValueError: when there is no such score.
    """

    def __init__(
        self,
        score: str | Score,
        candidate: str = PREDICTION,
        masked: bool | None = None,
        reference: str | None = None,
        once: bool = False,
    ) -> None:
        known = CATALOGUE.get(score) if isinstance(score, str) else None
        function = score if known is None else known.score
        if function is None or isinstance(function, str):
            names = ", ".join(name for name, metric in CATALOGUE.items() if metric.score is not None)
            raise ValueError(f"score must be a function or one of {names}, got {score!r}")
        self.score = function
        self.masked = masked if masked is not None else known is None or known.masked
        own = TARGET if known is None else known.reference
        super().__init__((candidate, own if reference is None else reference, TARGET), once)

    def values(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score candidate against reference over the target's foreground; cases without any do not count."""
        candidate, reference, target = tensors
        mask = foreground_mask(target) if self.masked else None
        values = self.score(candidate, reference, data_range=DATA_RANGE, mask=mask)
        return values, None if mask is None else mask.flatten(1).any(1)


class RegistrationMetric(ValuePerCase):
    """How well a registration network finds a misalignment that is known.

    Reads `engine.state.output["ddf"]` (the field found) and `["true_ddf"]`, (B, spatial_dims, *spatial) in voxels each,
    and `["misaligned"]`, the target (B, C, *spatial) that they line the prediction up with. Errors are means over the
    foreground of the misaligned target. Pixels whose true counterpart lies outside the image are left out: there is
    nothing to line them up with, and nothing to tell the network where it would be.

    Args:
        score: "endpoint_error", mean distance in voxels between where both fields point; "identity_endpoint_error",
            that of a field of zeros; "folded", share of all voxels of the image at which the field found folds.

    Raises:
        ValueError: when there is no such score.
    """

    def __init__(self, score: str) -> None:
        if score not in names_in("registration"):
            raise ValueError(f"score must be one of {', '.join(names_in('registration'))}, got {score!r}")
        self.score = score
        super().__init__(("ddf", "true_ddf", "misaligned"))

    def values(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score the field; for the errors, cases without a pixel to compare do not count."""
        ddf, true_ddf, misaligned = tensors
        if self.score == "folded":
            return folded_fraction(ddf), None
        mask = foreground_mask(misaligned).any(1, keepdim=True) & points_inside(true_ddf)
        found = ddf if self.score == "endpoint_error" else torch.zeros_like(ddf)
        return endpoint_error(found, true_ddf, mask), mask.flatten(1).any(1)


class DriftMetric(ValuePerCase):
    """What an evaluator finds of its generator's drift, which it looks for where such a metric is attached.

    Reads `engine.state.output[name]`, (B,), see `pipeline.engines.drift`. Cases without foreground are nan, and do not
    count.

    Args:
        name: in the catalogue's group "drift".

    Raises:
        ValueError: when there is no such metric.
    """

    def __init__(self, name: str) -> None:
        if name not in names_in("drift"):
            raise ValueError(f"drift is one of {', '.join(names_in('drift'))}, got {name!r}")
        super().__init__((name,))

    def values(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The values as they are."""
        [values] = tensors
        return values, ~values.isnan()


def case_metrics(
    scores: Sequence[str] | None = None,
    candidates: Sequence[str] = (PREDICTION, "source", "intensity_map"),
    extra: Mapping[str, Sequence[str]] | bool = False,
    registration: bool = False,
    drift: bool = False,
    once: Collection[str] = (),
) -> dict[str, ValuePerCase]:
    """Make the metrics of an evaluation: every score for every candidate.

    Args:
        scores: names of scores, see `CaseMetric`; None for the catalogue's of the group "quality".
        candidates: keys of the engine's output: the prediction and the baselines.
        extra: further scores by name, each with the candidates that it is made for; True for the catalogue's of the
            group "content".
        registration: whether to add those of `RegistrationMetric`.
        drift: whether to add those of `DriftMetric`, which cost a dozen translations and registrations of each batch.
        once: candidates that are the same in every epoch of the same cases in the same order, as baselines are in a
            training: they are scored in the first.

    Returns:
        Metrics by name: "psnr" for the prediction, "source_psnr" and the like for other candidates; those of the
        registration and of drift under their own names.

    Raises:
        ValueError: when there is no such score.
    """
    if isinstance(extra, bool):
        extra = {metric.name: metric.candidates for metric in metrics_in("content")} if extra else {}
    scores = names_in("quality") if scores is None else scores
    wanted = [(score, candidate) for candidate in candidates for score in scores]
    wanted += [(score, candidate) for score, some in extra.items() for candidate in some]
    metrics: dict[str, ValuePerCase] = {
        score if candidate == PREDICTION else f"{candidate}_{score}": CaseMetric(
            score, candidate, once=candidate in once
        )
        for score, candidate in wanted
    }
    if registration:
        metrics |= {score: RegistrationMetric(score) for score in names_in("registration")}
    if drift:
        metrics |= {name: DriftMetric(name) for name in names_in("drift")}
    return metrics
