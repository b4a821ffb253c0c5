"""Measure what misaligned training pairs do to each method: a grid of methods, noise levels and seeds.

Each cell is one training of the bundle, scored on aligned pairs of patients that it has not seen. All are runs of one
MLflow experiment; the report (tables, curves, galleries, one HTML page) lies in the study's folder. A study can be
stopped at any time and started again: finished cells are not run again, begun ones go on from their last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.bundle import project_dir
from pipeline.ending import command
from pipeline.studies.noise.grid import Study
from pipeline.studies.noise.study import listing, parse_datasets, run_study

PRESETS = Path(__file__).resolve().parent / "studies"


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--preset",
        choices=sorted(path.stem for path in PRESETS.glob("*.yaml")),
        default="cpu",
        help="a study of this project: quick (minutes), cpu (small networks; with --jobs 2 about an hour on two "
        "cores for each data set), science (what limits RegGAN, docs/science.md), registered and local "
        "(registration before training), paper (wants GPUs); default: "
        "%(default)s",
    )
    what.add_argument(
        "--study", type=Path, metavar="FILE", help="a YAML file of your own, like those in scripts/studies"
    )
    parser.add_argument(
        "--dataset-dir",
        nargs="+",
        metavar="NAME=DIR",
        help="data sets to run on, by a name each, instead of the study's (default: the phantom)",
    )
    parser.add_argument(
        "--split", choices=("test", "validation"), help="patients that are scored (default: the study's)"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these of the study's methods")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="instead of the study's")
    parser.add_argument("--output-dir", type=Path, help="the study's folder (default: outputs/NAME)")
    parser.add_argument("--jobs", type=int, help="cells at a time (default: one for each device)")
    parser.add_argument(
        "--devices", nargs="+", default=["auto"], help="where they run, in turns, such as cuda:0 cuda:1 (default: auto)"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run the cells on a Dask cluster that is there, such as tcp://node:8786"
    )
    parser.add_argument("--tracking-uri", help="MLflow store (default: outputs/mlflow.db; none for no tracking)")
    parser.add_argument("--list", action="store_true", help="list the cells and what is done of them, and stop")
    parser.add_argument("--report", action="store_true", help="only write the report of what is finished, and stop")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where every cell is finished."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        study = Study.load(options.study or PRESETS / f"{options.preset}.yaml")
        if options.dataset_dir:
            study = replace(study, datasets=parse_datasets(options.dataset_dir))
        if options.split:
            study = replace(study, split=options.split)
        study = study.narrowed(options.methods, options.seeds)
        folder = (options.output_dir or project_dir() / "outputs" / study.name).expanduser().absolute()
        if options.list:
            print(listing(study, folder))
            return 0
        command = ["python", "scripts/noise_study.py", *(sys.argv[1:] if arguments is None else arguments)]
        return run_study(
            study,
            folder,
            jobs=len(options.devices) if options.jobs is None else options.jobs,
            devices=options.devices,
            tracking_uri=options.tracking_uri,
            command=" ".join(command),
            only_report=options.report,
            scheduler=options.scheduler,
        )
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(command(main))
