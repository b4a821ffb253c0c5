"""From a collated batch to what a translator takes: device, then random transforms on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class PrepareBatch:
    """Move a batch to the device and apply transforms to it there.

    Working on the whole batch on its device keeps the data loader to plain memory copies, and costs one resampling.

    Args:
        transform: takes and returns the batch dictionary, such as ``transforms.RandDeformationNoised``.
    """

    def __init__(self, transform: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None) -> None:
        self.transform = transform

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one batch.

        Args:
            batch: collated dictionary; tensors (B, C, *spatial) are moved, everything else is kept as it is.
            device: where to.
            non_blocking: see ``torch.Tensor.to``.
            kwargs: further arguments of ``torch.Tensor.to``.
        """
        moved: dict[str, Any] = {
            key: value.to(device=device, non_blocking=non_blocking, **kwargs) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        return moved if self.transform is None else dict(self.transform(moved))
