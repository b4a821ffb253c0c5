"""Measure what a training step of each method costs in operations, time and memory, against RegGAN's.

Also counts the parameters of each. A method and RegGAN are measured in turns, and reported as a ratio: machines are
noisy. The paper's networks take images of 256x256 and more, which is slow without a GPU.
"""

from __future__ import annotations

import argparse
import platform
import sys

import torch

from pipeline.ending import command
from pipeline.methods import METHODS
from pipeline.studies.cost import report_cost


def main() -> None:
    """Run the command and print its table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, metavar="NAME", default=list(METHODS), help="these methods (default: all)"
    )
    parser.add_argument("--network-size", choices=("paper", "small"), default="paper", help="(default: paper)")
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256, the paper's)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each method and of RegGAN (default: 8)")
    parser.add_argument("--device", default="cpu", help="where to measure: cpu, cuda:0, ... (default: cpu)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="SETTING=NUMBER",
        help="of these methods, not of RegGAN, such as weights#equivariance=10: what an option costs",
    )
    options = parser.parse_args()
    try:
        settings = {name: float(value) for name, value in (pair.split("=") for pair in options.set)}
    except ValueError:
        parser.error(f"--set takes SETTING=NUMBER, got {' '.join(options.set)}")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"Machine: {name}, {platform.machine()}; Python {platform.python_version()}, torch {torch.__version__}\n")
    try:
        report_cost(options.only, options.size, options.steps, device, options.network_size, settings)
    except ValueError as error:
        parser.error(f"--size {options.size}: {error}")


if __name__ == "__main__":
    sys.exit(command(main))
