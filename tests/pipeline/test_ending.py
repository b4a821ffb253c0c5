"""What the last line says, where the traceback goes, and what a signal does."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from pipeline.ending import Ending, SigtermGuard, Terminated


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


def test_a_sigterm_that_python_drops_comes_again() -> None:
    """As it does where the signal is handled within a callback of a dying object."""

    class Thing:
        pass

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    guard = SigtermGuard()
    guard.install()
    try:
        thing = Thing()
        kept = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0)))
        with pytest.raises(Terminated):  # noqa: PT012 - it comes a little later
            del thing
            gc.collect()
            for _ in range(300):  # a signal just before a sleep is handled behind it
                time.sleep(0.1)
        assert kept() is None
    finally:
        guard.remove()
        signal.signal(signal.SIGTERM, before)


def test_the_traceback_goes_to_a_file_and_the_last_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = Ending()
    for folder, place in ((tmp_path, str(tmp_path / "error.log")), (tmp_path / "none", "-error.log")):
        ending.folder = lambda folder=folder: folder
        with pytest.raises(ValueError, match="size must be 3") as caught:
            raise ValueError("size must be 3, got 4 at http://me:pw@host")
        assert ending.end(caught.value) == 1
        *_, where, last = capsys.readouterr().err.splitlines()
        assert last == "error: size must be 3, got 4 at http://***@host"
        assert where.startswith("traceback: ")
        assert where.endswith(place)
        text = Path(where.removeprefix("traceback: ")).read_text()
        assert 'raise ValueError("size must be 3' in text
        assert "pw@" not in text
    assert not (tmp_path / "none").exists()


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    ending = Ending()
    ending.go_on = lambda: "it goes on with: this"
    assert ending.end(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C; it goes on with: this\n"


SCRIPT = """
import os, signal, sys
from pipeline.ending import command
def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell says of what runs behind it
    if sys.argv[1] == "fail":
        raise OSError(28, "No space left on device", "/some/file")
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    raise SystemExit("not reached")
sys.exit(command(main))
"""


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("fail", 1, "made.py: error: /some/file could not be written: the disk is full: make room in /some, or choose"),
        ("SIGINT", 130, "made.py: stopped by Ctrl-C; the same command starts again"),
        ("SIGTERM", 143, "ended by SIGTERM; the same command starts again"),
    ],
)
def test_a_script_ends_with_one_line(tmp_path: Path, how: str, code: int, last: str) -> None:
    (tmp_path / "made.py").write_text(SCRIPT)
    result = subprocess.run([sys.executable, tmp_path / "made.py", how], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert result.stderr.splitlines()[-1].startswith(last)
    assert "Traceback" not in result.stderr
