"""Many tasks side by side: in this process, in processes of this machine, or on a cluster that is there already.

The engine of processes and clusters is Dask's: it hands tasks out, and notices workers that die.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
WATCH_INTERVAL = 1.0  # seconds
CONNECTING = 20.0  # seconds


def run_all(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    jobs: int,
    failed: Callable[[Task, Exception], Result],
    scheduler: str | None = None,
    name: Callable[[Task], str] = lambda task: "",
) -> Iterator[tuple[Task, Result]]:
    """Do the work of all tasks.

    Args:
        work: what to do with a task; a function of a module, since it may be sent to another process.
        tasks: plain values, likewise.
        jobs: how many at a time. One is done after the other in this process; more, in processes of one thread.
        failed: makes the result of a task whose work raised an error, or whose process died (``KilledWorker``); the
            other tasks go on.
        scheduler: see `engine`.
        name: what a task is called, beside its work's name, where a cluster shows what it does.

    Yields:
        Tasks with their results, as they are done.
    """

    def outcome(task: Task, get: Callable[[], Result]) -> tuple[Task, Result]:
        try:
            return task, get()
        except Exception as error:  # whatever it is, the other tasks are done
            return task, failed(task, error)

    if jobs == 1 and scheduler is None:
        for task in tasks:
            yield outcome(task, partial(work, task))
        return
    with engine(jobs, scheduler) as pool:
        kind = getattr(work, "__name__", "work").replace("_", " ")
        futures = {pool.submit(work, task, key=task_key(kind, name(task))): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield outcome(futures[future], future.result)
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def engine(jobs: int, scheduler: str | None = None) -> Iterator[Any]:
    """Processes that do tasks, as an ``Executor`` whose ``submit`` also takes a ``key``, see `task_key`.

    Args:
        jobs: processes on this machine, each of one thread; they end with this one, however that dies.
        scheduler: address of a Dask scheduler that is there, such as ``tcp://node:8786``, in place of them. Its workers
            have this project installed and see the same folders; what a worker that dies had begun is done by another.

    Raises:
        ValueError: nobody answers at that address, or it is none.
    """
    import dask  # only who needs them waits for them
    from distributed import Client, LocalCluster

    if scheduler is None:
        # Tasks wait with the scheduler, and are not lost with another's worker; one may have processes of its own.
        ours = {"distributed.scheduler.worker-saturation": 1.0, "distributed.worker.daemon": False}
        with dask.config.set(ours):
            cluster = LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=0,  # Dask would kill what takes more than its share
                silence_logs=logging.CRITICAL,
            )
            with cluster, Client(cluster) as client:
                yield client.get_executor(pure=False)
        return
    try:
        client = Client(scheduler, timeout=CONNECTING)
    except (OSError, ValueError) as error:
        raise ValueError(f"scheduler must be the address of a Dask scheduler, got {scheduler!r}: {error}") from error
    with client:
        yield client.get_executor(pure=False)


def task_key(kind: str, name: str = "") -> str:
    """A key by which a task is known where Dask shows its work, and that no other task has.

    Args:
        kind: of the task. Those of one kind wait with the scheduler until a worker is free; of a kind of its own, each
            would be given to some worker at once, whatever that has to do already.
        name: of the task.
    """
    # To Dask the kind is what stands before the first dash that no letter follows; a key that is there already is of
    # work that is done.
    return "- ".join([*(word.replace("-", " ") for word in (kind, name) if word), uuid.uuid4().hex])


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent: who kills a study does not expect its work to go on.

    Args:
        parent: id of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_INTERVAL)
        os._exit(1)  # like a kill: what is on the disk is what the next process goes on from

    threading.Thread(target=watch, daemon=True, name="watch parent").start()


def start_module(
    module: str, *arguments: str, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run a module in a process of its own, which Ctrl-C does not reach.

    Args:
        module: its name.
        arguments: of its command line; behind them comes this process's id, for `end_with_parent`.
        log: a file that takes, at its end, whatever is printed.
        environment: beside that of this process.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )


def interrupt(process: subprocess.Popen[bytes], patience: float) -> None:
    """Interrupt a process, as Ctrl-C would, and wait for its end; kill it if that takes longer than so many seconds."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def output_into(path: Path) -> Iterator[None]:
    """Send everything that this process prints, its loggers and libraries included, to the end of a file."""
    streams: dict[int, Any] = {1: sys.stdout, 2: sys.stderr}
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
