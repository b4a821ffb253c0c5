"""Files that are whole or not there, and folders that serve one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

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
