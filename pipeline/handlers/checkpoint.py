"""Checkpoints: the last and the best state of a run, and the weights that inference needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from monai.engines import Evaluator

from pipeline.handlers.seeding import random_states, set_random_states
from pipeline.models import (
    BEST,
    LAST,
    MODEL,
    CheckpointError,
    check_signature,
    load_checkpoint,
    load_strictly,
    refuse_unsound,
)
from pipeline.translators import Translator

logger = logging.getLogger(__name__)


class CheckpointHandler:
    """Save a run so that it can be continued as if it had never stopped.

    ``checkpoints/last.pt`` and ``checkpoints/best.pt`` hold every stateful object, the trainer's position, the best
    metric so far and all random states; ``model.pt`` holds the best weights of what inference uses. Each file is
    written beside its place and renamed, so a reader never sees half of one. The data order is a function of seed and
    epoch (``EpochSeed``), so the position says it.

    Args:
        output_dir: the run's folder.
        network: the translator.
        stateful: further objects with ``state_dict`` and ``load_state_dict``, by name (optimisers, schedulers, ...);
            None values are left out.
        evaluator: decides what is best by its key metric, greater is better. Without one, ``best.pt`` is the last.
        interval: save ``last.pt`` every so many epochs, and after the last one.
        resume: continue from ``last.pt`` when the trainer starts, if there is one.

    Attributes:
        resumed: whether the run was continued; known once the trainer has started.

    Raises:
        ValueError: if interval is not positive.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: Translator,
        stateful: Mapping[str, Any],
        evaluator: Evaluator | None = None,
        interval: int = 1,
        resume: bool = False,
    ) -> None:
        if interval < 1:
            raise ValueError(f"checkpoint interval must be at least 1 epoch, got {interval}")
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / "checkpoints"
        self.network = network
        self.stateful = {"network": network, **{name: value for name, value in stateful.items() if value is not None}}
        self.evaluator = evaluator
        self.interval = interval
        self.resume = resume
        self.resumed = False

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; the evaluator must run before this handler at the end of an epoch."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def _start(self, engine: Engine) -> None:
        self._write_state = DiskSaver(str(self.folder), require_empty=False)
        self._write_model = DiskSaver(str(self.output_dir), require_empty=False)
        for leftover in self.folder.glob("tmp*") if idist.get_rank() == 0 else ():  # of one killed while it wrote
            leftover.unlink()
        engine.state.best_epoch, engine.state.best_metrics = None, {}
        if not self.resume:
            return
        last = self.folder / LAST
        if not last.exists():
            logger.warning("nothing to resume in %s: no epoch was completed, starting from the first", self.folder)
            return
        self.restore(engine, last)
        self.resumed = True
        logger.info("resumed from %s after epoch %d", last, engine.state.epoch)

    def restore(self, engine: Engine, path: str | Path) -> None:
        """Put everything back as it was when ``path`` was saved.

        Raises:
            CheckpointError: if the file cannot be read or was made by another configuration.
        """
        content = load_checkpoint(path)
        check_signature(self.network, content.get("network", {}), path)
        missing = [name for name in (*self.stateful, "trainer", "random") if name not in content]
        if missing:
            raise CheckpointError(f"checkpoint {path} lacks {missing}: it was made by another configuration")
        refuse_unsound(content["network"], path)
        load_strictly(self.network, content["network"], path)
        for name, item in self.stateful.items():
            if name == "network":
                continue
            try:
                item.load_state_dict(content[name])
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise CheckpointError(f"checkpoint {path}: the state of {name} does not fit: {error}") from error
        position = content["trainer"]
        if position["epoch_length"] != engine.state.epoch_length:
            raise CheckpointError(
                f"checkpoint {path} was made with {position['epoch_length']} iterations per epoch, now there are "
                f"{engine.state.epoch_length}: data or batch size changed"
            )
        engine.state.epoch, engine.state.iteration = position["epoch"], position["iteration"]
        engine.state.best_epoch, engine.state.best_metrics = position["best_epoch"], position["best_metrics"]
        if self.evaluator is not None and position["best_epoch"] is not None:
            self.evaluator.state.best_metric = position["best_metric"]
            self.evaluator.state.best_metric_epoch = position["best_epoch"]
        set_random_states(content["random"])

    def save(self, engine: Engine) -> None:
        """Save the state that the trainer is in, as the last and, if the evaluator says so, as the best."""
        epoch = engine.state.epoch
        improved = self.evaluator is None or self.evaluator.state.best_metric_epoch == epoch
        if improved:
            engine.state.best_epoch = epoch
            engine.state.best_metrics = {} if self.evaluator is None else dict(self.evaluator.state.metrics)
        if (not improved and epoch % self.interval and epoch != engine.state.max_epochs) or idist.get_rank() > 0:
            return
        if self.network.recipe is not None:
            self.network.recipe["training"] |= {"epoch": epoch, "iteration": engine.state.iteration}
        content = {name: item.state_dict() for name, item in self.stateful.items()}
        content["trainer"] = {
            "epoch": epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "best_epoch": engine.state.best_epoch,
            "best_metrics": engine.state.best_metrics,
            "best_metric": None if self.evaluator is None else float(self.evaluator.state.best_metric),
        }
        content["random"] = random_states()
        if improved:
            self._write_state(content, BEST)
            self._write_model(self.network.inference_state_dict(), MODEL)
        # Last of all: whoever resumes from it finds a best that is at least as new.
        self._write_state(content, LAST)
