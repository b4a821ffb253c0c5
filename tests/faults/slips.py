"""The ten slips of a newcomer: what the last line says, and how much stands above it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from faults.trial import Done, Trial, save
from faults.written import shortened


def level(trial: Trial) -> Done:
    """A level beyond the last."""
    return trial.train(settings={"noise_level": 7})


def typo(trial: Trial) -> Done:
    """A setting's name."""
    return trial.train(settings={"max_epoch": 3})


def path(trial: Trial) -> Done:
    """A folder's name."""
    return trial.train(data="mydta")


def labels(trial: Trial) -> Done:
    """Labels were not copied."""
    data = trial.dataset()
    for file in list((data / "labelsTr").iterdir()):
        file.unlink()
    (data / "labelsTr").rmdir()
    return trial.train(data=data)


def shapes(trial: Trial) -> Done:
    """A pair of two shapes."""
    data = trial.dataset()
    file = data / "labelsTr/b.nii.gz"
    save(file, nib.load(file).get_fdata(dtype=np.float32)[:, :30])
    return trial.train(data=data)


def four(trial: Trial) -> Done:
    """A series in time."""
    data = trial.dataset()
    file = data / "imagesTr/b.nii.gz"
    save(file, np.stack([nib.load(file).get_fdata(dtype=np.float32)] * 3, -1))
    return trial.train(data=data)


def alone(trial: Trial) -> Done:
    """One patient cannot be trained on and validated with."""
    return trial.train(data=trial.dataset(training="a", validation=""))


def nothing(trial: Trial) -> Done:
    """Nothing to go on with."""
    return trial.train("--resume", "true")


def gpu(trial: Trial) -> Done:
    """A machine without a GPU."""
    return trial.train(settings={"device": "cuda:0"})


def paper(trial: Trial) -> Done:
    """The paper's networks, asked for where the model has small ones."""
    image = next((trial.data / "imagesTr").iterdir())
    return trial.translate(image, "--network_size", "paper")


SLIPS: dict[str, Callable[[Trial], Done]] = {
    "a typo in a setting: `--max_epoch 3`": typo,
    "a wrong path: `--dataset_dir mydta`": path,
    "labels forgotten": labels,
    "`--noise_level 7`": level,
    "a pair of unequal shapes": shapes,
    "a 4D volume": four,
    "one patient": alone,
    "`--resume true` of nothing": nothing,
    "`--device cuda:0` without a GPU": gpu,
    "the paper's networks on small weights: `--network_size paper`": paper,
}


def table(shared: Trial, folder: Path) -> tuple[str, int]:
    """The slips as Markdown, and how many ended as a slip should: refused, and without a report for programmers."""
    lines = ["| slip | last line | lines above it |", "| --- | --- | ---: |"]
    good = 0
    for number, (name, slip) in enumerate(SLIPS.items()):
        place = folder / f"slip{number}"
        place.mkdir()
        done = slip(Trial(place, shared.run, shared.data))
        good += done.code > 0 and not done.traceback
        last = shortened(done.last, Trial(place, shared.run, shared.data))
        lines.append(f"| {name} | {last} | {len(done.lines) - 1} |")
    return "\n".join(lines), good
