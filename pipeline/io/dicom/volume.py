"""A DICOM series as a volume, once its headers say that it is one."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.io.dicom.quiet import quiet
from pipeline.io.dicom.series import Series, shown_below, text_of
from pipeline.io.formats import ImageError, Raw

SOURCE_KEY = "dicom_source"
"""Entry of an image's metadata: the files of its slices and their frames, in order, as JSON."""

PLACE_TOLERANCE = 0.05
"""How far a slice may lie from where an even stack has it: in its plane in pixels, across in distances of slices."""

DIRECTION_TOLERANCE = 1e-3
"""How far the direction cosines of the slices may be apart, and from right angles (0.06 degrees)."""

SAME_PLACE = 1e-3
"""Slices that are less than so many mm apart are at one place."""

# What GDCM unpacks (and ITK has built in), by UID; video and the newer kinds of JPEG are not among it.
SYNTAXES = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
}

# What all slices of one volume share, and what it means where one does not.
_SHARED = {
    "PatientID": "is of another patient",
    "PatientName": "is of another patient",
    "PatientBirthDate": "is of another patient",
    "StudyInstanceUID": "is of another study",
    "FrameOfReferenceUID": "lies in another frame of reference",
    "Modality": "is of another modality",
    "SOPClassUID": "is another kind of object",
}
# What parts several volumes of one series, for a hint.
_PARTS = ("EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "DiffusionBValue", "TriggerTime", "ImageType")
# Where objects of several frames keep what those of one have at the top.
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    **dict.fromkeys(("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"), "PixelMeasuresSequence"),
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept", "RescaleType"), "PixelValueTransformationSequence"),
}
_PLANES = ("sagittal", "coronal", "axial")
_LISTED = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Frame:
    """One slice: where it lies, and how its stored values are to be understood; lengths are in mm, axes DICOM's."""

    file: Path
    shown: str
    index: int
    position: np.ndarray
    directions: np.ndarray  # (2, 3): along a row, along a column
    pixel: tuple[float, float]  # between columns, between rows
    size: tuple[int, int]  # columns, rows
    rescale: tuple[float, float]  # slope, intercept
    thickness: float
    distance: float  # SpacingBetweenSlices, or 0
    parts: Mapping[str, str]


@quiet()
def read_raw(series: Series) -> Raw:
    """Read a series as one volume.

    Slices are sorted along their normal, and rescale slope and intercept of each are applied.

    Args:
        series: see `pipeline.io.dicom.choose_series`.

    Returns:
        Voxels (columns, rows, slices), float32, and their affine; the metadata say of which files they are.

    Raises:
        ImageError: it is not one volume of one channel on an even grid, or its values or places are not known; the
            message names the file and what is wrong, and nobody's name.
    """
    root = Path(os.path.commonpath([file.parent for file in series.files]))
    frames = _sound_frames(series, root)
    order, affine = _stack(frames)
    voxels = np.empty((*frames[0].size, len(frames)), dtype=np.float32)
    place = {id(frames[n]): k for k, n in enumerate(order)}
    by_file: dict[Path, list[_Frame]] = {}
    for frame in frames:
        by_file.setdefault(frame.file, []).append(frame)
    for file, members in by_file.items():
        decoded, applied = _decode(file, members[0].shown)
        columns, rows = members[0].size
        if decoded.shape != (len(members), rows, columns):
            raise ImageError(f"{_which(members[0])}holds pixels of another size than its header says")
        for frame in members:
            voxels[:, :, place[id(frame)]] = _rescaled(decoded[frame.index], applied, frame.rescale).T
    sources = [frames[n] for n in order]
    meta = {"files": [str(frame.file) for frame in sources], "frames": [frame.index for frame in sources]}
    return Raw(voxels, affine, {SOURCE_KEY: json.dumps(meta)})


