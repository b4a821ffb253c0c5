"""The evaluator: predictions and baselines of the same cases, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import Evaluator
from monai.inferers import Inferer, SimpleInferer
from monai.utils import CommonKeys
from torch import Tensor

from pipeline.engines.batch import PrepareBatch
from pipeline.translators import Translator

Baseline = Callable[[Tensor], Tensor]


class TranslationEvaluator(Evaluator):
    """Scores a translator on aligned pairs, together with baselines that need no network.

    ``engine.state.output`` holds ``image``, ``label``, ``pred``, one prediction per baseline under its name, ``case``
    and ``slice``; metrics read what they score from there. ``engine.state.case_ids`` lists (case, slice) in the order
    in which metrics keep their values.

    Args:
        device: where to evaluate.
        val_data_loader: yields dictionaries with ``image`` and ``label`` (B, C, *spatial) in [-1, 1], ``case``,
            ``slice``.
        network: the translator, on ``device``.
        baselines: by name, maps a source batch to a prediction.
        prepare_batch: moves a batch, see ``PrepareBatch``.
        inferer: how the network is applied, default to the whole input at once.
        key_val_metric: one metric by name, which decides what is best (greater is better).
        additional_metrics: more metrics by name.
        val_handlers: Ignite handlers.
        amp: run the network under ``torch.autocast`` in bfloat16.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable[Mapping[str, Any]],
        network: Translator,
        baselines: Mapping[str, Baseline] | None = None,
        prepare_batch: Callable[..., dict[str, Any]] | None = None,
        inferer: Inferer | None = None,
        key_val_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        val_handlers: Sequence[Any] | None = None,
        amp: bool = False,
    ) -> None:
        self.network = network
        self.baselines = dict(baselines or {})
        self.inferer = inferer or SimpleInferer()
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            non_blocking=True,
            prepare_batch=prepare_batch or PrepareBatch(),
            key_val_metric=key_val_metric,
            additional_metrics=additional_metrics,
            val_handlers=val_handlers,
            amp=amp,
            decollate=False,
        )
        self.add_event_handler(Events.EPOCH_STARTED, self._forget_cases)

    def _forget_cases(self) -> None:
        self.state.case_ids = []

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        source = batch[CommonKeys.IMAGE]
        with self.mode(self.network), torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.amp):
            pred = self.inferer(source, self.network)
        self.state.case_ids.extend(zip(batchdata["case"], [int(i) for i in batchdata["slice"]], strict=True))
        return {
            **batch,
            CommonKeys.PRED: pred.float(),
            **{name: baseline(source) for name, baseline in self.baselines.items()},
        }
