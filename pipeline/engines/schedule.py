"""Learning-rate schedules."""

from __future__ import annotations

import logging
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)


def linear_decay(optimizer: Optimizer, max_epochs: int, decay_epochs: int = 0) -> LambdaLR:
    """Keep the learning rate, then lower it in equal steps over the last ``decay_epochs`` epochs.

    The first of them still has the full rate less one step, and the epoch after the last would have zero. With 0 the
    rate is constant, as in the authors' code.

    Args:
        optimizer: whose rate to set.
        max_epochs: epochs in all.
        decay_epochs: epochs of decay, between 0 and ``max_epochs``.

    Raises:
        ValueError: if ``decay_epochs`` is out of range.
    """
    if not 0 <= decay_epochs <= max_epochs:
        raise ValueError(f"decay_epochs must lie in [0, max_epochs = {max_epochs}], got {decay_epochs}")
    return _ResumableLambdaLR(optimizer, lambda epoch: min(1.0, (max_epochs - epoch) / (decay_epochs + 1)))


class _ResumableLambdaLR(LambdaLR):
    """Goes on with its own rate, also where the state is that of a run with another one, or with fewer epochs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = own
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = base, base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def validation_interval(interval: int, max_epochs: int) -> int:
    """Epochs from one validation to the next: no more than there are, so that every training has a best epoch.

    Args:
        interval: that was asked for.
        max_epochs: epochs in all.
    """
    if interval <= max_epochs:
        return interval
    logger.warning(
        "val_interval is %d, but there are %d epochs: the last one alone is validated, and model.pt is of it",
        interval,
        max_epochs,
    )
    return max_epochs
