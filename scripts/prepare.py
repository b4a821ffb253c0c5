"""Make a data set to train on out of a folder of studies as the scanner or the archive gave them.

Targets are registered rigidly onto their sources and resampled once; each case gets a mask of its foreground, a verdict
and pictures in OUT/report.html; patients are divided into folds and numbered. Which number stands for whom is in a key
file beside OUT. Stopped and started again, it goes on where it was; a case that fails stops no other.

    python scripts/prepare.py studies prepared --source T1W --target T2W
    python -m monai.bundle run training --config_file bundles/reggan/configs/train.json --dataset_dir prepared
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

# ITK takes every core otherwise, in each of the processes of --jobs; read when its modules are loaded.
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

from tqdm import tqdm

from pipeline.ending import command
from pipeline.errors import cause
from pipeline.preparation import Outcome, Settings, Thresholds, find_pairs, prepare


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "studies",
        help="folder (names, BIDS, nnU-Net, BraTS, IXI, SynthRAD, Decathlon, DICOM), or CSV, YAML or JSON of pairs",
    )
    parser.add_argument("output_dir", metavar="OUT", help="folder for the data set")
    parser.add_argument(
        "--source", required=True, help="part of a file's name, pattern with *, series description or modality"
    )
    parser.add_argument("--target", required=True, help="likewise")
    parser.add_argument(
        "--no-registration", action="store_true", help="keep the header's alignment; the residual is reported"
    )
    parser.add_argument(
        "--spacing", type=float, nargs="+", metavar="MM", help="sides of a voxel, one or three (default: the source's)"
    )
    parser.add_argument("--n4", action="store_true", help="correct the bias field of both scans")
    parser.add_argument("--crop", action="store_true", help="cut volumes to the mask")
    parser.add_argument(
        "--folds", type=int, default=5, help="parts that patients are divided into (default: %(default)s)"
    )
    parser.add_argument(
        "--accept",
        nargs="+",
        default=["good"],
        choices=["good", "doubtful"],
        help="verdicts that go into the datalist (default: good)",
    )
    parser.add_argument(
        "--patient-pattern", metavar="REGEX", help="one group that reads the patient from an examination's name"
    )
    parser.add_argument(
        "--key", metavar="FILE", help="key to the numbers of patients, outside of OUT (default: OUT-key.csv)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default: %(default)s)")
    for field in dataclasses.fields(Thresholds):
        first, second = field.default
        parser.add_argument(
            f"--{field.name}", type=float, nargs=2, default=(first, second), metavar=("DOUBTFUL", "FAILED"),
            help=f"threshold of the verdict, see docs/own-data.md (default: {first:g} {second:g})",
        )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where every examination made a case and none failed."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    if options.spacing and (len(options.spacing) not in (1, 3) or min(options.spacing) <= 0):
        parser.error(f"--spacing must be one or three positive numbers of mm, got {options.spacing}")
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("pipeline"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])  # not each step of Dask's
    limits = Thresholds(**{field.name: tuple(getattr(options, field.name)) for field in dataclasses.fields(Thresholds)})
    spacing = tuple(options.spacing) if options.spacing else None
    settings = Settings(not options.no_registration, spacing, options.n4, options.crop, limits)
    try:
        found = find_pairs(options.studies, options.source, options.target, options.patient_pattern)
        for name, reason in found.left_out:
            print(f"left out: {name}: {reason}", file=sys.stderr)
        with tqdm(unit="case", disable=None) as bar:
            start, before = time.monotonic(), [0]

            def told(outcome: Outcome, done: int, total: int) -> None:
                before[0] += 1
                bar.total = total
                bar.update(done - bar.n)
                if bar.disable:  # no terminal to draw on, but a log
                    left = (time.monotonic() - start) / before[0] * (total - done)
                    print(f"{outcome.case}: {outcome.verdict}; {done} of {total}, {left / 60:.0f} min left", flush=True)
                if outcome.reasons:
                    bar.write(f"{outcome.case}: {outcome.verdict}: {outcome.reasons}", file=sys.stderr)

            outcomes = prepare(
                found,
                options.output_dir,
                settings,
                (options.source, options.target),
                options.folds,
                options.accept,
                options.jobs,
                options.seed,
                options.key,
                told,
            )
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(cause(error))
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    counts = Counter(outcome.verdict for outcome in outcomes)
    verdicts = ", ".join(f"{counts[each]} {each}" for each in ("good", "doubtful", "failed"))
    print(f"{verdicts}: {options.output_dir}/report.html")
    return 1 if counts["failed"] or found.left_out else 0


if __name__ == "__main__":
    sys.exit(command(main))
