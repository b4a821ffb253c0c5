"""Locks that end with their process, and files that are whole or not there."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.files import NotWrittenError, ProcessLock, folder_beside, remove_leftovers, replacing
from pipeline.tensors import save_tensors


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


def test_a_full_disk_is_said_with_file_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a library makes an error of its own of it, as torch.save does."""
    path = tmp_path / "model.pt"
    save_tensors({"a": torch.zeros(3)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(NotWrittenError, match=r"model\.pt could not be written: files may not become that large"):
            save_tensors({"a": torch.zeros(100000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    for number, says in ((28, "the disk is full: make room"), (30, "can only be read"), (122, "quota is used up")):
        with pytest.raises(NotWrittenError, match=says), replacing(path):
            raise OSError(number, "said in other words")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["notes/model.pt", "notes/deep/er/model.pt"])
@pytest.mark.parametrize("writer", [replacing, folder_beside])
def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path, place: str, writer: Callable[..., Any]) -> None:
    (tmp_path / "notes").write_text("mine")
    says = rf"model\.pt could not be written: {tmp_path / 'notes'} is a file, not a folder"
    with pytest.raises(NotWrittenError, match=says), writer(tmp_path / place):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), rename(*paths)))
    save_tensors({"a": torch.zeros(3)}, tmp_path / "model.pt")
    assert calls == ["sync", "rename", "sync"]  # the file, then its folder


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, alive, mine = (tmp_path / f".model.pt.{process}.part" for process in (dead.pid, os.getppid(), "x"))
    for path in (left, alive, mine):
        path.touch()
    remove_leftovers(tmp_path)
    assert left.exists()  # somebody on another machine may be at it
    remove_leftovers(tmp_path, alone=True)
    assert (left.exists(), alive.exists(), mine.exists()) == (False, True, True)


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
