"""Patients that vanish: each is named, and counts printed are counts used."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np

from faults.kinds import cause
from faults.trial import Trial, head, save, silent

KIND = "vanishing patients"


def link(path, target="../.git/annex/objects/XX/MD5E-s1--0.nii.gz") -> None:
    """Make a file a link to one that is not there."""
    path.unlink()
    path.symlink_to(target)


def empty(case: str, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Case b shows so little that no slice of it is used."""
    if case == "b":
        for voxels in (image, label):
            voxels[:18] = voxels[22:] = voxels[:, :16] = voxels[:, 18:] = 0
    return image, label


@cause(KIND, "dangling links in training", reported=True)
def _(trial: Trial) -> str:
    data = trial.dataset()
    for kind in ("imagesTr", "labelsTr"):
        link(data / kind / "b.nii.gz")
    return trial.right_or_said(trial.train(data=data), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "a dangling link among the volumes to translate", reported=True)
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    (trial.folder / "in/p2.nii.gz").symlink_to("/nowhere/x.nii.gz")
    return trial.right_or_said(trial.translate("in"), lambda: False, r"p2\.nii\.gz")


@cause(KIND, "a dangling link in an evaluation")
def _(trial: Trial) -> str:
    data = trial.dataset(test="xy")
    for kind in ("imagesTs", "labelsTs"):
        link(data / kind / "x.nii.gz")
    return trial.right_or_said(trial.evaluate("--dataset_dir", data), lambda: False, r"\bx\.nii\.gz")


@cause(KIND, "a dangling link as the label of one alone")
def _(trial: Trial) -> str:
    data = trial.dataset()
    link(data / "labelsTr/b.nii.gz")
    return trial.right_or_said(trial.train(data=data), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "links that lead in a circle")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for kind in ("imagesTr", "labelsTr"):
        link(data / kind / "b.nii.gz", "b.nii.gz")
    return trial.right_or_said(trial.train(data=data), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "a training patient that gives no slice", reported=True)
def _(trial: Trial) -> str:
    return trial.right_or_said(
        trial.train(data=trial.dataset(change=empty)), lambda: False, r"\bb\.nii\.gz", r"[\"'/]b\b"
    )


@cause(KIND, "a validation patient that gives no slice")
def _(trial: Trial) -> str:
    data = trial.dataset(validation="vb", change=lambda c, x, y: empty(c, x, y))
    for kind in ("images", "labels"):
        (data / f"{kind}Tr/b.nii.gz").unlink()
    return trial.right_or_said(trial.train(data=data), lambda: False, r"\bb\.nii\.gz", r"[\"'/]b\b")


@cause(KIND, "a test patient that gives no slice, in the evaluation")
def _(trial: Trial) -> str:
    data = trial.dataset(training="ac", test="bx", change=empty)
    done = trial.evaluate("--dataset_dir", data)

    def in_the_table() -> bool:
        volumes = (trial.folder / "run/evaluation/volumes.csv").read_text()
        return bool(re.search(r"\bb\b", volumes))

    return trial.right_or_said(done, in_the_table, r"\bb\.nii\.gz", r"[\"'/]b\b")


@cause(KIND, "files of unknown suffix in training", reported=True)
def _(trial: Trial) -> str:
    data = trial.dataset()
    for kind in ("imagesTr", "labelsTr"):
        (data / kind / "b.nii.gz").rename(data / kind / "b.nii.bz2")
    return trial.right_or_said(trial.train(data=data), lambda: False, r"b\.nii\.bz2", r"\.bz2")


@cause(KIND, "files of unknown suffix to translate")
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    shutil.copy(trial.folder / "in/a.nii.gz", trial.folder / "in/b.nifti")
    return trial.right_or_said(trial.translate("in"), lambda: False, r"b\.nifti")


