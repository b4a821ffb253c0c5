"""Telling handlers of a failing run, all of them, before the error goes on its way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from ignite.engine import Engine, Events

SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM; leaves the interpreter with the shell's exit code for it."""

    def __init__(self) -> None:
        super().__init__(SIGTERM_EXIT_CODE)

    def __str__(self) -> str:
        return "ended by SIGTERM"


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


class SigtermGuard:
    """Turns SIGTERM into a `Terminated` exception, so that a run can be closed as one that was killed.

    Does nothing outside the main thread, or where SIGTERM has a handler already. A second SIGTERM ends the process at
    once.
    """

    def __init__(self) -> None:
        self._installed = False

    def install(self) -> None:
        """Takes SIGTERM over."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._pid = os.getpid()
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    def remove(self) -> None:
        """Gives SIGTERM back."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._installed and in_main_thread and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._installed = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != self._pid:  # a forked child: it has no run to close
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise Terminated
