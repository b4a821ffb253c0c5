"""Seeds, and whether the same seed has to give the same result."""

from __future__ import annotations

import os
from typing import Any

import torch
from monai.utils import set_determinism


def seed_all(seed: int, device: torch.device | str, deterministic: bool | None = None) -> None:
    """Seed PyTorch, NumPy and Python, and say whether the same seed has to give the same result.

    On a CPU it does so by itself. On a GPU it costs speed, and PyTorch's ordinary kernels do not: what is asked for is
    then computed by others, and what has no other is refused by PyTorch, by its name, rather than computed all the
    same. Without it, the fastest kernels for the shapes at hand are looked for at the first step.

    Args:
        seed: of all random numbers.
        device: to compute on.
        deterministic: None for True on a CPU and False on a GPU.
    """
    on_gpu = torch.device(device).type == "cuda"
    wanted = not on_gpu if deterministic is None else deterministic
    set_determinism(seed)
    if torch.are_deterministic_algorithms_enabled() != (wanted and on_gpu):  # the call imports the compiler: seconds
        torch.use_deterministic_algorithms(wanted and on_gpu)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = on_gpu and not wanted
    if wanted and on_gpu:
        # cuBLAS reads it when it is first used; without it, PyTorch refuses matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        memory: Any = torch.utils.deterministic
        memory.fill_uninitialized_memory = False  # nothing is read that was not written
