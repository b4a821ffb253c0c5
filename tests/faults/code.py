"""Configs are code, data are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from faults.kinds import cause
from faults.trial import ROOT, Done, Trial, head, silent

KIND = "configs are code"
MARK = "PWNED"
EVIL = f"$__import__('os').mkdir('{MARK}')"


def harmless(trial: Trial, done: Done, *patterns: str) -> str:
    """What is data was not run, and it was taken as it is or refused in these words."""
    if any(trial.folder.rglob(MARK)):
        silent("the text was run as code", done)
    if done.code == 0:
        return "right"
    return trial.refused(done, *patterns, anywhere=True)


def setting(trial: Trial, name: str, value: str = EVIL) -> str:
    """A setting of training that is text."""
    return harmless(trial, trial.train(settings={name: value}), name)


@cause(KIND, "$ in --image", reported=True)
def _(trial: Trial) -> str:
    return harmless(trial, trial.translate(EVIL), "image")


@cause(KIND, "a file whose name begins with $")
def _(trial: Trial) -> str:
    trial.save("$HOME.nii.gz", head()[0])
    done = trial.translate("$HOME.nii.gz")
    if done.code != 0 or not (trial.folder / "out/$HOME_translated.nii.gz").is_file():
        silent("it is not translated", done)
    return "right"


@cause(KIND, "a file whose name begins with @")
def _(trial: Trial) -> str:
    trial.save("@home.nii.gz", head()[0])
    done = trial.translate("@home.nii.gz")
    if done.code != 0 or not (trial.folder / "out/@home_translated.nii.gz").is_file():
        silent("it is not translated", done)
    return "right"


@cause(KIND, "a file whose name begins with %")
def _(trial: Trial) -> str:
    trial.save("%run.nii.gz", head()[0])
    # MONAI's command takes it for a part of another file; that is said, and how to name it.
    trial.refused(trial.translate("%run.nii.gz"), r"\./%run\.nii\.gz")
    done = trial.translate("./%run.nii.gz")
    if done.code != 0 or not (trial.folder / "out/%run_translated.nii.gz").is_file():
        silent("it is not translated", done)
    return "right"


@cause(KIND, "$ in --output_dir of a translation")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    return harmless(trial, trial.translate("p.nii.gz", out=EVIL), "output_dir")


@cause(KIND, "$ in --checkpoint")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    return harmless(trial, trial.translate("p.nii.gz", model=EVIL), "checkpoint")


@cause(KIND, "$ in --dataset_dir")
def _(trial: Trial) -> str:
    return setting(trial, "dataset_dir")


@cause(KIND, "$ in --datalist")
def _(trial: Trial) -> str:
    return setting(trial, "datalist")


@cause(KIND, "$ in --output_dir")
def _(trial: Trial) -> str:
    return setting(trial, "output_dir")


@cause(KIND, "$ in --run_name")
def _(trial: Trial) -> str:
    return setting(trial, "run_name")


@cause(KIND, "$ in --source_modality")
def _(trial: Trial) -> str:
    return setting(trial, "source_modality")


@cause(KIND, "$ in --experiment_name")
def _(trial: Trial) -> str:
    return setting(trial, "experiment_name")


@cause(KIND, "$ in --start_from")
def _(trial: Trial) -> str:
    return setting(trial, "start_from")


@cause(KIND, "$ in --checkpoint of an evaluation")
def _(trial: Trial) -> str:
    return harmless(trial, trial.evaluate("--checkpoint", EVIL), "checkpoint")


@cause(KIND, "@ in --run_name: a reference to another setting")
def _(trial: Trial) -> str:
    done = trial.train(settings={"run_name": "@dataset_dir"})
    if done.code == 0:
        written = json.loads((trial.folder / "out/config.json").read_text())["run_name"]
        return "right" if written == "@dataset_dir" else silent(f"run_name became {written!r}", done)
    return trial.refused(done, "run_name", anywhere=True)


@cause(KIND, "$ in the paths of a datalist")
def _(trial: Trial) -> str:
    data = trial.dataset()
    pairs = [
        {"image": EVIL, "label": "labelsTr/a.nii.gz"},
        {"image": "imagesTr/b.nii.gz", "label": "labelsTr/b.nii.gz"},
    ]
    (data / "datalist.json").write_text(json.dumps({"training": pairs}))
    return harmless(trial, trial.train(data=data), r"datalist|no such file")


@cause(KIND, "$ as a patient's name in a datalist")
def _(trial: Trial) -> str:
    data = trial.dataset()
    pairs = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz", "patient": EVIL + c} for c in "abc"]
    (data / "datalist.json").write_text(json.dumps({"training": pairs}))
    return harmless(trial, trial.train(data=data), "patient")


@cause(KIND, "a data set whose folder's name begins with $")
def _(trial: Trial) -> str:
    trial.dataset("$data")
    done = trial.train(data="$data")
    return "right" if done.code == 0 else silent("it is not found", done)


class Runs:
    """An object whose loading makes a folder."""

    def __reduce__(self) -> tuple:
        return (__import__("os").mkdir, (MARK,))


@cause(KIND, "an .npy that holds an object")
def _(trial: Trial) -> str:
    np.save(trial.folder / "a.npy", np.array([[Runs()]], dtype=object), allow_pickle=True)
    done = trial.translate("a.npy")
    harmless(trial, done, r"a\.npy")
    return trial.refused(done, r"a\.npy", anywhere=True)


@cause(KIND, "a model that holds an object")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    torch.save({"network": Runs()}, trial.folder / "m.pt")
    done = trial.translate("p.nii.gz", model="m.pt")
    harmless(trial, done, r"m\.pt")
    return trial.refused(done, r"m\.pt", anywhere=True)


def recipe(trial: Trial, change) -> Done:
    """Translate with a model whose recipe was tampered with."""
    state = torch.load(trial.model, weights_only=True)
    content = json.loads(bytes(state["_extra_state"].tolist()))
    change(content)
    state["_extra_state"] = torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)
    torch.save(state, trial.folder / "m.pt")
    trial.save("p.nii.gz", head()[0])
    return trial.translate("p.nii.gz", model="m.pt")


@cause(KIND, "a recipe whose class is a command")
def _(trial: Trial) -> str:
    def change(content: dict) -> None:
        content["source"]["scaling"] = {"class": "os.mkdir", "arguments": {"path": MARK}}

    done = recipe(trial, change)
    harmless(trial, done, "recipe", r"os\.mkdir")
    return trial.refused(done, "recipe", r"os\.mkdir", "trusted", anywhere=True)


@cause(KIND, "a recipe whose text is an expression")
def _(trial: Trial) -> str:
    return harmless(trial, recipe(trial, lambda content: content["source"].update(modality=EVIL)), "recipe")


@cause(KIND, "a study whose names are expressions")
def _(trial: Trial) -> str:
    import yaml

    from faults.written import STUDY

    (trial.folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, "name": EVIL}))
    done = trial.script("noise_study.py", "--study", "study.yaml", "--list")
    return harmless(trial, done, "name")


@cause(KIND, "a YAML file of a study that makes objects")
def _(trial: Trial) -> str:
    (trial.folder / "study.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{MARK}']\n")
    done = trial.script("noise_study.py", "--study", "study.yaml", "--list")
    harmless(trial, done, "study")
    return trial.refused(done, r"study\.yaml", "python/object", anywhere=True)


def pages() -> list[Path]:
    """Where a reader learns of it."""
    return [ROOT / "README.md", ROOT / "bundles/reggan/docs/README.md"]


@cause(KIND, "a config from elsewhere runs what it says: the pages say so", reported=True)
def _(trial: Trial) -> str:
    (trial.folder / "theirs.json").write_text(json.dumps({"imports": [f"$__import__('os').mkdir('{MARK}')"]}))
    trial.train(overlays=(trial.folder / "theirs.json",))
    for page in pages():
        text = " ".join(page.read_text().split())
        if "configs are code" not in text.lower() and "config is code" not in text.lower():
            silent(f"{page.relative_to(ROOT)} does not say that configs are code")
    return "warned"
