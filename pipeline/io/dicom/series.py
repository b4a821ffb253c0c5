"""Which DICOM series lie in a place, and which of them is meant. Only headers are read here."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from pipeline.io.dicom.quiet import quiet
from pipeline.io.formats import READABLE, ImageError

DICOMDIR = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "Modality",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SpecificCharacterSet",
]
_PERSONAL = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "OtherPatientIDs")
# Names of files that are slices, if they are anything: no suffix, or one of these, or digits as in the end of a UID.
_SLICE_SUFFIX = re.compile(r"\.(dcm|dicom|dic|ima|\d+)", re.IGNORECASE)
_OWN_NAMES = {"dicomdir", "readme", "license", "lockfile", "version", "thumbs.db", "changes", "makefile"}
_LISTED = 12  # series, or files, that an error names at most


@dataclass(frozen=True)
class Series:
    """A series as its files' headers tell of it; ``str()`` of it is what may be shown.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        description: SeriesDescription, or "".
        modality: such as ``MR`` or ``CT``.
        number: SeriesNumber, or None.
        count: images: slices, or frames where an object has several.
        files: those of the series, in the order of their names.
        patient: PatientID; where that is empty, name and date of birth; where these are, "". For grouping only: it
            identifies a person, and belongs into no log, name or report.
        image: whether it holds images, in contrast to reports, plans and the like.
    """

    uid: str
    study_uid: str
    description: str
    modality: str
    number: int | None
    count: int
    files: tuple[Path, ...] = field(repr=False)
    patient: str = field(repr=False)
    image: bool = True

    def __str__(self) -> str:
        what = f"{self.count} image{'' if self.count == 1 else 's'}" if self.image else "no images"
        return f'"{self.description}" ({self.modality or "no modality"}, {what}, {self.uid})'


def holds_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a DICOM file, or a folder with one in it, however deep."""
    path = Path(path)
    return any(_looks_like_dicom(file) for file in ([path] if path.is_file() else _files_below(path)))


