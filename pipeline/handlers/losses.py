"""The loss terms of a training run, brought to the host in batches."""

from __future__ import annotations

import math

import ignite.distributed as idist
import torch
from ignite.engine import Engine, EventEnum, Events

from pipeline.handlers.exceptions import on_exception


class LossEvents(EventEnum):
    """Events that `LossCollector` adds to the trainer."""

    LOSSES_READY = "losses_ready"


class LossCollector:
    """Gathers the loss terms of each iteration on the device and copies many of them to the host at once.

    Reading a loss on the host waits for the device; done at each step it keeps the device idle. This handler stacks the
    0-d tensors in ``engine.state.output["losses"]`` on their device at each iteration. Every ``interval`` iterations,
    at the end of an epoch, and when the run ends in whatever way, one copy brings the stacks to the host and
    `LossEvents.LOSSES_READY` is fired with

        ``engine.state.recent_losses = {"iteration": [int, ...], name: [float, ...], ...}``

    where all lists have the same length, oldest first. Attach it before the handlers that use that event.

    Args:
        interval: number of iterations between two copies, at least 1.

    Raises:
        ValueError: ``interval`` is below 1.
    """

    def __init__(self, interval: int = 20) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1 iteration, got {interval}")
        self.interval = interval
        self._names: tuple[str, ...] = ()
        self._iterations: list[int] = []
        self._rows: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Adds the handler and the event `LossEvents.LOSSES_READY` to a trainer."""
        engine.register_events(*LossEvents)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.TERMINATE | Events.INTERRUPT, self._publish)
        on_exception(engine, self._publish_before_error)

    def _collect(self, engine: Engine) -> None:
        losses = engine.state.output["losses"]
        if not losses:
            return
        names = tuple(losses)
        if names != self._names:  # a row holds one set of terms
            self._publish(engine)
            self._names = names
        # The stack is a copy: a captured graph writes the next losses into the same tensors.
        self._rows.append(torch.stack([value.detach() for value in losses.values()]))
        self._iterations.append(engine.state.iteration)
        if engine.state.iteration % self.interval == 0:
            self._publish(engine)

    def _publish(self, engine: Engine) -> None:
        """Fires the event for what was gathered.

        Raises:
            FloatingPointError: a loss is NaN or infinite; raised after the event, so that its handlers saw it too.
        """
        recent = self._take()
        if not recent:
            return
        engine.state.recent_losses = recent
        engine.fire_event(LossEvents.LOSSES_READY)
        _check_finite(recent)

    def _publish_before_error(self, engine: Engine, error: BaseException) -> None:
        if idist.get_world_size() > 1:  # the other processes know of no error
            return
        try:
            self._publish(engine)
        except Exception as second:  # the first error is the one to report
            engine.logger.debug("the last losses could not be read: %s", second)

    def _take(self) -> dict[str, list]:
        iterations, rows = self._iterations, self._rows
        self._iterations, self._rows = [], []
        if not rows:
            return {}
        table = torch.stack(rows)
        if idist.get_world_size() > 1:  # each process has the means over its part of the batches
            table = idist.all_reduce(table) / idist.get_world_size()
        columns = table.cpu().unbind(dim=1)
        return {"iteration": iterations} | {
            name: column.tolist() for name, column in zip(self._names, columns, strict=True)
        }


def _check_finite(recent: dict[str, list]) -> None:
    for row, iteration in enumerate(recent["iteration"]):
        for name, values in recent.items():
            if not math.isfinite(values[row]):
                raise FloatingPointError(
                    f"loss {name!r} is {values[row]} at iteration {iteration}; a finite number was expected. "
                    "Often a lower learning_rate or training without amp helps; also check the intensities of the data"
                )
