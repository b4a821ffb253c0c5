"""Randomness: from seed and epoch alone, so that a resumed run draws what an undisturbed one draws; and its states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from torch.utils.data import DataLoader, DistributedSampler


class EpochSeed:
    """Reseed worker processes and random transforms at the start of each epoch from (seed, epoch).

    Together with a ``torch.utils.data.DistributedSampler`` (one replica will do), whose order is a function of its seed
    and the epoch that MONAI's engines tell it, epoch 7 is the same whether the epochs before it ran in this process or
    not. A plain shuffling loader is refused: its order depends on how often it was asked before.

    Args:
        seed: the run's seed.
        loader: its ``generator`` is reseeded, from which MONAI's loader seeds its worker processes.
        transforms: MONAI ``Randomizable`` transforms that run in this process.
        dataset: whose items are drawn for by seed and epoch, see `pipeline.data.PairDataset.seed_draws`.

    Raises:
        ValueError: if the loader has no generator, or its sampler does not follow the epoch.
    """

    def __init__(
        self, seed: int, loader: DataLoader, transforms: Sequence[Randomizable] = (), dataset: Any = None
    ) -> None:
        if loader.generator is None:
            raise ValueError("the data loader has no generator: pass generator=torch.Generator()")
        if not isinstance(loader.sampler, DistributedSampler):
            raise ValueError(
                f"the data loader's sampler must be a DistributedSampler, got {type(loader.sampler).__name__}: "
                "its order could not be repeated on resuming"
            )
        self.seed = seed
        self.generator: torch.Generator = loader.generator
        self.transforms = tuple(transforms)
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Reseed for ``engine.state.epoch``."""
        children = np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(2 + len(self.transforms))
        self.generator.manual_seed(int(children[0]))
        for transform, seed in zip(self.transforms, children[1:-1], strict=True):
            transform.set_random_state(seed=int(seed))
        if hasattr(self.dataset, "seed_draws"):
            self.dataset.seed_draws(int(children[-1]))


def random_states() -> dict[str, Any]:
    """The states of everything global that draws: PyTorch on all devices, NumPy, Python. Safe for `torch.save`."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - MONAI draws from the global state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        # Plain values: a numpy array would need code to be run on loading.
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    random.setstate(states["python"])


@contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed of PyTorch's inside, such as a translator its style, and leave no trace in the global states.

    Args:
        seed: of the CPU's generator and the device's.
        device: where it is drawn.
    """
    states = random_states()
    # Not torch.manual_seed, which would also seed other devices.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(states)
