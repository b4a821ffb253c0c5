"""Each handler of a failing run is told, and the error is not swallowed."""

from __future__ import annotations

import os
import signal

import pytest
from ignite.engine import Engine, Events

from pipeline.handlers import on_exception
from pipeline.handlers.exceptions import SigtermGuard, Terminated


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


def test_sigterm_becomes_an_exception_while_guarded() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        guard = SigtermGuard()
        guard.install()
        with pytest.raises(Terminated) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process
        guard.install()
        guard.remove()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_handler_of_somebody_else_is_left_alone() -> None:
    def theirs(signum: int, frame: object) -> None:
        """A batch system's."""

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        guard = SigtermGuard()
        guard.install()
        guard.remove()
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
