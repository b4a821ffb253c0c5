"""kill -9 at random moments and inside the writing of checkpoints: who goes on equals who was never stopped."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faults.trial import TINY, Done, Prepare, Trial, chain, command, words

CONFIGURATIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "default": ((), {}),
    "two loader workers": ((), {"num_workers": 2}),
    "cycle.json": (("cycle.json",), {}),
    "munit.json": (("munit.json",), {"network_def#discriminator#layers": 2, "network_def#generator#filters": 4}),
    "nicegan.json + augmentation.json": (
        ("nicegan.json", "augmentation.json"),
        {"network_def#discriminator#global_downsamplings": 0},
    ),
}
EPOCHS = 8
COMPARED = ("network", "generator_optimizer", "discriminator_optimizer", "trainer", "random")


@dataclass(frozen=True)
class Killed:
    """What came of one configuration.

    Attributes:
        name: of the configuration.
        moments: kills at random moments.
        inside: kills inside the writing of a checkpoint.
        finished: runs that were gone on with to their end.
        different: entries of their last checkpoint that are not those of the run that was never stopped.
    """

    name: str
    moments: int
    inside: int
    finished: int
    different: tuple[str, ...]


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def inside_writing(number: int) -> Prepare:
    """The so-many-th torch.save writes some of its bytes, and the process is killed."""
    count = [0]

    def prepare() -> None:
        save = torch.save

        def dying(content: object, file: Any, *arguments: Any, **named: Any) -> None:
            count[0] += 1
            save(content, file, *arguments, **named)
            if count[0] == number:
                if hasattr(file, "flush"):
                    file.flush()
                    os.ftruncate(file.fileno(), file.tell() // 2)
                else:
                    os.truncate(file, Path(file).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = dying

    return prepare


def try_configuration(name: str, folder: Path, moments: int, inside: int, seed: int = 0) -> Killed:
    """Train once without a stop, and again and again with kills until there were enough.

    Raises:
        RuntimeError: a training failed by itself.
    """
    overlays, settings = CONFIGURATIONS[name]
    folder.mkdir(parents=True)
    trial = Trial(folder, folder, folder)
    data = trial.dataset(training="abcd")
    small = {k: v for k, v in TINY.items() if "registration" not in k and "residual" not in k}
    if not overlays or overlays == ("cycle.json",):
        small = TINY
    size = 72 if "munit.json" in overlays else 40
    base = {
        **small,
        "noise_level": 3,
        "spatial_size": size,
        "max_epochs": EPOCHS,
        "picture_interval": EPOCHS,
        **settings,
    }
    base |= {"dataset_dir": data, "tracking_uri": "none", "val_interval": 2}
    draw = random.Random(seed)

    def train(run: str, **how: Any) -> Done:
        resumed = {"resume": "true"} if (folder / run / "config.json").exists() else {}
        line = words({**base, "output_dir": folder / run, **resumed})
        argv = ["-m", "monai.bundle", "run", "training", "--config_file", chain("train.json", *overlays), *line]
        return command(argv, folder, timeout=300, **how)

    def whole() -> Done:
        done = train("whole")
        if done.code != 0:
            raise RuntimeError(f"{name} cannot be trained:\n{done.text[-3000:]}")
        return done

    seconds = whole().seconds
    expected = torch.load(folder / "whole/checkpoints/last.pt", weights_only=True)
    kills = {"moments": 0, "inside": 0}
    different: set[str] = set()
    finished = 0

    def runs() -> Iterator[str]:
        number = 0
        while kills["moments"] < moments or kills["inside"] < inside or number == 0:
            number += 1
            yield f"run{number}"

    for run in runs():
        while True:
            how: dict[str, Any] = {}
            kind = "moments" if kills["moments"] * inside <= kills["inside"] * moments else "inside"
            if kills["moments"] + kills["inside"] < moments + inside:
                if kind == "moments":
                    wait = draw.uniform(0, 0.6) * seconds
                    how["meanwhile"] = lambda child, wait=wait: _kill_after(child, wait)
                else:
                    how["prepare"] = inside_writing(draw.randint(1, 5))
            done = train(run, **how)
            if done.code == 0:
                break
            if done.code != -signal.SIGKILL:
                raise RuntimeError(f"{name} does not go on after {kills}:\n{done.text[-3000:]}")
            kills[kind] += 1
        finished += 1
        last = torch.load(folder / run / "checkpoints/last.pt", weights_only=True)
        different |= {entry for entry in COMPARED if not same(last[entry], expected[entry])}
        best, model = (folder / run / part for part in ("checkpoints/best.pt", "model.pt"))
        torch.load(best, weights_only=True)
        if not same(torch.load(model, weights_only=True), torch.load(folder / "whole/model.pt", weights_only=True)):
            different.add("model.pt")
        shutil.rmtree(folder / run)
    return Killed(name, kills["moments"], kills["inside"], finished, tuple(sorted(different)))


def _kill_after(child: int, seconds: float) -> None:
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def table(results: list[Killed]) -> str:
    """As Markdown."""
    lines = ["| configuration | killed at a random moment | inside a write | runs that ended | equal to the bit |"]
    lines.append("| --- | ---: | ---: | ---: | --- |")
    for result in results:
        equal = "yes" if not result.different else f"no: {', '.join(result.different)}"
        lines.append(f"| {result.name} | {result.moments} | {result.inside} | {result.finished} | {equal} |")
    return "\n".join(lines)
