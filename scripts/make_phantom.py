"""Make the digital brain phantom: paired T1- and T2-weighted volumes with a datalist, without any download."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.data.phantom import SPLITS, PhantomParameters, make_phantom
from pipeline.ending import command
from pipeline.io import read_image

SLICE_HEIGHTS = (-38.0, -12.0, 2.0, 12.0, 26.0, 44.0)  # mm above the anterior commissure, one column each
MOST_SUBJECTS_SHOWN = 4


def build_parser() -> argparse.ArgumentParser:
    """Command line; the defaults are the phantom's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder to make; an equal phantom in it is reused")
    parser.add_argument(
        "--subjects",
        type=int,
        nargs=3,
        default=PhantomParameters.subjects,
        metavar=("TRAINING", "VALIDATION", "TEST"),
        help="how many subjects to make",
    )
    parser.add_argument("--seed", type=int, default=PhantomParameters.seed, help="same seed, same images")
    parser.add_argument("--resolution", type=float, default=PhantomParameters.resolution, help="edge of a voxel in mm")
    parser.add_argument(
        "--noise", type=float, default=PhantomParameters.noise, help="noise SD relative to the white matter signal"
    )
    parser.add_argument(
        "--bias", type=float, default=PhantomParameters.bias, help="smooth shading, SD of its natural logarithm"
    )
    parser.add_argument(
        "--lesions",
        type=int,
        nargs=2,
        default=PhantomParameters.lesions,
        metavar=("FEWEST", "MOST"),
        help="white matter lesions per subject",
    )
    parser.add_argument("--picture", type=Path, help="also draw axial slices of some subjects to this PNG file")
    return parser


def draw_picture(datalist: Path, path: Path) -> None:
    """Draw axial slices of the first subjects of each split, T1-weighted above T2-weighted.

    Args:
        datalist: the phantom's datalist.
        path: picture to write; its format follows the suffix, its folder is made where absent.
    """
    lists = json.loads(datalist.read_text(encoding="utf-8"))
    longest = max(len(lists[split]) for split in SPLITS)
    pairs = [lists[split][k] for k in range(longest) for split in SPLITS if k < len(lists[split])]
    names = [pair[key] for pair in pairs[:MOST_SUBJECTS_SHOWN] for key in ("image", "label")]
    figure = Figure(figsize=(1.5 * len(SLICE_HEIGHTS), 1.8 * len(names)), facecolor="black")
    axes = figure.subplots(len(names), len(SLICE_HEIGHTS), gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    figure.subplots_adjust(0, 0, 1, 1)
    for row, name in zip(axes, names, strict=True):
        image = read_image(datalist.parent / name)
        volume, affine = image.numpy()[0], image.affine.numpy()
        brightest = np.percentile(volume[volume > 0], 99.5)
        for cell, height in zip(row, SLICE_HEIGHTS, strict=True):
            index = round((height - affine[2, 3]) / affine[2, 2])
            cell.imshow(volume[:, :, index].T, origin="lower", cmap="gray", vmin=0, vmax=brightest)
            cell.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        datalist = make_phantom(
            options.output_dir,
            subjects=options.subjects,
            seed=options.seed,
            resolution=options.resolution,
            noise=options.noise,
            bias=options.bias,
            lesions=options.lesions,
        )
        if options.picture is not None:
            draw_picture(datalist, options.picture)
    except (OSError, ValueError) as error:
        print(f"make_phantom: {error}", file=sys.stderr)
        return 2
    lists = json.loads(datalist.read_text(encoding="utf-8"))
    counts = ", ".join(f"{len(lists[split])} {split}" for split in SPLITS)
    shape = read_image(datalist.parent / lists["training"][0]["image"]).shape[1:]
    megabytes = sum(file.stat().st_size for file in datalist.parent.rglob("*.nii.gz")) / 1e6
    print(f"Subjects: {counts}; volumes of {'x'.join(map(str, shape))} voxels; {megabytes:.0f} MB")
    print(f"Datalist: {datalist}")
    if options.picture is not None:
        print(f"Picture: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