def _sound_frames(series: Series, root: Path) -> list[_Frame]:
    frames: list[_Frame] = []
    about: list[tuple[str, dict[str, str]]] = []
    alone = len(series.files) == 1
    for file in series.files:
        shown = "" if alone else shown_below(file, root)
        which = f"holds {shown}, which " if shown else ""
        header = _read_whole(file, which)
        names = ("SOPInstanceUID", *_SHARED)
        about.append((shown, {name: text_of(header, name) for name in names} | {"localizer": _localizer(header)}))
        _check_pixels(header, which)
        frames += _frames(header, file, shown)
    _check_shared(about)
    return frames


def _which(frame: _Frame) -> str:
    return f"holds {frame.shown}, which " if frame.shown else ""


def _localizer(header: Dataset) -> str:
    return "yes" if "LOCALIZER" in str(header.get("ImageType") or "").upper() else ""


def _read_whole(file: Path, which: str) -> Dataset:
    try:
        return pydicom.dcmread(file, force=True)
    except Exception as error:  # pydicom raises whatever a damaged file leads to
        raise ImageError(f"{which}is cut short or damaged ({type(error).__name__})") from error


def _check_pixels(header: Dataset, which: str) -> None:
    """Refuse what is no image of one channel, or whose values are not known."""
    if "PixelData" not in header or not header.get("Rows") or not header.get("Columns"):
        raise ImageError(f"{which}has no pixel data (PixelData, Rows, Columns)")
    syntax = str(getattr(header.file_meta, "TransferSyntaxUID", "") or "1.2.840.10008.1.2")
    if syntax not in SYNTAXES:
        raise ImageError(
            f"{which}has the transfer syntax {UID(syntax).name}{'' if UID(syntax).name == syntax else f' ({syntax})'}, "
            "which cannot be read; expected plain, deflated, RLE, JPEG, JPEG-LS or JPEG 2000"
        )
    colour, samples = text_of(header, "PhotometricInterpretation"), int(header.get("SamplesPerPixel") or 1)
    if samples != 1 or colour != "MONOCHROME2":
        why = "its greys are inverted" if colour == "MONOCHROME1" else f"it has {samples} channel(s)"
        raise ImageError(f"{which}has PhotometricInterpretation {colour or 'unsaid'}, expected MONOCHROME2: {why}")
    length, data = int(header.get("BitsAllocated") or 0) // 8, header["PixelData"].value
    expected = int(header.Rows) * int(header.Columns) * int(header.get("NumberOfFrames") or 1) * length
    plain = not UID(syntax).is_compressed or syntax == "1.2.840.10008.1.2.1.99"
    if plain and (length not in (1, 2, 4) or len(data) < expected):
        raise ImageError(f"{which}is cut short: {len(data)} bytes of pixel data, expected {expected}")
    if header.get("ModalityLUTSequence"):
        raise ImageError(f"{which}has a table of values (ModalityLUTSequence) instead of a slope and an intercept")


