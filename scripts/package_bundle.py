"""Package a finished training as a MONAI bundle that runs where this project is not installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.packaging import package_bundle

ROOT = Path(__file__).resolve().parent.parent
EPILOG = """\
OUT.zip holds one folder, reggan: the bundle, the packages pipeline and transforms, requirements.txt, and in models the
weights (model.pt), the run's resolved config (config.json, settings as they were given, names of folders among them)
and provenance.json: SHA-256 of the weights, what they were trained on, their scores, versions. inference.json in it
builds the networks that the run had. The same run gives the same bytes.

a default model, trained on the phantom (minutes on two cores), and a volume translated with it elsewhere:
  make train
  python scripts/package_bundle.py reggan.zip
  unzip reggan.zip && cd reggan
  python -m venv env && env/bin/pip install -r requirements.txt -c constraints.txt
  env/bin/python -m monai.bundle run --config_file configs/inference.json --image T1.nii.gz
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="package_bundle.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", metavar="OUT.zip", type=Path, help="file to write")
    parser.add_argument(
        "--run",
        type=Path,
        default=ROOT / "outputs" / "reggan",
        metavar="FOLDER",
        help="output_dir of the training (default: outputs/reggan)",
    )
    parser.add_argument("--data-source", metavar="TEXT", help="what it was trained on; needed unless it is the phantom")
    parser.add_argument("--force", action="store_true", help="replace OUT.zip if it exists")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = build_parser().parse_args(arguments)
    try:
        provenance = package_bundle(options.output, options.run, ROOT, options.data_source, options.force)
    except (ValueError, OSError) as error:
        sys.exit(f"package_bundle.py: error: {error}")
    print(f"written to {options.output}: {provenance['trained_as']}, scores {provenance['scores'] or 'unknown'}")
    print(f"SHA-256 of its weights: {provenance['sha256']}")


if __name__ == "__main__":
    main()
