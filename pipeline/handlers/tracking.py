"""What a training tells MLflow, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from pipeline.handlers.exceptions import on_exception
from pipeline.handlers.losses import LossEvents
from pipeline.tracking import MLflowRun


class MLflowTracker(MLflowRun):
    """Tells MLflow about a training run.

    Beside what every `MLflowRun` holds: each loss term (``train/<term>``), as means over at least ``loss_interval``
    iterations at the last of them, and learning rate (``learning_rate/<optimizer>``) and validation metric
    (``val/<metric>``) by iteration, with ``epoch`` beside them. An epoch is divided evenly: means end with it, so that
    a resumed run has the same as one that was never cut.

    Args:
        output_dir: output directory of the run.
        tracking_uri: see `MLflowRun`.
        optimizers: name -> optimizer, for the learning rates; None values are left out.
        evaluator: engine whose ``state.metrics`` are the validation metrics.
        loss_interval: least iterations that a loss is the mean of, unless an epoch has fewer; 1 tells each.
        **options: of `MLflowRun`. Its artifacts are looked for at the end of each epoch, too.

    Raises:
        ValueError: see `MLflowRun`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        tracking_uri: str | None = None,
        *,
        optimizers: Mapping[str, torch.optim.Optimizer | None] | None = None,
        evaluator: Engine | None = None,
        loss_interval: int = 30,
        **options: Any,
    ) -> None:
        self._optimizers = {name: item for name, item in (optimizers or {}).items() if item is not None}
        parameters = [p for o in self._optimizers.values() for group in o.param_groups for p in group["params"]]
        super().__init__(output_dir, tracking_uri, device=parameters[0].device if parameters else None, **options)
        if isinstance(loss_interval, bool) or not isinstance(loss_interval, int) or loss_interval < 1:
            raise ValueError(f"loss_interval must be a whole number of at least 1, got {loss_interval!r}")
        self._evaluator = evaluator
        self._loss_interval = loss_interval
        self._window: dict[str, list[float]] = {}
        self._trainer: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Follows a trainer, whose losses a `pipeline.handlers.losses.LossCollector` gathers.

        Attach it behind what runs the validation and before what writes checkpoints: then all values of an epoch are
        in the journal once there is a checkpoint to resume behind them.
        """
        if self._uri is None or idist.get_rank() > 0:
            return
        self._trainer, self._unended = engine, "KILLED"
        engine.register_events(*LossEvents)
        engine.add_event_handler(Events.STARTED, self._on_started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._log_rates)
        engine.add_event_handler(LossEvents.LOSSES_READY, self._log_losses)
        # Here and not at the start: a checkpoint that says the epoch is over must find this said already.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        if self._evaluator is not None:
            self._evaluator.add_event_handler(Events.COMPLETED, self._log_validation)

    def _on_started(self, engine: Engine) -> None:
        self.start()
        # Only now, so that these come behind the handlers that write files at the same events.
        if not engine.has_event_handler(self._on_completed, Events.COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.log_new_files)
            engine.add_event_handler(Events.COMPLETED, self._on_completed)
            engine.add_event_handler(Events.TERMINATE, self._on_terminate)
            on_exception(engine, self._on_exception)

    def _log_rates(self, engine: Engine) -> None:
        rates = {}
        for name, optimizer in self._optimizers.items():
            groups = optimizer.param_groups
            for number, group in enumerate(groups):
                rates[f"learning_rate/{name}" + (f"/{number}" if len(groups) > 1 else "")] = group["lr"]
        # Not state.iteration: a run resumed within an epoch has to say the same as one that was never cut.
        self.log_metrics(rates, step=(engine.state.epoch - 1) * (engine.state.epoch_length or 0))

    def _log_losses(self, engine: Engine) -> None:
        recent = dict(engine.state.recent_losses)
        steps, means = [], dict[str, list[float]]()
        for row, step in enumerate(recent.pop("iteration")):
            if self._window.keys() != recent.keys():
                self._window = {name: [] for name in recent}
            for name, values in recent.items():
                self._window[name].append(values[row])
            if _is_last(step, self._loss_interval, engine.state.epoch_length):
                steps.append(step)
                for name, values in self._window.items():
                    means.setdefault(f"train/{name}", []).append(sum(values) / len(values))
                self._window = {}
        if steps:
            self.log_series(steps, means)

    def _log_validation(self, evaluator: Engine) -> None:
        step = self._trainer.state.iteration if self._trainer is not None else 0
        self.log_metrics({f"val/{name}": value for name, value in evaluator.state.metrics.items()}, step)

    def _log_epoch(self, engine: Engine) -> None:
        metrics = {f"train/{name}": value for name, value in engine.state.metrics.items()}
        self.log_metrics(metrics | {"epoch": engine.state.epoch}, engine.state.iteration)

    def _on_completed(self, engine: Engine) -> None:
        self.close("FINISHED")

    def _on_terminate(self, engine: Engine) -> None:
        if engine.should_terminate == "skip_completed":
            self.close("FINISHED")

    def _on_exception(self, engine: Engine, error: BaseException) -> None:
        self.close_after(error)


def _is_last(step: int, interval: int, epoch_length: int | None) -> bool:
    """Whether a mean of at least so many iterations ends at this one, an epoch being divided evenly."""
    if not epoch_length:
        return step % interval == 0
    means, place = max(1, epoch_length // interval), (step - 1) % epoch_length
    return (place + 1) * means // epoch_length > place * means // epoch_length
