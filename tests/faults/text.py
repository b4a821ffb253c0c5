"""What the command line makes of text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import torch

from faults.kinds import cause
from faults.trial import TINY, Trial, as_json, chain, head, silent, words

KIND = "command line"


def config(trial: Trial, out: str = "out") -> dict:
    """What the run wrote down of its settings."""
    return as_json(trial.folder / out / "config.json")


def folder_named(trial: Trial, name: str) -> str:
    """A data set and an output folder of that name are the ones that were named."""
    shutil.copytree(trial.data, trial.folder / name)
    done = trial.train(data=name, out=f"{name}.out")
    if done.code != 0:
        return silent(f"a folder {name!r} is not found", done)
    if not (trial.folder / f"{name}.out" / "model.pt").is_file():
        silent(f"the run is not in {name}.out", done)
    return translated_from(trial, name)


def translated_from(trial: Trial, name: str) -> str:
    """A folder of volumes and one of results of that name are the ones that were named."""
    shutil.rmtree(trial.folder / name, ignore_errors=True)
    trial.save(f"{name}/p.nii.gz", head()[0])
    (trial.folder / "results").mkdir()
    done = trial.translate(f"../{name}", out=name, cwd=trial.folder / "results")
    if done.code != 0 or not (trial.folder / "results" / name / "p_translated.nii.gz").is_file():
        silent(f"a folder {name!r} is not found, or the result is elsewhere", done)
    return "right"


def output_named(trial: Trial, name: str) -> str:
    """An output folder of that name is the one that was named."""
    trial.save("p.nii.gz", head()[0])
    done = trial.translate("p.nii.gz", out=name)
    if done.code != 0 or not (trial.folder / name / "p_translated.nii.gz").is_file():
        found = [str(path.relative_to(trial.folder)) for path in trial.folder.rglob("p_translated.nii.gz")]
        silent(f"asked for {name!r}, the result lies in {found}", done)
    return "right"


def kept_as_text(trial: Trial, name: str, text: str) -> str:
    """A setting that is a text stays what was typed."""
    done = trial.train(settings={name: text})
    if done.code != 0:
        return trial.refused(done, name)
    found = config(trial)[name]
    return "right" if found == text else silent(f"{name} {text!r} became {found!r}", done)


def refused(trial: Trial, *more: str, says: tuple[str, ...], **settings: str) -> str:
    """Training is refused in these words before anything is written."""
    done = trial.train(*more, settings=settings)
    outcome = trial.refused(done, *says, anywhere=True)
    trial.nothing_written()
    return outcome


def taken(trial: Trial, name: str, text: str, right: Callable[[dict], bool]) -> str:
    """A value in another spelling is what it says, or refused by the setting's name."""
    done = trial.train(settings={name: text})
    if done.code != 0:
        return trial.refused(done, re.escape(name), anywhere=True)
    return "right" if right(config(trial)) else silent(f"{name} {text} became {config(trial).get(name)!r}", done)


@cause(KIND, "a folder named like a date, 2024_11_27", reported=True)
def _(trial: Trial) -> str:
    return folder_named(trial, "2024_11_27")


@cause(KIND, "a folder named like two words, T1,T2", reported=True)
def _(trial: Trial) -> str:
    return folder_named(trial, "T1,T2")


@cause(KIND, "a folder named like a number with an exponent, 1e3")
def _(trial: Trial) -> str:
    return folder_named(trial, "1e3")


@cause(KIND, "a folder named like a number with a zero, 007")
def _(trial: Trial) -> str:
    return output_named(trial, "007")


@cause(KIND, "a folder named True")
def _(trial: Trial) -> str:
    return output_named(trial, "True")


@cause(KIND, "a folder named [a]")
def _(trial: Trial) -> str:
    return output_named(trial, "[a]")


@cause(KIND, "a folder named {a}")
def _(trial: Trial) -> str:
    return output_named(trial, "{a}")


@cause(KIND, "a folder named 0x10")
def _(trial: Trial) -> str:
    return output_named(trial, "0x10")


@cause(KIND, "a folder named 'quoted'")
def _(trial: Trial) -> str:
    return output_named(trial, "'quoted'")


@cause(KIND, "a folder named 1.50")
def _(trial: Trial) -> str:
    return output_named(trial, "1.50")


@cause(KIND, "a run named 2024-11-27")
def _(trial: Trial) -> str:
    return kept_as_text(trial, "run_name", "2024-11-27")


@cause(KIND, "a run named 1_000")
def _(trial: Trial) -> str:
    return kept_as_text(trial, "run_name", "1_000")


@cause(KIND, "an experiment named 3,5")
def _(trial: Trial) -> str:
    return kept_as_text(trial, "experiment_name", "3,5")


@cause(KIND, "a modality named 1e5")
def _(trial: Trial) -> str:
    return kept_as_text(trial, "source_modality", "1e5")


@cause(KIND, "modalities named T1,FLAIR")
def _(trial: Trial) -> str:
    return kept_as_text(trial, "source_modality", "T1,FLAIR")


@cause(KIND, "None for a number of epochs", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, says=("max_epochs",), max_epochs="None")


@cause(KIND, "None for a rate")
def _(trial: Trial) -> str:
    return refused(trial, says=("learning_rate",), learning_rate="None")


@cause(KIND, "None for a seed")
def _(trial: Trial) -> str:
    return refused(trial, says=("seed",), seed="None")


@cause(KIND, "None for a noise level in an evaluation is that of the run")
def _(trial: Trial) -> str:
    done = trial.evaluate("--noise_level", "None")
    return trial.right_or_said(done, lambda: "noise" in done.text or done.code == 0, "noise_level")


