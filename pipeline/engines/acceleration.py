"""A training step compiled, or recorded once and replayed; falls back to what works, with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

COMPILE = ("off", "default", "graph", "reduce-overhead")
"""What a step can be: as it is written; its networks compiled; replayed from a CUDA graph; both."""

logger = logging.getLogger(__name__)
Tensors = dict[str, Tensor]
Work = Callable[..., Any]


def check_compile(value: str) -> str:
    """Return ``value``.

    Raises:
        ValueError: if it is none of `COMPILE`.
    """
    if value is False:  # YAML's and the command line's word for off
        return "off"
    if value not in COMPILE:
        raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {value!r}")
    return value


class Compiled:
    """A function compiled by ``torch.compile`` at its first call, without breaks in its graph.

    Where that fails, it runs as it is written, which is said once with the reason.

    Args:
        function: takes and returns (dictionaries of) tensors, and draws nothing.
        backend: of ``torch.compile``.

    Attributes:
        reason: why it is not compiled; None where it is.
    """

    def __init__(self, function: Work, backend: str = "inductor") -> None:
        self._plain = function
        self._compiled: Work | None = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
        self.reason: str | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        if self._compiled is not None:
            try:
                return self._compiled(*arguments)
            except Exception as error:  # compilers fail in many ways; what the function raises itself, it raises again
                self._compiled, self.reason = None, _first_line(error)
                logger.warning("the step runs without compile: %s", self.reason)
        return self._plain(*arguments)


class Recorded:
    """A part of a training step recorded as a CUDA graph and replayed: one launch in place of a thousand.

    The first calls run as they are, then one is recorded; what has other shapes runs as it is. What a replay returns is
    overwritten by the next. Where recording fails, all calls run as they are, which is said once with the reason.

    Args:
        work: takes dictionaries of tensors on the GPU and returns some; computes gradients and steps the optimiser,
            draws nothing and copies nothing to the host.
        optimizer: the one it steps. Its learning rate is read at every call.
        pool: memory of the graphs of one step, see ``torch.cuda.graph_pool_handle``.
        stream: that of these graphs.

    Attributes:
        reason: why it is not recorded; None where it is, or will be.
    """

    WARM_UP = 3

    def __init__(self, work: Work, optimizer: Optimizer, pool: Any, stream: torch.cuda.Stream) -> None:
        self.work, self.optimizer, self.pool, self.stream = work, optimizer, pool, stream
        self.reason: str | None = None
        self._calls = 0
        self._shapes: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensors] = []
        self._outputs: Any = None
        self._rates: list[Tensor] = []
        self._known_rates: list[float] = []

    def __call__(self, *inputs: Tensors) -> Any:
        """Call the work, or replay it."""
        shapes = [[(name, value.shape, value.dtype) for name, value in part.items()] for part in inputs]
        if self._shapes is None:
            self._shapes = shapes
        if self.reason is not None or shapes != self._shapes:
            return self.work(*inputs)
        if self._graph is None:
            if self._calls < self.WARM_UP:
                self._calls += 1
                return self._aside(lambda: self.work(*inputs))
            self._record(inputs)
            if self.reason is not None:
                return self.work(*inputs)
        for kept, part in zip(self._inputs, inputs, strict=True):
            for name, value in part.items():
                kept[name].copy_(value, non_blocking=True)
        self._follow_rates()
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _aside(self, work: Callable[[], Any]) -> Any:
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = work()
        here.wait_stream(self.stream)
        return result

    def _record(self, inputs: Sequence[Tensors]) -> None:
        self._inputs = [{name: value.clone() for name, value in part.items()} for part in inputs]
        self._known_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        device = next(iter(inputs[0].values())).device
        self._rates = [torch.tensor(rate, dtype=torch.float32, device=device) for rate in self._known_rates]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        try:
            with _capturable(self.optimizer, self._rates):
                self.optimizer.zero_grad(set_to_none=True)
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                    self._outputs = self.work(*self._inputs)
        except Exception as error:  # whatever cannot be recorded
            self.reason = _first_line(error)
            self.optimizer.zero_grad(set_to_none=True)
            logger.warning("the step runs without a CUDA graph: %s", self.reason)
            return
        self._graph = graph

    def _follow_rates(self) -> None:
        for number, (group, rate) in enumerate(zip(self.optimizer.param_groups, self._rates, strict=True)):
            now = float(group["lr"])
            if now != self._known_rates[number]:
                rate.fill_(now)
                self._known_rates[number] = now


@contextmanager
def _capturable(optimizer: Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """The optimiser reads its rates from tensors while a graph is recorded; not outside, nor in checkpoints."""
    before = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.clear()
            group.update(values)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
