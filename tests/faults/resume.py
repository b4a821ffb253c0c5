"""Resuming what is not the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from faults.kinds import cause
from faults.trial import FITTED, Done, Trial, save, silent

KIND = "resume"
MORE = {**FITTED, "max_epochs": 13}


def resumed(
    trial: Trial, *more: str, data: Path | None = None, overlays: tuple[str, ...] = (), **settings: object
) -> Done:
    """Go on with the copied run for one epoch, with something changed."""
    run = trial.finished()
    return trial.train("--resume", "true", *more, data=data, out=run, overlays=overlays, settings={**MORE, **settings})


def refused(trial: Trial, done: Done, *patterns: str) -> str:
    """What is not the same is refused by name, with the setting that allows it, and the run is as it was."""
    outcome = trial.refused(done, *patterns, anywhere=True)
    for name in ("checkpoints/last.pt", "config.json", "model.pt"):
        if (trial.folder / "run" / name).read_bytes() != (trial.run / name).read_bytes():
            silent(f"{name} of the run was changed", done)
    return outcome


def other_data(trial: Trial, change: Callable[[Path], None]) -> str:
    """Other data are refused with both digests."""
    data = trial.folder / "data"
    shutil.copytree(trial.data, data)
    change(data)
    done = resumed(trial, data=data)
    outcome = refused(trial, done, "data")
    said = " ".join([done.last, *done.notices()])
    if len(set(re.findall(r"\b[0-9a-f]{8,64}\b", said))) < 2 or "resume_changed" not in said:
        silent("both digests and resume_changed are not said", done)
    return outcome


def redraw(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other voxels in the same file."""
    volume = nib.load(path)
    save(path, change(np.asarray(volume.dataobj).copy()), volume.affine)


def went_on(trial: Trial, done: Done, epoch: int = 13) -> str:
    """What may change was taken over."""
    if done.code != 0:
        silent("what may change is refused", done)
    saved = torch.load(trial.folder / "run/checkpoints/last.pt", weights_only=True)
    return "right" if saved["trainer"]["epoch"] == epoch else silent(f"went to epoch {saved['trainer']['epoch']}", done)


@cause(KIND, "other data of the same shapes", reported=True)
def _(trial: Trial) -> str:
    def change(data: Path) -> None:
        for path in (data / "labelsTr").iterdir():
            redraw(path, lambda voxels: voxels * 0.5)

    return other_data(trial, change)


@cause(KIND, "one voxel of one label")
def _(trial: Trial) -> str:
    def one(voxels: np.ndarray) -> np.ndarray:
        voxels[20, 17, 3] += 1
        return voxels

    return other_data(trial, lambda data: redraw(data / "labelsTr/b.nii.gz", one))


@cause(KIND, "two patients swapped by their names")
def _(trial: Trial) -> str:
    def change(data: Path) -> None:
        for kind in ("imagesTr", "labelsTr"):
            (data / kind / "a.nii.gz").rename(data / kind / "x")
            (data / kind / "b.nii.gz").rename(data / kind / "a.nii.gz")
            (data / kind / "x").rename(data / kind / "b.nii.gz")

    return other_data(trial, change)


@cause(KIND, "another patient to validate with")
def _(trial: Trial) -> str:
    return other_data(trial, lambda data: redraw(data / "labelsVal/v.nii.gz", lambda voxels: voxels * 0.9))


@cause(KIND, "images and labels swapped")
def _(trial: Trial) -> str:
    def change(data: Path) -> None:
        (data / "imagesTr").rename(data / "x")
        (data / "labelsTr").rename(data / "imagesTr")
        (data / "x").rename(data / "labelsTr")

    return other_data(trial, change)


@cause(KIND, "the same data in another place go on")
def _(trial: Trial) -> str:
    shutil.copytree(trial.data, trial.folder / "moved")
    return went_on(trial, resumed(trial, data=trial.folder / "moved"))


@cause(KIND, "other data where that is allowed")
def _(trial: Trial) -> str:
    shutil.copytree(trial.data, trial.folder / "data")
    redraw(trial.folder / "data/labelsTr/b.nii.gz", lambda voxels: voxels * 0.5)
    done = resumed(trial, "--resume_changed", "true", data=trial.folder / "data")
    return went_on(trial, done)


@cause(KIND, "wider networks", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, **{"network_def#generator#filters": 8}), "filters", "network", r"last\.pt")


@cause(KIND, "a registration network with its stages swapped")
def _(trial: Trial) -> str:
    done = resumed(trial, **{"network_def#registration#channels": "[8,4]"})
    return refused(trial, done, "registration", "network", r"last\.pt")


@cause(KIND, "a network of the same shapes with another upsampling")
def _(trial: Trial) -> str:
    done = resumed(trial, **{"network_def#generator#upsampling": "transposed"})
    return refused(trial, done, "upsampling", "network", r"last\.pt")


@cause(KIND, "another weight of a loss", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, **{"weights#correction": 5}), "weights", "correction")


@cause(KIND, "another weight of the smoothness")
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, **{"weights#smoothness": 1}), "weights", "smoothness")


@cause(KIND, "another method: without the registration")
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, overlays=("no_registration.json",)), "weights", "correction", r"last\.pt")


@cause(KIND, "another scaling of the source")
def _(trial: Trial) -> str:
    return refused(
        trial, resumed(trial, **{"source_intensity#upper_percentile": 90}), "source_intensity", "percentile", "scaling"
    )


@cause(KIND, "another size of images: the networks take any")
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, spatial_size=40), "spatial_size")


@cause(KIND, "another pixel")
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, spacing=3), "spacing")


@cause(KIND, "slices resized, not padded")
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, fit="resize"), r"\bfit\b")


@cause(KIND, "another slice axis")
def _(trial: Trial) -> str:
    return refused(trial, resumed(trial, slice_axis=0), "slice_axis")


@cause(KIND, "another noise level")
def _(trial: Trial) -> str:
    return trial.right_or_said(resumed(trial, noise_level=4), lambda: False, "noise_level")


@cause(KIND, "another seed")
def _(trial: Trial) -> str:
    return trial.right_or_said(resumed(trial, seed=7), lambda: False, "seed")


@cause(KIND, "another batch size")
def _(trial: Trial) -> str:
    return trial.right_or_said(resumed(trial, batch_size=1), lambda: False, "batch_size", "batch size")


@cause(KIND, "augmentation that was not there")
def _(trial: Trial) -> str:
    return trial.right_or_said(
        resumed(trial, overlays=("augmentation.json",)), lambda: False, "slice_transform", "augmentation"
    )


@cause(KIND, "more slices: another least foreground")
def _(trial: Trial) -> str:
    return trial.right_or_said(
        resumed(trial, min_foreground=0.02), lambda: False, "min_foreground", "iterations per epoch"
    )


@cause(KIND, "more epochs")
def _(trial: Trial) -> str:
    return went_on(trial, resumed(trial))


@cause(KIND, "another learning rate")
def _(trial: Trial) -> str:
    return went_on(trial, resumed(trial, learning_rate=0.001))


@cause(KIND, "fewer epochs than are done")
def _(trial: Trial) -> str:
    return trial.right_or_said(resumed(trial, max_epochs=5), lambda: False, "max_epochs", "epoch")
