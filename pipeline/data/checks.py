"""Every fault of the data, found before training and said at once."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline.data.inspection import CONSTANT, FileReport, format_affine, inspect_all

__all__ = ["FILES", "REQUIRED_SPLITS", "SPLITS", "DataError", "check_cases", "check_images", "find_faults"]

SPLITS = ("training", "validation", "test")
"""Lists of a datalist, in the names of the Medical Segmentation Decathlon."""
REQUIRED_SPLITS = ("training", "validation")
"""Lists that must not be empty."""

FILES = ("image", "label", "mask")
"""What a case consists of; not every case has a mask."""

CURE = (
    "resample the target onto the source's grid: python scripts/prepare.py STUDIES OUT --source NAME --target NAME "
    "registers and resamples raw pairs"
)
"""What to do about a pair on two grids."""

AFFINE_TOLERANCE = 0.05
"""How far, in voxels, the affines of a pair may place one voxel apart: below what any registration resolves."""


class DataError(ValueError):
    """The data cannot be trained on; the message lists every fault on a line of its own.

    Args:
        faults: one line per fault, each naming the file or the list and the numbers.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(list(faults))
        self.faults = list(faults)

    def __str__(self) -> str:
        count = len(self.faults)
        return "\n".join([f"{count} fault{'' if count == 1 else 's'} in the data:", *(f"- {f}" for f in self.faults)])


def check_cases(cases: Mapping[str, Sequence[Mapping[str, Any]]], store: str | os.PathLike[str] | None = None) -> str:
    """Look at every file of a datalist and refuse the whole of it if anything is wrong.

    Faults are: a required list that is empty, an entry without image or label, a file that is missing or cannot be
    read, an image that has not 2 or 3 spatial dimensions and one channel, that is constant, or that holds NaN or
    infinite values, a pair whose shapes or affines disagree, and a patient, a path or the same bytes in two lists.

    Args:
        cases: ``{"training": [...], "validation": [...], "test": [...]}``, each a list of ``{"image": path, "label":
            path}`` with, optionally, ``"case"``, the patient. ``"test"`` may be empty or absent.
        store: see `find_faults`.

    Returns:
        The data's digest: SHA-256, in hexadecimal, over the names (relative to the folder that holds them all) and the
        contents of all files. It does not depend on where the data lies or how it is split.

    Raises:
        DataError: anything is wrong; its message lists every fault.
    """
    faults = [f'the list "{split}" is empty' for split in REQUIRED_SPLITS if not cases.get(split)]
    found, digest = find_faults(cases, store=store)
    if faults or found:
        raise DataError(faults + found)
    return digest or ""


def check_images(paths: Sequence[str | os.PathLike[str]]) -> None:
    """Look at images that stand alone, as `check_cases` does at pairs.

    Args:
        paths: files of 2D or 3D images of one channel.

    Raises:
        DataError: anything is wrong with any of them; its message lists every fault.
    """
    reports = inspect_all([os.fspath(path) for path in paths])
    faults = [f"{path}: {fault}" for path, report in reports.items() for fault in report.faults]
    if faults:
        raise DataError(faults)


def find_faults(
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    read_files: bool = True,
    store: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
) -> tuple[list[str], str | None]:
    """Return the faults of a datalist's entries, a line each, and the digest of the files that are there.

    Args:
        cases: see `check_cases`; a list may be empty.
        read_files: whether to look into the files; if not, only patients and paths in two lists are found, and the
            digest is None.
        store: folder that remembers sound files by path, size and time of their last change; None or "none" for no
            such memory beyond this process.
        num_workers: threads that look into files; None for one for each core.
    """
    faults: list[str] = []
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for split, items in cases.items():
        for index, item in enumerate(items):
            missing = [key for key in ("image", "label") if not isinstance(item.get(key), str | os.PathLike)]
            faults += [f'{split}[{index}] has no path "{key}": {dict(item)}' for key in missing]
            if not missing:
                entries.append((split, item))

    faults += _find_shared(entries)
    faults += _find_repeated(entries)
    if not read_files:
        return faults, None
    masks = {os.fspath(item["mask"]) for _, item in entries if item.get("mask")}
    paths = list(dict.fromkeys(os.fspath(item[key]) for _, item in entries for key in FILES if item.get(key)))
    reports = inspect_all(paths, store, num_workers)
    for path in paths:
        # The head may fill a mask; that it is empty is for `pipeline.io.ReadImaged`.
        own = [fault for fault in reports[path].faults if path not in masks or not fault.startswith(CONSTANT)]
        faults += [f"{path}: {fault}" for fault in own]
    for _, item in entries:
        if item.get("mask"):
            faults += _compare_pair(os.fspath(item["image"]), os.fspath(item["mask"]), reports)
        faults += _compare_pair(os.fspath(item["image"]), os.fspath(item["label"]), reports)
    faults += _find_copies(entries, reports)
    return list(dict.fromkeys(faults)), _combine_digests(reports)


