"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from pipeline.handlers.exceptions import on_exception
from pipeline.handlers.losses import LossEvents
from pipeline.metrics.catalogue import CATALOGUE, Metric

LINES_PER_EPOCH = 10
# A short bar and nothing superfluous: what does not fit a narrow terminal is cut off at the end.
BAR = "{desc}{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}"


class ProgressHandler:
    """Show epoch, iteration, losses, rate and the time left of the whole training, validations included.

    On a terminal this is a tqdm bar over all iterations. Elsewhere (a log file, a batch system) it is a plain line at
    the end of each epoch and, in long epochs, at each tenth of one, but then at most every ``seconds``. After each
    validation its metrics follow on a line. Nothing is read from the device: losses come from ``LossCollector``, the
    mean of what it brought last.

    Args:
        evaluator: its ``state.metrics`` are shown when it completes; None where there is no validation.
        metrics: names of the metrics to show.
        seconds: least time between two plain lines of one epoch.
        stream: where to write, default standard error.

    Raises:
        ValueError: if ``seconds`` is negative.
    """

    def __init__(
        self,
        evaluator: Engine | None = None,
        metrics: Sequence[str] = ("psnr", "ssim", "nmae"),
        seconds: float = 30.0,
        stream: TextIO | None = None,
    ) -> None:
        if seconds < 0:
            raise ValueError(f"seconds must not be negative, got {seconds}")
        self.evaluator = evaluator
        self.metrics = tuple(metrics)
        self.seconds = seconds
        self.stream = stream
        self._bar: tqdm | None = None
        self._losses = ""

    def attach(self, engine: Engine) -> None:
        """Register on a trainer (and on the evaluator)."""
        if idist.get_rank() != 0:
            return
        # Harmless where LossCollector has done it; without a collector the event never comes.
        engine.register_events(*LossEvents)
        # Not STARTED: a checkpoint may be loaded there, which moves the position.
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(LossEvents.LOSSES_READY, self._take_losses)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.INTERRUPT, self._close)
        on_exception(engine, self._close)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._show_metrics, engine)

    def _open(self, engine: Engine) -> None:
        state = engine.state
        epoch = f"epoch {state.epoch}/{state.max_epochs}"
        if self._bar is None:
            stream = self.stream or sys.stderr
            self._bar = tqdm(
                desc=epoch,
                total=state.max_epochs * state.epoch_length if state.epoch_length else None,
                initial=state.iteration,
                file=stream,
                # A disabled bar draws nothing, and the plain lines take over.
                disable=not stream.isatty(),
                dynamic_ncols=True,
                # The mean rate of the run, not of the last iterations: the time left then includes validations.
                smoothing=0,
                bar_format=BAR,
            )
            self._losses = ""
            self._first, self._start = state.iteration, time.monotonic()
            self._last_line = self._start
        self._bar.set_description(epoch, refresh=False)

    def _step(self, engine: Engine) -> None:
        bar, length = self._bar, engine.state.epoch_length
        if bar is None or not length:
            return
        if not bar.disable:
            bar.update()
            return
        position = engine.state.iteration % length
        at_tenth = position % max(1, length // LINES_PER_EPOCH) == 0
        if position and at_tenth and time.monotonic() - self._last_line >= self.seconds:
            self._write_line(engine)

    def _end_epoch(self, engine: Engine) -> None:
        if self._bar is not None and self._bar.disable:
            self._write_line(engine)

    def _take_losses(self, engine: Engine) -> None:
        recent = engine.state.recent_losses
        means = {name: sum(values) / len(values) for name, values in recent.items() if name != "iteration" and values}
        self._losses = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(_short(means), refresh=False)

    def _show_metrics(self, trainer: Engine) -> None:
        found: dict[str, Any] = self.evaluator.state.metrics if self.evaluator is not None else {}
        shown = [
            CATALOGUE.get(name, Metric(name, name, form=".4g")).said(float(found[name]))
            for name in self.metrics
            if name in found
        ]
        if shown:
            self._write(f"validation after epoch {trainer.state.epoch}: {', '.join(shown)}")

    def _write_line(self, engine: Engine) -> None:
        state = engine.state
        total = state.max_epochs * state.epoch_length
        self._last_line = time.monotonic()
        seconds = max(self._last_line - self._start, 1e-6) / max(1, state.iteration - self._first)
        rate = f"{1 / seconds:.2f} it/s" if seconds < 1 else f"{seconds:.2f} s/it"
        left = tqdm.format_interval((total - state.iteration) * seconds)
        parts = [
            f"epoch {state.epoch}/{state.max_epochs}",
            f"iteration {state.iteration}/{total}",
            rate,
            f"{left} left",
        ]
        self._write(", ".join([*parts, self._losses] if self._losses else parts))

    def _write(self, line: str) -> None:
        stream = self.stream or sys.stderr
        # Through tqdm, which takes open bars off the screen for the while.
        tqdm.write(line, file=stream)
        stream.flush()

    def _close(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _short(losses: Mapping[str, float]) -> str:
    """``{"generator/adversarial": 0.25, ...}`` as ``G advers 0.25 ...``, since a bar has one line."""
    groups: dict[str, list[str]] = {}
    for name, value in losses.items():
        owner, _, term = name.rpartition("/")
        groups.setdefault(owner[:1].upper(), []).append(f"{term[:6]} {value:.3g}")
    return ", ".join(" ".join([owner, *terms]).strip() for owner, terms in groups.items())
