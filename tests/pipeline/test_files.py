"""Locks that end with their process, and files that are whole or not there."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.files import ProcessLock, replacing


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as beside:
        beside.write_text("first")
    with replacing(path) as beside:
        beside.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"


def test_a_failing_writer_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as beside:
        beside.write_text("old")

    def fail() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    lock = ProcessLock(tmp_path / "lock")
    assert lock.acquire()
    other = ProcessLock(tmp_path / "lock")
    with pytest.raises(TimeoutError, match="locked by another"), other.waiting(0.0):
        pass
    threading.Timer(0.1, lock.release).start()
    with other.waiting(60.0):
        assert not lock.acquire()
    assert lock.acquire()
    lock.release()
