"""A running mean of the weights, in whose place they are evaluated, kept and used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.translators import Translator


class WeightAverage:
    """Exponential moving average of the weights that translate.

    After each step the mean becomes ``decay`` times itself plus ``1 - decay`` times the weights. From the end of an
    epoch until the next one begins, the network has the mean: validation, pictures, ``model.pt`` and the network in
    each checkpoint are of it. The weights that are trained are part of this object's state, so that a resumed training
    goes on with them. Networks that only training has, and buffers, are left as they are.

    Attach it before all that looks at the network at the end of an epoch.

    Args:
        network: the translator.
        decay: in (0, 1); the mean reaches over about ``1 / (1 - decay)`` steps.

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    def __init__(self, network: Translator, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay of the weights' running mean must lie in (0, 1), got {decay!r}")
        self.network = network
        self._mix = get_ema_multi_avg_fn(decay)
        self._mean: dict[str, Tensor] = {}  # empty before the first step
        self._trained: dict[str, Tensor] = {}  # filled while the network has the mean

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._put_back)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._put_in)

    def state_dict(self) -> dict[str, Any]:
        """The weights that are trained, where the network has their mean; nothing before the first epoch's end."""
        return {"trained": {name: value.clone() for name, value in self._trained.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, and from a network that has the mean.

        Raises:
            KeyError: if the state is of other weights.
        """
        trained = state["trained"]
        weights = self._weights()
        if trained and trained.keys() != weights.keys():
            raise KeyError(f"expected the weights {sorted(weights)}, got {sorted(trained)}")
        self._mean = {name: weight.clone() for name, weight in weights.items()} if trained else {}
        self._trained = {name: trained[name].to(weight, copy=True) for name, weight in weights.items() if trained}

    def _weights(self) -> dict[str, Tensor]:
        named = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        return self.network.without_training_only(named)

    def _after_iteration(self, engine: Engine) -> None:
        if getattr(engine, "stepped", True):  # or else the weights are those of before
            self._update()

    def _update(self) -> None:
        weights = self._weights()
        if self._mean:
            self._mix(list(self._mean.values()), list(weights.values()), 0)
        else:
            self._mean = {name: weight.clone() for name, weight in weights.items()}

    def _put_in(self) -> None:
        weights = self._weights()
        self._trained = {name: weight.clone() for name, weight in weights.items()}
        self._fill(weights, self._mean)

    def _put_back(self) -> None:
        self._fill(self._weights(), self._trained)
        self._trained = {}

    @staticmethod
    def _fill(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        # In place: optimisers, and steps that were compiled or captured, hold these very tensors.
        with torch.no_grad():
            for name, value in values.items():
                weights[name].copy_(value)


def weight_average(network: Translator, decay: float) -> WeightAverage | None:
    """The running mean of a decay, None for a decay of 0."""
    return WeightAverage(network, decay) if decay else None
