"""Measure what the translation of a volume costs beside its network, here and at an earlier commit, in turns.

Default networks, untrained, at 96x96; a head in MR and a body in CT of generated voxels, ``.nii.gz`` to ``.nii.gz``.
The commit's files are taken out of this repository, and every translation is a process of its own, of one thread. The
ratio is that of the CPU seconds outside of the network.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import torch

from pipeline.ending import command
from pipeline.studies.translation import report_translation


def main() -> None:
    """Run the measurement and print its table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="5e4f953", metavar="COMMIT", help="(default: %(default)s)")
    parser.add_argument("--head", type=int, nargs=3, default=[240, 240, 155], help="voxels (default: 240 240 155)")
    parser.add_argument("--ct", type=int, nargs=3, default=[512, 512, 300], help="voxels (default: 512 512 300)")
    parser.add_argument("--rounds", type=int, default=3, help="translations of each by each commit (default: 3)")
    options = parser.parse_args()
    print(f"Machine: {platform.machine()}; Python {platform.python_version()}, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        try:
            report_translation(Path(name), options.against, {"head": options.head, "ct": options.ct}, options.rounds)
        except (ValueError, RuntimeError) as error:
            parser.error(str(error))


if __name__ == "__main__":
    sys.exit(command(main))
