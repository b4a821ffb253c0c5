"""Hold drift, which is measured without aligned pairs, against the displacement that aligned pairs show.

RegGANs with and without the affine step, and with and without the adversarial term, which holds the geometry, are
trained at noise level 5; the weights of every second epoch are a checkpoint. Started again, it trains what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.bundle import project_dir
from pipeline.metrics.catalogue import CATALOGUE
from pipeline.studies.drift import PICTURE, TABLE, agreement, run_study


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, help="data with aligned pairs (default: the phantom)")
    parser.add_argument("--output-dir", type=Path, default=project_dir() / "outputs" / "drift-study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings (default: 0 1)")
    parser.add_argument("--epochs", type=int, default=8, help="of each training (default: 8)")
    parser.add_argument("--every", type=int, default=2, help="of which every so many are measured (default: 2)")
    parser.add_argument("--spatial-size", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--filters", type=int, default=16, help="of the generator (default: 16)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not 1 <= options.every <= options.epochs:
        parser.error(f"--every must lie in [1, --epochs], got {options.every} of {options.epochs}")
    settings: dict[str, Any] = {
        "spatial_size": options.spatial_size,
        "network_def#generator#filters": options.filters,
    }
    if options.dataset_dir is not None:
        settings["dataset_dir"] = str(options.dataset_dir.expanduser().absolute())
    try:
        table = run_study(
            options.output_dir.expanduser().absolute(), options.seeds, options.epochs, settings, options.every
        )
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(str(error))
    for name in ("drift", "drift_shift", "equivariance"):
        r, low, high = agreement(table, name)
        print(f"{CATALOGUE[name].title} against displacement: r {r:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    print(f"table: {options.output_dir / TABLE}\npicture: {options.output_dir / PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