def _compare_pair(image: str, label: str, reports: Mapping[str, FileReport]) -> list[str]:
    """Return in what the shapes and the affines of a pair disagree, as far as both could be read."""
    first, second = reports[image], reports[label]
    if first.shape is None or second.shape is None:
        return []
    faults = []
    (shape, affine), (other_shape, other_affine) = _in_one_order(first), _in_one_order(second)
    if shape != other_shape:
        stored = "" if (shape, other_shape) == (first.shape, second.shape) else ", both turned to R, A and S"
        faults.append(f"{image} and {label}: shapes disagree, {shape} and {other_shape}{stored}; {CURE}")
    if first.affine is not None and second.affine is not None:
        distance, voxel = _greatest_distance(affine, other_affine, shape)
        if distance > AFFINE_TOLERANCE * voxel:
            faults.append(
                f"{image} and {label}: affines disagree by up to {distance:.3g} mm (allowed: {AFFINE_TOLERANCE} of a "
                f"voxel, {AFFINE_TOLERANCE * voxel:.3g} mm), {format_affine(first.affine)} and "
                f"{format_affine(second.affine)}; {CURE}"
            )
    return faults


def _in_one_order(report: FileReport) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the grid of a file with its axes ordered and pointing as near as can be to R, A and S.

    The preprocessing turns both images of a pair, so the order in which a file stores its voxels makes no difference.
    """
    shape, affine = report.shape or (1, 1, 1), np.eye(4) if report.affine is None else report.affine
    if report.affine is None:
        return shape, affine
    turn = nib.io_orientation(affine)
    order = np.argsort(turn[:, 0])
    return tuple(shape[axis] for axis in order), affine @ nib.orientations.inv_ornt_aff(turn, shape)


def _greatest_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return how far two affines place one voxel of a grid apart at most, and the shortest voxel side, both in mm."""
    # The distance is a convex function of the position, so its maximum lies in a corner.
    corners = np.array(list(itertools.product(*((0, length - 1) for length in shape), (1,))), dtype=np.float64)
    distance = np.linalg.norm(corners @ (first - second).T, axis=1).max()
    return float(distance), float(np.linalg.norm(first[:3, :3], axis=0).min())


def _find_shared(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a fault for every patient and every path that is in more than one list."""
    patients: dict[str, set[str]] = {}
    for split, item in entries:
        if item.get("case"):
            patients.setdefault(str(item["case"]), set()).add(split)
    for patient, splits in patients.items():
        if len(splits) > 1:
            yield f'patient "{patient}" is in {_join(splits)}, expected in one list only'
    for path, splits in _splits_by_path(entries).items():
        if len(splits) > 1:
            yield f"{path}: is in {_join(splits)}, expected in one list only"


def _find_repeated(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a fault for every pair that one list has twice: it would count for two patients' worth."""
    counts = Counter((split, os.fspath(item["image"]), os.fspath(item["label"])) for split, item in entries)
    for (split, image, _), count in counts.items():
        if count > 1:
            yield f"{image}: is in {split} more than once ({count} times)"


def _find_copies(entries: Sequence[tuple[str, Mapping[str, Any]]], reports: Mapping[str, FileReport]) -> Iterator[str]:
    """Yield a fault for every file content that is in more than one list under different paths."""
    contents: dict[str, dict[str, str]] = {}
    for path, splits in _splits_by_path(entries).items():
        if len(splits) == 1 and reports[path].digest:
            contents.setdefault(reports[path].digest, {}).setdefault(next(iter(splits)), path)
    for copies in contents.values():
        if len(copies) > 1:
            named = ", ".join(f"{path} ({split})" for split, path in copies.items())
            yield f"byte for byte the same file is in {_join(copies)}: {named}"


def _splits_by_path(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, set[str]]:
    """Return the lists that each path is in."""
    paths: dict[str, set[str]] = {}
    for split, item in entries:
        for key in ("image", "label"):
            paths.setdefault(os.fspath(item[key]), set()).add(split)
    return paths


def _join(splits: Sequence[str] | set[str] | Mapping[str, Any]) -> str:
    """Return the names of lists in their usual order."""
    order = {split: index for index, split in enumerate(SPLITS)}
    return " and ".join(sorted(splits, key=lambda split: (order.get(split, len(order)), split)))


def _combine_digests(reports: Mapping[str, FileReport]) -> str:
    """Return one digest of all files that could be read, by relative name and content."""
    resolved = {os.path.abspath(path): report.digest for path, report in reports.items() if report.digest}
    if not resolved:
        return hashlib.sha256().hexdigest()
    root = os.path.commonpath([os.path.dirname(path) for path in resolved])
    names = {Path(path).relative_to(root).as_posix(): digest for path, digest in resolved.items()}
    return hashlib.sha256("".join(f"{name}\0{names[name]}\n" for name in sorted(names)).encode()).hexdigest()
