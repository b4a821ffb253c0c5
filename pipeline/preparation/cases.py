"""One pair of scans made into a case to train on: registered, masked, resampled once, judged."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

from pipeline.files import replacing
from pipeline.io import ImageError, files_of, read_image, write_image
from pipeline.io.reading import AFFINE_KEY, SHAPE_KEY
from pipeline.preparation.pictures import draw_case
from pipeline.preparation.registration import (
    Registration,
    RegistrationError,
    Scan,
    register,
    transform_of,
)
from pipeline.preparation.studies import Pair
from transforms import foreground_mask

GOOD, DOUBTFUL, FAILED = "good", "doubtful", "failed"
MARGIN = 5.0
"""What cropping leaves around the mask, in mm."""


@dataclass(frozen=True)
class Thresholds:
    """When a case is no longer good: from the first number on it is doubtful, from the second on it has failed.

    Attributes:
        halves: mm between the answer and that of half the head alone (`Registration.halves`).
        blocks: share of the blocks inside the head that agree with the answer (`Registration.blocks`), at least; a
            wrong patient has few. Too few voxels for any block are doubtful.
        spread: mm between the answers from the two best starts.
        overlap: share of the mask in both fields of view, at least.
        information: mutual information in nats, at least.
        residual: mm that the target lies off where its header's alignment is kept.
    """

    halves: tuple[float, float] = (1.5, 4.0)
    blocks: tuple[float, float] = (0.75, 0.4)
    spread: tuple[float, float] = (1.0, 4.0)
    overlap: tuple[float, float] = (0.6, 0.35)
    information: tuple[float, float] = (0.15, 0.05)
    residual: tuple[float, float] = (1.5, 6.0)

    def judge(self, found: Registration, registered: bool = True) -> tuple[str, list[str]]:
        """The verdict, and what speaks against the case, with numbers.

        Args:
            found: the registration.
            registered: whether its movement was done.
        """
        checks = [
            ("halves", "halves of the head disagree by {} mm", found.halves, self.halves, 1),
            ("blocks", "only {} of the blocks inside the head agree: another patient?", found.blocks, self.blocks, -1),
            ("spread", "the two best starts disagree by {} mm", found.spread, self.spread, 1),
            ("overlap", "the fields of view share {} of the mask", found.overlap, self.overlap, -1),
            ("information", "mutual information is {} nats", found.after, self.information, -1),
            ("residual", "the target lies {} mm off", 0.0 if registered else found.mean, self.residual, 1),
        ]
        worst, reasons = 0, []
        if np.isnan(found.blocks):
            worst, reasons = 1, ["there is too little inside the head to compare block by block"]
        for name, text, value, limits, sign in checks:
            grade = sum(sign * value >= sign * limit for limit in limits)
            worst = max(worst, grade)
            if grade:
                reasons.append(f"{text.format(f'{value:.2f}')} ({name} {limits[grade - 1]:g})")
        return (GOOD, DOUBTFUL, FAILED)[worst], reasons


@dataclass(frozen=True)
class Settings:
    """How cases are prepared.

    Attributes:
        registration: False keeps the header's alignment, and tells the residual.
        spacing: sides of a voxel of the result in mm, one or three along the source's axes; None for the source's.
        bias_correction: N4 (Tustison et al., IEEE TMI 2010) on both scans.
        crop: cut the volumes to the mask.
        thresholds: of the verdict.
    """

    registration: bool = True
    spacing: tuple[float, ...] | None = None
    bias_correction: bool = False
    crop: bool = False
    thresholds: Thresholds = Thresholds()


@dataclass(frozen=True)
class Order:
    """A case to prepare; plain values, since it may travel to another process."""

    case: str
    patient: str
    pair: Pair
    output_dir: str
    settings: Settings


@dataclass(frozen=True)
class Outcome:
    """What came of a case, as the report has it. Millimetres, nats and shares are those of `Registration`."""

    case: str
    patient: str
    verdict: str
    reasons: str
    information_before: float | None = None
    information_after: float | None = None
    spread_mm: float | None = None
    agreeing_starts: float | None = None
    halves_mm: float | None = None
    agreeing_blocks: float | None = None
    mean_mm: float | None = None
    largest_mm: float | None = None
    through_plane_mm: float | None = None
    overlap: float | None = None
    registered: bool = False

    @classmethod
    def columns(cls) -> list[str]:
        """Names of the table's columns."""
        return [each.name for each in fields(cls)]


def places(output_dir: str | os.PathLike[str], case: str) -> dict[str, Path]:
    """The files of a case."""
    root = Path(output_dir)
    return {
        "image": root / "images" / f"{case}.nii.gz",
        "label": root / "labels" / f"{case}.nii.gz",
        "mask": root / "masks" / f"{case}.nii.gz",
        "transform": root / "transforms" / f"{case}.tfm",
        "pictures": root / "pictures" / f"{case}.jpg",
        "record": root / "cases" / f"{case}.json",
    }


