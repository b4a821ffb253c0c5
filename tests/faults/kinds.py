"""The register of causes, and trying them side by side."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from faults.trial import FITTED, TINY, SilentError, SkippedError, Trial, chain, command, words

KINDS = (
    "slice axis",
    "intensities",
    "vanishing patients",
    "command line",
    "layouts",
    "header",
    "written or not",
    "resume",
    "secrets",
    "MLflow",
    "messages",
    "odd files",
    "configs are code",
)
SURVIVED = ("right", "warned", "refused")
LONGEST = 240.0  # seconds that one cause may take


@dataclass(frozen=True)
class Cause:
    """One fault that data or users bring.

    Attributes:
        kind: one of `KINDS`.
        name: what is wrong, in words.
        reported: whether it is the very instance that the report of its kind was about.
        attempt: makes it, runs commands on it, and returns how it was survived, one of `SURVIVED`.
    """

    kind: str
    name: str
    reported: bool
    attempt: Callable[[Trial], str]

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Tried:
    """What came of a cause.

    Attributes:
        cause: the one.
        outcome: one of `SURVIVED`, "silent" or "skipped".
        why: what was silent, or why it was skipped.
        seconds: how long it took.
    """

    cause: Cause
    outcome: str
    why: str
    seconds: float


CAUSES: list[Cause] = []


def cause(
    kind: str, name: str, *, reported: bool = False
) -> Callable[[Callable[[Trial], str]], Callable[[Trial], str]]:
    """Register a function as a cause of that kind."""
    if kind not in KINDS or any((known.kind, known.name) == (kind, name) for known in CAUSES):
        raise ValueError(f"{kind}: {name!r} is of no known kind, or there already")

    def register(attempt: Callable[[Trial], str]) -> Callable[[Trial], str]:
        CAUSES.append(Cause(kind, name, reported, attempt))
        return attempt

    return register


def prepare(folder: Path) -> Trial:
    """Train the model that causes share; returns a trial to take the paths of.

    Raises:
        RuntimeError: if it cannot be trained.
    """
    folder.mkdir(parents=True)
    shared = Trial(folder, folder / "run", folder / "data")
    shared.dataset(training="abcd", test="t")
    settings = {**TINY, **FITTED, "dataset_dir": shared.data, "output_dir": shared.run, "tracking_uri": "none"}
    done = command(
        ["-m", "monai.bundle", "run", "training", "--config_file", chain("train.json"), *words(settings)], folder
    )
    if done.code != 0:
        raise RuntimeError(f"the model that is used for trying cannot be trained:\n{done.text[-3000:]}")
    child = os.fork()
    if child == 0:
        try:
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            MlflowClient(f"sqlite:///{folder / 'empty.db'}").search_experiments()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return shared


def try_all(causes: Sequence[Cause], folder: Path, jobs: int, report: Callable[[Tried], None]) -> list[Tried]:
    """Try causes side by side, each in a fork of this process and in a folder of its own.

    Args:
        causes: which.
        folder: empty; the folders of causes that were survived are removed.
        jobs: how many at a time.
        report: called with each result as it comes.
    """
    shared = prepare(folder / "shared")
    waiting, running, results = list(enumerate(causes)), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, chosen = waiting.pop(0)
            place = folder / f"{number:03d}"
            place.mkdir()
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                _attempt(chosen, Trial(place, shared.run, shared.data), place / ".outcome.json")
            running[child] = (number, chosen, place, time.monotonic())
        for child, (number, chosen, place, begun) in list(running.items()):
            seconds = time.monotonic() - begun
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                if seconds < LONGEST:
                    continue
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            del running[child]
            outcome, why = "silent", f"did not end within {LONGEST:g} s"
            with contextlib.suppress(OSError, ValueError):
                outcome, why = json.loads((place / ".outcome.json").read_text())
            if outcome != "silent":
                shutil.rmtree(place, ignore_errors=True)
            results[number] = Tried(chosen, outcome, why, seconds)
            report(results[number])
        time.sleep(0.01)
    return [results[number] for number in sorted(results)]


def _attempt(chosen: Cause, trial: Trial, record: Path) -> None:
    outcome = ("silent", "its process ended early")
    try:
        os.environ["TMPDIR"] = str(trial.folder)
        outcome = (chosen.attempt(trial), "")
        if outcome[0] not in SURVIVED:
            outcome = ("silent", f"the cause returned {outcome[0]!r}")
    except SilentError as error:
        outcome = ("silent", str(error))
    except SkippedError as error:
        outcome = ("skipped", str(error))
    except BaseException:
        outcome = ("silent", "the cause itself failed: " + traceback.format_exc()[-600:])
    finally:
        record.write_text(json.dumps(outcome))
        os._exit(0)


def table(results: Sequence[Tried]) -> str:
    """The Markdown table kind / tried / survived / silent."""
    lines = ["| kind | tried | not in the report | right | warned | refused | survived | silent |"]
    lines.append("| --- |" + " ---: |" * 7)
    for kind in [*(kind for kind in KINDS if any(r.cause.kind == kind for r in results)), "all"]:
        chosen = [r for r in results if (kind == "all" or r.cause.kind == kind) and r.outcome != "skipped"]
        how = [sum(r.outcome == name for r in chosen) for name in SURVIVED]
        numbers = (len(chosen), sum(not r.cause.reported for r in chosen), *how, sum(how), len(chosen) - sum(how))
        lines.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)
