"""Files that are whole or not there, what torch.save wrote, and folders that serve one process."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and rename it at the end, so that readers never meet half of it.

    Args:
        path: where the file shall be; its folder is made.

    Yields:
        The path to write to. If the body raises, nothing is left of it and ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


class UnreadableFileError(ValueError):
    """A file that `load_tensors` does not read; the message says which and why.

    Attributes:
        holds_objects: whether it is whole, but holds objects that could run code.
    """

    def __init__(self, message: str, holds_objects: bool = False) -> None:
        super().__init__(message)
        self.holds_objects = holds_objects


def load_tensors(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read what ``torch.save`` wrote, without running any code in the file.

    Args:
        path: file of tensors and plain values, such as a state dictionary.
        map_location: device for the tensors.

    Raises:
        UnreadableFileError: if the file is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableFileError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever the bytes of a damaged or foreign file make the unpickler raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which stands for a jump out of a cut file
            raise UnreadableFileError(f"{path} cannot be read: {error}") from error
        refused = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        if refused or "TorchScript" in str(error):
            raise UnreadableFileError(
                f"{path} holds objects other than tensors and plain values (a whole module or a script); it is not "
                "loaded, since that could run code of whoever wrote it",
                holds_objects=True,
            ) from error
        raise UnreadableFileError(
            f"{path} cannot be read, it may be cut short or not written by torch.save ({type(error).__name__})"
        ) from error


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