def fingerprint(order: Order) -> dict[str, Any]:
    """What a case's result follows from: settings, and sizes and times of its files; no path."""
    sources = [each for each in (order.pair.source, order.pair.target, order.pair.mask) if each]
    states = [[(os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files_of(each)] for each in sources]
    return json.loads(json.dumps({"settings": asdict(order.settings), "files": states}))


def finished(order: Order) -> Outcome | None:
    """What came of a case that is done already, from the same files with the same settings."""
    there = places(order.output_dir, order.case)
    try:
        record = json.loads(there["record"].read_text(encoding="utf-8"))
        same = record["fingerprint"] == fingerprint(order)
        outcome = Outcome(**record["outcome"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outcome if same and all(path.is_file() for path in there.values()) else None


def prepare_case(order: Order) -> Outcome:
    """Prepare a case; its record is written last, so that a case with a record is whole.

    Raises:
        ImageError: a file is none that can be used.
        RegistrationError: the scans cannot be registered.
        OSError: a file cannot be read or written.
    """
    state = fingerprint(order)
    settings = order.settings
    source, target = (
        _read(path, what) for path, what in ((order.pair.source, "source"), (order.pair.target, "target"))
    )
    if order.pair.mask:
        given = _read(order.pair.mask, "mask")
        if given.voxels.shape != source.voxels.shape or not np.allclose(given.affine, source.affine, atol=0.05):
            raise ImageError(
                f"the mask has shape {given.voxels.shape} or a position other than the source's {source.voxels.shape}"
            )
        mask = given.voxels > 0.5
    else:
        mask = foreground_mask(source.voxels, list(source.spacing))
    target_mask = foreground_mask(target.voxels, list(target.spacing))
    if settings.bias_correction:
        source = Scan(_n4(source, mask), source.affine)
        target = Scan(_n4(target, target_mask), target.affine)
    found = register(source, target, mask, target_mask, settings.registration)
    shape, affine = _grid(source, mask, settings)
    own = np.eye(4)
    image = source.voxels if _same(source, shape, affine) else resample(source, own, shape, affine)[0]
    label, seen = resample(target, found.matrix, shape, affine)
    if not _same(source, shape, affine):
        mask = resample(Scan(mask.astype(np.float32), source.affine), own, shape, affine, order=1)[0] > 0.5
    mask = mask & seen
    verdict, reasons = settings.thresholds.judge(found, settings.registration)
    outcome = Outcome(
        order.case, order.patient, verdict, "; ".join(reasons),
        found.before, found.after, found.spread, found.agreeing, found.halves,
        None if np.isnan(found.blocks) else found.blocks,
        found.mean, found.largest, found.through_plane, found.overlap, settings.registration,
    )  # fmt: skip
    there = places(order.output_dir, order.case)
    there["record"].unlink(missing_ok=True)
    like = _like(shape, affine)
    for key, voxels in (("image", image), ("label", label), ("mask", mask)):
        write_image(there[key], voxels.astype(np.float32), like)
    _write_transform(there["transform"], found.matrix, source, mask)
    before = resample(target, own, shape, affine)[0] if settings.registration else None
    there["pictures"].parent.mkdir(parents=True, exist_ok=True)
    with replacing(there["pictures"]) as beside:
        beside.write_bytes(draw_case(image, before, label, mask, np.linalg.norm(affine[:3, :3], axis=0), affine))
    there["record"].parent.mkdir(parents=True, exist_ok=True)
    with replacing(there["record"]) as beside:
        beside.write_text(json.dumps({"outcome": asdict(outcome), "fingerprint": state}, indent=1), encoding="utf-8")
    return outcome


def told(error: Exception) -> str:
    """An error in words that name no file: a path may hold a patient's name."""
    if isinstance(error, ImageError | RegistrationError):
        return str(error)
    return f"{type(error).__name__} while it was prepared"


def _read(path: str, what: str) -> Scan:
    try:
        image = read_image(path)
    except ImageError as error:
        raise ImageError(f"the {what} {error}") from error
    except Exception as error:  # each format's library has exceptions of its own, and they name paths
        raise ImageError(f"the {what} cannot be read ({type(error).__name__})") from error
    voxels = image.numpy()[0]
    if not np.isfinite(voxels).all():
        raise ImageError(f"the {what} holds {int((~np.isfinite(voxels)).sum())} values that are no numbers")
    if voxels.min() == voxels.max():
        raise ImageError(f"the {what} is constant")
    return Scan(voxels, image.affine.numpy())


def _same(scan: Scan, shape: tuple[int, ...], affine: np.ndarray) -> bool:
    return scan.voxels.shape == shape and np.array_equal(scan.affine, affine)


def _grid(source: Scan, mask: np.ndarray, settings: Settings) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the result."""
    low, high = np.zeros(3, int), np.array(source.voxels.shape)
    if settings.crop:
        at = np.argwhere(mask)
        margin = np.ceil(MARGIN / source.spacing).astype(int)
        low, high = np.maximum(at.min(0) - margin, 0), np.minimum(at.max(0) + 1 + margin, high)
    affine = source.affine.copy()
    affine[:3, 3] = (source.affine @ [*low, 1.0])[:3]
    shape = high - low
    if settings.spacing is not None:
        factors = np.broadcast_to(np.array(settings.spacing, float), (3,)) / source.spacing
        affine[:3, :3] = affine[:3, :3] * factors
        shape = np.maximum(np.round(shape / factors), 1).astype(int)
        # The middle of the field stays where it is.
        middle = (source.affine @ [*((low + high - 1) / 2), 1.0])[:3]
        affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(int(length) for length in shape), affine


def resample(
    scan: Scan, matrix: np.ndarray, shape: tuple[int, ...], affine: np.ndarray, order: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """A scan on another grid, in one step from its own voxels.

    Args:
        scan: what is resampled, within its range of values; smoothed before where the new grid is much coarser.
        matrix: 4x4, from a point of the new grid in mm to the one of the scan.
        shape: of the new grid.
        affine: of the new grid.
        order: of the splines.

    Returns:
        The values, the scan's least where it has none, and a boolean array that says where it has some.
    """
    to_voxels = np.linalg.inv(scan.affine) @ matrix @ affine
    voxels = scan.voxels.astype(np.float32)
    coarser = np.abs(to_voxels[:3, :3]).max(1)
    if (coarser > 1.5).any() and order > 1:
        voxels = ndimage.gaussian_filter(voxels, 0.5 * np.sqrt(np.maximum(coarser**2 - 1, 0)))
    low, high = float(scan.voxels.min()), float(scan.voxels.max())
    arguments: dict[str, Any] = {"offset": to_voxels[:3, 3], "output_shape": shape}
    values = ndimage.affine_transform(voxels, to_voxels[:3, :3], order=order, mode="nearest", **arguments)
    field = np.ones(scan.voxels.shape, np.uint8)
    inside = ndimage.affine_transform(field, to_voxels[:3, :3], order=0, mode="constant", cval=0, **arguments) > 0
    return np.where(inside, values.clip(low, high), low).astype(np.float32), inside


def _like(shape: tuple[int, ...], affine: np.ndarray) -> MetaTensor:
    """A grid to write on, with nothing of the scanner's header."""
    meta = {AFFINE_KEY: affine, SHAPE_KEY: np.array(shape)}
    return MetaTensor(torch.zeros(1, 1, 1, 1), affine=torch.from_numpy(affine.copy()), meta=meta)


def _n4(scan: Scan, mask: np.ndarray) -> np.ndarray:
    """Voxels without the slow change of brightness, found at voxels of about 4 mm."""
    import itk

    coarse = scan.shrunk(4.0)
    least = float(scan.voxels.min())
    image = itk.image_from_array(np.ascontiguousarray(coarse.voxels.T - least + 1, dtype=np.float32))
    inside = Scan(mask.astype(np.float32), scan.affine).shrunk(4.0).voxels > 0.5
    region = itk.image_from_array(np.ascontiguousarray(inside.T, dtype=np.uint8))
    corrector = itk.N4BiasFieldCorrectionImageFilter.New(Input=image, MaskImage=region)
    corrector.SetNumberOfFittingLevels(3)
    corrector.SetMaximumNumberOfIterations([50, 50, 30])
    corrector.Update()
    corrected = itk.array_from_image(corrector.GetOutput()).T
    field = np.log((coarse.voxels - least + 1) / np.maximum(corrected, 1e-6))
    field[~inside] = 0
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 2)
    field = np.where(weight > 1e-3, ndimage.gaussian_filter(field * inside, 2) / np.maximum(weight, 1e-3), 0)
    step = np.linalg.inv(coarse.affine) @ scan.affine
    smooth = ndimage.affine_transform(field, step[:3, :3], step[:3, 3], scan.voxels.shape, order=1, mode="nearest")
    return ((scan.voxels - least) / np.exp(smooth) + least).astype(np.float32)


def _write_transform(path: Path, matrix: np.ndarray, source: Scan, mask: np.ndarray) -> None:
    import itk

    path.parent.mkdir(parents=True, exist_ok=True)
    centre = (source.affine @ [*((np.array(source.voxels.shape) - 1) / 2), 1.0])[:3]
    with replacing(path) as beside:
        named = beside.with_name(f"{beside.name}.tfm")  # ITK goes by the end of the name
        try:
            itk.transformwrite([transform_of(matrix, centre)], str(named))
            os.replace(named, beside)
        finally:
            named.unlink(missing_ok=True)
