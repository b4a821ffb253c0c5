"""What each method learns in the same number of steps: its scores before, during and after."""

from __future__ import annotations

import csv
import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ignite.engine import Events

from pipeline.errors import cause, last_lines
from pipeline.files import replacing
from pipeline.jobs import output_into, run_all
from pipeline.methods import METHODS
from pipeline.metrics.catalogue import names_in
from pipeline.studies.tasks import Task, cell, finish, say
from pipeline.workflow import ConfigWorkflow

Learning = dict[str, Any]


def report_learning(tasks: Sequence[Task], jobs: int) -> bool:
    """Measure what the methods learn, print it, and where it is; returns whether none failed."""
    results = {task.method: result for task in tasks if (result := _finished(task)) is not None}
    for name in results:
        say(f"{name}: finished before")
    for task, result in run_all(learn_method, [task for task in tasks if task.method not in results], jobs, _not_run):
        results[task.method] = result
        said = "failed" if result["error"] else f"{result['evaluations'][-1]['psnr']:.2f} dB"
        say(f"[{len(results)}/{len(tasks)}] {task.method}: {said}, {result['seconds']:.0f} s", result["error"])
    _write_curves(tasks, results)
    rows, above = _table(tasks, results)
    finish(tasks, rows, f"{above} of {len(tasks)} methods end above their first evaluation and above the source.")
    return not any(result["error"] for result in results.values())


def learn_method(task: Task) -> Learning:
    """Train one method and evaluate it on the validation cases before, during and after; also written as its record.

    Returns:
        ``evaluations``: by time, each with ``step``, the scores of the prediction (``psnr``, ...) and of the baselines
        (``source_psnr``, ...); ``seconds``; ``error``: the last lines of an error's report, else "", and its ``cause``.
    """
    start = time.perf_counter()
    evaluations: list[dict[str, float]] = []
    settings = {
        **task.settings,
        **task.sizes,
        "output_dir": str(task.run_dir),
        "max_epochs": task.evaluations,
        # An epoch is what lies between two evaluations: the loader goes on where it stopped.
        "train#trainer#epoch_length": task.steps // task.evaluations,
        "picture_interval": task.evaluations,
    }

    def workflow() -> ConfigWorkflow:
        built = ConfigWorkflow(METHODS[task.method].training, **settings)
        built.initialize()
        return built

    def evaluator_of(built: ConfigWorkflow, step: Callable[[], int]) -> Any:
        evaluator = built.part("validate#evaluator")

        def take(engine: Any) -> None:
            found = {
                name: float(value) for name, value in engine.state.metrics.items() if name.endswith(names_in("quality"))
            }
            evaluations.append({"step": step(), **found})

        evaluator.add_event_handler(Events.COMPLETED, take)
        return evaluator

    result: Learning = {"task": task.describe(), "error": "", "cause": ""}
    with output_into(task.log):
        try:
            # The same seed makes the same networks: these are the ones that training starts from.
            evaluator_of(workflow(), lambda: 0).run()
            training = workflow()
            trainer = training.part("train#trainer")
            evaluator_of(training, lambda: trainer.state.iteration)
            training.run()
        except Exception as error:  # whatever it is, the other methods are run
            result |= {"error": last_lines(error), "cause": cause(error)}
            traceback.print_exc()
    result |= {"evaluations": evaluations, "seconds": time.perf_counter() - start}
    if not result["error"]:
        with replacing(task.record) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _not_run(task: Task, error: Exception) -> Learning:
    return {"evaluations": [], "seconds": math.nan, "error": last_lines(error), "cause": cause(error)}


def _finished(task: Task) -> Learning | None:
    """What the method has learned with just these settings, if it has."""
    if not task.record.is_file():
        return None
    result = json.loads(task.record.read_text(encoding="utf-8"))
    return result if result["task"] == task.describe() else None


def _table(tasks: Sequence[Task], results: dict[str, Learning]) -> tuple[list[list[str]], int]:
    """The rows of the table, and how many methods end above their first evaluation and above the source."""
    learned = [task.method for task in tasks if not results[task.method]["error"]]
    steps = [entry["step"] for entry in results[learned[0]]["evaluations"]] if learned else []
    moments = ["PSNR before training", *(f"after {step} steps" for step in steps[1:])]
    rows = [["method", *moments, "gain", "source as it is", "gain over it", "seconds"]]
    above = 0
    for task in tasks:
        result = results[task.method]
        if result["error"]:
            rows.append([task.method, cell(result["cause"]), *["-"] * (len(rows[0]) - 2)])
            continue
        curve = [entry["psnr"] for entry in result["evaluations"]]
        source = result["evaluations"][-1]["source_psnr"]
        gains = curve[-1] - curve[0], curve[-1] - source
        cells = [*(f"{psnr:.2f}" for psnr in curve), f"{gains[0]:+.2f}", f"{source:.2f}", f"{gains[1]:+.2f}"]
        rows.append([task.method, *cells, f"{result['seconds']:.0f}"])
        above += min(gains) > 0
    return rows, above


def _write_curves(tasks: Sequence[Task], results: dict[str, Learning]) -> None:
    entries = [{"method": task.method, **entry} for task in tasks for entry in results[task.method]["evaluations"]]
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    with (
        replacing(tasks[0].output_dir / "learning.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(entries)
