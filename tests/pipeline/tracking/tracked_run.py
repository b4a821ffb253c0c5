"""A small tracked training run, whose losses are a function of the iteration, as those of a seeded run are.

Also a program, ``python tracked_run.py JOBS.json``: it runs each job in a forked process of its own, because some of
them kill themselves. A job is ``{"how": name of a function below, "output_dir": ..., "uri": ...}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from pipeline.handlers.losses import LossCollector
from pipeline.handlers.tracking import MLflowTracker

EPOCH_LENGTH = 6
EPOCHS = 3
SOON = 0.05  # seconds between two deliveries
NEVER = 1000.0
PATIENCE = 60.0  # seconds; no test waits for it to pass


def build(output_dir: Path, uri: str | None, **options: Any) -> tuple[Engine, MLflowTracker]:
    """A trainer with a validation at the end of each epoch, and its tracker."""

    def validate(engine: Engine) -> None:
        evaluator.run([0])

    def score(engine: Engine) -> None:
        engine.state.metrics = {"psnr": 20.0 + trainer.state.epoch, "ssim": torch.tensor(0.1) * trainer.state.epoch}

    def draw(engine: Engine) -> None:
        picture = output_dir / "pictures" / f"epoch{engine.state.epoch}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(b"png")

    trainer, evaluator = Engine(_step), Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, score)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    LossCollector(interval=4).attach(trainer)
    options = {
        "send_interval": SOON,
        "close_timeout": PATIENCE,
        "artifacts": ("pictures",),
        "loss_interval": 1,
    } | options
    tracker = MLflowTracker(
        output_dir, tracking_uri=uri, optimizers={"generator": optimizer}, evaluator=evaluator, **options
    )
    tracker.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, draw)
    return trainer, tracker


def _step(engine: Engine, batch: object) -> dict[str, dict[str, torch.Tensor]]:
    iteration = engine.state.iteration
    return {"losses": {"generator/adversarial": torch.tensor(iteration / 8), "generator/correction": torch.ones(())}}


def run(trainer: Engine, from_epoch: int = 0) -> None:
    """Trains to the end, from the beginning or from the checkpoint at the end of an epoch."""
    state = {"iteration": from_epoch * EPOCH_LENGTH, "epoch_length": EPOCH_LENGTH, "max_epochs": EPOCHS}
    trainer.load_state_dict(state)
    trainer.run([0] * EPOCH_LENGTH, max_epochs=EPOCHS, epoch_length=EPOCH_LENGTH)


def unsent(output_dir: Path) -> list[Path]:
    """The segments that have not been sent."""
    return list((output_dir / "mlflow_unsent").glob("*/*.jsonl"))


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread or process does.

    Raises:
        TimeoutError: it did not happen.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE} s in vain")
        time.sleep(0.02)


def complete(output_dir: Path, uri: str) -> None:
    """A run that nothing happens to."""
    run(build(output_dir, uri)[0])


def killed_after_sending(output_dir: Path, uri: str) -> None:
    """Killed within the third epoch when all was sent, with a data loader worker that outlives it."""
    trainer, _ = build(output_dir, uri)

    @trainer.on(Events.ITERATION_STARTED(once=2 * EPOCH_LENGTH + 3))
    def die(engine: Engine) -> None:
        wait_until(lambda: not unsent(output_dir))
        if os.fork() == 0:
            os.closerange(1, 3)  # nobody waits for the end of what it says
            wait_until((output_dir / "resumed").exists)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    run(trainer)


def killed_before_sending(output_dir: Path, uri: str) -> None:
    """Killed within the third epoch when next to nothing was sent."""
    trainer, _ = build(output_dir, uri, send_interval=NEVER)

    @trainer.on(Events.ITERATION_STARTED(once=2 * EPOCH_LENGTH + 3))
    def die(engine: Engine) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run(trainer)


def terminated(output_dir: Path, uri: str) -> None:
    """Ended by SIGTERM in the second epoch."""
    trainer, _ = build(output_dir, uri)

    @trainer.on(Events.ITERATION_COMPLETED(once=EPOCH_LENGTH + 2))
    def end(engine: Engine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    run(trainer)


def forgotten(output_dir: Path, uri: str) -> None:
    """A process that ends without a word about its work."""
    tracker = MLflowTracker(output_dir, tracking_uri=uri)
    tracker.start()
    tracker.log_metrics({"score": 1.0})
    sys.exit(0)


def _run_job(how: str, output_dir: str, uri: str) -> int:
    import atexit

    try:
        globals()[how](Path(output_dir), uri)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves by os._exit, without them
    return 0


def main(jobs_file: str) -> None:
    """Runs the jobs side by side and prints their exit codes as JSON."""
    import mlflow  # noqa: F401 - once for all jobs

    torch.set_num_threads(1)
    jobs: list[dict[str, str]] = json.loads(Path(jobs_file).read_text())
    processes = []
    for job in jobs:
        process = os.fork()
        if process == 0:
            code = 1
            try:
                code = _run_job(**job)
            finally:
                os._exit(code)
        processes.append(process)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]))


if __name__ == "__main__":
    main(sys.argv[1])