@quiet()
def find_series(path: str | os.PathLike[str], faults: list[str] | None = None) -> list[Series]:
    """List the DICOM series of a place.

    Args:
        path: a file, which stands for itself and not for the series that it is of; a DICOMDIR, which stands for the
            files that it names; or a folder with everything below it. Files without a suffix count, and of others
            those that are no DICOM are left aside.
        faults: takes what is wrong with single files, which are then left aside; None to raise it. Reading a series
            that such a file belongs to is refused all the same.

    Returns:
        In the order of patients, studies and numbers; objects without images among them, with ``image`` False.

    Raises:
        ImageError: there is no DICOM, a file that should be a slice is empty, damaged or none, or a file that a
            DICOMDIR names is missing; the message does not name ``path``.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError("does not exist")
    if path.is_file():
        header = _header(path, "")
        files = list(_files_of_dicomdir(path)) if _is_dicomdir(header) else [path]
    else:
        files = _slices_below(path, faults)
    root = path if path.is_dir() else path.parent
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    for file in files:
        try:
            header = _header(file, "" if file == path else f"holds {shown_below(file, root)}, which ")
        except ImageError as error:
            if faults is None:
                raise
            faults.append(str(error))
            continue
        if not _is_dicomdir(header):
            found.setdefault(text_of(header, "SeriesInstanceUID"), []).append((file, header))
    if not found:
        raise ImageError("holds no DICOM file" if path.is_dir() else "is a DICOMDIR that names no file")
    series = [_series(uid, members) for uid, members in found.items()]
    return sorted(series, key=lambda one: (one.patient, one.study_uid, one.number is None, one.number or 0, one.uid))


def choose_series(path: str | os.PathLike[str] | Sequence[Series], series: str | None = None) -> Series:
    """Find the one series that is meant.

    Args:
        path: see `find_series`, or what it returned.
        series: SeriesInstanceUID; or a pattern on SeriesDescription such as ``*T1*``, in which case does not count; or
            a modality such as ``CT``. Not needed where there is only one series of images.

    Raises:
        ImageError: no series or several fit, and the message lists those that are there; or see `find_series`.
    """
    every = find_series(path) if isinstance(path, str | os.PathLike) else list(path)
    images = [one for one in every if one.image]
    if not images:
        raise ImageError(f"holds no series of images, but {_list(every)}")
    fitting = images if series is None else _fitting(images, str(series))
    if len(fitting) == 1:
        return fitting[0]
    if series is not None and not fitting:
        raise ImageError(
            f"has no series {series!r} (a SeriesInstanceUID, a pattern of descriptions or a modality); "
            f"it has {_list(images)}"
        )
    asked = "" if series is None else f" that fit {series!r}"
    raise ImageError(
        f"holds {len(fitting)} DICOM series{asked}, and it is not clear which is meant; name one by its "
        f"SeriesInstanceUID, a pattern of its description or its modality: {_list(fitting)}"
    )


def _fitting(images: Sequence[Series], asked: str) -> list[Series]:
    for fits in (
        lambda one: one.uid == asked,
        lambda one: fnmatch.fnmatchcase(one.description.lower(), asked.lower()),
        lambda one: one.modality.lower() == asked.lower(),
    ):
        found = [one for one in images if fits(one)]
        if found:
            return found
    return []


def _list(series: Sequence[Series]) -> str:
    more = f", and {len(series) - _LISTED} more" if len(series) > _LISTED else ""
    return ", ".join(str(one) for one in series[:_LISTED]) + more


def _series(uid: str, members: Sequence[tuple[Path, Dataset]]) -> Series:
    _, first = members[0]
    identity = "|".join(filter(None, (text_of(first, "PatientName"), text_of(first, "PatientBirthDate"))))
    number = text_of(first, "SeriesNumber")
    return Series(
        uid=uid,
        study_uid=text_of(first, "StudyInstanceUID"),
        description=text_of(first, "SeriesDescription"),
        modality=text_of(first, "Modality"),
        number=int(float(number)) if re.fullmatch(r"[+-]?\d+(\.0*)?", number) else None,
        count=sum(int(text_of(header, "NumberOfFrames") or 1) for _, header in members),
        files=tuple(file for file, _ in members),
        patient=text_of(first, "PatientID") or identity,
        image=any(_is_image(header) for _, header in members),
    )


def _is_image(header: Dataset) -> bool:
    # By its class, so that an image without pixels is a fault and not something else.
    name = UID(text_of(header, "SOPClassUID")).name
    return "Rows" in header or ("Image Storage" in name and "Softcopy" not in name)


def text_of(header: Dataset, keyword: str) -> str:
    """An attribute as a text, "" where it is not there."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _header(file: Path, which: str) -> Dataset:
    """The header of one file, as far as listing needs it; ``which`` says of what an error speaks."""
    if file.stat().st_size == 0:
        raise ImageError(f"{which}is empty")
    try:
        force = not _has_magic(file)
        if force and not _looks_like_dicom(file):
            raise ImageError(f"{which}is no DICOM file")
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*_TAGS], force=force)
        _ = [text_of(header, name) for name in _TAGS]  # values are decoded when they are asked for
    except ImageError:
        raise
    except Exception as error:  # pydicom raises whatever a damaged file leads to
        raise ImageError(f"{which}has a damaged DICOM header ({type(error).__name__})") from error
    missing = [name for name in ("SOPClassUID", "SeriesInstanceUID") if not text_of(header, name)]
    if missing and not _is_dicomdir(header):
        raise ImageError(f"{which}has a DICOM header that is cut short or does not say what it is (no {missing[0]})")
    return header


def _is_dicomdir(header: Any) -> bool:
    return str(getattr(header.file_meta, "MediaStorageSOPClassUID", "")) == DICOMDIR


