"""How well the registration of prepare.py finds displacements that are known.

DATA holds ms_mri/patient07, ms_mri/patient19 (T1.nii.gz and T2.nii.gz on one grid) and ms_mri_raw/patient01 (T1W, T2W
and FLAIR as the scanner gave them). T2 is moved by its header, put on other grids, cut, and made noisy, biased and
thick, and it is offered to the other patient's T1. Rows go to OUT as they are done; started again, it does what is
missing.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np

from pipeline.ending import command
from pipeline.io import read_image
from pipeline.preparation import Thresholds
from pipeline.preparation.cases import resample
from pipeline.preparation.registration import Scan, about, distance, points_of, register, rotation
from transforms import foreground_mask

PATIENTS = ("07", "19")
COLUMNS = [
    "case",
    "moved_mm",
    "turned_deg",
    "error_mm",
    "verdict",
    "halves_mm",
    "spread_mm",
    "overlap",
    "information",
    "seconds",
]


@dataclass(frozen=True)
class Trial:
    """A registration to try: names, the displacement, and what is done to the target."""

    name: str
    source: str
    target: str
    shift: float = 0.0
    turn: float = 0.0
    spacing: tuple[float, float, float] | None = None
    keep: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.0
    bias: float = 0.0
    reference: str | None = None


def trials() -> Iterator[Trial]:
    """The registrations, those of wrong patients among them."""
    kinds: list[tuple[str, dict]] = [
        ("25 mm, 15 degrees", {"shift": 25, "turn": 15}),
        ("thick slices, 4 mm", {"shift": 10, "turn": 8, "spacing": (0.9, 0.9, 4.0)}),
        ("cut field of view", {"shift": 15, "turn": 10, "keep": (0.35, 1.0)}),
        ("noise and bias", {"shift": 20, "turn": 12, "noise": 0.08, "bias": 0.5}),
        (
            "all of it",
            {"shift": 20, "turn": 12, "spacing": (0.9, 0.9, 3.0), "keep": (0.25, 1.0), "noise": 0.05, "bias": 0.4},
        ),
        ("not moved", {}),
        ("5 mm, 3 degrees", {"shift": 5, "turn": 3}),
        ("other grid", {"shift": 15, "turn": 10, "spacing": (1.3, 1.1, 1.7)}),
        ("noise", {"shift": 20, "turn": 5, "noise": 0.1}),
        ("bias", {"shift": 12, "turn": 15, "bias": 0.7}),
    ]
    for kind, how in kinds:
        for patient in PATIENTS:
            place = f"ms_mri/patient{patient}"
            yield Trial(f"patient{patient}, {kind}", f"{place}/T1", f"{place}/T2", **how)
        if kind in ("25 mm, 15 degrees", "thick slices, 4 mm", "not moved"):
            for first, second in (PATIENTS, PATIENTS[::-1]):
                name = f"wrong: T1 of {first}, T2 of {second}, {kind}"
                yield Trial(name, f"ms_mri/patient{first}/T1", f"ms_mri/patient{second}/T2", **how)
        if kind == "all of it":
            for target in ("T2W", "FLAIR"):
                raw = "ms_mri_raw/patient01"
                yield Trial(f"patient01 {target}, header", f"{raw}/T1W", f"{raw}/{target}")
                yield Trial(
                    f"patient01 {target}, moved", f"{raw}/T1W", f"{raw}/{target}", 20, 11,
                    reference=f"patient01 {target}, header",
                )  # fmt: skip


def read(data: Path, name: str) -> Scan:
    """One of the scans."""
    image = read_image(data / f"{name}.nii.gz")
    return Scan(image.numpy()[0], image.affine.numpy())


def changed(trial: Trial, target: Scan, rng: np.random.Generator) -> tuple[Scan, np.ndarray]:
    """The target as the trial has it, and where a point of the source lies in it."""
    direction, axis = (each / np.linalg.norm(each) for each in rng.normal(size=(2, 3)))
    angle = np.deg2rad(trial.turn)
    # A turn about any axis, out of turns about two of them.
    polar, around = np.arccos(axis[2]), np.arctan2(axis[1], axis[0])
    frame = rotation(2, around) @ rotation(1, -polar)
    matrix = about(frame @ rotation(2, angle) @ frame.T, np.zeros(3), trial.shift * direction)
    scan = target
    if trial.spacing:
        factors = np.array(trial.spacing) / scan.spacing
        affine = scan.affine @ np.diag([*factors, 1.0])
        affine[:3, 3] += scan.affine[:3, :3] @ ((factors - 1) / 2 + 0.3)
        shape = tuple(int(length) for length in np.array(scan.voxels.shape) / factors)
        scan = Scan(resample(scan, np.eye(4), shape, affine)[0], affine)
    first, last = (round(share * scan.voxels.shape[2]) for share in trial.keep)
    affine = scan.affine.copy()
    affine[:3, 3] = (affine @ [0, 0, first, 1])[:3]
    voxels = scan.voxels[:, :, first:last].copy()
    bright = float(np.percentile(voxels[voxels > 0], 98))
    if trial.bias:
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in voxels.shape), indexing="ij")
        voxels *= np.exp(trial.bias * (0.6 * x - 0.5 * y + 0.4 * z - 0.5 * (x * x + y * z)))
    if trial.noise:
        real, imaginary = rng.normal(0, trial.noise * bright, (2, *voxels.shape))
        voxels = np.hypot(voxels + real, imaginary)
    return Scan(voxels.astype(np.float32), matrix @ affine), matrix


def run(trial: Trial, data: Path, references: dict[str, np.ndarray], seed: int) -> dict[str, object]:
    """Do a trial; a row of the table."""
    source = read(data, trial.source)
    target, matrix = changed(trial, read(data, trial.target), np.random.default_rng(seed))
    start = time.process_time()
    mask, other = (foreground_mask(scan.voxels, scan.spacing) for scan in (source, target))
    found = register(source, target, mask, other)
    seconds = time.process_time() - start
    points = points_of(Scan(mask, source.affine))
    references[trial.name] = found.matrix
    raw = trial.source.startswith("ms_mri_raw")
    error: float | None = distance(found.matrix, matrix, points)
    if raw:  # what is true is not known: only that both starts have to agree
        there = references.get(trial.reference or "")
        error = None if there is None else distance(found.matrix, matrix @ there, points)
    elif trial.name.startswith("wrong"):
        error = None
    return dict(zip(COLUMNS, (
        trial.name, trial.shift, trial.turn, "" if error is None else f"{error:.3f}", Thresholds().judge(found)[0],
        f"{found.halves:.2f}", f"{found.spread:.2f}", f"{found.overlap:.2f}", f"{found.after:.3f}", f"{seconds:.1f}",
    ), strict=True))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("table", type=Path, metavar="OUT", help="CSV file")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("K", "N"), help="every Nth trial from the Kth on"
    )
    options = parser.parse_args(arguments)
    table: Path = options.table
    done = {row["case"] for row in csv.DictReader(table.read_text().splitlines())} if table.exists() else set()
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    references: dict[str, np.ndarray] = {}
    blocks: dict[str, list[tuple[int, Trial]]] = {}
    for seed, trial in enumerate(trials()):
        blocks.setdefault(trial.reference or trial.name, []).append((seed, trial))
    part, parts = options.part
    for block in list(blocks.values())[part::parts]:
        if all(trial.name in done for _, trial in block):
            continue
        for seed, trial in block:
            row = run(trial, options.data, references, seed)
            with table.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
