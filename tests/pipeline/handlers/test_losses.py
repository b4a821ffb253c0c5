"""The collector hands every loss over, once, and reads the device rarely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.handlers import LossCollector, LossEvents


def trainer_of(losses: Any, interval: int = 4) -> tuple[Engine, list[dict[str, list]]]:
    """An engine whose step returns ``losses(iteration)``, and the list that gathers what the collector fires."""
    engine = Engine(lambda engine, batch: {"losses": losses(engine.state.iteration)})
    fired: list[dict[str, list]] = []
    LossCollector(interval).attach(engine)
    engine.add_event_handler(LossEvents.LOSSES_READY, lambda engine: fired.append(engine.state.recent_losses))
    return engine, fired


def ramp(iteration: int) -> dict[str, torch.Tensor]:
    return {"generator/adversarial": torch.tensor(float(iteration)), "discriminator/adversarial": torch.tensor(0.5)}


def test_every_loss_arrives_once_and_in_order() -> None:
    engine, fired = trainer_of(ramp, interval=4)
    engine.run([0] * 10, max_epochs=2)
    iterations = [iteration for recent in fired for iteration in recent["iteration"]]
    assert iterations == list(range(1, 21))
    assert [value for recent in fired for value in recent["generator/adversarial"]] == [float(i) for i in iterations]
    assert all(recent["discriminator/adversarial"] == [0.5] * len(recent["iteration"]) for recent in fired)


def test_it_fires_at_multiples_of_the_interval_and_at_the_end_of_an_epoch() -> None:
    engine, fired = trainer_of(ramp, interval=4)
    engine.run([0] * 10, max_epochs=2)
    assert [recent["iteration"][-1] for recent in fired] == [4, 8, 10, 12, 16, 20]


def test_the_rest_arrives_before_the_error_of_a_failing_run() -> None:
    engine, fired = trainer_of(ramp, interval=100)

    @engine.on(Events.ITERATION_STARTED(once=7))
    def fail(engine: Engine) -> None:
        raise RuntimeError("no more disk")

    with pytest.raises(RuntimeError, match="no more disk"):
        engine.run([0] * 10)
    assert [recent["iteration"] for recent in fired] == [[1, 2, 3, 4, 5, 6]]


def test_the_rest_arrives_when_the_run_is_terminated() -> None:
    engine, fired = trainer_of(ramp, interval=100)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: engine.terminate())
    engine.run([0] * 10)
    assert [recent["iteration"] for recent in fired] == [[1, 2, 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_by_name_after_it_was_told(value: float) -> None:
    def losses(iteration: int) -> dict[str, torch.Tensor]:
        return ramp(iteration) | {"generator/correction": torch.tensor(value if iteration == 6 else 1.0)}

    engine, fired = trainer_of(losses)
    with pytest.raises(FloatingPointError, match=rf"'generator/correction' is {value} at iteration 6"):
        engine.run([0] * 10)
    assert engine.state.iteration == 8
    assert [recent["iteration"][-1] for recent in fired] == [4, 8]


def test_an_error_is_not_hidden_by_a_loss_that_is_not_finite() -> None:
    engine, _ = trainer_of(lambda iteration: {"a": torch.tensor(float("nan"))}, interval=100)

    @engine.on(Events.ITERATION_STARTED(once=3))
    def fail(engine: Engine) -> None:
        raise RuntimeError("the cause")

    with pytest.raises(RuntimeError, match="the cause"):
        engine.run([0] * 10)


def test_terms_may_change_on_the_way() -> None:
    engine, fired = trainer_of(lambda i: ramp(i) if i <= 3 else {"late": torch.tensor(1.0)}, interval=100)
    engine.run([0] * 5)
    assert [set(recent) for recent in fired] == [
        {"iteration", "generator/adversarial", "discriminator/adversarial"},
        {"iteration", "late"},
    ]


def test_a_step_may_write_its_losses_into_the_same_tensors_again() -> None:
    loss = torch.zeros(())
    engine, fired = trainer_of(lambda iteration: {"a": loss.fill_(iteration)}, interval=100)
    engine.run([0] * 3)
    assert fired[0]["a"] == [1.0, 2.0, 3.0]


def test_losses_of_several_precisions_and_with_a_graph_are_taken() -> None:
    weight = torch.ones((), requires_grad=True)
    engine, fired = trainer_of(lambda i: {"a": (weight * i).to(torch.bfloat16), "b": weight * i}, interval=2)
    engine.run([0] * 2)
    assert fired[0]["a"] == fired[0]["b"] == [1.0, 2.0]


def test_the_host_reads_only_once_an_interval() -> None:
    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.at: dict[int, set[str]] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.at.setdefault(engine.state.iteration, set()).add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    values = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    engine, _ = trainer_of(lambda iteration: values, interval=4)
    with Operations() as operations:
        engine.run([0] * 4)
    assert all(operations.at[iteration] <= {"detach", "stack"} for iteration in (1, 2, 3))


def test_nothing_is_fired_without_losses() -> None:
    engine, fired = trainer_of(lambda iteration: {})
    engine.run([0] * 10)
    assert fired == []


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="interval must be at least 1 iteration, got 0"):
        LossCollector(0)
