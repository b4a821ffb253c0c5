"""What a training step costs in time and memory, measured side by side, since machines are noisy."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from pipeline.engines import TranslationTrainer
from pipeline.translators import Translator

Work = Callable[[], Any]
STEPS_TO_THE_PEAK = 3


def random_pair(size: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of one pair of noise, `size` pixels along both axes."""
    return {name: torch.rand(1, 1, size, size, device=device) * 2 - 1 for name in ("image", "label")}


def optimizers(translator: Translator, fused: bool = False) -> tuple[Optimizer, Optimizer]:
    """The paper's optimisers of G and of D."""
    settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.5, 0.999), "weight_decay": 1e-4, "fused": fused}
    sides = translator.generator_parameters(), translator.discriminator_parameters()
    generator, discriminator = (torch.optim.Adam(list(parameters), **settings) for parameters in sides)
    return generator, discriminator


def training_step(translator: Translator, weights: Mapping[str, float], batch: dict[str, Tensor]) -> Work:
    """The trainer's step on a fixed batch, without the loop around it."""
    trainer = TranslationTrainer(batch["image"].device, 1, [batch], translator, *optimizers(translator), weights)
    return lambda: trainer._iteration(trainer, batch)


def plain_step(trainer: TranslationTrainer, batch: dict[str, Tensor]) -> Work:
    """A step as the RegGAN authors' code schedules it in modes NC+R and Pix2Pix, out of a trainer's parts.

    The generator runs again for the discriminator's step, and the discriminator's gradients are also computed in the
    generator's. In C, C+R and NC their code keeps the first prediction, as this project's does in every mode.
    """
    translator: Any = trainer.network
    g, d = trainer.generator_optimizer, trainer.discriminator_optimizer
    assert d is not None

    def step() -> None:
        g.zero_grad()
        _, terms = translator.generator_terms(batch)
        trainer.weighted_sum(terms).backward()
        g.step()
        d.zero_grad()
        with torch.no_grad():
            fake = translator(batch["image"])
        # One image after the other, as their code has it.
        with_source = partial(translator._seen, source=batch["image"])
        fake_score, real_score = (translator.discriminator(with_source(image)) for image in (fake, batch["label"]))
        ((fake_score**2).mean() + ((real_score - 1) ** 2).mean()).backward()
        d.step()

    return step


def timed(work: Work, device: torch.device, of_cpu: bool = False) -> float:
    """Seconds that the work takes, the device's queue included; or ``of_cpu``, those that this process computes."""
    clock = time.process_time if of_cpu else time.perf_counter
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def flops(work: Work) -> int:
    """Floating point operations of a work's convolutions and matrix products, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def in_turns(
    works: Mapping[str, Work], rounds: int, device: torch.device, of_cpu: bool = False
) -> dict[str, list[float]]:
    """Time each work once per round, after one round to warm up; seconds by name, see `timed`."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work, device, of_cpu)
            if round_:
                times[name].append(seconds)
    return times


def steps_in_turns(
    runs: Mapping[str, tuple[Path, Sequence[str]]], rounds: int, steps: int = 1
) -> dict[str, list[float]]:
    """Time steps of RegGAN in turns, each kind in a process of its own, after one round to warm up.

    Args:
        runs: by name, the folder of a checkout and arguments of `pipeline.studies.step_process`.
        rounds: that count.
        steps: of each kind in a round.

    Returns:
        Seconds of a step by name: on a CPU those that its process computes.

    Raises:
        RuntimeError: a process ended; why, it has said itself.
    """
    program = Path(__file__).with_name("step_process.py").read_text(encoding="utf-8")
    times: dict[str, list[float]] = {name: [] for name in runs}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, (folder, arguments) in runs.items():
            command = [sys.executable, "-c", program, *arguments]  # imports from the folder it is started in
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            process = subprocess.Popen(
                command, cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(process.wait)
            stack.callback(process.stdin.close)  # type: ignore[union-attr] # it is a pipe
            processes[name] = process
        for round_ in range(rounds + 1):
            for name, process in processes.items():
                print(steps, file=process.stdin, flush=True)
                answer = process.stdout.readline()  # type: ignore[union-attr]
                if not answer:
                    raise RuntimeError(f"the process that measures {name!r} ended with code {process.wait()}")
                if round_:
                    times[name].append(float(answer))
    return times


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit of this repository, removed afterwards.

    Raises:
        ValueError: there is no such commit.
    """
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "files.tar"
        command = ["git", "-C", str(root), "archive", f"--output={archive}", commit]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{commit!r} is no commit that git can read in {root}: {done.stderr.strip()}")
        shutil.unpack_archive(archive, Path(folder) / "files")
        yield Path(folder) / "files"


def peak_memory(make_step: Callable[..., Work], *arguments: Any, device: torch.device) -> float:
    """Peak memory in MiB of a few steps, in a process of their own.

    Args:
        make_step: makes the step; a function of a module.
        arguments: of that function.
        device: that the step runs on; of a GPU, its memory is measured, or else what the process takes beyond what it
            had.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, make_step, arguments, device).result()


def _peak_memory(make_step: Callable[..., Work], arguments: tuple[Any, ...], device: torch.device) -> float:
    before = _resident_peak()
    step = make_step(*arguments)
    for _ in range(STEPS_TO_THE_PEAK):
        step()
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _resident_peak() - before


def _resident_peak() -> float:
    """Most memory that this process ever held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands getrusage's figure on from parent to child
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return float(line.split()[1]) / 2**10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
