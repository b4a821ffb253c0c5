"""SIGTERM as an exception, so that a run can be closed as one that was killed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM; leaves the interpreter with the shell's exit code for it."""

    def __init__(self) -> None:
        super().__init__(SIGTERM_EXIT_CODE)

    def __str__(self) -> str:
        return "ended by SIGTERM"


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
