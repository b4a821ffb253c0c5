"""Parts of a training step compiled; they fall back to running as they are written, with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

COMPILE = ("off", "default", "reduce-overhead")
"""What ``compile`` may be: as it is written; compiled; on a GPU also recorded as CUDA graphs, and replayed."""

logger = logging.getLogger(__name__)


def check_compile(value: Any) -> str:
    """The value as one of `COMPILE`; false, which YAML and the command line take "off" for, is that.

    Raises:
        ValueError: if it is none of them.
    """
    value = "off" if value is False else value
    if value not in COMPILE:
        raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {value!r}")
    return value


class Compiled:
    """A function compiled by ``torch.compile`` when it is first called, without a break in its graph.

    Where that fails, it runs as it is written from then on, and the reason is said once.

    Args:
        function: takes and returns (dictionaries of) tensors; it draws nothing and copies nothing to the host.
        mode: of ``torch.compile``, one of `COMPILE` but "off".
        backend: of ``torch.compile``.

    Attributes:
        reason: why it is not compiled; None where it is.
    """

    def __init__(self, function: Callable[..., Any], mode: str = "default", backend: str = "inductor") -> None:
        self._plain = function
        how: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
        self._compiled: Callable[..., Any] | None = torch.compile(
            function, fullgraph=True, dynamic=False, backend=backend, **how
        )
        self.reason: str | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        if self._compiled is not None:
            try:
                return self._compiled(*arguments)
            except Exception as error:  # compilers fail in many ways; what the function raises, it raises again below
                self._compiled, self.reason = None, _reason(error)
                logger.warning("the step runs without compile, which failed: %s", self.reason)
        return self._plain(*arguments)


def _reason(error: BaseException) -> str:
    """The first words of an error; those of the compiler name the cause in the second line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:2]])
