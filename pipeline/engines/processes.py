"""One training in several processes: who they are, and what they have to agree on.

Each process trains on its part of every batch; gradients are averaged before each step of an optimiser, which is what
one process with the whole batch does. What is drawn at random is drawn for the whole batch by all of them, so that it
does not depend on how many they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others; the first may preprocess a large data set meanwhile."""


@dataclass(frozen=True)
class Processes:
    """How many processes train, which of them this is, and its device."""

    count: int
    rank: int
    device: str


def join_processes(device: str = "auto") -> Processes:
    """Join the processes that ``torchrun`` started.

    Args:
        device: ``cpu``, or ``auto`` for a GPU each where there are any.

    Raises:
        ValueError: ``torchrun`` did not start this process, or there are fewer GPUs than processes on this machine.
    """
    missing = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise ValueError(
            f"multi_gpu.json is for processes that torchrun starts (there is no {missing[0]} in the environment): "
            "torchrun --nproc_per_node 2 -m monai.bundle run training --config_file ..."
        )
    rank = int(os.environ["LOCAL_RANK"])
    on_gpu = str(device) != "cpu" and torch.cuda.is_available()
    if str(device) not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cuda or cpu where several processes train, got {device!r}")
    if on_gpu:
        if rank >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise ValueError(f"process {rank} of this machine has no GPU of its own, there are {there}")
        torch.cuda.set_device(rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        idist.sync()  # Ignite looks again
    return Processes(dist.get_world_size(), dist.get_rank(), f"cuda:{rank}" if on_gpu else "cpu")


def leave_processes() -> None:
    """Say good-bye to the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def part_of_batch(batch_size: int, processes: int) -> int:
    """Of a batch, how much each process has.

    Raises:
        ValueError: the processes cannot have equal parts.
    """
    if batch_size % processes:
        raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch_size}")
    return batch_size // processes


def own_part(length: int, processes: int, rank: int) -> range:
    """The items of a list that one of several processes looks at, one after the other.

    Raises:
        ValueError: some process would have none.
    """
    if length < processes:
        raise ValueError(f"{processes} processes need at least {processes} slices to validate on, got {length}")
    return range(rank * length // processes, (rank + 1) * length // processes)


def draw_for_all(draw: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a translator draws for a batch: this process's part of what is drawn for the whole.

    Args:
        draw: see `pipeline.translators.Translator.draw`.
        batch: this process's part, every so many-th sample of the whole.
    """
    count, rank = idist.get_world_size(), idist.get_rank()
    if count == 1:
        return draw(batch)
    images = batch["image"]
    whole = {"image": images.new_empty((count * len(images), *images.shape[1:]))}
    return {name: drawn[rank::count] for name, drawn in draw(whole).items()}


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradients of an optimiser's parameters by their means over all processes, in one exchange."""
    if idist.get_world_size() == 1:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= idist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(whole) for part, whole in zip(parts, gradients, strict=True)])


def gathered(items: Iterable[Any]) -> list[Any]:
    """What all processes have, those of the first one first."""
    if idist.get_world_size() == 1:
        return list(items)
    found: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(found, list(items))
    return [item for part in found for item in part]
