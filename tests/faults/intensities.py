"""Intensities that are not what the config takes them for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from faults.kinds import cause
from faults.trial import AFFINE, Done, Trial, correlation, ct_of, head, seed_of, silent

KIND = "intensities"
WORDS = ("background", "foreground", r"\bbelow\b", r"negative", r"\bair\b", "unlike", "intensit")
HOUNSFIELD = (r"\bHU\b", "Hounsfield", "-1000", r"\bair\b")
GOOD = 0.85
CT = ("mr_to_ct.json",)


def translated_or_said(trial: Trial, change: Callable[[np.ndarray], np.ndarray]) -> str:
    """A volume whose intensities were changed is translated as well as before, or something is said, with a number."""
    image, label = head()
    trial.save("s.nii.gz", change(image).astype(np.float32))
    done = trial.translate("s.nii.gz")
    outcome = trial.right_or_said(done, lambda: correlation(trial.translated("s.nii.gz"), label) > GOOD, *WORDS)
    return with_number(done, outcome, WORDS)


def with_number(done: Done, outcome: str, patterns: tuple[str, ...]) -> str:
    """What was said of intensities gives a number."""
    lines = [line for line in done.notices() if any(re.search(pattern, line, re.IGNORECASE) for pattern in patterns)]
    bare = [re.sub(r"\S*[/\\]\S*|\d\d:\d\d:\d\d", "", line) for line in lines]  # paths and times are no numbers
    if outcome != "right" and not any(re.search(r"\d", line) for line in bare):
        silent("what is said gives no number", done)
    return outcome


def trained_or_said(trial: Trial, change: Callable[..., tuple[np.ndarray, np.ndarray]], *patterns: str) -> str:
    """A data set whose intensities were changed is spoken of before training."""
    data = trial.dataset(change=change)
    done = trial.train(data=data)
    return with_number(done, trial.right_or_said(done, lambda: False, *patterns), patterns)


def ct_trained_or_said(trial: Trial, store: Callable[[np.ndarray], np.ndarray]) -> str:
    """A CT that is stored otherwise than in HU is spoken of before training."""
    data = trial.dataset(change=lambda case, image, label: (image, store(ct_of(image, label))))
    done = trial.train(data=data, overlays=CT)
    return with_number(done, trial.right_or_said(done, lambda: False, *HOUNSFIELD), HOUNSFIELD)


def zscored(image: np.ndarray) -> np.ndarray:
    """Within the head; the background stays 0."""
    inside = image > 0
    return np.where(inside, (image - image[inside].mean()) / image[inside].std(), 0)


@cause(KIND, "a brain that is z-scored within its mask", reported=True)
def _(trial: Trial) -> str:
    return translated_or_said(trial, zscored)


@cause(KIND, "a volume that is z-scored as a whole")
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: (image - image.mean()) / image.std())


@cause(KIND, "a background of 100", reported=True)
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: image + 100)


@cause(KIND, "a volume in [-1, 1]")
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: image / image.max() * 2 - 1)


@cause(KIND, "a volume in [0, 1]: MR has no absolute scale")
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: image / image.max())


@cause(KIND, "a volume whose air is set to -1024, as a CT's padding")
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: np.where(image > 0, image, -1024))


@cause(KIND, "an inverted volume: the air is bright")
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: image.max() - image)


@cause(KIND, "a volume that wrapped around in 16 bits")
def _(trial: Trial) -> str:
    return translated_or_said(trial, lambda image: (image * 60).astype(np.int32).astype(np.int16))


@cause(KIND, "one voxel of a million: scaling is robust")
def _(trial: Trial) -> str:
    def change(image: np.ndarray) -> np.ndarray:
        image[3, 4, 2] = 1e6
        return image

    return translated_or_said(trial, change)


@cause(KIND, "noise in the air as a scanner gives it", reported=True)
def _(trial: Trial) -> str:
    random = np.random.default_rng(0)
    return translated_or_said(
        trial, lambda image: np.hypot(image + random.normal(0, 15, image.shape), random.normal(0, 15, image.shape))
    )


@cause(KIND, "training volumes with noise in the air: foreground is the head", reported=True)
def _(trial: Trial) -> str:
    random = np.random.default_rng(0)

    def change(case: str, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(
            np.hypot(v + random.normal(0, 15, v.shape), random.normal(0, 15, v.shape)).astype("f4")
            for v in (image, label)
        )

    data = trial.dataset(change=change)
    done = trial.train(data=data)
    if done.says(*WORDS):
        return "warned"
    inside = head(seed_of("Valv"))[0] > 0
    shares = [float(n) for n in re.findall(r"foreground[^%\n]*?(\d+(?:\.\d+)?) ?%", done.text)]
    return trial.right_or_said(done, lambda: any(abs(share / 100 - inside.mean()) < 0.1 for share in shares), *WORDS)


@cause(KIND, "a training source that is z-scored, the others are not")
def _(trial: Trial) -> str:
    return trained_or_said(trial, lambda c, x, y: (zscored(x).astype("f4") if c == "b" else x, y), *WORDS)


@cause(KIND, "training targets with a background of 50")
def _(trial: Trial) -> str:
    data = trial.dataset(change=lambda c, x, y: (x, y + 50))
    done = trial.train(data=data)
    if done.code == 0 and not done.says(*WORDS):  # found, not compared with 0: empty slices stay out
        described = trial.script("describe_model.py", "out/model.pt", "--json").text
        return trial.right_or_said(done, lambda: "50" in described and "background" in described, *WORDS)
    return with_number(done, trial.right_or_said(done, lambda: False, *WORDS), WORDS)


@cause(KIND, "one training target in another unit: a thousand times as bright")
def _(trial: Trial) -> str:
    return trained_or_said(trial, lambda c, x, y: (x, y * 1000 if c == "b" else y), *WORDS, "window", "bright", "range")


@cause(KIND, "CT targets as HU + 1000, unsigned", reported=True)
def _(trial: Trial) -> str:
    return ct_trained_or_said(trial, lambda ct: (ct + 1000).clip(0).astype(np.uint16))


@cause(KIND, "CT targets as HU + 1024 with slope and intercept lost")
def _(trial: Trial) -> str:
    return ct_trained_or_said(trial, lambda ct: (ct + 1024).clip(0).astype(np.int16))


@cause(KIND, "CT targets in thousands of HU")
def _(trial: Trial) -> str:
    return ct_trained_or_said(trial, lambda ct: ct / 1000)


@cause(KIND, "CT targets scaled to 0 to 255")
def _(trial: Trial) -> str:
    return ct_trained_or_said(trial, lambda ct: ((ct + 1000) / 2000 * 255).clip(0, 255))


@cause(KIND, "CT targets as attenuation per cm")
def _(trial: Trial) -> str:
    return ct_trained_or_said(trial, lambda ct: 0.2 * (ct / 1000 + 1))


@cause(KIND, "MR and CT folders swapped")
def _(trial: Trial) -> str:
    data = trial.dataset(change=lambda case, image, label: (ct_of(image, label), image))
    done = trial.train(data=data, overlays=CT)
    patterns = (*HOUNSFIELD, *WORDS)
    return with_number(done, trial.right_or_said(done, lambda: False, *patterns), patterns)


@cause(KIND, "one CT of several is stored as HU + 1024")
def _(trial: Trial) -> str:
    data = trial.dataset(change=lambda c, x, y: (x, ct_of(x, y) + (1024 if c == "b" else 0)))
    done = trial.train(data=data, overlays=CT)
    return with_number(done, trial.right_or_said(done, lambda: False, *HOUNSFIELD), HOUNSFIELD)


@cause(KIND, "a slope and an intercept of the file are applied")
def _(trial: Trial) -> str:
    image, label = head()
    stored = nib.Nifti1Image(np.round(image / 2).astype(np.int16), np.diag([2.0, 2, 4, 1]))
    stored.header.set_slope_inter(2, 0)
    nib.save(stored, trial.folder / "s.nii.gz")
    done = trial.translate("s.nii.gz")
    return trial.right_or_said(done, lambda: correlation(trial.translated("s.nii.gz"), label) > GOOD, *WORDS)


@cause(KIND, "a mask instead of an image")
def _(trial: Trial) -> str:
    trial.save("m.nii.gz", (head()[0] > 0).astype(np.uint8))
    return trial.right_or_said(trial.translate("m.nii.gz"), lambda: False, "constant", "mask", *WORDS)


@cause(KIND, "an evaluation of data in another unit than the model's")
def _(trial: Trial) -> str:
    data = trial.dataset("other", test="xy", change=lambda c, x, y: (x, y / 1000))
    return trial.right_or_said(trial.evaluate("--dataset_dir", data), lambda: False, "window", "range", *WORDS)


def masked(trial: Trial, affine: np.ndarray = AFFINE) -> Path:
    """A data set with masks of half the head beside the images."""
    data = trial.dataset()
    for split, cases in (("Tr", "abc"), ("Val", "v")):
        for case in cases:
            inside = head(seed_of(split + case))[0] > 0
            inside[: inside.shape[0] // 2] = False
            trial.save(f"data/masks{split}/{case}.nii.gz", inside.astype(np.uint8), affine)
    return data


@cause(KIND, "masks of the user's are the foreground")
def _(trial: Trial) -> str:
    done = trial.train(data=masked(trial))
    shares = re.search(r"foreground: ([\d.]+) %", done.text)
    plain = re.search(r"foreground: ([\d.]+) %", trial.train(data=trial.data, out="plain").text)
    if done.code or not shares or not plain or float(shares[1]) > 0.7 * float(plain[1]):
        silent("the masks make no difference", done)
    return "right"


@cause(KIND, "masks that lie elsewhere than the images")
def _(trial: Trial) -> str:
    return trial.refused(trial.train(data=masked(trial, AFFINE + 20 * np.eye(4, k=3))), "mask", anywhere=True)


@cause(KIND, "a translation without the mask that the training had")
def _(trial: Trial) -> str:
    trial.train(data=masked(trial))
    trial.save("s.nii.gz", head()[0])
    done = trial.translate("s.nii.gz", model="out/model.pt", out="translated")
    return trial.right_or_said(done, lambda: False, r"\bmask\b")
