"""How well the registration of prepare.py finds displacements that are known, and whether it tells wrong patients.

DATA holds ms_mri/patient07, ms_mri/patient19 (T1.nii.gz and T2.nii.gz on one grid) and ms_mri_raw/patient01 (T1W, T2W
and FLAIR as the scanner gave them). T2 is moved by its header, put on other grids, cut, and made noisy, biased and
thick. Wrong patients are the other one's scan, the own one mirrored, and the own one warped by 8 mm. Ends with 1 where
a bound is missed: a mean of 0.3 mm (of slices thicker than 2 mm: a quarter of their thickness), no case above 1 mm that
is judged good, no wrong patient judged good, at most one right one that is not, and on patient01 0.3 mm between starts.

    python scripts/registration_accuracy.py DATA accuracy.csv --jobs 2
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import numpy as np
from scipy import ndimage

from pipeline.ending import command
from pipeline.io import read_image
from pipeline.jobs import run_all
from pipeline.preparation import Thresholds
from pipeline.preparation.cases import GOOD, resample
from pipeline.preparation.registration import Scan, about, distance, points_of, register, rotation
from transforms import foreground_mask

COLUMNS = (
    "case", "moved_mm", "turned_deg", "thickness_mm", "error_mm", "to_unmoved_mm", "verdict", "halves_mm", "blocks",
    "spread_mm", "overlap", "information", "seconds",
)  # fmt: skip
MEAN, WORST, BETWEEN_STARTS = 0.3, 1.0, 0.3
"""Bounds in mm, see above."""
THICK, SHARE = 2.0, 0.25
WARP, WAVE = 8.0, 25.0
"""Size and smoothness in mm of the field that makes another head of a head."""


@dataclass(frozen=True)
class Trial:
    """A registration to try: its name, the displacement, and what is done to the target.

    Attributes:
        kind: "known" where the headers tell the truth, "made" where it is exact (see `another`), "raw" where it is
            unknown and starts have to agree, or "wrong".
    """

    name: str
    source: str
    target: str
    kind: str = "known"
    shift: float = 0.0
    turn: float = 0.0
    spacing: tuple[float, float, float] | None = None
    keep: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.0
    bias: float = 0.0
    other: str | None = None


KINDS: dict[str, dict] = {
    "not moved": {},
    "5 mm, 3 degrees": {"shift": 5, "turn": 3},
    "25 mm, 15 degrees": {"shift": 25, "turn": 15},
    "other grid": {"shift": 15, "turn": 10, "spacing": (1.3, 1.1, 1.7)},
    "cut field of view": {"shift": 15, "turn": 10, "keep": (0.35, 1.0)},
    "noise": {"shift": 20, "turn": 5, "noise": 0.1},
    "bias": {"shift": 12, "turn": 15, "bias": 0.7},
    "noise and bias": {"shift": 20, "turn": 12, "noise": 0.08, "bias": 0.5},
    "slices of 3 mm": {"shift": 18, "turn": 9, "spacing": (0.9, 0.9, 3.0)},
    "slices of 4 mm": {"shift": 10, "turn": 8, "spacing": (0.9, 0.9, 4.0)},
    "all of it, 3 mm": {
        "shift": 20, "turn": 12, "spacing": (0.9, 0.9, 3.0), "keep": (0.25, 1.0), "noise": 0.05, "bias": 0.4,
    },
}  # fmt: skip
MOVED = KINDS["25 mm, 15 degrees"]


def trials() -> list[list[Trial]]:
    """The registrations, in groups: the first of a group is the unmoved one that the others are compared with."""
    groups = []
    for patient, stranger in (("07", "19"), ("19", "07")):
        place, there = f"ms_mri/patient{patient}", f"ms_mri/patient{stranger}"
        pair = Trial(f"patient{patient}", f"{place}/T1", f"{place}/T2")
        groups.append([replace(pair, name=f"{pair.name}, {kind}", **how) for kind, how in KINDS.items()])
        made = replace(pair, kind="made", other="looked up")
        groups.append(
            [
                replace(made, name=f"patient{patient}, T2 made of T1{more}", **how)
                for more, how in ((", not moved", {}), (", 25 mm, 15 degrees", MOVED))
            ]
            + [
                Trial(
                    f"T1 of {patient}, T2 of {stranger}, {kind}", f"{place}/T1", f"{there}/T2", "wrong", **KINDS[kind]
                )
                for kind in ("not moved", "25 mm, 15 degrees", "slices of 4 mm", "all of it, 3 mm")
            ]
            + [Trial(f"T1 of {patient}, FLAIR of {stranger}", f"{place}/T1", f"{there}/FLAIR", "wrong")]
            + [
                replace(pair, name=f"{pair.name}, {other}", kind="wrong", other=other)
                for other in ("mirrored", "warped")
            ]
            + [Trial(f"T1 of {patient}, T2W of 01", f"{place}/T1", "ms_mri_raw/patient01/T2W", "wrong")]
        )
    raw = "ms_mri_raw/patient01"
    for target in ("T2W", "FLAIR"):
        pair = Trial(f"patient01 {target}", f"{raw}/T1W", f"{raw}/{target}", "raw")
        groups.append(
            [
                replace(pair, name=f"{pair.name}, header"),
                replace(pair, name=f"{pair.name}, 20 mm, 11 degrees", shift=20, turn=11),
                replace(pair, name=f"{pair.name}, 25 mm, 15 degrees, noise", noise=0.05, **MOVED),
            ]
            + [
                replace(pair, name=f"{pair.name}, {other}", kind="wrong", other=other)
                for other in ("mirrored", "warped")
            ]
        )
    groups[-1] += [
        Trial(f"T1W of 01, T2 of {patient}", f"{raw}/T1W", f"ms_mri/patient{patient}/T2", "wrong")
        for patient in ("07", "19")
    ]
    return groups


def read(data: Path, name: str) -> Scan:
    """One of the scans."""
    image = read_image(data / f"{name}.nii.gz")
    return Scan(image.numpy()[0], image.affine.numpy())


def another(source: Scan, target: Scan, how: str) -> Scan:
    """What is registered in place of the target, on its grid.

    Args:
        source: of the pair.
        target: likewise.
        how: "mirrored"; "warped" by a smooth field of 8 mm; "looked up", which is the source, with the target's mean at
            each of its values in place of it, so that it lies where the source does without any doubt.
    """
    if how == "mirrored":
        return Scan(target.voxels[::-1].copy(), target.affine)
    if how == "looked up":
        inside = (source.voxels > 0) & (target.voxels > 0)
        edges = np.percentile(source.voxels[inside], np.linspace(0, 100, 65)[1:-1])
        at = np.searchsorted(edges, source.voxels[inside])
        counts = np.maximum(np.bincount(at, minlength=64), 1)
        made = np.zeros(source.voxels.shape, np.float32)
        made[inside] = (np.bincount(at, target.voxels[inside], 64) / counts)[at]
        return Scan(made, source.affine)
    rng = np.random.default_rng(0)
    places = []
    for axis, grid in enumerate(np.meshgrid(*map(np.arange, target.voxels.shape), indexing="ij")):
        field = ndimage.gaussian_filter(rng.normal(size=grid.shape).astype(np.float32), WAVE / target.spacing)
        places.append(grid + field * (WARP / np.sqrt(3) / field.std() / target.spacing[axis]))
    return Scan(ndimage.map_coordinates(target.voxels, places, order=1, mode="nearest"), target.affine)


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
    voxels = scan.voxels[:, :, first:last].astype(np.float32)
    bright = float(np.percentile(voxels[voxels > 0], 98))
    if trial.bias:
        x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in voxels.shape), indexing="ij")
        voxels = voxels * np.exp(trial.bias * (0.6 * x - 0.5 * y + 0.4 * z - 0.5 * (x * x + y * z)))
    if trial.noise:
        real, imaginary = rng.normal(0, trial.noise * bright, (2, *voxels.shape))
        voxels = np.hypot(voxels + real, imaginary)
    return Scan(voxels.astype(np.float32), matrix @ affine), matrix


def run(group: tuple[int, list[Trial]], load: Callable[[str], Scan]) -> list[dict[str, str]]:
    """Do a group of trials; a row of the table for each."""
    rows, unmoved = [], None
    for number, trial in enumerate(group[1]):
        source, target = load(trial.source), load(trial.target)
        target = another(source, target, trial.other) if trial.other else target
        target, matrix = changed(trial, target, np.random.default_rng([group[0], number]))
        start = time.process_time()
        mask, other = (foreground_mask(scan.voxels, scan.spacing) for scan in (source, target))
        found = register(source, target, mask, other)
        seconds = time.process_time() - start
        points = points_of(Scan(mask, source.affine))
        error = distance(found.matrix, matrix, points) if trial.kind in ("known", "made") else None
        apart = None
        if trial.kind != "wrong":
            apart = None if unmoved is None else distance(found.matrix, matrix @ unmoved, points)
            unmoved = found.matrix if unmoved is None else unmoved
        values = (
            trial.name, trial.shift, trial.turn, f"{max(target.spacing.max(), source.spacing.max()):.2f}",
            "" if error is None else f"{error:.3f}", "" if apart is None else f"{apart:.3f}",
            Thresholds().judge(found)[0], f"{found.halves:.2f}", f"{found.blocks:.2f}", f"{found.spread:.2f}",
            f"{found.overlap:.2f}", f"{found.after:.3f}", f"{seconds:.1f}",
        )  # fmt: skip
        rows.append({name: str(value) for name, value in zip(COLUMNS, values, strict=True)} | {"kind": trial.kind})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items() if value), flush=True)
    return rows


def judged(rows: Sequence[dict[str, str]]) -> Iterator[tuple[bool, str]]:
    """Whether each bound holds, and the number in words."""
    known, made, raw, wrong = (
        [row for row in rows if row["kind"] == kind] for kind in ("known", "made", "raw", "wrong")
    )
    for column, what in (("error_mm", "the headers' truth"), ("to_unmoved_mm", "the answer on the unmoved pair")):
        for thin, limit in ((True, "0.3"), (False, "a quarter of the slices")):
            found = [
                (float(row[column]), MEAN if thin else SHARE * float(row["thickness_mm"]))
                for row in known
                if row[column] and (float(row["thickness_mm"]) <= THICK) == thin
            ]
            values = [value for value, _ in found]
            ok = float(np.mean(values)) < MEAN if thin else all(value < most for value, most in found)
            which = f"against {what}, slices {'up to' if thin else 'above'} 2 mm"
            numbers = f"mean {np.mean(values):.2f} mm, largest {max(values):.2f} mm of {len(values)}"
            yield ok, f"{which}: {numbers} (wanted: {limit})"
    exact = [float(row["error_mm"]) for row in made]
    yield max(exact) < MEAN, f"T2 made of T1: at most {max(exact):.3f} mm"
    far = [row["case"] for row in known if row["verdict"] == GOOD and float(row["error_mm"]) > WORST]
    yield not far, f"cases above {WORST:g} mm that are judged good: {', '.join(far) or 'none'}"
    missed = [row["case"] for row in wrong if row["verdict"] == GOOD]
    yield not missed, f"wrong patients judged good: {', '.join(missed) or 'none'} of {len(wrong)}"
    flagged = [row["case"] for row in known + made + raw if row["verdict"] != GOOD]
    yield (
        len(flagged) <= 1,
        f"right ones flagged: {', '.join(flagged) or 'none'} of {len(known) + len(made) + len(raw)}",
    )
    starts = [float(row["to_unmoved_mm"]) for row in raw if row["to_unmoved_mm"]]
    yield max(starts) < BETWEEN_STARTS, f"patient01, between starts: at most {max(starts):.3f} mm"


def _give_up(group: tuple[int, list[Trial]], error: Exception) -> list[dict[str, str]]:
    raise RuntimeError(f"group {group[0]} could not be tried: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("table", type=Path, metavar="OUT", help="CSV file")
    parser.add_argument("--jobs", type=int, default=1, help="patients at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not (options.data / "ms_mri").is_dir() or not (options.data / "ms_mri_raw").is_dir():
        parser.error(f"{options.data} has no ms_mri and ms_mri_raw")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    groups = list(enumerate(trials()))
    found = run_all(partial(run, load=partial(read, options.data)), groups, options.jobs, _give_up)
    rows = [row for _, group in sorted(found, key=lambda one: one[0][0]) for row in group]
    with options.table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    held = list(judged(rows))
    for ok, words in held:
        print(f"{'holds ' if ok else 'MISSED'}  {words}")
    return 0 if all(ok for ok, _ in held) else 1


if __name__ == "__main__":
    sys.exit(command(main))
