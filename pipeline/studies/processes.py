"""Work in processes of its own: side by side, safe from one another's end, with its output in a file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")
WATCH_INTERVAL = 1.0  # seconds


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
    end_with_parent()


def end_with_parent(parent: int | None = None) -> None:
    """End this process soon after its parent: who kills a study does not expect its work to go on.

    Args:
        parent: id of the parent, for a process that `start_module` has started; does nothing where there is none.
    """
    known = multiprocessing.parent_process()
    if known is None and parent is None:
        return

    def watch() -> None:
        if known is not None:
            wait([known.sentinel])
        else:
            while os.getppid() == parent:
                time.sleep(WATCH_INTERVAL)
        os._exit(1)  # like a kill: what is on the disk is what the next process goes on from

    threading.Thread(target=watch, daemon=True, name="watch parent").start()


def start_module(module: str, *arguments: str, log: Path, cores: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Run a module in a process of its own, which Ctrl-C does not reach.

    Args:
        module: its name.
        arguments: of its command line; behind them comes this process's id, for `end_with_parent`.
        log: a file that takes, at its end, whatever is printed.
        cores: processor cores that it may use; none for all.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if cores:
        environment["OMP_NUM_THREADS"] = str(len(cores))
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    if cores:
        os.sched_setaffinity(process.pid, cores)
    return process


def interrupt(processes: Iterable[subprocess.Popen[bytes]], patience: float) -> None:
    """Interrupt processes, as Ctrl-C would, and wait for their end; kill what takes longer than that many seconds."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def part_of_cores(part: int, parts: int) -> list[int]:
    """Processor cores of one of so many equal parts; none where the system knows no affinity, or has too few to part.

    They lie next to each other, so that on a machine of two sockets each of two parts keeps to its own.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // parts
    return cores[part * share : (part + 1) * share]


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
