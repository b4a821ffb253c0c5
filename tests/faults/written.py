"""Written or not written: a full disk, a disk that is read-only, names that are taken, and what is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from faults.kinds import cause
from faults.trial import (
    FITTED,
    Done,
    Prepare,
    Trial,
    broken,
    file_limit,
    head,
    read_only,
    silent,
    small_disk,
)

KIND = "written or not"
FULL = ("no space", "disk is full", "full", "space left")
READ_ONLY = ("read-only", "only be read", "permission", "not writable", "cannot be written")
STUDY = {
    "name": "tiny",
    "methods": ["reggan"],
    "noise": {"affine": [0]},
    "steps": 2,
    "settings": {
        "spatial_size": [48, 48],
        "batch_size": 2,
        "network_def#generator#filters": 4,
        "network_def#generator#residual_blocks": 1,
        "network_def#discriminator#filters": 4,
        "network_def#registration#channels": [4, 8],
    },
}


def training(trial: Trial, folder: Path, prepare: Prepare) -> Done:
    """Train into a folder."""
    return trial.train(out=folder, prepare=prepare)


def inference(trial: Trial, folder: Path, prepare: Prepare) -> Done:
    """Translate into a folder."""
    trial.save(
        "p.nii.gz",
        np.random.default_rng(0).normal(100, 10, (40, 34, 60)).astype("f4") * (head(shape=(40, 34, 60))[0] > 0),
    )
    return trial.translate("p.nii.gz", out=folder, prepare=prepare)


def evaluation(trial: Trial, folder: Path, prepare: Prepare) -> Done:
    """Evaluate a run, whose folder it is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trial.run, folder)
    return trial.evaluate(run=folder, prepare=prepare)


def export(trial: Trial, folder: Path, prepare: Prepare) -> Done:
    """Export into a folder."""
    image = next((trial.data / "imagesTr").iterdir())
    return trial.script("export.py", trial.model, folder / "model.onnx", "--image", image, prepare=prepare)


def packaging(trial: Trial, folder: Path, prepare: Prepare) -> Done:
    """Package into a folder."""
    return trial.script(
        "package_bundle.py", folder / "b.zip", "--run", trial.run, "--data-source", "made up", prepare=prepare
    )


