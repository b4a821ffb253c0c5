"""Whether each method works: it is trained, evaluated, resumed, and translates a volume."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.errors import cause, last_lines
from pipeline.inference import find_volumes
from pipeline.io import read_image
from pipeline.jobs import output_into, run_all
from pipeline.methods import METHODS
from pipeline.models import load_checkpoint
from pipeline.studies.tasks import Task, cell, finish, say
from pipeline.workflow import run_chain

STAGES = ("train", "evaluate", "resume", "translate")
EPOCHS, EPOCHS_AFTER_RESUME = 2, 3
Trial = dict[str, Any]


def report_trial(tasks: Sequence[Task], jobs: int) -> bool:
    """Try the methods, print what came of it, and where it is; returns whether all work."""
    rows = [["method", *STAGES, "PSNR", "seconds"]]
    results: dict[str, Trial] = {}
    for task, result in run_all(try_method, tasks, jobs, _not_tried):
        results[task.method] = result
        failed = {stage: said for stage, said in result["stages"].items() if said != "ok"}
        said = "; ".join(f"{stage} {said}" for stage, said in failed.items()) or "ok"
        say(f"[{len(results)}/{len(tasks)}] {task.method}: {said}, {result['seconds']:.0f} s", result["error"])
    for task in tasks:
        result = results[task.method]
        psnr = "-" if result["psnr"] is None else f"{result['psnr']:.2f}"
        rows.append([task.method, *(result["stages"][stage] for stage in STAGES), psnr, f"{result['seconds']:.0f}"])
    working = [name for name, result in results.items() if set(result["stages"].values()) == {"ok"}]
    finish(tasks, rows, f"{len(working)} of {len(tasks)} methods work.")
    return len(working) == len(tasks)


def try_method(task: Task) -> Trial:
    """Take one method through all stages.

    Returns:
        ``stages``: by stage "ok", its error's first cause, or "-" where there was nothing to go on with; ``psnr`` on
        the test cases, None without; ``seconds``; ``error``: the last lines of the first error's report, else "".
    """
    method, start = METHODS[task.method], time.perf_counter()
    common = {**task.settings, **task.sizes, "output_dir": str(task.run_dir), "picture_interval": EPOCHS}
    scores: dict[str, float] = {}

    def train() -> None:
        run_chain(method.training, **common, max_epochs=EPOCHS, decay_epochs=0)
        _check_epoch(task, EPOCHS)

    def evaluate() -> None:
        settings = {name: task.settings[name] for name in ("device", "tracking_uri") if name in task.settings}
        run_chain(["evaluate.json"], output_dir=str(task.run_dir), **settings)
        summary = json.loads((task.run_dir / "evaluation" / "summary.json").read_text(encoding="utf-8"))
        scores["psnr"] = summary["slices"]["psnr"]["mean"]
        _expect(math.isfinite(scores["psnr"]), "the test cases' PSNR", scores["psnr"], "a finite number")

    def resume() -> None:
        before = _last(task)["network"]
        run_chain(method.training, **common, max_epochs=EPOCHS_AFTER_RESUME, decay_epochs=0, resume=True)
        _check_epoch(task, EPOCHS_AFTER_RESUME)
        after = _last(task)["network"]
        moved = sum(
            not torch.equal(before[name], after[name]) for name in before if name.endswith((".weight", ".bias"))
        )
        _expect(moved > 0, "the number of weights that the resumed epoch changed", moved, "above 0")

    def translate() -> None:
        [source] = find_volumes(task.settings["dataset_dir"])[:1]
        folder = task.run_dir / "translated"
        settings: dict[str, Any] = {"device": task.settings["device"], "output_dir": str(folder), **source}
        run_chain(["inference.json"], **settings, checkpoint=str(task.run_dir / "model.pt"))
        shapes = [tuple(read_image(path).shape) for path in folder.iterdir()]
        expected = [tuple(read_image(source["image"]).shape)]
        _expect(shapes == expected, "the translated volumes' shapes", shapes, "the source's")

    stages = dict.fromkeys(STAGES, "-")
    report = ""
    with output_into(task.log):
        for stage, work in zip(STAGES, (train, evaluate, resume, translate), strict=True):
            try:
                work()
                stages[stage] = "ok"
            except Exception as error:  # whatever it is, the other stages and methods are tried
                stages[stage] = cell(cause(error))
                report = report or last_lines(error)
                traceback.print_exc()
                if stage == "train":
                    break
    return {"stages": stages, "psnr": scores.get("psnr"), "seconds": time.perf_counter() - start, "error": report}


def _not_tried(task: Task, error: Exception) -> Trial:
    stages = {**dict.fromkeys(STAGES, "-"), STAGES[0]: cell(cause(error))}
    return {"stages": stages, "psnr": None, "seconds": math.nan, "error": last_lines(error)}


def _last(task: Task) -> dict[str, Any]:
    return load_checkpoint(task.run_dir / "checkpoints" / "last.pt")


def _check_epoch(task: Task, expected: int) -> None:
    epoch = _last(task)["trainer"]["epoch"]
    _expect(epoch == expected, "the last epoch", epoch, expected)


def _expect(fulfilled: bool, thing: str, got: Any, expected: Any) -> None:
    if not fulfilled:
        raise RuntimeError(f"{thing} should be {expected}, got {got}")
