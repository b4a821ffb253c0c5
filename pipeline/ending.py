"""How a command ends: what its last line says, where the traceback goes, what Ctrl-C and SIGTERM do."""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import said
from pipeline.provenance import redact

LOG_FILE = "error.log"
CTRL_C_EXIT_CODE = 128 + signal.SIGINT
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
GO_ON = "the same command starts again"


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
        self.terminated = False

    def install(self) -> None:
        """Takes SIGTERM over."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._pid = os.getpid()
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._raise_again

    def remove(self) -> None:
        """Gives SIGTERM back."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._installed and in_main_thread and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._installed and sys.unraisablehook == self._raise_again:
            sys.unraisablehook = self._unraisable
        self._installed = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != self._pid:  # a forked child: it has no run to close
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.terminated = True
        raise Terminated

    def _raise_again(self, unraisable: Any) -> None:
        """Python drops what a signal raises while it runs a callback of a dying object; then the signal comes again."""
        again = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(unraisable.exc_type)
        if again is None or os.getpid() != self._pid:
            self._unraisable(unraisable)
            return
        if again == signal.SIGTERM:
            signal.signal(signal.SIGTERM, self._handle)
        threading.Timer(0.02, os.kill, (os.getpid(), again)).start()


class Ending:
    """The end of a command in this process.

    Attributes:
        folder: gives the folder that the command writes into, which takes its `LOG_FILE`; None where it is not known.
        go_on: gives the words that say how to go on after Ctrl-C or SIGTERM.
    """

    def __init__(self) -> None:
        self.folder: Callable[[], Path | None] = lambda: None
        self.go_on: Callable[[], str] = lambda: GO_ON
        self._guard = SigtermGuard()
        self._stopped = False

    def take_over(self) -> None:
        """From now on, in the command that this process is, an error that nobody catches ends as `end` has it."""
        sys.excepthook = self._hook
        self._guard.install()
        atexit.register(self._leave)  # the first to be registered is the last to be called
        for handler in logging.getLogger().handlers:
            handler.addFilter(_without_secrets)

    def end(self, error: BaseException, program: str = "") -> int:
        """Write the traceback to a file, print what the error says, the most important in the last line.

        Args:
            error: that nobody caught.
            program: name of the command, for the last line.

        Returns:
            The exit status.
        """
        if isinstance(error, KeyboardInterrupt):
            self._stopped = True
            self._print(f"{program}stopped by Ctrl-C; {self.go_on()}")
            return CTRL_C_EXIT_CODE
        *above, last = said(error)
        self._print("", *above, f"traceback: {self._log(error)}", f"{program}error: {last}")
        return 1

    def _hook(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        raise SystemExit(self.end(error))

    def _leave(self) -> None:
        if self._guard.terminated:
            self._print(f"ended by SIGTERM; {self.go_on()}")
        if self._guard.terminated or self._stopped:  # to take the interpreter apart costs seconds that nobody grants
            logging.shutdown()
            sys.stdout.flush()
            os._exit(SIGTERM_EXIT_CODE if self._guard.terminated else CTRL_C_EXIT_CODE)

    def _log(self, error: BaseException) -> str:
        """Write the traceback; returns where it is."""
        command = shlex.join(sys.orig_argv)
        lines = [time.strftime("%Y-%m-%d %H:%M:%S"), command, "", *traceback.format_exception(error)]
        text = redact("\n".join(lines[:3]) + "\n" + "".join(lines[3:])) + "\n"
        for folder in (self.folder(), None):
            if folder is not None and not folder.is_dir():  # nothing was begun there
                continue
            path = Path() if folder is None else folder / LOG_FILE
            try:
                if folder is None:
                    descriptor, name = tempfile.mkstemp(prefix="reggan-", suffix=f"-{LOG_FILE}")
                    os.close(descriptor)
                    path = Path(name)
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
                return str(path)
            except OSError:
                with suppress(OSError):  # of a full disk
                    if path.is_file() and path.stat().st_size == 0:
                        path.unlink()
        return f"nowhere, since no disk takes it:\n{text}"

    @staticmethod
    def _print(*lines: str) -> None:
        sys.stdout.flush()
        print(redact("\n".join(lines)), file=sys.stderr, flush=True)


ENDING = Ending()
"""Of this process."""


def command(main: Callable[[], int | None]) -> int:
    """Run a script's ``main``, and end as a command does.

    Returns:
        The exit status.
    """
    program = f"{Path(sys.argv[0]).name}: "
    ENDING.take_over()
    try:
        return main() or 0
    except (Exception, KeyboardInterrupt) as error:
        return ENDING.end(error, program)


def _without_secrets(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if "://" in message:
        record.msg, record.args = redact(message), None
    return True