def study(trial: Trial, folder: Path, prepare: Prepare) -> Done:
    """A study of one small cell into a folder."""
    (trial.folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return trial.script(
        *("noise_study.py", "--study", trial.folder / "study.yaml", "--dataset-dir", f"made={trial.data}"),
        *("--output-dir", folder, "--jobs", "1", "--devices", "cpu", "--tracking-uri", "none"),
        prepare=prepare,
    )


# What writes, and the kilobytes that it has.
WRITERS: dict[str, tuple[Callable[[Trial, Path, Prepare], Done], int]] = {
    "training": (training, 60),
    "inference": (inference, 20),
    "evaluation": (evaluation, 12),
    "export": (export, 8),
    "packaging": (packaging, 40),
    "study": (study, 60),
}


def full(name: str) -> Callable[[Trial], str]:
    """A disk that is full in the middle of writing."""

    def attempt(trial: Trial) -> str:
        write, free = WRITERS[name]
        folder = trial.folder / "disk"
        done = write(trial, folder, small_disk(folder, free))
        outcome = trial.refused(done, *FULL)
        cut = list(broken(trial.folder / "disk.after"))
        return outcome if not cut else silent(f"left {cut[0]}", done)

    return attempt


def unwritable(name: str) -> Callable[[Trial], str]:
    """A disk that is mounted read-only."""

    def attempt(trial: Trial) -> str:
        folder = trial.folder / "disk"
        return trial.refused(WRITERS[name][0](trial, folder, read_only(folder)), *READ_ONLY)

    return attempt


for writer in WRITERS:
    cause(KIND, f"{writer} on a full disk", reported=writer in ("inference", "training"))(full(writer))
    cause(KIND, f"{writer} on a disk that is read-only")(unwritable(writer))


def shortened(text: str, trial: Trial) -> str:
    """A line for a table, without the folders of this machine."""
    for where, short in ((str(trial.folder), "."), (str(trial.run.parent), "..")):
        text = text.replace(where, short)
    return text.replace("|", "/")


def table(shared: Trial, folder: Path) -> tuple[str, int]:
    """What each command says of a disk that is full or read-only, as Markdown, and how many do as they should."""
    lines = ["| | full: the last line | read-only: the last line | broken files |", "| --- | --- | --- | ---: |"]
    good = 0
    for name, (write, free) in WRITERS.items():
        said, cut = [], 0
        for kind in ("full", "read-only"):
            trial = Trial(folder / f"{name}-{kind}", shared.run, shared.data)
            trial.folder.mkdir()
            disk = trial.folder / "disk"
            done = write(trial, disk, small_disk(disk, free) if kind == "full" else read_only(disk))
            left = len(list(broken(trial.folder / "disk.after"))) if kind == "full" else 0
            patterns = FULL if kind == "full" else READ_ONLY
            good += done.code > 0 and not left and any(re.search(pattern, done.last, re.I) for pattern in patterns)
            cut += left
            said.append(shortened(done.last, trial))
        lines.append(f"| {name} | {said[0]} | {said[1]} | {cut} |")
    return "\n".join(lines), good


@cause(KIND, "a training whose disk is full says which file and how to go on", reported=True)
def _(trial: Trial) -> str:
    folder = trial.finished("disk")
    settings = {**FITTED, "max_epochs": 14}
    done = trial.train("--resume", "true", out=folder, settings=settings, prepare=small_disk(folder, 8))
    trial.refused(done, *FULL)
    if not re.search(r"last\.pt|best\.pt|model\.pt|config\.json", done.text) or "resume" not in done.text:
        silent("the file, or how to go on, is not said", done)
    cut = list(broken(trial.folder / "disk.after"))
    return "refused" if not cut else silent(f"left {cut[0]}", done)


@cause(KIND, "a file that may not grow (a quota) in a translation")
def _(trial: Trial) -> str:
    done = inference(trial, trial.folder / "out", file_limit(20))
    outcome = trial.refused(done, *FULL, "too large", "limit", "quota")
    trial.nothing_written()
    return outcome


@cause(KIND, "a file that may not grow (a quota) in training")
def _(trial: Trial) -> str:
    done = trial.train(prepare=file_limit(40))
    outcome = trial.refused(done, *FULL, "too large", "limit", "quota")
    cut = list(broken(trial.folder / "out"))
    return outcome if not cut else silent(f"left {cut[0]}", done)


def spoilt_network(value: float) -> Prepare:
    """A network whose prediction holds such a value at one pixel."""

    def prepare() -> None:
        from pipeline.networks import ResNetGenerator

        forward = ResNetGenerator.forward

        def spoilt(self: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
            result = forward(self, *arguments)
            result[..., 16, 16] = value
            return result

        ResNetGenerator.forward = spoilt  # type: ignore[method-assign]

    return prepare


@cause(KIND, "a network that gives NaN", reported=True)
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    outcome = trial.refused(trial.translate("p.nii.gz", prepare=spoilt_network(np.nan)), "finite", "nan")
    trial.nothing_written()
    return outcome


@cause(KIND, "a network that gives infinite values")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    outcome = trial.refused(trial.translate("p.nii.gz", prepare=spoilt_network(np.inf)), "finite", "infinit")
    trial.nothing_written()
    return outcome


@cause(KIND, "a network that gives NaN, in an evaluation")
def _(trial: Trial) -> str:
    done = trial.evaluate(prepare=spoilt_network(np.nan))
    return trial.right_or_said(done, lambda: False, "finite", "nan")


def resumed(trial: Trial, run: Path, *more: str) -> Done:
    """Go on with the copied run for one epoch."""
    return trial.train("--resume", "true", *more, out=run, settings={**FITTED, "max_epochs": 13})


@cause(KIND, "last.pt is cut short: best.pt is there", reported=True)
def _(trial: Trial) -> str:
    run = trial.finished()
    last = run / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return trial.refused(resumed(trial, run), r"best\.pt")


@cause(KIND, "last.pt has one bit flipped: best.pt is there")
def _(trial: Trial) -> str:
    run = trial.finished()
    last = run / "checkpoints/last.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    return trial.refused(resumed(trial, run), r"best\.pt")


@cause(KIND, "last.pt is empty: best.pt is there")
def _(trial: Trial) -> str:
    run = trial.finished()
    (run / "checkpoints/last.pt").write_bytes(b"")
    return trial.refused(resumed(trial, run), r"best\.pt")


@cause(KIND, "last.pt is gone, best.pt is there")
def _(trial: Trial) -> str:
    run = trial.finished()
    (run / "checkpoints/last.pt").unlink()
    return trial.right_or_said(resumed(trial, run), lambda: False, r"last\.pt", "nothing to resume", r"best\.pt")


@cause(KIND, "a run whose first validation lies beyond its end promises no model", reported=True)
def _(trial: Trial) -> str:
    done = trial.train(settings={"val_interval": 5})
    model = (trial.folder / "out/model.pt").is_file()
    return trial.right_or_said(done, lambda: model or "model.pt" not in done.text, "val_interval")


@cause(KIND, "an interval of validation that does not divide the epochs: the model is of an epoch that was scored")
def _(trial: Trial) -> str:
    done = trial.train(settings={"val_interval": 2, "max_epochs": 3})
    return trial.right_or_said(done, lambda: (trial.folder / "out/model.pt").is_file(), "val_interval")


def killed_in_saving(number: int) -> Prepare:
    """Killed in the middle of the so-many-th torch.save."""
    counted = [0]

    def prepare() -> None:
        save = torch.save

        def dying(content: object, file: object, *arguments: object, **named: object) -> None:
            counted[0] += 1
            if counted[0] == number:
                path = getattr(file, "name", file)
                Path(str(path)).write_bytes(bytes(5000))
                os.kill(os.getpid(), signal.SIGKILL)
            save(content, file, *arguments, **named)

        torch.save = dying

    return prepare


def leftovers(trial: Trial, number: int) -> str:
    """What a killed writer leaves is cleaned by the run that goes on, or that starts anew."""
    trial.train(prepare=killed_in_saving(number), settings={"max_epochs": 3})
    left = [path for path in (trial.folder / "out").rglob("*") if path.is_file() and path.stat().st_size == 5000]
    if not left:
        silent("nothing was left: this shows nothing")
    done = trial.train("--resume", "true", settings={"max_epochs": 3})
    if done.code != 0:
        return silent("the run does not go on", done)
    there = [path for path in left if path.exists() and path.stat().st_size == 5000]
    there += [path for path in (trial.folder / "out").rglob(".*.pt*") if "previous" not in path.parts]
    return "right" if not there else silent(f"{there[0].relative_to(trial.folder)} stays", done)


@cause(KIND, "killed while model.pt is written: what is left is cleaned", reported=True)
def _(trial: Trial) -> str:
    return leftovers(trial, 1)


@cause(KIND, "killed while best.pt is written: what is left is cleaned")
def _(trial: Trial) -> str:
    return leftovers(trial, 2)


@cause(KIND, "killed while last.pt of the second epoch is written: what is left is cleaned")
def _(trial: Trial) -> str:
    return leftovers(trial, 6)


@cause(KIND, "output_dir is a file")
def _(trial: Trial) -> str:
    (trial.folder / "out").write_text("mine")
    outcome = trial.refused(trial.train(), r"\bout\b", "output_dir")
    return outcome if (trial.folder / "out").read_text() == "mine" else silent("the file was overwritten")


@cause(KIND, "output_dir lies below a file, in a translation")
def _(trial: Trial) -> str:
    (trial.folder / "f").write_text("mine")
    trial.save("p.nii.gz", head()[0])
    return trial.refused(trial.translate("p.nii.gz", out="f/out"), r"\bf\b", "output_dir")


@cause(KIND, "the name of the result is taken by a folder")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    (trial.folder / "out/p_translated.nii.gz/x").mkdir(parents=True)
    return trial.refused(trial.translate("p.nii.gz"), r"p_translated\.nii\.gz")


@cause(KIND, "output_dir is a link to nowhere")
def _(trial: Trial) -> str:
    (trial.folder / "out").symlink_to("/nowhere/at/all")
    return trial.refused(trial.train(), r"\bout\b", "output_dir", "nowhere")


@cause(KIND, "an export over a file that is there")
def _(trial: Trial) -> str:
    (trial.folder / "m.ts").write_text("mine")
    done = trial.script("export.py", trial.model, "m.ts", "--image", next((trial.data / "imagesTr").iterdir()))
    outcome = trial.refused(done, r"m\.ts")
    return outcome if (trial.folder / "m.ts").read_text() == "mine" else silent("the file was overwritten")


@cause(KIND, "a package over a folder that is there")
def _(trial: Trial) -> str:
    (trial.folder / "b.zip").mkdir()
    done = trial.script("package_bundle.py", "b.zip", "--run", trial.run, "--data-source", "made up")
    return trial.refused(done, r"b\.zip")


@cause(KIND, "two trainings into one folder at once")
def _(trial: Trial) -> str:
    first: list[Done] = []
    started = threading.Event()

    def start() -> None:
        settings = {"max_epochs": 10, "val_interval": 10}
        first.append(trial.train(settings=settings, meanwhile=lambda child: started.set()))

    thread = threading.Thread(target=start)
    thread.start()
    started.wait()
    while not (trial.folder / "out/config.json").exists() and thread.is_alive():
        pass
    second = trial.train()
    thread.join()
    if first[0].code != 0:
        silent("the first was disturbed", first[0])
    return trial.refused(second, "in use")
