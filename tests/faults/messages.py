"""Messages: one clear line, as the last."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from faults.kinds import cause
from faults.trial import CONFIGS, TINY, Done, Prepare, Trial, chain, head, silent, words

KIND = "messages"
MOST_LINES = 12  # of a refusal, without what MONAI says of its settings


def clear(trial: Trial, done: Done, *patterns: str, lines: int | None = MOST_LINES) -> str:
    """The last line says it, no report for programmers stands above, and there is little to scroll past."""
    outcome = trial.refused(done, *patterns)
    if done.traceback:
        silent("a traceback is printed", done)
    if len(done.last) > 1000:
        silent(f"the last line has {len(done.last)} characters", done)
    above = [line for line in done.lines[:-1] if " INFO " not in line and " - INFO - " not in line]
    if lines is not None and len(above) > lines:
        silent(f"{len(above)} lines stand above the last one", done)
    return outcome


def refused(trial: Trial, *patterns: str, overlays: tuple = (), more: tuple = (), **settings: object) -> str:
    """A training is refused so, before anything is written."""
    outcome = clear(trial, trial.train(*more, overlays=overlays, settings=settings), *patterns)
    trial.nothing_written()
    return outcome


def overlay(trial: Trial, name: str, text: str | bytes) -> Path:
    """A file that is stacked."""
    path = trial.folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def with_configs(trial: Trial, configs: str) -> Done:
    """Train with this text after --config_file."""
    settings = {**TINY, "dataset_dir": trial.data, "output_dir": "out", "tracking_uri": "none"}
    return trial.bundle("run", "training", "--config_file", configs, *words(settings))


@cause(KIND, "a broken overlay", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, r"mine\.json", overlays=(overlay(trial, "mine.json", '{"max_epochs": 3,}'),))


@cause(KIND, "an empty overlay")
def _(trial: Trial) -> str:
    return refused(trial, r"mine\.json", overlays=(overlay(trial, "mine.json", ""),))


@cause(KIND, "an overlay that is a list")
def _(trial: Trial) -> str:
    return refused(trial, r"mine\.json", overlays=(overlay(trial, "mine.json", "[1, 2]"),))


@cause(KIND, "an overlay of bytes")
def _(trial: Trial) -> str:
    return refused(trial, r"mine\.json", overlays=(overlay(trial, "mine.json", b"\xff\xfe\x00\x01"),))


@cause(KIND, "an overlay of broken YAML")
def _(trial: Trial) -> str:
    return refused(trial, r"mine\.yaml", overlays=(overlay(trial, "mine.yaml", "max_epochs: [1\nseed: 2\n"),))


@cause(KIND, "an overlay with a name twice")
def _(trial: Trial) -> str:
    path = overlay(trial, "mine.json", '{"max_epochs": 3, "max_epochs": 4}')
    return trial.right_or_said(trial.train(overlays=(path,)), lambda: False, r"mine\.json", "max_epochs")


@cause(KIND, "an overlay of another suffix")
def _(trial: Trial) -> str:
    return refused(trial, r"mine\.txt", overlays=(overlay(trial, "mine.txt", "{}"),))


@cause(KIND, "an overlay that is not there")
def _(trial: Trial) -> str:
    return refused(trial, r"gone\.json", overlays=(trial.folder / "gone.json",))


@cause(KIND, "an overlay that is a folder")
def _(trial: Trial) -> str:
    (trial.folder / "dir.json").mkdir()
    return refused(trial, r"dir\.json", overlays=(trial.folder / "dir.json",))


@cause(KIND, "an overlay in front of what it changes", reported=True)
def _(trial: Trial) -> str:
    done = with_configs(trial, f"['{CONFIGS / 'munit.json'}','{CONFIGS / 'train.json'}']")
    return clear(trial, done, r"munit\.json")


@cause(KIND, "an overlay alone")
def _(trial: Trial) -> str:
    return clear(trial, with_configs(trial, str(CONFIGS / "cycle.json")), r"cycle\.json")


@cause(KIND, "a config's path with a typo", reported=True)
def _(trial: Trial) -> str:
    return clear(trial, with_configs(trial, "configs/trian.json"), r"configs/trian\.json")


@cause(KIND, "two configs without brackets: the list form is hinted at", reported=True)
def _(trial: Trial) -> str:
    done = with_configs(trial, f"{CONFIGS / 'train.json'},{CONFIGS / 'cycle.json'}")
    return clear(trial, done, r"\[")


@cause(KIND, "two configs with a space between them")
def _(trial: Trial) -> str:
    settings = {**TINY, "dataset_dir": trial.data, "output_dir": "out", "tracking_uri": "none"}
    done = trial.bundle(
        *("run", "training", "--config_file", CONFIGS / "train.json", CONFIGS / "cycle.json", *words(settings))
    )
    return trial.refused(done, r"\[", "list", r"cycle\.json")


@cause(KIND, "an inner typo lists the known names", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, r"filters", **{"network_def#generator#filter": 4})


@cause(KIND, "an inner typo in the registration network")
def _(trial: Trial) -> str:
    return refused(trial, r"channels", **{"network_def#registration#chanels": "[4,4]"})


@cause(KIND, "an inner typo in the loader")
def _(trial: Trial) -> str:
    return refused(trial, "batch_size", **{"validate#dataloader#batchsize": 4})


@cause(KIND, "an inner typo in the scaling")
def _(trial: Trial) -> str:
    return refused(trial, "upper_percentile", **{"source_intensity#uper_percentile": 99})


@cause(KIND, "a value of no sense within: a network of -4 filters")
def _(trial: Trial) -> str:
    return refused(trial, "filters", **{"network_def#generator#filters": -4})


@cause(KIND, "a translation before any training", reported=True)
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    return clear(trial, trial.translate("p.nii.gz", model="outputs/reggan/model.pt"), "train")


@cause(KIND, "an evaluation before any training")
def _(trial: Trial) -> str:
    return clear(trial, trial.evaluate(run=trial.folder / "nothing"), "train")


@cause(KIND, "an export before any training")
def _(trial: Trial) -> str:
    return clear(
        trial, trial.script("export.py", "outputs/model.pt", "m.ts"), "train", "does not exist", "no such file"
    )


@cause(KIND, "a package before any training")
def _(trial: Trial) -> str:
    return clear(trial, trial.script("package_bundle.py", "b.zip", "--run", "nothing", "--data-source", "x"), "train")


@cause(KIND, "a description of a text file")
def _(trial: Trial) -> str:
    (trial.folder / "m.pt").write_text("notes")
    return clear(trial, trial.script("describe_model.py", "m.pt"), r"m\.pt")


@cause(KIND, "a resume of nothing")
def _(trial: Trial) -> str:
    return refused(trial, "resume", resume="true")


def interrupted(trial: Trial, by: signal.Signals, when: Callable[[], bool]) -> Done:
    """A training is stopped by a signal as soon as something holds."""

    def stop(child: int) -> None:
        deadline = time.monotonic() + 40
        while not when() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child, by)

    settings = {"max_epochs": 100000, "val_interval": 3, "picture_interval": 100000}
    return trial.train(settings=settings, meanwhile=stop)


@cause(KIND, "Ctrl-C ends with one line and the command that resumes", reported=True)
def _(trial: Trial) -> str:
    done = interrupted(trial, signal.SIGINT, (trial.folder / "out/checkpoints/last.pt").exists)
    return clear(trial, done, r"resume")


@cause(KIND, "Ctrl-C before the first epoch is done")
def _(trial: Trial) -> str:
    done = interrupted(trial, signal.SIGINT, (trial.folder / "out/config.json").exists)
    return clear(trial, done, "interrupt", "stopped", "Ctrl-C", "resume")


@cause(KIND, "SIGTERM in the middle of a training")
def _(trial: Trial) -> str:
    done = interrupted(trial, signal.SIGTERM, (trial.folder / "out/checkpoints/last.pt").exists)
    if done.code == -signal.SIGTERM:
        return "refused"
    return clear(trial, done, "terminate", "stopped", "SIGTERM", "resume")


def slow_network() -> None:
    """A network that takes its time."""
    from pipeline.networks import ResNetGenerator

    forward = ResNetGenerator.forward

    def slow(self: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
        time.sleep(2)
        return forward(self, *arguments)

    ResNetGenerator.forward = slow  # type: ignore[method-assign]


def stop_soon(child: int) -> None:
    """Ctrl-C after a second and a half."""
    time.sleep(1.5)
    os.kill(child, signal.SIGINT)


@cause(KIND, "Ctrl-C in the middle of a translation")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    done = trial.translate("p.nii.gz", "--slices_at_once", "1", prepare=slow_network, meanwhile=stop_soon)
    outcome = clear(trial, done, "interrupt", "stopped", "Ctrl-C")
    trial.nothing_written()
    return outcome


@cause(KIND, "Ctrl-C in the middle of an evaluation")
def _(trial: Trial) -> str:
    done = trial.evaluate(prepare=slow_network, meanwhile=stop_soon)
    return clear(trial, done, "interrupt", "stopped", "Ctrl-C")


@cause(KIND, "a seed that is too large", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, r"seed.*\b1099511627776\b", seed=2**40)


@cause(KIND, "a rate that is not a number", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, "learning_rate", learning_rate="nan")


@cause(KIND, "a noise level that is not a number")
def _(trial: Trial) -> str:
    return refused(trial, "noise_level", noise_level="nan")


@cause(KIND, "a least foreground beyond 1")
def _(trial: Trial) -> str:
    return refused(trial, "min_foreground", min_foreground=7)


@cause(KIND, "a pixel of no size")
def _(trial: Trial) -> str:
    return refused(trial, "spacing", spacing=0)


@cause(KIND, "a weight that is infinite")
def _(trial: Trial) -> str:
    return refused(trial, "correction", **{"weights#correction": "inf"})


@cause(KIND, "tracking_uri 5", reported=True)
def _(trial: Trial) -> str:
    return refused(trial, "tracking_uri", tracking_uri="5")


@cause(KIND, "tracking_uri true")
def _(trial: Trial) -> str:
    return refused(trial, "tracking_uri", tracking_uri="true")


@cause(KIND, "a GPU that is not there")
def _(trial: Trial) -> str:
    return refused(trial, "device", device="cuda:7")


@cause(KIND, "an evaluation of a list that there is not")
def _(trial: Trial) -> str:
    return clear(trial, trial.evaluate("--split", "tset"), "split")


@cause(KIND, "the paper's networks on the weights of small ones")
def _(trial: Trial) -> str:
    trial.save("p.nii.gz", head()[0])
    done = trial.translate("p.nii.gz", "--network_def#generator#filters", "64")
    return clear(trial, done, "filters")


def failing(error: Exception) -> Prepare:
    """A part that fails in the middle of training, as a fault of ours would."""

    def prepare() -> None:
        from pipeline.translators import CycleGANTranslator

        def fail(*arguments: object, **named: object) -> None:
            raise error

        CycleGANTranslator.generator_terms = fail  # type: ignore[method-assign]

    return prepare


def logged(trial: Trial, error: Exception, *patterns: str) -> str:
    """The report for programmers is in a file in the run's folder, whose path is printed."""
    done = trial.train(prepare=failing(error))
    outcome = clear(trial, done, *patterns, lines=30)
    files = [Path(name) for name in re.findall(r"(\S+\.log)\b", done.text)]
    reports = [
        path for path in files if (trial.folder / path).is_file() and "Traceback" in (trial.folder / path).read_text()
    ]
    return outcome if reports else silent("no file with the report is named", done)


