"""Telling handlers of a failing run, all of them, before the error goes on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ignite.engine import Engine, Events


def on_exception(engine: Engine, handler: Callable[[Engine, BaseException], Any]) -> None:
    """Calls a handler when a run raises, and lets the exception out behind the last such handler.

    Ignite swallows an exception as soon as it has one ``EXCEPTION_RAISED`` handler, and a handler that raises it again
    keeps it from the handlers behind it. Here the raising is a handler of its own, kept last. Ignite also fires the
    event twice for an error within an epoch; the handler is called once for each error.

    Args:
        engine: engine to watch.
        handler: called with the engine and the exception; must not raise the exception again.
    """

    def tell_once(engine: Engine, error: BaseException) -> None:
        told = error.__dict__.setdefault("_told_handlers", set())
        if tell_once not in told:
            told.add(tell_once)
            handler(engine, error)

    engine.add_event_handler(Events.EXCEPTION_RAISED, tell_once)
    _raise_last(engine)
    # Handlers may also have been attached without this function, up to the start.
    if not engine.has_event_handler(_raise_last, Events.STARTED):
        engine.add_event_handler(Events.STARTED, _raise_last)


def _raise_last(engine: Engine) -> None:
    if engine.has_event_handler(_raise, Events.EXCEPTION_RAISED):
        engine.remove_event_handler(_raise, Events.EXCEPTION_RAISED)
    engine.add_event_handler(Events.EXCEPTION_RAISED, _raise)


def _raise(engine: Engine, error: BaseException) -> NoReturn:
    raise error
