"""What the C library does with memory that a step on a CPU frees."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Of mallopt(3), in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MIB = 2**20
KEPT = 1024 * MIB
OWN = {M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB}
"""What glibc comes to by itself where large blocks are freed."""


@contextmanager
def kept_memory(device: torch.device | str) -> Iterator[bool]:
    """Keep memory that is freed inside for what is allocated next, on a CPU; afterwards the system has it back.

    glibc gives large blocks back to the system at once, which has to clear a page of theirs at each first touch: 3 to
    6 % of a training step, whose blocks are the same in each. The most memory that is held stays the same. Elsewhere
    than with glibc, and where the environment tunes it, nothing is done.

    Args:
        device: to train on.

    Returns:
        A context, whose value is whether memory is kept.
    """
    library = _glibc() if torch.device(device).type == "cpu" else None
    # The first call stops glibc from setting both itself: the second alone would make it worse.
    if library is None or not library.mallopt(M_MMAP_THRESHOLD, KEPT):
        yield False
        return
    library.mallopt(M_TRIM_THRESHOLD, KEPT)
    try:
        yield True
    finally:
        for option, value in OWN.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library, if it is glibc and is not tuned otherwise."""
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return None if tuned or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)