def _has_magic(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _looks_like_dicom(file: Path) -> bool:
    """Whether a file begins as DICOM does, with a preamble or, as old ones do, with group 2 or 8 at once."""
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    # Without preamble: a tag of group 2 or 8, then a representation of two letters or a short length.
    if len(start) < 132 or start[:2] not in (b"\x02\0", b"\x08\0") or start[3] != 0:
        return False
    return (start[4:6].isalpha() and start[4:6].isupper()) or start[6:8] == b"\0\0"


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            file for name in sorted(names) if not name.startswith(".") and (file := Path(place, name)).is_file()
        )


def _slices_below(folder: Path, faults: list[str] | None) -> list[Path]:
    """The DICOM files of a folder, among which a file that only lost its content is not overlooked."""
    found = [(file, _looks_like_dicom(file)) for file in _files_below(folder)]
    slices = [file for file, fits in found if fits]
    if not slices:
        raise ImageError("holds no DICOM file")
    folders = {file.parent for file in slices}
    for file, fits in found:
        if fits or file.parent not in folders or file.name.lower().endswith(READABLE):
            continue
        named = not file.suffix or _SLICE_SUFFIX.fullmatch(file.suffix)
        if named and file.name.lower() not in _OWN_NAMES:
            what = "empty" if file.stat().st_size == 0 else "no DICOM file, or a damaged one"
            fault = f"holds {shown_below(file, folder)}, which is {what}"
            if faults is None:
                raise ImageError(fault)
            faults.append(fault)
    return slices


def shown_below(file: Path, root: Path) -> str:
    """A file's name as an error about a place says it."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _files_of_dicomdir(path: Path) -> Iterator[Path]:
    try:
        records = pydicom.dcmread(path).DirectoryRecordSequence
        names = [record.ReferencedFileID for record in records if record.get("ReferencedFileID")]
    except Exception as error:  # see _header
        raise ImageError(f"is a DICOMDIR that cannot be read ({type(error).__name__})") from error
    missing = []
    for name in names:
        parts = [str(part) for part in ([name] if isinstance(name, str) else name)]
        if any(part in ("", ".", "..") or re.search(r"[/\\:]", part) for part in parts):
            raise ImageError(f"is a DICOMDIR that names a file outside of its folder: {'/'.join(parts)}")
        file = _any_case(path.parent, parts)
        if file is None:
            missing.append("/".join(parts))
        else:
            yield file
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ImageError(
            f"is a DICOMDIR of {len(names)} files, of which {len(missing)} are missing: {', '.join(missing[:3])}{more}"
        )


@quiet()
def name_for_files(place: Path, series: Series, several: bool) -> str:
    """What files that are made of a series may be called: like its place, unless that tells who the patient is.

    Args:
        place: file or folder of the series.
        series: that lies there.
        several: whether other series lie there, too, so that its number belongs into the name.
    """
    number = "" if series.number is None else str(series.number)
    name = place.stem if place.is_file() else place.resolve().name
    header = pydicom.dcmread(series.files[0], stop_before_pixels=True, specific_tags=[*_PERSONAL], force=True)
    personal = re.findall(r"\w{3,}", " ".join(text_of(header, tag) for tag in _PERSONAL).lower().replace("_", " "))
    if not name or any(word in name.lower() for word in personal):
        return f"series{number}-{hashlib.sha256(series.uid.encode()).hexdigest()[:8]}"
    return f"{name}_series{number}" if several else name


def _any_case(folder: Path, parts: Sequence[str]) -> Path | None:
    """A file that a DICOMDIR names in capitals, where a disk was copied in small letters."""
    for part in parts:
        place = folder / part
        if not place.exists():
            if not folder.is_dir():
                return None
            place = next((other for other in folder.iterdir() if other.name.lower() == part.lower()), place)
        folder = place
    return folder if folder.is_file() else None
