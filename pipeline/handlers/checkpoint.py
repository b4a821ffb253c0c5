"""Checkpoints: the last and the best state of a run, and the weights that inference needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from pipeline.files import NotWrittenError, remove_leftovers
from pipeline.handlers.seeding import random_states, set_random_states
from pipeline.models import (
    BEST,
    EXTRA_STATE,
    LAST,
    MODEL,
    CheckpointError,
    ResumeError,
    check_signature,
    load_checkpoint,
    load_strictly,
    recipe_changes,
    refuse_unsound,
)
from pipeline.models.resuming import Change
from pipeline.tensors import save_tensors
from pipeline.translators import Translator, decode_recipe

logger = logging.getLogger(__name__)


class CheckpointHandler:
    """Save a run so that it can be continued as if it had never stopped.

    ``checkpoints/last.pt`` and ``checkpoints/best.pt`` hold every stateful object, the trainer's position, the best
    metric so far and all random states; ``model.pt`` holds the best weights of what inference uses. Each file is
    written beside its place, brought to the disk and renamed, so a reader never sees half of one. The data order is a
    function of seed and epoch (``EpochSeed``), so the position says it.

    A checkpoint of another training is refused: of other data, networks, loss weights, noise, scaling, grid or seed, as
    far as the recipe of the network says it, or of other optimisers. Epochs and learning rate may change.

    Args:
        output_dir: the run's folder.
        network: the translator.
        stateful: further objects with ``state_dict`` and ``load_state_dict``, by name (optimisers, schedulers, ...);
            None values are left out.
        evaluator: decides what is best by its key metric, greater is better. Without one, ``best.pt`` is the last.
        interval: save ``last.pt`` every so many epochs, and after the last one.
        resume: continue from ``last.pt`` when the trainer starts, if there is one.
        resume_changed: continue also where it is of another training, as far as its weights fit.

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
        resume_changed: bool = False,
    ) -> None:
        if interval < 1:
            raise ValueError(f"checkpoint interval must be at least 1 epoch, got {interval}")
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / "checkpoints"
        self.network = network
        self.stateful = {"network": network, **{name: value for name, value in stateful.items() if value is not None}}
        self.evaluator = evaluator
        self.interval = interval
        self.resume, self.resume_changed = resume, resume_changed
        self.resumed = False

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; the evaluator must run before this handler at the end of an epoch."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            for folder in (self.output_dir, self.folder):  # which are this run's alone
                remove_leftovers(folder, alone=True)
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
        path = Path(path)
        content = self._read(path)
        state = content.get("network", {})
        if not self.resume_changed:
            self._refuse_another(content, state, path)
        check_signature(self.network, state, path)
        missing = [name for name in (*self.stateful, "trainer", "random") if name not in content]
        if missing:
            raise CheckpointError(
                f"checkpoint {path} lacks {missing}: it was made by another configuration{self._best_instead(path)}"
            )
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
        length = engine.state.epoch_length
        if position["epoch_length"] != length and not self.resume_changed:
            raise CheckpointError(
                f"checkpoint {path} was made with {position['epoch_length']} iterations per epoch, now there are "
                f"{length}: data or batch size changed; --resume_changed true goes on all the same"
            )
        if position["epoch"] > (engine.state.max_epochs or position["epoch"]):
            raise CheckpointError(
                f"checkpoint {path} is of epoch {position['epoch']}, and max_epochs is {engine.state.max_epochs}: "
                f"nothing is left to train; expected max_epochs of at least {position['epoch']}"
            )
        engine.state.epoch, engine.state.iteration = position["epoch"], position["epoch"] * length
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
            self._write(content, self.folder / BEST, epoch)
            self._write(self.network.inference_state_dict(), self.output_dir / MODEL, epoch)
        # Last of all: whoever resumes from it finds a best that is at least as new.
        self._write(content, self.folder / LAST, epoch)

    def _write(self, content: Mapping[str, Any], path: Path, epoch: int) -> None:
        try:
            save_tensors(content, path)
        except NotWrittenError as error:
            known = (self.folder / LAST).is_file()
            how = "goes on behind the last epoch that is saved" if known else "starts"
            raise OSError(
                f"{error}; then the same command, with --resume true, {how} (epoch {epoch} is lost)"
            ) from error

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{self._best_instead(path)}") from error

    def _best_instead(self, path: Path) -> str:
        """That the best epoch is there, where the last one is of no use."""
        best = self.folder / BEST
        if path != self.folder / LAST:
            return ""
        try:
            epoch = load_checkpoint(best)["trainer"]["epoch"]
        except (CheckpointError, KeyError, TypeError):
            return ""
        return f". {best} is whole, and of epoch {epoch}: to go on behind that, copy it to {path.name} and resume again"

    def _refuse_another(self, content: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
        encoded = state.get(EXTRA_STATE) if isinstance(state, Mapping) else None
        then = decode_recipe(encoded) if isinstance(encoded, torch.Tensor) else None
        changed: list[Change] = []
        allowed: list[Change] = []
        if then is not None and self.network.recipe is not None:
            changed, allowed = recipe_changes(then, self.network.recipe)
        for name, item in self.stateful.items():
            if isinstance(item, torch.optim.Optimizer) and isinstance(content.get(name), Mapping):
                changed += _optimizer_changes(name, content[name], item)
        if changed:
            raise ResumeError(path, changed)
        for name, before, now in allowed:
            logger.info("resumed with another %s: %s, before it was %s", name, now, before)


def _optimizer_changes(name: str, then: Mapping[str, Any], now: torch.optim.Optimizer) -> list[Change]:
    """The settings of an optimiser that are others, its learning rate left aside."""
    before, after = (groups[0] if groups else {} for groups in (then.get("param_groups"), now.param_groups))
    names = [key for key in dict.fromkeys((*before, *after)) if key not in ("params", "lr", "initial_lr")]
    return [
        (f"{name}#{key}", before.get(key), after.get(key))
        for key in names
        if str(_listed(before.get(key))) != str(_listed(after.get(key)))
    ]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