@cause(KIND, "a fault of ours in the middle of a training: the report is in a file", reported=True)
def _(trial: Trial) -> str:
    return logged(trial, RuntimeError("something unforeseen"), "something unforeseen")


@cause(KIND, "a fault of ours without a text")
def _(trial: Trial) -> str:
    return logged(trial, AssertionError(), "AssertionError")


@cause(KIND, "a fault of ours whose text has many lines")
def _(trial: Trial) -> str:
    return logged(trial, KeyError("one\ntwo\nthree"), "KeyError", "one")


@cause(KIND, "too little memory")
def _(trial: Trial) -> str:
    return logged(
        trial, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), "memory"
    )


@cause(KIND, "a study with an unknown method")
def _(trial: Trial) -> str:
    (trial.folder / "study.yaml").write_text(
        json.dumps({"name": "s", "methods": ["reggan2"], "noise": {"affine": [0]}, "steps": 2})
    )
    return clear(trial, trial.script("noise_study.py", "--study", "study.yaml", "--list"), "reggan2")


@cause(KIND, "the chain without a part to run")
def _(trial: Trial) -> str:
    done = trial.bundle(
        "run", "trainign", "--config_file", chain("train.json"), "--dataset_dir", trial.data, "--output_dir", "out"
    )
    return trial.refused(done, "trainign")
