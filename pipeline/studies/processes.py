"""Work in processes of its own: side by side, safe from one another's end, with its output in a file."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_all(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    jobs: int,
    failed: Callable[[Task, Exception], Result],
) -> Iterator[tuple[Task, Result]]:
    """Do the work of all tasks.

    Args:
        work: what to do with a task; a function of a module, since it may be sent to another process.
        tasks: plain values, likewise.
        jobs: how many at a time. One is done after the other in this process; more, each in a fresh process of one
            thread.
        failed: makes the result of a task whose work raised an error, or whose process died (``BrokenProcessPool``);
            the other tasks go on.

    Yields:
        Tasks with their results, as they are done.
    """

    def outcome(task: Task, get: Callable[[], Result]) -> tuple[Task, Result]:
        try:
            return task, get()
        except Exception as error:  # whatever it is, the other tasks are done
            return task, failed(task, error)

    if jobs == 1:
        for task in tasks:
            yield outcome(task, partial(work, task))
        return
    threads = ThreadPoolExecutor(jobs)  # they wait for the processes
    try:
        futures = {threads.submit(in_own_process, work, task): task for task in tasks}
        for future in as_completed(futures):
            yield outcome(futures[future], future.result)
    finally:
        threads.shutdown(cancel_futures=True)


def in_own_process(work: Callable[..., Result], *arguments: Any, threads: int | None = 1) -> Result:
    """Call a function in a fresh process, which ends with it, and with this one however that dies.

    Args:
        work: a function of a module.
        arguments: of the function; they and the result are sent from one process to the other.
        threads: of PyTorch there; None for its default.

    Raises:
        BrokenProcessPool: if the process died.
        Exception: whatever the function raised.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_prepare_worker, initargs=(threads,)) as pool:
        return pool.submit(work, *arguments).result()


def _prepare_worker(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    # A worker whose parent was killed would finish its work, beside that of whoever starts it again.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def output_into(path: Path) -> Iterator[None]:
    """Send everything that this process prints, its loggers and libraries included, to the end of a file."""
    streams = {1: sys.stdout, 2: sys.stderr}
    for stream in streams.values():
        stream.flush()
    saved = {number: os.dup(number) for number in streams}
    try:
        with path.open("ab") as file:
            for number in streams:
                os.dup2(file.fileno(), number)
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(saved[number], number)
            os.close(saved[number])
