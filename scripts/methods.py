"""List the paper's methods, try that each works from end to end, or measure what each learns.

Without --learn, each method is trained for two epochs, evaluated, resumed for a third epoch, and translates a volume,
all on a coarse phantom with tiny networks: minutes for all, and the scores mean nothing. With --learn, each is trained
for the same number of steps on the default phantom, and evaluated on its validation cases before, during and after;
what is finished is not run again, so it can be stopped and continued. Everything goes through the configs that --list
names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.bundle import project_dir
from pipeline.data import ensure_phantom
from pipeline.ending import command
from pipeline.methods import METHODS
from pipeline.studies.learning import report_learning
from pipeline.studies.tasks import Task, prepare_store
from pipeline.studies.trial import report_trial

# Trying: as small as makes sense. The discriminators with the most stages refuse images below 61 pixels.
TRIAL = {"spatial_size": 72, "filters": 4}
TRIAL_PHANTOM = {"subjects": (2, 1, 1), "resolution": 8.0}
# Learning: the images and networks of train.json.
LEARNING = {"spatial_size": 96, "filters": None}


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

    folder = options.output_dir or project_dir() / "outputs" / ("learning" if options.learn else "methods")
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        dataset_dir = _dataset_dir(options, folder)
    except (OSError, ValueError) as error:
        parser.error(f"--dataset-dir: {error}")
    tasks = _tasks(names, options, folder, dataset_dir)
    return 0 if (report_learning if options.learn else report_trial)(tasks, options.jobs) else 1


def listing(names: Sequence[str]) -> list[str]:
    """One line per method: the configs to train it with. To translate and evaluate, its model is enough."""
    rows = [("method", "train"), *((name, " ".join(METHODS[name].training)) for name in names)]
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {chain}" for name, chain in rows]


def _dataset_dir(options: argparse.Namespace, folder: Path) -> str:
    if options.dataset_dir is not None:
        if not options.dataset_dir.is_dir():
            raise FileNotFoundError(f"{options.dataset_dir} is no folder")
        return str(options.dataset_dir.expanduser().absolute())
    if options.learn:
        return ensure_phantom(project_dir() / "data" / "phantom")
    return ensure_phantom(folder / "phantom", **TRIAL_PHANTOM)


def _tasks(names: Sequence[str], options: argparse.Namespace, folder: Path, dataset_dir: str) -> list[Task]:
    defaults = LEARNING if options.learn else TRIAL
    filters = options.filters or defaults["filters"]
    settings = {
        "dataset_dir": dataset_dir,
        "spatial_size": options.spatial_size or defaults["spatial_size"],
        "batch_size": options.batch_size,
        "device": options.device,
        "experiment_name": "learning" if options.learn else "methods",
        "tracking_uri": prepare_store(folder / "mlflow.db"),
    }
    sizes = {f"network_def#{part}#filters": filters for part in ("generator", "discriminator")} if filters else {}
    return [Task(name, folder, settings, sizes, options.steps, options.evaluations) for name in names]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(command(main))
