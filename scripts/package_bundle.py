"""Package a trained model as a MONAI bundle that runs where this project is not installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.ending import command
from pipeline.packaging import package_bundle

ROOT = Path(__file__).resolve().parent.parent
EPILOG = """\
OUT.zip holds one folder, reggan: the bundle, the packages pipeline and transforms, requirements.txt, and in models

  model.pt         the weights with their recipe, from which inference.json builds networks, scaling and grid
  recipe.json      that recipe, to read; what counts is the one in model.pt
  config.json      the run's resolved config, settings as they were given, names of folders among them
  provenance.json  SHA-256 of the weights, what they were trained on, their scores, versions

The weights are verified, and translate something, before anything is written. The same run gives the same bytes. An
imported model (scripts/import_weights.py) has no run: give its file by --model, and it has no config.json.

a default model, trained on the phantom (minutes on two cores), and a volume translated with it elsewhere:
  make train
  python scripts/package_bundle.py reggan.zip
  unzip reggan.zip && cd reggan
  python -m venv env && env/bin/pip install -r requirements.txt -c constraints.txt
  env/bin/python -m monai.bundle run --config_file configs/inference.json --image T1.nii.gz

and trained further there, on other data:
  env/bin/python -m monai.bundle run training --config_file configs/train.json --start_from models/model.pt \\
      --dataset_dir mydata
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
    packaged = parser.add_mutually_exclusive_group()
    packaged.add_argument(
        "--run", type=Path, metavar="FOLDER", help="output_dir of the training (default: outputs/reggan)"
    )
    packaged.add_argument(
        "--model", type=Path, metavar="FILE", help="a model file that has no run, such as an imported one"
    )
    parser.add_argument("--data-source", metavar="TEXT", help="what it was trained on; needed unless it is the phantom")
    parser.add_argument("--force", action="store_true", help="replace OUT.zip if it exists")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = build_parser().parse_args(arguments)
    run = None if options.model else options.run or ROOT / "outputs" / "reggan"
    try:
        provenance = package_bundle(
            options.output,
            ROOT,
            run_dir=run,
            model=options.model,
            data_source=options.data_source,
            overwrite=options.force,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"package_bundle.py: error: {error}")
    print(f"written to {options.output}: {options.model or run}, scores {provenance['scores'] or 'unknown'}")
    print(f"SHA-256 of its weights: {provenance['sha256']}")


if __name__ == "__main__":
    sys.exit(command(main))
