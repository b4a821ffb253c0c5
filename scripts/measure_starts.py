"""Measure what a start costs and what a training keeps in memory, for few and many pairs of generated volumes.

For each number of pairs, the README's command for training runs as a user runs it: with an empty store, again with a
filled one, twice at the same time on one store, and as one training of two processes. Times are up to the end of the
first step. CPU seconds a pair and cores are those beyond the run with the fewest pairs: how many computed, and how many
would have, had other programs left them (Linux's account of threads that wait for a core). Memory is what a process has
resident; of two at a time, its share of it (PSS). Data and stores are deleted at the end.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import torch

from pipeline.ending import command
from pipeline.files import cores
from pipeline.studies.starts import report_starts


def main() -> None:
    """Run the measurement and print its tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[2, 20, 200, 1000], help="ascending (default: 2 20 200 1000)"
    )
    parser.add_argument(
        "--volume", type=int, nargs=3, default=[64, 64, 24], help="voxels along each axis (default: 64 64 24)"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each training (default: 100)")
    parser.add_argument("--alone", action="store_true", help="leave out what runs at the same time on one store")
    parser.add_argument(
        "--folder", type=Path, help="for data and stores, deleted at the end (default: a temporary one)"
    )
    options = parser.parse_args()
    if min(options.pairs) < 2 or sorted(set(options.pairs)) != options.pairs:
        parser.error(f"--pairs must be ascending and at least 2, got {' '.join(map(str, options.pairs))}")
    if options.folder is not None and options.folder.exists():
        parser.error(f"--folder {options.folder} is there already, expected one that may be deleted")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(
        f"Machine: {cores()} cores, {platform.machine()}; {versions}; volumes of {'x'.join(map(str, options.volume))}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        report_starts(
            options.folder or Path(name) / "starts", options.pairs, options.volume, options.steps, options.alone
        )


if __name__ == "__main__":
    sys.exit(command(main))
