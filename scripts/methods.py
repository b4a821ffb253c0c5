"""List the paper's methods, try that each works from end to end, or measure what each learns.

Without --learn, each method is trained for two epochs, evaluated, resumed for a third epoch, and translates a volume,
all on a coarse phantom with tiny networks: minutes for all, and the scores mean nothing. With --learn, each is trained
for the same number of steps on the default phantom, and evaluated on its validation cases before, during and after;
what is finished is not run again, so it can be stopped and continued. Everything goes through the configs that --list
names.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from ignite.engine import Events
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from monai.bundle import run as run_bundle

from pipeline.bundle import first_cause, project_dir
from pipeline.data import ensure_phantom
from pipeline.files import replacing
from pipeline.handlers import load_checkpoint
from pipeline.handlers.mlflow_sender import prepare_environment
from pipeline.handlers.tables import markdown_table
from pipeline.inference import find_volumes
from pipeline.methods import METHODS

CONFIGS = Path(__file__).resolve().parent.parent / "bundles" / "reggan" / "configs"
STAGES = ("train", "evaluate", "resume", "translate")
EPOCHS, EPOCHS_AFTER_RESUME = 2, 3
SCORES = ("psnr", "ssim", "nmae")
ERROR_LINES = 8
# Trying: as small as makes sense. The discriminators with the most stages refuse images below 61 pixels.
TRIAL = {"spatial_size": 72, "filters": 4}
TRIAL_PHANTOM = {"subjects": (2, 1, 1), "resolution": 8.0}
# Learning: the images and networks of train.json.
LEARNING = {"spatial_size": 96, "filters": None}


@dataclass(frozen=True)
class Task:
    """What to do with one method; plain values, since it may travel to another process.

    Attributes:
        method: its name.
        output_dir: of all methods; this one's run is in the folder of its name.
        settings: of every chain of configs, such as dataset_dir.
        sizes: widths of its networks.
        steps: of learning.
        evaluations: of learning, after the one before training.
    """

    method: str
    output_dir: Path
    settings: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    evaluations: int = 1

    @property
    def run_dir(self) -> Path:
        """Folder of the method's run."""
        return self.output_dir / self.method

    @property
    def log(self) -> Path:
        """What the method's run prints."""
        return self.output_dir / f"{self.method}.log"

    @property
    def record(self) -> Path:
        """What the method has learned."""
        return self.output_dir / f"{self.method}.json"

    def describe(self) -> dict[str, Any]:
        """Everything that the result depends on, safe for JSON."""
        return json.loads(json.dumps({**asdict(self), "chain": METHODS[self.method].overlays}, default=str))


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the methods with their chains of configs, and stop")
    parser.add_argument("--learn", action="store_true", help="measure what each method learns")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(METHODS), help="these methods (default: all)")
    parser.add_argument("--output-dir", type=Path, help="default: outputs/methods, with --learn outputs/learning")
    parser.add_argument(
        "--dataset-dir",
        type=Path,
        help="data set (default: a coarse phantom in the output folder; with --learn the default phantom)",
    )
    parser.add_argument("--spatial-size", type=int, help="image size in pixels (default: 72, with --learn 96)")
    parser.add_argument(
        "--filters", type=int, help="width of generator and discriminator (default: 4, with --learn the configs' own)"
    )
    parser.add_argument("--batch-size", type=_positive, default=2, help="pairs in a step (default: 2)")
    parser.add_argument(
        "--steps",
        type=_positive,
        default=300,
        help="with --learn: training steps, rounded down to a multiple of --evaluations (default: 300)",
    )
    parser.add_argument(
        "--evaluations", type=_positive, default=6, help="with --learn: evaluations after the first one (default: 6)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: auto)")
    parser.add_argument(
        "--jobs", type=_positive, default=1, help="methods side by side, in processes of one thread (default: 1, here)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 if a method failed."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only if name not in METHODS]
    if unknown:
        parser.error(f"unknown method {', '.join(map(repr, unknown))}; known are {', '.join(METHODS)}")
    if options.learn and options.steps < options.evaluations:
        parser.error(f"--steps must be at least --evaluations, got {options.steps} and {options.evaluations}")
    names = [name for name in METHODS if name in options.only]
    print("\n".join(listing(names)) + "\n")
    if options.list:
        return 0

    defaults = LEARNING if options.learn else TRIAL
    folder = options.output_dir or project_dir() / "outputs" / ("learning" if options.learn else "methods")
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        dataset_dir = _dataset_dir(options, folder)
    except (OSError, ValueError) as error:
        parser.error(f"--dataset-dir: {error}")
    filters = options.filters or defaults["filters"]
    tasks = [
        Task(
            name,
            folder,
            {
                "dataset_dir": dataset_dir,
                "spatial_size": options.spatial_size or defaults["spatial_size"],
                "batch_size": options.batch_size,
                "device": options.device,
                "experiment_name": "learning" if options.learn else "methods",
                "tracking_uri": _prepare_store(folder / "mlflow.db"),
            },
            {f"network_def#{part}#filters": filters for part in ("generator", "discriminator")} if filters else {},
            options.steps,
            options.evaluations,
        )
        for name in names
    ]
    return (report_learning if options.learn else report_trial)(tasks, options.jobs)


