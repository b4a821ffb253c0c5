"""Each handler of a failing run is told, and the error is not swallowed."""

from __future__ import annotations

import pytest
from ignite.engine import Engine, Events

from pipeline.ending import Terminated
from pipeline.handlers import on_exception


def failing(error: BaseException) -> Engine:
    def step(engine: Engine, batch: object) -> None:
        raise error

    return Engine(step)


@pytest.mark.parametrize("error", [RuntimeError("bad"), KeyboardInterrupt(), Terminated()])
def test_all_handlers_are_told_and_the_error_goes_on(error: BaseException) -> None:
    engine, told, foreign = failing(error), [], []
    for name in ("first", "second"):
        on_exception(engine, lambda engine, error, name=name: told.append((name, error)))
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: foreign.append(error))
    with pytest.raises(type(error)) as caught:
        engine.run([0])
    assert caught.value is error
    assert told == [("first", error), ("second", error)]
    assert error in foreign


def test_a_handler_can_be_added_by_another_one_at_the_start() -> None:
    engine, told = failing(RuntimeError("bad")), []
    on_exception(engine, lambda engine, error: told.append("early"))
    engine.add_event_handler(
        Events.STARTED, lambda engine: on_exception(engine, lambda engine, error: told.append("late"))
    )
    with pytest.raises(RuntimeError, match="bad"):
        engine.run([0])
    assert told == ["early", "late"]
