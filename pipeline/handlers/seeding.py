"""Randomness from the seed and the epoch alone, so that a resumed run draws what an undisturbed one draws."""

from __future__ import annotations

from collections.abc import Sequence
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
        transforms: MONAI ``Randomizable`` transforms (or data sets) that run in this process.

    Raises:
        ValueError: if the loader has no generator, or its sampler does not follow the epoch.
    """

    def __init__(self, seed: int, loader: DataLoader, transforms: Sequence[Randomizable | Any] = ()) -> None:
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

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Reseed for ``engine.state.epoch``."""
        children = np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1 + len(self.transforms))
        self.generator.manual_seed(int(children[0]))
        for transform, seed in zip(self.transforms, children[1:], strict=True):
            transform.set_random_state(seed=int(seed))