def listing(names: Sequence[str]) -> list[str]:
    """One line per method: the configs to train it with, and those to translate with."""
    rows = [("method", "train", "translate")]
    for method in (METHODS[name] for name in names):
        chains = ("train.json", *method.overlays), ("inference.json", *method.inference_overlays)
        rows.append((method.name, *(" ".join(chain) for chain in chains)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return ["  ".join((row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2])) for row in rows]


def report_trial(tasks: Sequence[Task], jobs: int) -> int:
    """Try the methods, print what came of it, and where it is."""
    rows = [["method", *STAGES, "PSNR", "seconds"]]
    results = {}
    for name, result in run_all(try_method, tasks, jobs):
        results[name] = result
        failed = {stage: cell for stage, cell in result["stages"].items() if cell != "ok"}
        said = "; ".join(f"{stage} {cell}" for stage, cell in failed.items()) or "ok"
        _say(f"[{len(results)}/{len(tasks)}] {name}: {said}, {result['seconds']:.0f} s", result["error"])
    for task in tasks:
        result = results[task.method]
        psnr = "-" if result["psnr"] is None else f"{result['psnr']:.2f}"
        rows.append([task.method, *(result["stages"][stage] for stage in STAGES), psnr, f"{result['seconds']:.0f}"])
    failed = [name for name, result in results.items() if set(result["stages"].values()) != {"ok"}]
    _finish(tasks, rows, f"{len(tasks) - len(failed)} of {len(tasks)} methods work.")
    return 1 if failed else 0


def report_learning(tasks: Sequence[Task], jobs: int) -> int:
    """Measure what the methods learn, print it, and where it is."""
    finished = {task.method: result for task in tasks if (result := _finished(task)) is not None}
    for name in finished:
        _say(f"{name}: finished before")
    for name, result in run_all(learn_method, [task for task in tasks if task.method not in finished], jobs):
        finished[name] = result
        said = "failed" if result["error"] else f"{result['evaluations'][-1]['psnr']:.2f} dB"
        _say(f"[{len(finished)}/{len(tasks)}] {name}: {said}, {result['seconds']:.0f} s", result["error"])
    learned = [task.method for task in tasks if not finished[task.method]["error"]]
    steps = [entry["step"] for entry in finished[learned[0]]["evaluations"]] if learned else []
    moments = ["PSNR before training", *(f"after {step} steps" for step in steps[1:])]
    rows = [["method", *moments, "gain", "source as it is", "gain over it", "seconds"]]
    above = []
    for task in tasks:
        name, result = task.method, finished[task.method]
        if result["error"]:
            rows.append([name, _cell(result["cause"]), *["-"] * (len(rows[0]) - 2)])
            continue
        curve = [entry["psnr"] for entry in result["evaluations"]]
        source = result["evaluations"][-1]["source_psnr"]
        gains = curve[-1] - curve[0], curve[-1] - source
        cells = [*(f"{psnr:.2f}" for psnr in curve), f"{gains[0]:+.2f}", f"{source:.2f}", f"{gains[1]:+.2f}"]
        rows.append([name, *cells, f"{result['seconds']:.0f}"])
        above += [name] if min(gains) > 0 else []
    _write_curves(tasks, finished)
    _finish(tasks, rows, f"{len(above)} of {len(tasks)} methods end above their first evaluation and above the source.")
    return 0 if len(learned) == len(tasks) else 1


def try_method(task: Task) -> dict[str, Any]:
    """Take one method through all stages.

    Returns:
        ``stages``: by stage "ok", its error's first cause, or "-" where there was nothing to go on with; ``psnr`` on
        the test cases, None without; ``seconds``; ``error``: the last lines of the first error's report, else "".
    """
    method, start = METHODS[task.method], time.perf_counter()
    training = ("train.json", *method.overlays)
    common = {**task.settings, **task.sizes, "output_dir": str(task.run_dir), "picture_interval": EPOCHS}
    scores: dict[str, float] = {}

    def train() -> None:
        run_chain(training, **common, max_epochs=EPOCHS, decay_epochs=0)
        _check_epoch(task, EPOCHS)

    def evaluate() -> None:
        run_chain((*training, "evaluate.json"), **common)
        summary = json.loads((task.run_dir / "evaluation" / "summary.json").read_text(encoding="utf-8"))
        scores["psnr"] = summary["slices"]["psnr"]["mean"]
        _expect(math.isfinite(scores["psnr"]), "the test cases' PSNR", scores["psnr"], "a finite number")

    def resume() -> None:
        before = _last(task)["network"]
        run_chain(training, **common, max_epochs=EPOCHS_AFTER_RESUME, decay_epochs=0, resume=True)
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
        sizes = {name: value for name, value in task.sizes.items() if "#generator#" in name}
        chain = ("inference.json", *method.inference_overlays)
        run_chain(chain, **settings, **sizes, checkpoint=str(task.run_dir / "model.pt"))
        shapes = [nib.load(path).shape for path in folder.iterdir()]
        _expect(shapes == [nib.load(source["image"]).shape], "the translated volumes' shapes", shapes, "the source's")

    stages = dict.fromkeys(STAGES, "-")
    report = ""
    with output_into(task.log):
        for stage, work in zip(STAGES, (train, evaluate, resume, translate), strict=True):
            try:
                work()
                stages[stage] = "ok"
            except Exception as error:  # whatever it is, the other stages and methods are tried
                stages[stage] = _cell(_cause(error))
                report = report or _last_lines(error)
                traceback.print_exc()
                if stage == "train":
                    break
    return {
        "stages": stages,
        "psnr": scores.get("psnr"),
        "seconds": time.perf_counter() - start,
        "error": report,
    }


def learn_method(task: Task) -> dict[str, Any]:
    """Train one method and evaluate it on the validation cases before, during and after; also written as its record.

    Returns:
        ``evaluations``: by time, each with ``step``, the scores of the prediction (``psnr``, ...) and of the baselines
        (``source_psnr``, ...); ``seconds``; ``error``: the last lines of an error's report, else "", and its ``cause``.
    """
    start = time.perf_counter()
    evaluations: list[dict[str, float]] = []
    chain = [str(CONFIGS / name) for name in ("train.json", *METHODS[task.method].overlays)]
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
        built = ConfigWorkflow(chain, workflow_type="train", logging_file=False, **settings)
        built.initialize()
        return built

    def evaluator_of(built: ConfigWorkflow, step: Callable[[], int]) -> Any:
        evaluator = built.parser.get_parsed_content("validate#evaluator")

        def take(engine: Any) -> None:
            found = {name: float(value) for name, value in engine.state.metrics.items() if name.endswith(SCORES)}
            evaluations.append({"step": step(), **found})

        evaluator.add_event_handler(Events.COMPLETED, take)
        return evaluator

    result: dict[str, Any] = {"task": task.describe(), "error": "", "cause": ""}
    with output_into(task.log):
        try:
            # The same seed makes the same networks: these are the ones that training starts from.
            evaluator_of(workflow(), lambda: 0).run()
            training = workflow()
            trainer = training.parser.get_parsed_content("train#trainer")
            evaluator_of(training, lambda: trainer.state.iteration)
            training.run()
            training.finalize()
        except Exception as error:  # whatever it is, the other methods are run
            result |= {"error": _last_lines(error), "cause": _cause(error)}
            traceback.print_exc()
    result |= {"evaluations": evaluations, "seconds": time.perf_counter() - start}
    if not result["error"]:
        with replacing(task.record) as path:
            path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def run_chain(chain: Sequence[str], **settings: Any) -> None:
    """Run a chain of the bundle's configs in this process."""
    run_bundle(run_id="run", config_file=[str(CONFIGS / name) for name in chain], logging_file=False, **settings)


def run_all(
    work: Callable[[Task], dict[str, Any]], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Do the work of all tasks, ``jobs`` at a time; yields names and results as they come."""
    if jobs == 1:
        for task in tasks:
            yield task.method, work(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(work, task): task.method for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def output_into(path: Path) -> Iterator[None]:
    """Send everything that this process prints, its loggers and libraries included, to the end of a file."""
    streams = {1: sys.stdout, 2: sys.stderr}
    for stream in streams.values():
        stream.flush()
    saved = {number: os.dup(number) for number in streams}
    try:
        with path.open("ab") as file:
            for number in streams:
                os.dup2(file.fileno(), number)
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(saved[number], number)
            os.close(saved[number])


def _dataset_dir(options: argparse.Namespace, folder: Path) -> str:
    if options.dataset_dir is not None:
        if not options.dataset_dir.is_dir():
            raise FileNotFoundError(f"{options.dataset_dir} is no folder")
        return str(options.dataset_dir.expanduser().absolute())
    if options.learn:
        return ensure_phantom(project_dir() / "data" / "phantom")
    return ensure_phantom(folder / "phantom", **TRIAL_PHANTOM)


def _prepare_store(path: Path) -> str:
    """Address of the MLflow store; its tables are made here, since processes that start together would collide."""
    uri = f"sqlite:///{path}"
    if not path.exists():
        with output_into(path.with_suffix(".log")):
            prepare_environment()
            MlflowClient(uri).search_experiments()
    return uri


def _finished(task: Task) -> dict[str, Any] | None:
    """What the method has learned with just these settings, if it has."""
    if not task.record.is_file():
        return None
    result = json.loads(task.record.read_text(encoding="utf-8"))
    return result if result["task"] == task.describe() else None


def _write_curves(tasks: Sequence[Task], results: dict[str, dict[str, Any]]) -> None:
    entries = [{"method": task.method, **entry} for task in tasks for entry in results[task.method]["evaluations"]]
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    with (
        replacing(tasks[0].output_dir / "learning.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(entries)


def _finish(tasks: Sequence[Task], rows: list[list[str]], sentence: str) -> None:
    folder = tasks[0].output_dir
    text = f"{markdown_table(rows)}\n\n{sentence}\n"
    with replacing(folder / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    print(f"{text}\nRuns, logs and table: {folder}\nMLflow store: {tasks[0].settings['tracking_uri']}")


def _last(task: Task) -> dict[str, Any]:
    return load_checkpoint(task.run_dir / "checkpoints" / "last.pt")


def _check_epoch(task: Task, expected: int) -> None:
    epoch = _last(task)["trainer"]["epoch"]
    _expect(epoch == expected, "the last epoch", epoch, expected)


def _expect(fulfilled: bool, thing: str, got: Any, expected: Any) -> None:
    if not fulfilled:
        raise RuntimeError(f"{thing} should be {expected}, got {got}")


def _cause(error: BaseException) -> str:
    cause = first_cause(error)
    return f"{type(cause).__name__}: {cause}"


def _cell(text: str) -> str:
    line = text.strip().splitlines()[0]
    return line if len(line) <= 120 else f"{line[:117]}..."


def _last_lines(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(first_cause(error))).rstrip().splitlines()
    return "\n".join(lines[-ERROR_LINES:])


def _say(line: str, error: str = "") -> None:
    print(line, *(f"    {more}" for more in error.splitlines()), sep="\n", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
