"""Files that are whole or not there, and folders that serve one process."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar

if os.name == "nt":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that takes no more."""
NO_ENTRY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""What a disk says where nothing may be written."""
LITTLE = 1 << 14
"""Bytes; a disk with less than these is full, whatever a library makes of it."""
_LEFTOVER = re.compile(r"\..+\.(\d+)\.(\w+\.)?part")
_STARTED = time.time()
_ABANDONED = 24 * 3600.0  # seconds; longer than anything takes to be written


class NotWrittenError(OSError):
    """A file that could not be written; the message says which, why, and what helps. What was there is as it was.

    Args:
        path: the file.
        number: of the error, as in ``errno``.
    """

    def __init__(self, path: str | Path, number: int) -> None:
        super().__init__(number, os.strerror(number), str(path))
        self.path = Path(path)

    def __str__(self) -> str:
        folder = self.path.parent
        if self.errno == errno.EFBIG:
            why = "files may not become that large here (see `ulimit -f`)"
        elif self.errno in NO_ROOM:
            quota = "the quota is used up" if self.errno == errno.EDQUOT else "the disk is full"
            why = f"{quota}: make room in {folder}, or choose another folder"
        elif self.errno == errno.EROFS:
            why = f"{folder} is on a file system that can only be read: choose another folder"
        elif self.errno == errno.ENOTDIR:
            file = next((place for place in (folder, *folder.parents) if place.exists()), folder)
            why = f"{file} is a file, not a folder: choose another folder"
        else:
            why = f"writing in {folder} is not permitted: choose another folder, or ask for permission"
        return f"{self.path} could not be written: {why}"


def came_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came of, whether that was said or not."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def no_room(error: BaseException) -> bool:
    """Whether an error came of a disk that takes no more."""
    return any(isinstance(one, OSError) and one.errno in NO_ROOM for one in came_of(error))


def not_written(path: str | Path, error: BaseException) -> NotWrittenError | None:
    """What the disk under a file has to do with an error that came up while it was written; None if it has nothing.

    Libraries make errors of their own of a full disk. So this looks at what an error was caused by, and at the disk.

    Args:
        path: the file, or what is written beside its place.
        error: the error.
    """
    path = Path(path)
    for seen in came_of(error):
        if isinstance(seen, NotWrittenError):
            return seen
        if isinstance(seen, OSError) and seen.errno in NO_ROOM | NO_ENTRY:
            told = None if seen.filename is None else Path(os.fsdecode(seen.filename))
            if told is None or told == path.parent or path.parent in told.parents or told in path.parents:
                return NotWrittenError(path, seen.errno)
    if not isinstance(error, Exception) or _free(path.parent) >= LITTLE:
        return None
    return NotWrittenError(path, errno.ENOSPC)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and rename it at the end, so that readers never meet half of it.

    It is on the disk before it has its name: what a crash of the machine leaves under that name is whole, too.

    Args:
        path: where the file shall be; its folder is made.

    Yields:
        The path to write to. If the body raises, nothing is left of it and ``path`` is as it was.

    Raises:
        NotWrittenError: the disk is full, or nothing may be written there.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _told_of_the_disk(path):
        _make_folder_of(path)
        try:
            yield beside
            put_in_place(beside, path)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """A folder beside a file's place, for writers that go by a file's name or write several; gone at the end.

    Args:
        path: where the file shall be, see `put_in_place`; its folder is made.

    Yields:
        The folder.

    Raises:
        NotWrittenError: the disk is full, or nothing may be written there.
    """
    path = Path(path)
    with _told_of_the_disk(path):
        _make_folder_of(path)
        prefix = f".{path.name}.{os.getpid()}."
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, suffix=".part") as folder:
            yield Path(folder)


def put_in_place(beside: Path, path: Path) -> None:
    """Give what was written beside a place its name, once the disk has it.

    Args:
        beside: a file, or a folder of files, on the same file system.
        path: its name; a file there is replaced.
    """
    for written in (beside, *beside.iterdir()) if beside.is_dir() else (beside,):
        _sync(written)
    os.replace(beside, path)
    _sync(path.parent)


def remove_leftovers(folder: str | Path, alone: bool = False) -> None:
    """Remove what processes left in a folder that were killed while they wrote.

    Args:
        folder: whether it is there or not.
        alone: no other machine writes there; or else nothing is removed that was written to within a day.
    """
    for path in Path(folder).glob(".*part"):
        found = _LEFTOVER.fullmatch(path.name)
        with suppress(OSError):
            recent = not alone and time.time() - path.stat().st_mtime < _ABANDONED
            if found is None or recent or _writes_still(int(found[1]), path):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            logger.info("removed %s, which a process left that was killed while it wrote", path)


@contextmanager
def _told_of_the_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = not_written(path, error)
        if told is None or told is error:
            raise
        raise told from error


def _make_folder_of(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:  # which of the two, goes by what lies where
        raise NotWrittenError(path, errno.ENOTDIR) from error


def _sync(path: Path) -> None:
    """Have the disk take what was written to a file, or which files a folder has."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        with suppress(OSError) if is_folder else nullcontext():  # some network file systems know it of files alone
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writes_still(process: int, path: Path) -> bool:
    """Whether the process of that id may be the one that writes there."""
    if process == os.getpid():  # in a container, the one before often had the same
        return path.stat().st_mtime >= _STARTED
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _free(folder: Path) -> int:
    """Bytes that a disk still takes."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return LITTLE


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; ``hashlib.file_digest`` is there from Python 3.11 on only."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ProcessLock:
    """A lock on a file that ends with the process that holds it, however that dies.

    Unlike ``flock``, which the `filelock` package uses, it is not inherited by forked children, so that the data loader
    workers of a killed process do not hold on to it.

    Args:
        path: file to lock; made where it is missing.
    """

    _held: ClassVar[set[str]] = set()
    _guard = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._name = os.path.abspath(path)
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Takes the lock if it is free; says whether it is ours now."""
        with self._guard:  # the system's locks do not part the threads of one process
            if self._name in self._held:
                return False
            descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if os.name == "nt":
                    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                else:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._held.add(self._name)
            self._descriptor = descriptor
            return True

    @contextmanager
    def waiting(self, timeout: float) -> Iterator[None]:
        """Holds the lock for a ``with`` block.

        Args:
            timeout: longest wait for it in seconds.

        Raises:
            TimeoutError: somebody else holds it that long.
        """
        deadline = time.monotonic() + timeout
        while not self.acquire():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._name} is locked by another process for more than {timeout:g} s")
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                self._held.discard(self._name)