def _check_shared(about: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Refuse a file that is not of the others' patient and volume, or is there twice; says no identifier."""
    scouts = [shown for shown, values in about if values["localizer"]]
    if 0 < len(scouts) < len(about):
        raise ImageError(f"holds {len(scouts)} localiser(s) among {len(about)} files (ImageType), first {scouts[0]}")
    for name, means in _SHARED.items():
        counts = Counter(values[name] for _, values in about)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = [shown for shown, values in about if values[name] != usual]
            others = f"{counts[usual]} other{'' if counts[usual] == 1 else 's'}"
            more = f"; {len(odd)} files are not like these" if len(odd) > 1 else ""
            raise ImageError(f"holds {odd[0]}, which {means} than {others} of its series ({name} differs){more}")
    seen: dict[str, str] = {}
    for shown, values in about:
        first = seen.setdefault(values["SOPInstanceUID"], shown)
        if first != shown:
            raise ImageError(f"holds one image twice, as {first} and {shown} (SOPInstanceUID)")


def value_in_frame(header: Dataset, frame: int, keyword: str) -> Any:
    """An attribute of one frame, from where it stands in an object of one or of several; None where it says nothing."""
    own, group = header.get("PerFrameFunctionalGroupsSequence"), _GROUPS.get(keyword)
    if not own or group is None:
        return header.get(keyword)
    for place in (own[frame], *(header.get("SharedFunctionalGroupsSequence") or [])):
        items = place.get(group) or []
        if items and items[0].get(keyword) not in (None, ""):
            return items[0].get(keyword)
    return None


def _frames(header: Dataset, file: Path, shown: str) -> list[_Frame]:
    """The slices of one object, which may be of several frames."""
    count = int(header.get("NumberOfFrames") or 1)
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    which = f"holds {shown}, which " if shown else ""
    if len(own) not in (0, count):
        raise ImageError(f"{which}has {count} frames and describes {len(own)} of them")
    if count > 1 and not own:
        raise ImageError(
            f"{which}has {count} frames and does not say where they lie (PerFrameFunctionalGroupsSequence)"
        )

    def numbers(index: int, keyword: str, length: int) -> np.ndarray:
        value = value_in_frame(header, index, keyword)
        try:
            found = np.array([float(part) for part in ([] if value is None else value)])
        except (TypeError, ValueError):
            found = np.array([])
        if found.shape != (length,) or not np.isfinite(found).all():
            where = f" of frame {index + 1}" if own else ""
            said = "no" if value is None else "an unsound"
            raise ImageError(f"{which}does not say where it lies ({said} {keyword}{where})")
        return found

    def number(index: int, keyword: str, default: float) -> float:
        value = value_in_frame(header, index, keyword)
        try:
            return default if value in (None, "") else float(value)
        except (TypeError, ValueError):
            raise ImageError(f"{which}has {keyword} that is no number") from None

    result = []
    for index in range(count):
        directions = numbers(index, "ImageOrientationPatient", 6).reshape(2, 3)
        if np.abs(directions @ directions.T - np.eye(2)).max() > DIRECTION_TOLERANCE:
            raise ImageError(f"{which}has ImageOrientationPatient that is not of two directions at a right angle")
        between_rows, between_columns = numbers(index, "PixelSpacing", 2)
        if min(between_rows, between_columns) <= 0:
            raise ImageError(f"{which}has PixelSpacing that is not above 0")
        slope, intercept = (number(index, name, np.nan) for name in ("RescaleSlope", "RescaleIntercept"))
        kind = value_in_frame(header, index, "RescaleType")
        if text_of(header, "Modality") == "CT":
            if not np.isfinite([slope, intercept]).all():
                raise ImageError(
                    f"{which}is CT and does not say how its values become HU (RescaleSlope, RescaleIntercept)"
                )
            if str(kind or "HU").strip().upper() not in ("HU", "HU_MOD"):
                raise ImageError(f"{which}is CT with values in {kind} (RescaleType), expected HU")
        slope, intercept = float(np.nan_to_num(slope, nan=1.0)), float(np.nan_to_num(intercept, nan=0.0))
        if slope == 0:
            raise ImageError(f"{which}has RescaleSlope 0")
        result.append(
            _Frame(
                file=file,
                shown=shown,
                index=index,
                position=numbers(index, "ImagePositionPatient", 3),
                directions=directions,
                pixel=(float(between_columns), float(between_rows)),
                size=(int(header.Columns), int(header.Rows)),
                rescale=(slope, intercept),
                thickness=number(index, "SliceThickness", 0.0),
                distance=number(index, "SpacingBetweenSlices", 0.0),
                parts={name: str(header.get(name)) for name in _PARTS if header.get(name) is not None},
            )
        )
    return result


def _stack(frames: Sequence[_Frame]) -> tuple[list[int], np.ndarray]:
    """The order of slices along their normal, and the affine to RAS in mm; refuses what is no even stack."""
    first = frames[0]
    _check_alike(frames)
    directions = first.directions / np.linalg.norm(first.directions, axis=1, keepdims=True)
    normal = np.cross(*directions)
    normal /= np.linalg.norm(normal)
    positions = np.array([frame.position for frame in frames])
    across = positions @ normal
    order = [int(n) for n in np.argsort(across, kind="stable")]
    across = across[order]
    spacing = _even_spacing(across, [frames[n] for n in order])
    offsets = (positions[order] - positions[order[0]]) @ directions.T
    drift = np.abs(offsets).max(axis=0)
    if (drift > PLACE_TOLERANCE * np.array(first.pixel)).any():
        _refuse_drift(offsets, across, drift)
    affine = np.eye(4)
    affine[:3, 0] = directions[0] * first.pixel[0]
    affine[:3, 1] = directions[1] * first.pixel[1]
    affine[:3, 2] = normal * spacing
    affine[:3, 3] = positions[order[0]]
    return order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _refuse_drift(offsets: np.ndarray, across: np.ndarray, drift: np.ndarray) -> None:
    steps, moved = np.diff(across)[:, None], np.diff(offsets, axis=0)
    tilt = np.degrees(np.arctan(np.linalg.norm((moved / steps).mean(axis=0))))
    even = np.allclose(moved / steps, (moved / steps).mean(axis=0), atol=0.02)
    what = f"lean by {tilt:.3g} degrees (gantry tilt)" if even else "are shifted against each other"
    raise ImageError(
        f"holds slices that {what}, by up to {drift.max():.3g} mm in their plane (allowed: {PLACE_TOLERANCE} of a "
        "pixel); bring them onto a straight grid first, with dcm2niix for instance"
    )


def _check_alike(frames: Sequence[_Frame]) -> None:
    """Refuse slices of more than one size or direction."""
    for name, title in (("size", "columns and rows"), ("pixel", "mm between columns and rows")):
        counts: Counter[tuple[float, ...]] = Counter(
            tuple(round(value, 4) for value in getattr(frame, name)) for frame in frames
        )
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = next(f for f in frames if tuple(round(value, 4) for value in getattr(f, name)) != usual)
            sizes = " and ".join(f"{count} of {size}" for size, count in counts.most_common(_LISTED))
            raise ImageError(f"holds slices of different size ({title}): {sizes}; {_named(odd)} is one of the latter")
    groups: list[list[_Frame]] = []
    for frame in frames:
        near = (g for g in groups if np.abs(g[0].directions - frame.directions).max() <= DIRECTION_TOLERANCE)
        group = next(near, None)
        groups.append([frame]) if group is None else group.append(frame)
    if len(groups) == 1:
        return
    groups.sort(key=len, reverse=True)
    normals = [np.cross(*group[0].directions) for group in groups]
    planes: Counter[str] = Counter()
    for group, normal in zip(groups, normals, strict=True):
        planes[_PLANES[int(np.abs(normal).argmax())]] += len(group)
    angle = max(float(np.degrees(np.arccos(np.clip(abs(normals[0] @ other), 0, 1)))) for other in normals[1:])
    if len(planes) > 1:
        what = "several orientations: " + ", ".join(f"{count} {plane}" for plane, count in planes.most_common())
    elif angle > np.degrees(DIRECTION_TOLERANCE):
        what = f"slices that are not parallel, but up to {angle:.3g} degrees apart"
    else:
        what = f"slices turned in their plane, {len(groups[0])} of {len(frames)} alike"
    raise ImageError(f"holds {what}; {_named(groups[-1][0])} is not like most")


def _named(frame: _Frame) -> str:
    return f"{frame.shown or 'frame'} {frame.index + 1}" if not frame.shown or frame.index else frame.shown


def _even_spacing(across: np.ndarray, frames: Sequence[_Frame]) -> float:
    """Distance of neighbouring slices in mm, from their sorted places along the normal."""
    if len(frames) == 1:
        spacing = frames[0].thickness or frames[0].distance
        if spacing <= 0:
            logger.warning("a single slice does not say how thick it is (SliceThickness); 1 mm is assumed")
        return spacing if spacing > 0 else 1.0
    steps = np.diff(across)
    apart = steps[steps > SAME_PLACE]
    usual = float(np.median(apart)) if apart.size else 0.0
    same = np.flatnonzero(steps <= max(SAME_PLACE, PLACE_TOLERANCE * usual))
    if same.size:
        one, other = frames[same[0]], frames[same[0] + 1]
        parts = [name for name in _PARTS if one.parts.get(name) != other.parts.get(name)]
        hint = f"; they differ in {', '.join(parts)}: several volumes in one series" if parts else ""
        raise ImageError(
            f"holds more than one slice at {same.size} place{'' if same.size == 1 else 's'}, first {_named(one)} and "
            f"{_named(other)}{hint}"
        )
    least = float(steps.min())
    counts = steps / least
    if (np.abs(counts - np.rint(counts)) <= PLACE_TOLERANCE * np.rint(counts)).all() and (np.rint(counts) > 1).any():
        gaps = np.flatnonzero(np.rint(counts) > 1)
        missing = int((np.rint(counts) - 1).sum())
        between = ", ".join(f"{_named(frames[g])} and {_named(frames[g + 1])}" for g in gaps[:_LISTED])
        raise ImageError(
            f"has gaps: {len(frames)} slices where {len(frames) + missing} at {least:.4g} mm belong, so {missing} "
            f"{'is' if missing == 1 else 'are'} missing, between {between}"
            f"{' and elsewhere' if gaps.size > _LISTED else ''}"
        )
    spacing = float((across[-1] - across[0]) / (len(frames) - 1))
    off = np.abs(across - across[0] - spacing * np.arange(len(frames)))
    if off.max() > PLACE_TOLERANCE * spacing:
        raise ImageError(
            f"holds slices at unequal distances, {steps.min():.4g} to {steps.max():.4g} mm; "
            f"{_named(frames[int(off.argmax())])} lies {off.max():.3g} mm from its place in an even stack "
            f"(allowed: {PLACE_TOLERANCE} of {spacing:.4g} mm)"
        )
    said = frames[0].distance
    times = spacing / said if said > 0 else 0.0
    if times > 1.5 and abs(times - round(times)) <= PLACE_TOLERANCE * times:
        raise ImageError(
            f"has gaps: slices lie {spacing:.4g} mm apart where the headers say {said:.4g} mm (SpacingBetweenSlices), "
            f"so that {round(times) - 1} of every {round(times)} are missing"
        )
    return spacing


def _decode(file: Path, shown: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Frames (N, rows, columns) of a file as GDCM unpacks them, and the slope and intercept that it applied."""
    which = f"holds {shown}, which " if shown else ""
    reader = itk.GDCMImageIO.New()
    try:
        image = itk.imread(str(file), imageio=reader)
        array = itk.array_from_image(image)
    except Exception as error:  # ITK wraps exceptions of C++
        raise ImageError(f"{which}has pixel data that cannot be unpacked, cut short or damaged") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{which}has {image.GetNumberOfComponentsPerPixel()} channels, expected 1")
    return array.reshape(-1, *array.shape[-2:]), (reader.GetRescaleSlope(), reader.GetRescaleIntercept())


def _rescaled(values: np.ndarray, applied: tuple[float, float], wanted: tuple[float, float]) -> np.ndarray:
    """Values under the slope and intercept of their own frame; GDCM knows one pair a file, and of MR none."""
    if applied == wanted:
        return values
    stored = np.rint((values.astype(np.float64) - applied[1]) / applied[0])
    return stored * wanted[0] + wanted[1]