@cause(KIND, "files of unknown suffix among the test images")
def _(trial: Trial) -> str:
    data = trial.dataset(test="xy")
    for kind in ("imagesTs", "labelsTs"):
        (data / kind / "x.nii.gz").rename(data / kind / "x.minc")
    return trial.right_or_said(trial.evaluate("--dataset_dir", data), lambda: False, r"x\.minc")


@cause(KIND, "a folder for one patient among the files of others")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for kind in ("imagesTr", "labelsTr"):
        (data / kind / "b").mkdir()
        (data / kind / "b.nii.gz").rename(data / kind / "b" / "b.nii.gz")
    done = trial.train(data=data)
    return trial.right_or_said(
        done, lambda: re.search(r"\b3 training", done.text) is not None, r"imagesTr/b\b", r"\bb\.nii"
    )


@cause(KIND, "a folder with the name of a volume")
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    (trial.folder / "in/b.nii.gz").mkdir()
    return trial.right_or_said(trial.translate("in"), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "subfolders of the folder to translate")
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    trial.save("in/p2/b.nii.gz", head(6)[0])
    done = trial.translate("in")
    return trial.right_or_said(done, lambda: trial.translated("b.nii.gz").size > 0, r"\bp2\b", r"\bb\.nii\.gz")


@cause(KIND, "an empty file among the volumes to translate")
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    (trial.folder / "in/b.nii.gz").touch()
    return trial.right_or_said(trial.translate("in"), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "what a Mac leaves beside volumes is no patient")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for kind in ("imagesTr", "labelsTr"):
        (data / kind / "._b.nii.gz").write_bytes(b"\0\5\26\7" + bytes(100))
        (data / kind / ".DS_Store").write_bytes(b"\0")
    done = trial.train(data=data)
    return trial.right_or_said(done, lambda: done.code == 0, r"\._b\.nii\.gz")


@cause(KIND, "a case that is listed twice")
def _(trial: Trial) -> str:
    data = trial.dataset()
    cases = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in "abca"]
    (data / "datalist.json").write_text(json.dumps({"training": cases}))
    return trial.right_or_said(
        trial.train(data=data), lambda: False, r"twice", r"\ba\.nii\.gz.*same|same.*\ba\.nii\.gz", "more than once"
    )


@cause(KIND, "a list of a misspelt name in the datalist")
def _(trial: Trial) -> str:
    data = trial.dataset()

    def listed(cases: str, split: str) -> list[dict[str, str]]:
        return [{"image": f"images{split}/{c}.nii.gz", "label": f"labels{split}/{c}.nii.gz"} for c in cases]

    (data / "datalist.json").write_text(json.dumps({"training": listed("abc", "Tr"), "validaton": listed("v", "Val")}))
    return trial.right_or_said(trial.train(data=data), lambda: False, "validaton")


@cause(KIND, "labels for some of the images")
def _(trial: Trial) -> str:
    data = trial.dataset()
    (data / "labelsTr/b.nii.gz").unlink()
    return trial.right_or_said(trial.train(data=data), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "the number of pairs that is printed is the number of pairs that is used")
def _(trial: Trial) -> str:
    data = trial.dataset(training="abcd", change=empty)
    done = trial.train(data=data)
    if done.code != 0:
        return trial.refused(done, r"\bb\.nii\.gz", anywhere=True)
    printed = re.search(r"(\d+) training pairs", done.text)
    named = done.says(r"\bb\.nii\.gz", r"[\"'/]b\b")
    if printed and printed.group(1) == "4" and not named:
        silent("4 pairs are printed, 3 are used", done)
    return "warned" if named else "right"


@cause(KIND, "a folder that nobody may enter", reported=False)
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    save(trial.folder / "in/b.nii.gz", head(6)[0]).chmod(0)
    trial.folder.chmod(0o777)
    (trial.folder / "in").chmod(0o755)

    def nobody() -> None:
        if os.getuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)

    done = trial.translate("in", prepare=nobody)
    return trial.right_or_said(done, lambda: False, r"\bb\.nii\.gz", "ermission")
