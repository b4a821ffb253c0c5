"""The scores as Ignite metrics: per case, kept on the device, fetched once at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather

from pipeline.metrics.image import foreground_mask, mae, nmae, psnr, ssim

Score = Callable[..., torch.Tensor]
SCORES: dict[str, Score] = {"mae": mae, "nmae": nmae, "psnr": psnr, "ssim": ssim}
WHOLE_IMAGE = ("ssim",)  # by the paper's definition; the other scores keep to the foreground
PREDICTION = "pred"


class CaseMetric(Metric):
    """Score one candidate against the target, case by case.

    Reads `engine.state.output[candidate]` and `["label"]`, (B, C, *spatial) each. At the end of an epoch
    `engine.state.metrics[name]` is the mean over the cases and `engine.state.metric_details[name]` their values, (N,)
    on the CPU, in order; in a distributed run those of rank 0 first. Until then nothing is copied to the host.

    Cases without foreground have no masked score: they are nan in the details and left out of the mean. Any other nan
    or inf reaches the mean, so that a diverged network is not taken for a good one.

    Args:
        score: "nmae", "mae", "psnr" or "ssim", or a function `score(pred, target, *, data_range, mask)` -> (B,).
        candidate: key of the image to score: "pred", or a baseline's.
        data_range: width of the range of intensities.
        background: value of the target's background.
        masked: whether to keep to the target's foreground; None for the paper's definition, by which all but "ssim" do.

    Raises:
        ValueError: when there is no such score or `data_range` is not above 0.
    """

    def __init__(
        self,
        score: str | Score,
        candidate: str = PREDICTION,
        data_range: float = 2.0,
        background: float = -1.0,
        masked: bool | None = None,
    ) -> None:
        if not callable(score) and score not in SCORES:
            raise ValueError(f"score must be a function or one of {', '.join(SCORES)}, got {score!r}")
        if not data_range > 0:
            raise ValueError(f"data_range must be above 0, got {data_range}")
        self.score = score if callable(score) else SCORES[score]
        self.candidate = candidate
        self.data_range = float(data_range)
        self.background = float(background)
        self.masked = score not in WHOLE_IMAGE if masked is None else masked
        self.case_values = torch.empty(0)
        super().__init__(output_transform=self._select)

    def reset(self) -> None:
        """Forget the cases seen so far."""
        self._batches: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, output: Sequence[torch.Tensor]) -> None:
        """Score a batch.

        Args:
            output: candidate and target, (B, C, *spatial) each.
        """
        candidate, target = output
        mask = foreground_mask(target, self.background) if self.masked else None
        values = self.score(candidate, target, data_range=self.data_range, mask=mask)
        counts = torch.ones_like(values) if mask is None else mask.flatten(1).any(1).to(values.dtype)
        self._batches.append(torch.stack([values, counts], dim=1))

    def compute(self) -> float:
        """Return the mean over all cases of all processes; their values are then in `case_values`.

        Raises:
            NotComputableError: when there was no case at all.
        """
        local = torch.cat(self._batches) if self._batches else torch.empty(0, 2, device=idist.device())
        scored = evenly_divisible_all_gather(local)
        if len(scored) == 0:
            raise NotComputableError(f"{type(self).__name__} of {self.candidate!r} has seen no case")
        self.case_values, counts = scored.cpu().unbind(1)
        return float(self.case_values[counts > 0].double().mean())

    def completed(self, engine: Engine, name: str) -> None:
        """Write mean and values into the state of the engine; Ignite calls this at the end of an epoch."""
        super().completed(engine, name)
        if not hasattr(engine.state, "metric_details"):
            engine.state.metric_details = {}
        engine.state.metric_details[name] = self.case_values

    def _select(self, output: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        for key in (self.candidate, "label"):
            if key not in output:
                raise KeyError(f"the engine's output has no {key!r} to score; it holds {', '.join(map(str, output))}")
        return output[self.candidate], output["label"]


def case_metrics(
    scores: Sequence[str] = ("psnr", "ssim", "nmae"),
    candidates: Sequence[str] = (PREDICTION, "source", "intensity_map"),
    data_range: float = 2.0,
    background: float = -1.0,
) -> dict[str, CaseMetric]:
    """Make the metrics of an evaluation: every score for every candidate.

    Args:
        scores: names of scores, see `CaseMetric`.
        candidates: keys of the engine's output: the prediction and the baselines.
        data_range: width of the range of intensities.
        background: value of the target's background.

    Returns:
        Metrics by name: "psnr" for the prediction, "source_psnr" and the like for baselines.

    Raises:
        ValueError: when there is no such score.
    """
    return {
        score if candidate == PREDICTION else f"{candidate}_{score}": CaseMetric(
            score, candidate, data_range, background
        )
        for candidate in candidates
        for score in scores
    }
