"""One look at each file: what is in it, remembered by its path, its size and the time of its last change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.store import open_store
from pipeline.errors import innermost_cause
from pipeline.files import cores, file_digest, replacing
from pipeline.io import ImageError, check_regular, files_of, holds_dicom, read_image, split_series
from transforms import UNMEASURED_KEY

__all__ = ["CONSTANT", "FileReport", "format_affine", "inspect_all"]

CONSTANT = "is constant"
"""How the fault of an image without contrast begins."""

INDEX, INDEX_VERSION = "files.json", 1
"""File of a store that remembers sound files; the version is raised when the checks find more than before."""


@dataclass
class FileReport:
    """What one look at a file found.

    Attributes:
        faults: what is wrong with it.
        digest: SHA-256 of its bytes, in hexadecimal; empty where it could not be read.
        shape: (X, Y, Z) as `pipeline.io.read_image` gives it; None where it could not be read.
        affine: to RAS in mm; None where there is none that can be inverted.
        measured: whether it says how large its voxels are.
    """

    faults: list[str] = field(default_factory=list)
    digest: str = ""
    shape: tuple[int, ...] | None = None
    affine: np.ndarray | None = None
    measured: bool = True


_KNOWN: dict[tuple[str, int, int], FileReport] = {}
# What is known of files, by path, size in bytes and time of the last change in ns: each is read once per process.


def inspect_all(
    paths: Sequence[str], store: str | os.PathLike[str] | None = None, num_workers: int | None = None
) -> dict[str, FileReport]:
    """Look at files, several at a time: decompression and hashing release the interpreter lock.

    A file that has the size and the time of the last look is not read again.

    Args:
        paths: the files.
        store: see `pipeline.data.checks.find_faults`.
        num_workers: likewise.
    """
    opened = open_store(store)
    remembered = {} if opened is None else _recall(opened.folder / INDEX)
    with ThreadPoolExecutor(max_workers=num_workers or cores()) as pool:
        reports = dict(zip(paths, pool.map(_look_once, paths), strict=True))
    if opened is not None:
        sound = {key: _KNOWN[key] for key in map(_key, paths) if key in _KNOWN and not _KNOWN[key].faults}
        if not sound.keys() <= remembered.keys():
            _remember(opened.folder / INDEX, remembered | sound)
    return reports


def _key(path: str) -> tuple[str, int, int] | None:
    # The state of a folder or of a DICOMDIR says nothing of the slices in it.
    if not os.path.isfile(path) or os.path.basename(path).upper() == "DICOMDIR":
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _look_once(path: str) -> FileReport:
    key = _key(path)
    if key is None:
        return _inspect(path)
    if key not in _KNOWN:
        _KNOWN[key] = _inspect(path)
    return _KNOWN[key]


def _recall(index: Path) -> dict[tuple[str, int, int], FileReport]:
    """What is remembered of files; nothing where the index is not there or cannot be read."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        entries = content["files"] if content["version"] == INDEX_VERSION else []
        found = {
            (path, size, time): FileReport([], digest, tuple(shape), np.array(affine), measured)
            for path, size, time, digest, shape, affine, measured in entries
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    for key, report in found.items():
        _KNOWN.setdefault(key, report)
    return found


def _remember(index: Path, known: Mapping[tuple[str, int, int], FileReport]) -> None:
    latest = {path: (path, size, time, report) for (path, size, time), report in known.items()}  # the last one counts
    entries = [
        [path, size, time, report.digest, report.shape, report.affine.tolist(), report.measured]
        for path, size, time, report in latest.values()
        if report.shape is not None and report.affine is not None
    ]
    with replacing(index) as beside:
        beside.write_text(json.dumps({"version": INDEX_VERSION, "files": entries}), encoding="utf-8")


def _inspect(path: str) -> FileReport:
    """Read one file as training will, and note everything that would trouble it."""
    report = FileReport()
    place, _ = split_series(path)
    if place.is_dir() and not holds_dicom(place):
        report.faults.append("is a folder, expected a file or a folder of DICOM")
        return report
    try:
        if not place.is_dir():
            check_regular(place)  # before the digest, which would wait for a pipe
        report.digest = _digest(files_of(path))
        image = read_image(path)
    except ImageError as error:
        report.faults.append(str(error))
        return report
    except Exception as error:  # readers raise whatever their format's library raises
        report.faults.append(f"cannot be read ({_reason(error)})")
        return report
    report.shape = tuple(image.shape[1:])
    report.faults += _check_values(image.as_tensor().numpy())
    report.affine = image.affine.numpy()
    report.measured = not image.meta.get(UNMEASURED_KEY, False)
    determinant = float(np.linalg.det(report.affine))
    if not np.isfinite(determinant) or determinant == 0:
        report.faults.append(f"has an affine that cannot be inverted: {format_affine(report.affine)}")
        report.affine = None
    return report


def _digest(files: Sequence[Path]) -> str:
    """Digest of an image's files, whatever these are called where there are several."""
    digests = sorted(file_digest(file) for file in files)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _reason(error: BaseException) -> str:
    """Return the first cause of an error on one line."""
    error = innermost_cause(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__


def _check_values(values: np.ndarray) -> list[str]:
    """Return the faults in an image's values."""
    if values.size == 0:
        return ["holds no voxel"]
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        return [f"holds {nans} NaN and {infinities} infinite values among {values.size}"]
    return [f"{CONSTANT}, every value is {low:g}"] if low == high else []


def format_affine(affine: np.ndarray) -> str:
    """Return the upper three rows of an affine on one line."""
    return "[" + ", ".join("[" + ", ".join(f"{value:.5g}" for value in row) + "]" for row in affine[:3]) + "]"
