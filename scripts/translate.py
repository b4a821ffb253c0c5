"""Translate all volumes below a folder, side by side, on this machine or on a Dask cluster.

Results lie in the same subfolders of OUT, with a table, translations.csv, that says what came of each volume and why
one failed. A volume that fails stops no other. Started again, it does what is new, has changed or failed before, and
leaves the rest as it is. For one volume, or with more settings, use bundles/reggan/configs/inference.json; for a DICOM
series, scripts/translate_dicom.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from pipeline.bundle import bundle_dir, default_weights, device
from pipeline.ending import command
from pipeline.errors import cause
from pipeline.inference.folder import TABLE_FILE, Outcome, translate_folder
from pipeline.io import WRITABLE


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="FOLDER", help="volumes, in it and in its subfolders")
    parser.add_argument("output_dir", metavar="OUT", help="folder for the translated volumes")
    parser.add_argument("--checkpoint", help="model file (default: outputs/reggan/model.pt, or the bundle's)")
    parser.add_argument("--output-ext", default=".nii.gz", choices=WRITABLE, help="format (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    parser.add_argument("--slices-at-once", type=int, default=8, help="slices in a batch (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="volumes at a time (default: %(default)s)")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="use a Dask cluster that is there, such as tcp://node:8786, instead"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where every volume is translated."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    for name in ("jobs", "slices_at_once"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    with tqdm(unit="volume", disable=None) as bar:

        def told(outcome: Outcome, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if outcome.cause:
                bar.write(f"{outcome.source}: failed: {outcome.cause}", file=sys.stderr)

        try:
            outcomes = translate_folder(
                options.source,
                options.output_dir,
                options.checkpoint or default_weights(bundle_dir(), "reggan"),
                options.output_ext,
                options.device if options.scheduler else str(device(options.device)),
                options.slices_at_once,
                options.jobs,
                options.scheduler,
                told,
            )
        except (OSError, ValueError, RuntimeError) as error:
            parser.error(cause(error))
        except KeyboardInterrupt:
            print("\nStopped; the same command goes on from here.", file=sys.stderr)
            return 130
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} volumes are translated: {options.output_dir}/{TABLE_FILE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(command(main))
