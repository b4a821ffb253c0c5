"""Translations that wait for their turn: one after the other on each device, beside the server that answers."""

from __future__ import annotations

import contextvars
import ctypes
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

LONGEST_QUEUE = 64
"""Translations that may wait or run at a time, unless ``--conf queue`` says otherwise."""
SECONDS_TO_RESTART = 30
"""After which a client may ask again whose translation was in the queue of a server that was stopped."""
REMEMBERED = 20
"""Translations whose length says how long the next one may take."""

logger = logging.getLogger(__name__)


class CancelledTranslationError(Exception):
    """Nobody wants a translation any more; no fault of anybody."""


class TakenIdError(ValueError):
    """There is a translation of the same id."""


class NoPlaceError(Exception):
    """There is no place for another translation.

    Args:
        reason: why not.
        retry_after: seconds in which there may be one.
    """

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(f"{reason}; try again in {retry_after} s")
        self.retry_after = retry_after


class Progress:
    """How far a translation is, and whether it is still wanted.

    Attributes:
        done: slices that are translated.
        total: slices that there are; None before that is known.
    """

    def __init__(self) -> None:
        self.done = 0
        self.total: int | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Let the translation end at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it is no longer wanted."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Go on only if the translation is still wanted.

        Raises:
            CancelledTranslationError: if it is not.
        """
        if self.cancelled:
            raise CancelledTranslationError


class Job:
    """A translation in the queue.

    Args:
        id: by which it can be asked for.
        work: translates.
        model: name of the model.
        device: as PyTorch calls it.
        user: who asked for it.

    Attributes:
        progress: of the translation.
        result: of ``work``, once it is there; what it raised; or `CancelledTranslationError`.
    """

    def __init__(self, id: str, work: Callable[[Progress], Any], model: str, device: str, user: str) -> None:  # noqa: A002
        self.id, self.model, self.device, self.user = id, model, device, user
        self.progress = Progress()
        self.result: Future[Any] = Future()
        self._work: Callable[[Progress], Any] | None = work
        self._context = contextvars.copy_context()
        self._submitted = time.monotonic()
        self._started: float | None = None

    def describe(self, place: int) -> dict[str, Any]:
        """What a client is told.

        Args:
            place: how many translations of the same device are before it, with the one that runs.
        """
        now = time.monotonic()
        started = now if self._started is None else self._started
        state = "waiting" if self._started is None else "cancelling" if self.progress.cancelled else "running"
        return {
            "id": self.id,
            "model": self.model,
            "device": self.device,
            "state": state,
            "place": place,
            "slices_done": self.progress.done,
            "slices": self.progress.total,
            "seconds_waited": round(started - self._submitted, 1),
            "seconds_run": round(now - started, 1),
        }

    def run(self) -> float:
        """Translate; returns how many seconds that took."""
        self._started = time.monotonic()
        work, self._work = self._work, None
        result: Any = None
        fault: BaseException | None = None
        try:
            self.progress.check()
            result = self._context.run(work, self.progress)  # type: ignore[arg-type]
        except CancelledTranslationError:
            fault = CancelledTranslationError()
        except BaseException as error:  # of whatever kind, it is the answer, and the next one has its turn
            fault = error
        seconds = time.monotonic() - self._started
        if fault is None:
            self.result.set_result(result)
        else:
            self.result.set_exception(fault)
        return seconds

    def give_up(self) -> None:
        """End without having begun."""
        self._work = None
        self.progress.cancel()
        self.result.set_exception(CancelledTranslationError())


def give_memory_back() -> None:
    """Give memory that is free back to the system, where its C library, glibc, would keep it for this thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class TranslationQueue:
    """Runs translations in threads of their own, one for each device, in the order in which they came.

    Between a few slices and the next a translation gives way to what the server has to answer, and sees whether it is
    still wanted.

    Args:
        limit: how many may wait or run at a time.

    Attributes:
        closed: whether the server is about to end.
    """

    def __init__(self, limit: int = LONGEST_QUEUE) -> None:
        self.limit = limit
        self._waiting: dict[str, deque[Job]] = {}
        self._running: dict[str, Job] = {}
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._changed = threading.Condition()
        self.closed = False

    def submit(
        self,
        id: str,  # noqa: A002
        work: Callable[[Progress], Any],
        model: str = "",
        device: str = "cpu",
        user: str = "",
    ) -> Job:
        """Take a place.

        Args:
            id: of the translation; the requests that ask for it or cancel it have to know it.
            work: translates, and asks its argument now and then whether to go on; its result is the job's.
            model: name of the model.
            device: as PyTorch calls it.
            user: who asked for it.

        Raises:
            NoPlaceError: if there is no place.
            TakenIdError: if a translation of this ``id`` is there already.
        """
        job = Job(id, work, model, device, user)
        with self._changed:
            if self.closed:
                raise self.stopping()
            if len(self) >= self.limit:
                raise NoPlaceError(f"the queue is full: {self.limit} translations wait or run", self._seconds_to_wait())
            if self.find(id) is not None:
                raise TakenIdError(f"a translation with the request id {id!r} is in the queue already")
            if device not in self._waiting:
                self._waiting[device] = deque()
                # What PyTorch loads at its first use of linear algebra must not be loaded by two threads at once.
                torch.linalg.inv(torch.eye(2, device=device))
                threading.Thread(target=self._serve, args=(device,), name=f"translate-{device}", daemon=True).start()
            self._waiting[device].append(job)
            self._changed.notify_all()
        return job

    def find(self, id: str) -> Job | None:  # noqa: A002
        """The translation of that id, if it waits or runs."""
        with self._changed:
            return next((job for job, _ in self._places() if job.id == id), None)

    def cancel(self, job: Job) -> None:
        """Take the place back from a translation; one that runs ends at its next few slices."""
        with self._changed:
            waiting = self._waiting.get(job.device, ())
            if job in waiting:
                waiting.remove(job)  # type: ignore[union-attr]
                job.give_up()
            else:
                job.progress.cancel()

    def close(self) -> None:
        """Take all places back, and give none any more."""
        with self._changed:
            self.closed = True
            for job, _ in self._places():
                self.cancel(job)

    @staticmethod
    def stopping() -> NoPlaceError:
        """What a client is told whose place was taken back by `close`."""
        return NoPlaceError("the server is being stopped", SECONDS_TO_RESTART)

    def describe(self) -> list[tuple[Job, dict[str, Any]]]:
        """The translations that wait or run, and what there is to say of each; those of a device in their order."""
        with self._changed:
            return [(job, job.describe(place)) for job, place in self._places()]

    def __len__(self) -> int:
        with self._changed:
            return len(self._running) + sum(len(waiting) for waiting in self._waiting.values())

    def _places(self) -> list[tuple[Job, int]]:
        places = []
        for device, waiting in self._waiting.items():
            running = [self._running[device]] if device in self._running else []
            places += [(job, place) for place, job in enumerate([*running, *waiting])]
        return places

    def _seconds_to_wait(self) -> int:
        """When a place may be free: after one more translation, if they take as long as the last ones did."""
        return max(1, math.ceil(sum(self._seconds) / len(self._seconds))) if self._seconds else 10

    def _serve(self, device: str) -> None:
        while True:
            with self._changed:
                while not self._waiting[device]:
                    self._changed.wait()
                job = self._running[device] = self._waiting[device].popleft()
            seconds = job.run()
            with self._changed:
                del self._running[device]
                if not job.progress.cancelled:
                    self._seconds.append(seconds)
            del job  # its result may be large, and the next one may be long in coming
            give_memory_back()
