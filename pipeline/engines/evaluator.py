"""The evaluator: predictions and baselines of the same cases, side by side, and the registration network's fields."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import Evaluator
from monai.engines.utils import default_metric_cmp_fn
from monai.inferers import Inferer, SimpleInferer
from monai.utils import CommonKeys
from torch import Tensor

from pipeline.engines.batch import PrepareBatch
from pipeline.engines.drift import drift
from pipeline.engines.processes import gathered
from pipeline.metrics import DriftMetric
from pipeline.translators import Translator
from transforms import RandDeformationNoised

Baseline = Callable[[Tensor], Tensor]
SEED = 0  # of the misalignments


class TranslationEvaluator(Evaluator):
    """Scores a translator on aligned pairs, together with baselines that need no network.

    ``engine.state.output`` holds ``image``, ``label``, ``pred``, one prediction per baseline under its name, ``case``
    and ``slice``; metrics read what they score from there. ``engine.state.case_ids`` lists (case, slice) in the order
    in which metrics keep their values.

    With ``noise``, and where the translator has a registration network, each pair is also misaligned by a known amount:
    the misaligned source is translated, and the network registers that prediction with the misaligned target. The
    output then holds ``misaligned``, that target; ``ddf``, the field found; and ``true_ddf``, the field that lines the
    two up. The misalignments follow from a fixed seed and are the same in every evaluation.

    Where a metric is a `pipeline.metrics.DriftMetric`, the output also holds what `pipeline.engines.drift.drift` finds.

    Args:
        device: where to evaluate.
        val_data_loader: yields dictionaries with ``image`` and ``label`` (B, C, *spatial) in [-1, 1], ``case``,
            ``slice``.
        network: the translator, on ``device``.
        baselines: by name, maps a source batch to a prediction.
        prepare_batch: moves a batch, see ``PrepareBatch``.
        inferer: how the network is applied, default to the whole input at once.
        key_val_metric: one metric by name, which decides what is best.
        additional_metrics: more metrics by name.
        val_handlers: Ignite handlers.
        noise: misaligns a batch, as in training, and returns the displacement; a copy of it is used.
        amp: run the network under ``torch.autocast`` in bfloat16.
        metric_cmp_fn: whether a value of the key metric is better than another; greater is, by default.

    Raises:
        ValueError: if ``noise`` does not return the displacement.
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
        noise: RandDeformationNoised | None = None,
        amp: bool = False,
        metric_cmp_fn: Callable[[float, float], bool] = default_metric_cmp_fn,
    ) -> None:
        self.network = network
        self.baselines = dict(baselines or {})
        self.inferer = inferer or SimpleInferer()
        if noise is not None and not noise.return_displacement:
            raise ValueError("the evaluator's noise must be made with return_displacement=True")
        self.noise = copy.deepcopy(noise)
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            non_blocking=True,
            prepare_batch=prepare_batch or PrepareBatch(),
            key_val_metric=key_val_metric,
            additional_metrics=additional_metrics,
            val_handlers=val_handlers,
            metric_cmp_fn=metric_cmp_fn,
            amp=amp,
            decollate=False,
        )
        metrics = {**(key_val_metric or {}), **(additional_metrics or {})}.values()
        self.measures_drift = any(isinstance(metric, DriftMetric) for metric in metrics)
        self.add_event_handler(Events.EPOCH_STARTED, self._begin)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._gather)

    def _begin(self) -> None:
        self.state.case_ids = []
        if self.noise is not None:
            self.noise.set_random_state(seed=SEED)

    def _gather(self) -> None:
        self.state.case_ids = gathered(self.state.case_ids)

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        source = batch[CommonKeys.IMAGE]
        with self._inference():
            pred = self.inferer(source, self.network)
        self.state.case_ids.extend(zip(batchdata["case"], [int(i) for i in batchdata["slice"]], strict=True))
        return {
            **batch,
            CommonKeys.PRED: pred.float(),
            **{name: baseline(source) for name, baseline in self.baselines.items()},
            **self._registered(batch),
            **self._drift(source, pred),
        }

    def _registered(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.noise is None or self.network.registration is None:
            return {}
        noisy = self.noise({key: batch[key] for key in self.noise.keys})
        source, misaligned = (noisy[key] for key in (CommonKeys.IMAGE, CommonKeys.LABEL))
        with self._inference():
            _, ddf = self.network.register(self.inferer(source, self.network), misaligned)
        true_ddf = noisy[self.noise.displacement_key]
        return {"misaligned": misaligned, "ddf": ddf.float(), "true_ddf": true_ddf}

    def _drift(self, source: Tensor, pred: Tensor) -> dict[str, Tensor]:
        if not self.measures_drift:
            return {}

        def translate(images: Tensor) -> Tensor:
            with self._inference():
                return self.inferer(images, self.network)

        return drift(translate, source, pred)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with self.mode(self.network), torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.amp):
            yield
