"""SIGTERM becomes an exception."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.tracking.sigterm import SigtermGuard, Terminated


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
