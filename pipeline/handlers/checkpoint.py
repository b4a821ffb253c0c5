"""Checkpoints: the last and the best state of a run, and the weights that inference needs."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from monai.engines import Evaluator
from torch import Tensor

from pipeline.files import UnreadableFileError, load_tensors
from pipeline.metrics import IntensityMap
from pipeline.translators import Translator, decode_signature

EXTRA_STATE = "_extra_state"  # PyTorch's name of what a module keeps beside its tensors
LAST, BEST, MODEL = "last.pt", "best.pt", "model.pt"
logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says which and why."""


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a file written by ``torch.save``, without running any code in it.

    Raises:
        CheckpointError: if the file is missing, truncated, or holds more than tensors and plain values.
    """
    try:
        content = load_tensors(path, map_location)
    except UnreadableFileError as error:
        raise CheckpointError(f"checkpoint {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary")
    return content


def load_network(
    network: torch.nn.Module,
    path: str | Path,
    registration: Callable[[], torch.nn.Module] | None = None,
) -> torch.nn.Module:
    """Load a network's weights strictly, from ``model.pt`` or from the ``network`` entry of a checkpoint.

    Args:
        network: takes the weights; for a translator built without loss weights, the training-only networks of a full
            checkpoint are left out.
        path: ``model.pt``, ``last.pt`` or ``best.pt``.
        registration: builds the registration network, which a translator built without loss weights is then given if
            the file has its weights; ``model.pt`` has none.

    Returns:
        The network, on the device where it was.

    Raises:
        CheckpointError: if the file cannot be read or its tensors do not fit, naming the first that differ.
    """
    content = load_checkpoint(path)
    state = content.get("network", content)
    if isinstance(network, Translator) and not network.terms:
        kept = network.without_training_only(state)
        trained = {name: value for name, value in state.items() if name.startswith("registration.")}
        if registration is not None and trained:
            network.registration = registration().to(network.target_window.device)
            kept |= trained
        state = kept
    _load_strictly(network, state, path)
    return network


def trained_size(path: str | Path) -> list[int]:
    """Size in pixels of the images that a checkpoint's network was trained on.

    Raises:
        CheckpointError: if the file cannot be read or does not say.
    """
    content = load_checkpoint(path)
    sizes = [int(size) for size in content.get("network", content).get("trained_size", ()) if size > 0]
    if not sizes:
        raise CheckpointError(f"checkpoint {path} does not say at which image size it was trained; pass spatial_size")
    return sizes


def load_baselines(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Callable[[Tensor], Tensor]]:
    """Baselines to score beside a network: the source as it is and, where the checkpoint has it, the intensity map.

    Args:
        path: ``last.pt`` or ``best.pt`` of a run; ``model.pt`` holds no intensity map.
        device: where the map is applied.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    baselines: dict[str, Callable[[Tensor], Tensor]] = {"source": lambda source: source}
    state = load_checkpoint(path).get("intensity_map")
    if state is None:
        logger.warning("%s holds no intensity map: that baseline is left out", path)
        return baselines
    intensity_map = IntensityMap()
    intensity_map.load_state_dict(state)
    return {**baselines, "intensity_map": intensity_map.to(device)}


def _load_strictly(network: torch.nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    state = dict(state)
    own = network.state_dict()
    _check_signature(network, state, path)
    for name in own:
        if name.endswith(EXTRA_STATE) and name not in state:  # weights from elsewhere do not say whose they are
            state[name] = own[name]
    tensors = {name: value for name, value in own.items() if not name.endswith(EXTRA_STATE)}
    faults = [f"missing: {name}" for name in tensors if name not in state]
    faults += [f"unexpected: {name}" for name in state if name not in own]
    faults += [
        f"{name}: file has {tuple(getattr(state[name], 'shape', ()))}, network expects {tuple(value.shape)}"
        for name, value in tensors.items()
        if name in state and getattr(state[name], "shape", None) != value.shape
    ]
    if faults:
        shown = "\n  ".join(faults[:5])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{path} was not made by this {type(network).__name__} (other widths, backbone or mode); use the config "
            f"chain it was trained with. {len(faults)} tensors differ:\n  {shown}{more}"
        )
    network.load_state_dict(state)


def _check_signature(network: torch.nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    """Refuse weights of another backbone, and for training also those of another mode."""
    encoded = state.get(EXTRA_STATE)
    if not isinstance(network, Translator) or not isinstance(encoded, Tensor):
        return
    theirs, ours = decode_signature(encoded), network.signature
    if not network.terms:  # for translating, the loss terms make no difference
        ours = type(network).__name__
    if ours != theirs and ours != theirs.split("(")[0]:
        raise CheckpointError(
            f"{path} was trained as {theirs}, but this config builds {ours}; use the config chain it was trained with"
        )


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

    def attach(self, engine: Engine) -> None:
        """Register on a trainer; the evaluator must run before this handler at the end of an epoch."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _start(self, engine: Engine) -> None:
        self._write_state = DiskSaver(str(self.folder), require_empty=False)
        self._write_model = DiskSaver(str(self.output_dir), require_empty=False)
        for leftover in self.folder.glob("tmp*"):  # of a process that was killed while it wrote
            leftover.unlink()
        engine.state.best_epoch, engine.state.best_metrics = None, {}
        if not self.resume:
            return
        last = self.folder / LAST
        if not last.exists():
            logger.warning("nothing to resume in %s: no epoch was completed, starting from the first", self.folder)
            return
        self.restore(engine, last)
        logger.info("resumed from %s after epoch %d", last, engine.state.epoch)

    def restore(self, engine: Engine, path: str | Path) -> None:
        """Put everything back as it was when ``path`` was saved.

        Raises:
            CheckpointError: if the file cannot be read or was made by another configuration.
        """
        content = load_checkpoint(path)
        _check_signature(self.network, content.get("network", {}), path)
        missing = [name for name in (*self.stateful, "trainer", "random") if name not in content]
        if missing:
            raise CheckpointError(f"checkpoint {path} lacks {missing}: it was made by another configuration")
        _load_strictly(self.network, content["network"], path)
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
        _set_random_states(content["random"])

    def _save(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        improved = self.evaluator is None or self.evaluator.state.best_metric_epoch == epoch
        if improved:
            engine.state.best_epoch = epoch
            engine.state.best_metrics = {} if self.evaluator is None else dict(self.evaluator.state.metrics)
        if not improved and epoch % self.interval and epoch != engine.state.max_epochs:
            return
        content = {name: item.state_dict() for name, item in self.stateful.items()}
        content["trainer"] = {
            "epoch": epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "best_epoch": engine.state.best_epoch,
            "best_metrics": engine.state.best_metrics,
            "best_metric": None if self.evaluator is None else float(self.evaluator.state.best_metric),
        }
        content["random"] = _random_states()
        if improved:
            self._write_state(content, BEST)
            self._write_model(self.network.inference_state_dict(), MODEL)
        # Last of all: whoever resumes from it finds a best that is at least as new.
        self._write_state(content, LAST)


def _random_states() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - MONAI draws from the global state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        # Plain values: a numpy array would need code to be run on loading.
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    random.setstate(states["python"])
