"""Which arithmetic the networks run in, and how what they work on lies in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NARROW = 128
PRECISIONS = ("auto", "fp32", "bf16")


def in_bfloat16(precision: str, device: torch.device | str, amp: Any = None) -> bool:
    """Whether the networks run under ``torch.autocast`` in bfloat16; losses, fields and warps stay in single precision.

    Args:
        precision: "fp32"; "bf16"; or "auto", which is bf16 on a GPU that computes in it, and fp32 elsewhere.
        device: to compute on.
        amp: an older name of the setting, true or false; counts where ``precision`` is "auto" and it is not None.

    Raises:
        ValueError: if ``precision`` is none of these, or names another than ``amp`` does.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if amp is not None:
        named = "bf16" if amp else "fp32"
        if precision not in ("auto", named):
            raise ValueError(f"precision and amp contradict each other: {precision!r} and {amp!r}; leave amp out")
        precision = named
    if precision == "auto":
        return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def channels_last_pays(network: nn.Module, device: torch.device | str) -> bool:
    """Whether training is faster with the channels last in memory.

    On a CPU it is for narrow two-dimensional networks, whose padding, pooling and resizing then work on whole vectors
    (0.9 of the step of the default networks); at the paper's widths the convolutions lose more than that (1.1). On GPUs
    it has not been measured, and is left out.

    Args:
        network: its convolutions are looked at.
        device: to train on.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    widest = max((max(layer.in_channels, layer.out_channels) for layer in convolutions), default=0)
    return torch.device(device).type == "cpu" and 0 < widest <= NARROW