@cause(KIND, "a misspelt weight by a dot: --weights.correction 10", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, "--weights.correction", "10", says=(r"weights\.correction", "weights#correction"))


@cause(KIND, "a name that is far off any: --frobnicate 1", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, "--frobnicate", "1", says=("frobnicate",))


@cause(KIND, "a name of another tool: --epochs 3")
def _(trial: Trial) -> str:
    return refused(trial, "--epochs", "3", says=(r"\bepochs\b",))


@cause(KIND, "a name of another tool: --lr=0.1")
def _(trial: Trial) -> str:
    return refused(trial, "--lr=0.1", says=(r"\blr\b",))


@cause(KIND, "a term of the losses that there is not: --weights#corection 10")
def _(trial: Trial) -> str:
    return refused(trial, "--weights#corection", "10", says=("corection",))


@cause(KIND, "a part of the trainer that there is not: --train#trainer#max_epoch 3")
def _(trial: Trial) -> str:
    return refused(trial, "--train#trainer#max_epoch", "3", says=(r"max_epoch\b",))


@cause(KIND, "a section that there is not: --optimizer#lr 1")
def _(trial: Trial) -> str:
    return refused(trial, "--optimizer#lr", "1", says=("optimizer",))


@cause(KIND, "a name that is far off any, in an evaluation")
def _(trial: Trial) -> str:
    return trial.refused(trial.evaluate("--frobnicate", "1"), "frobnicate", anywhere=True)


@cause(KIND, "a name that is far off any, in a translation")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    outcome = trial.refused(trial.translate("p.nii.gz", "--frobnicate", "1"), "frobnicate", anywhere=True)
    trial.nothing_written()
    return outcome


@cause(KIND, "--backbone unit without its overlay", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, says=("backbone", r"unit\.json", "overlay"), backbone="unit")


@cause(KIND, "--backbone nicegan without its overlay")
def _(trial: Trial) -> str:
    return refused(trial, says=("backbone", r"nicegan\.json", "overlay"), backbone="nicegan")


@cause(KIND, "--method pix2pix, a name that is worked out")
def _(trial: Trial) -> str:
    done = trial.train(settings={"method": "pix2pix"})
    return trial.right_or_said(done, lambda: False, "method")


@cause(KIND, "--help of training", reported=True)
def _(trial: Trial) -> str:
    before = (trial.run / "config.json").stat().st_mtime_ns
    run = trial.finished()
    done = trial.train("--help", out=run)
    if (run / "previous").exists() or done.seconds > 30:
        silent("a training was started and the last run set aside", done)
    if done.code != 0 or "max_epochs" not in done.text or before != (trial.run / "config.json").stat().st_mtime_ns:
        silent("no help was printed", done)
    return "right"


@cause(KIND, "--help of inference")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    done = trial.translate("p.nii.gz", "--help")
    trial.nothing_written()
    return "right" if done.code == 0 and "output_dir" in done.text else silent("no help was printed", done)


@cause(KIND, "--help of an evaluation, before anything else")
def _(trial: Trial) -> str:
    done = trial.bundle("run", "--help", "--config_file", chain("evaluate.json"), "--output_dir", trial.run)
    return "right" if done.code == 0 and "split" in done.text else silent("no help was printed", done)


@cause(KIND, "digits with an underscore: --max_epochs 1_0")
def _(trial: Trial) -> str:
    return taken(trial, "max_epochs", "1_0", lambda config: config["max_epochs"] == 10)


@cause(KIND, "a whole number with a point: --batch_size 2.0")
def _(trial: Trial) -> str:
    return taken(trial, "batch_size", "2.0", lambda config: config["batch_size"] == 2)


@cause(KIND, "a rate with an exponent: --learning_rate 1e-3")
def _(trial: Trial) -> str:
    return taken(trial, "learning_rate", "1e-3", lambda config: config["learning_rate"] == 0.001)


@cause(KIND, "a size without brackets: --spatial_size 32,40")
def _(trial: Trial) -> str:
    return taken(trial, "spatial_size", "32,40", lambda config: list(config["spatial_size"]) == [32, 40])


@cause(KIND, "True and no for what is yes or no: --amp no")
def _(trial: Trial) -> str:
    return taken(trial, "amp", "no", lambda config: config["amp"] in (False, "no"))


@cause(KIND, "a setting with nothing after it: --resume")
def _(trial: Trial) -> str:
    done = trial.train("--resume")
    return trial.right_or_said(done, lambda: False, "resume")


@cause(KIND, "a setting that stands twice with two values")
def _(trial: Trial) -> str:
    done = trial.train("--max_epochs", "2")
    if done.code != 0:
        return trial.refused(done, "max_epochs")
    saved = torch.load(trial.folder / "out/checkpoints/last.pt", weights_only=True)
    return (
        "right"
        if saved["trainer"]["epoch"] == 2 and config(trial)["max_epochs"] == 2
        else silent("the first won", done)
    )


@cause(KIND, "a word that belongs to nothing")
def _(trial: Trial) -> str:
    settings = {**TINY, "dataset_dir": trial.data, "output_dir": "out", "tracking_uri": "none"}
    done = trial.bundle("run", "training", "resume", "--config_file", chain("train.json"), *words(settings))
    return trial.refused(done, "resume", "could not consume", "two values|twice", anywhere=True)


@cause(KIND, "weights that lack their quotes")
def _(trial: Trial) -> str:
    return taken(
        trial, "weights", "{adversarial: 1, correction: 20}", lambda config: config["weights"].get("correction") == 20
    )


@cause(KIND, "a kind of noise in capitals")
def _(trial: Trial) -> str:
    return taken(trial, "noise_kind", "NonAffine", lambda config: config["noise_kind"].lower() == "nonaffine")
