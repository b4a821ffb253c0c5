"""A translated volume as a derived DICOM series: what is kept of the source, and what is new."""

from __future__ import annotations

import contextlib
import copy
import datetime
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from pipeline.io.dicom.quiet import quiet
from pipeline.io.dicom.series import choose_series
from pipeline.io.dicom.volume import read_raw, value_in_frame

MAKER = "RegGAN bundle (research software)"
"""Manufacturer of derived series; by it, a folder is known to be one of ours."""

WARNING = "NOT FOR CLINICAL USE"

PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
PLACE = (
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "PatientPosition",
    "BodyPartExamined",
    "Laterality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
KEPT = (*PATIENT, *STUDY, *PLACE)
"""Attributes that a derived series has of its source; everything else of it is dropped."""

# Those that have to be there, if only empty, by the modules of CT and MR images.
_NEEDED = (*PATIENT[:2], *PATIENT[3:], *STUDY[1:6], "PositionReferenceIndicator", "PatientPosition", "SliceThickness")
# What the Basic Application Level Confidentiality Profile (PS3.15, E.1) empties or removes of these.
_EMPTIED = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
_REMOVED = ("IssuerOfPatientID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight")
_CT_WINDOW = (40, 400)  # HU, soft tissue
_INT16, _UINT16 = (-32768, 32767), (0, 65535)
_FINE = 1000  # steps that the range of an MR is told in at least

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Derivation:
    """How a volume was made.

    Attributes:
        method: of the model, such as ``reggan``.
        version: of this software.
        sha256: of the model's file, in hexadecimal.
        target: modality in the words of the model, such as ``T2``; "" if it does not know.
        modality: ``CT`` for values in HU, ``MR``; None for that of the source.
        top: greatest value of the model's target window, by which the factor of an MR goes; None for the volume's own.
    """

    method: str
    version: str
    sha256: str
    target: str = ""
    modality: str | None = None
    top: float | None = None


class Pseudonyms:
    """New UIDs and names in place of old ones: with one key, always the same ones, which nobody can trace without it.

    Args:
        key: secret bytes; drawn if None, so that series agree with each other only if they share this object.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Pseudonyms:
        """With the key in a file, which is made, readable for its owner only, where it is missing.

        Raises:
            ValueError: the file holds something else.
        """
        path = Path(path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(secrets.token_hex(32) + "\n")
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise ValueError(f"{path} is no key of pseudonyms, expected 64 hexadecimal digits")
        return cls(key)

    def uid(self, old: str) -> str:
        """UID in place of another one."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', old)[:16], version=4).int}"

    def name(self, old: str) -> str:
        """Name of a patient in place of the ID."""
        return f"ANON-{self._digest('patient', old).hex()[:12].upper()}"

    def _digest(self, kind: str, old: str) -> bytes:
        return hmac.new(self._key, f"{kind}:{old}".encode(), hashlib.sha256).digest()


def write_derived(
    folder: str | os.PathLike[str],
    voxels: Any,
    source: str,
    affine: Any,
    derivation: Derivation,
    pseudonyms: Pseudonyms | None = None,
) -> Path:
    """Write a volume as a series derived from the one that it was made of, one file per slice.

    The files are written beside their place, read back and compared, and renamed at the end: the folder is there as a
    whole or not at all. Kept are `KEPT`; the rest is new. Values of CT are whole HU, those of MR whole numbers from 0
    on, multiplied by a power of ten where they are small, which the DerivationDescription tells.

    Args:
        folder: for the files; if it is there, then empty or a derived series of ours, which is replaced.
        voxels: (columns, rows, slices) in the order of the source's slices.
        source: the source's files, `pipeline.io.dicom.SOURCE_KEY` of its metadata.
        affine: of the source, to RAS in mm.
        derivation: how they were made.
        pseudonyms: to deidentify by the basic profile of DICOM PS3.15; None keeps patient and study.

    Returns:
        The folder.

    Raises:
        ValueError: voxels are not finite, or not as many slices as the source has.
        FileExistsError: something else is in the folder.
        OSError: it cannot be written, or what is read back is not what was written.
    """
    folder = Path(folder)
    array = np.asarray(voxels, dtype=np.float64)
    about = json.loads(source)
    if array.ndim != 3 or array.shape[2] != len(about["files"]):
        raise ValueError(f"expected a volume of {len(about['files'])} slices, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} voxels are NaN or infinite")
    check_free(folder)
    with quiet():
        slices = _slices_of(about["files"], about["frames"])
        modality = derivation.modality or str(slices[0].data.get("Modality") or "")
        if modality not in ("CT", "MR"):
            modality = "MR"
        stored, told = _stored(array, modality, derivation.top)
        for sentence in told:
            logger.info("%s: %s", folder.name, sentence)
        made = _data_sets(slices, stored, modality, derivation, told, pseudonyms)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as beside:
            new = Path(beside) / "series"
            new.mkdir()
            try:
                for number, data in enumerate(made, 1):
                    _save(new / f"IM{number:04d}.dcm", data)
                found = read_raw(choose_series(new))
            except Exception as error:  # each library has exceptions of its own
                raise OSError(f"{folder} could not be written: {str(error).strip() or type(error).__name__}") from error
            same = np.array_equal(found.voxels, stored) and np.allclose(found.affine, affine, atol=1e-3)
            if not same:
                raise OSError(f"{folder} could not be written: what was read back is not what was written")
            if folder.exists():
                check_free(folder)
                os.replace(folder, Path(beside) / "before")
            os.replace(new, folder)
    return folder


def check_free(folder: Path) -> None:
    """Refuse a place where something else than a derived series of ours lies.

    Raises:
        FileExistsError: so it is.
    """
    if not folder.exists():
        return
    files = list(folder.iterdir()) if folder.is_dir() else None
    if files is None or not all(_is_ours(file) for file in files):
        raise FileExistsError(f"{folder} holds something else than a derived series; name another folder")


def _is_ours(file: Path) -> bool:
    try:
        return str(pydicom.dcmread(file, specific_tags=["Manufacturer"]).get("Manufacturer")) == MAKER
    except Exception:  # whatever it is, it is not ours
        return False


class _Slice:
    """A source slice: the header that it is of, and the frame in it."""

    def __init__(self, data: Dataset, frame: int) -> None:
        self.data, self.frame = data, frame
        self.many = int(data.get("NumberOfFrames") or 1) > 1

    def get(self, keyword: str) -> Any:
        """Value of an attribute, from where it stands."""
        with contextlib.suppress(Exception):  # what the source has wrong is dropped
            return _plain(value_in_frame(self.data, self.frame, keyword))
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, pydicom.valuerep.PersonName):
        return str(value)
    return list(value) if isinstance(value, pydicom.multival.MultiValue) else value


def _slices_of(files: Sequence[str], frames: Sequence[int]) -> list[_Slice]:
    headers: dict[str, Dataset] = {}
    for file in files:
        if file not in headers:
            headers[file] = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    return [_Slice(headers[file], frame) for file, frame in zip(files, frames, strict=True)]


def _stored(array: np.ndarray, modality: str, top: float | None) -> tuple[np.ndarray, list[str]]:
    """Whole numbers to store, and what was done to the values, in sentences."""
    if modality == "CT":
        low, high = _INT16
        rounded, told = np.rint(array), []
        beyond = int(((rounded < low) | (rounded > high)).sum())
        if beyond:
            told.append(f"{beyond} values beyond 16 bits were set to the nearest that fits.")
        return np.clip(rounded, low, high).astype(np.int16), told
    greatest = float(array.max())
    scale = top if top is not None and np.isfinite(top) and top > 0 else greatest
    exponent = 0
    if scale > 0:
        while scale * 10.0**exponent < _FINE:
            exponent += 1
        while greatest * 10.0**exponent > _UINT16[1] + 0.49:
            exponent -= 1
    factor = 10.0**exponent
    told = [] if exponent == 0 else [f"Stored values are the computed values times {factor:g}."]
    rounded = np.rint(array * factor)
    negative = int((rounded < 0).sum())
    if negative:
        logger.warning("%d of %d voxels are negative, which an MR image cannot hold; they are 0", negative, array.size)
        told.append(f"{negative} of {array.size} values were negative and are 0, the least of them {array.min():.4g}.")
    return np.clip(rounded, *_UINT16).astype(np.uint16), told


def _data_sets(
    slices: Sequence[_Slice],
    stored: np.ndarray,
    modality: str,
    derivation: Derivation,
    told: Sequence[str],
    pseudonyms: Pseudonyms | None,
) -> Iterator[Dataset]:
    now = datetime.datetime.now()
    target = derivation.target or modality
    series = _new_uid()
    numbers = [one.get("InstanceNumber") for one in slices]
    unique = not any(one.many for one in slices) and None not in numbers and len(set(numbers)) == len(numbers)
    number = slices[0].get("SeriesNumber")
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    common.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"]
    common.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    common.Modality, common.SeriesInstanceUID = modality, series
    common.SeriesNumber = int(number or 0) % 10_000 + 10_000
    common.SeriesDescription = f"SYNTHETIC {target[:30]}, {WARNING}"
    common.Manufacturer, common.ManufacturerModelName = MAKER, derivation.method[:64]
    common.SoftwareVersions = derivation.version[:64]
    common.DerivationDescription = " ".join(
        [
            f"Synthetic {target[:64]}, computed by the RegGAN bundle {derivation.version}, method {derivation.method},",
            f"weights SHA-256 {derivation.sha256}. Research only, not for clinical use.",
            *told,
        ]
    )[:1024]
    common.ImageComments = f"SYNTHETIC IMAGE, {WARNING}"
    common.ContentDate = common.ContentTime = ""
    if pseudonyms is None:
        common.ContentDate, common.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
        common.SeriesDate, common.SeriesTime = common.ContentDate, common.ContentTime
        common.InstanceCreationDate, common.InstanceCreationTime = common.ContentDate, common.ContentTime
    common.AcquisitionNumber = ""
    common.update(_pixel_module(stored, modality))
    for index, one in enumerate(slices):
        data = copy.deepcopy(common)
        for keyword in KEPT:
            value = one.get(keyword)
            if value is not None or keyword in _NEEDED:
                _put(data, keyword, "" if value is None else value)
        data.SOPInstanceUID = _new_uid()
        data.InstanceNumber = int(numbers[index]) if unique else index + 1
        _refer(data, one)
        if pseudonyms is not None:
            _deidentify(data, pseudonyms)
        data.PixelData = np.ascontiguousarray(stored[:, :, index].T).astype(stored.dtype.newbyteorder("<")).tobytes()
        data["PixelData"].VR = "OW"
        yield data


def _put(data: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute; what the source has wrong is left out, or empty where something has to be."""
    try:
        setattr(data, keyword, value)
    except Exception:  # each kind of value has its own
        if keyword in _NEEDED:
            setattr(data, keyword, "")


def _pixel_module(stored: np.ndarray, modality: str) -> Dataset:
    data = Dataset()
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape[1], stored.shape[0]
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    if modality == "CT":
        data.PixelRepresentation, data.KVP = 1, ""
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "HU"
        data.WindowCenter, data.WindowWidth = (str(value) for value in _CT_WINDOW)
        return data
    data.PixelRepresentation = 0
    inside = stored[stored > 0]
    low, high = (0.0, 1.0) if inside.size == 0 else (0.0, float(np.percentile(inside, 99.5)))
    width = max(round(high - low), 1)
    data.WindowCenter, data.WindowWidth = str(round(low + width / 2)), str(width)
    # What was never acquired has no sequence: research mode, and empty where that is allowed.
    data.ScanningSequence, data.SequenceVariant = "RM", "NONE"
    data.ScanOptions = data.MRAcquisitionType = data.RepetitionTime = data.EchoTime = data.EchoTrainLength = ""
    return data


def _refer(data: Dataset, one: _Slice) -> None:
    """Name the slice that an image was made of."""
    purpose = _code("121322", "Source image for image processing operation")
    image, instance = Dataset(), Dataset()
    for item in (image, instance):
        item.ReferencedSOPClassUID = str(one.data.get("SOPClassUID") or "")
        item.ReferencedSOPInstanceUID = str(one.data.get("SOPInstanceUID") or "")
        if one.many:
            item.ReferencedFrameNumber = one.frame + 1
    image.PurposeOfReferenceCodeSequence = [purpose]
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = (
        str(one.data.get("SeriesInstanceUID") or ""),
        [instance],
    )
    data.SourceImageSequence, data.ReferencedSeriesSequence = [image], [series]


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _deidentify(data: Dataset, pseudonyms: Pseudonyms) -> None:
    """Apply the basic profile of PS3.15, table E.1-1, to what is there."""
    name = pseudonyms.name(f"{data.get('PatientID') or ''}|{data.get('IssuerOfPatientID') or ''}")
    for keyword in _REMOVED:
        if keyword in data:
            delattr(data, keyword)
    for keyword in _EMPTIED:
        setattr(data, keyword, "")
    data.ReferringPhysicianName, data.PatientName, data.PatientID = "", name, name
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if data.get(keyword):
            setattr(data, keyword, pseudonyms.uid(str(data.get(keyword))))
    (image,), (series,) = data.SourceImageSequence, data.ReferencedSeriesSequence
    for item in (image, series.ReferencedInstanceSequence[0]):
        item.ReferencedSOPInstanceUID = pseudonyms.uid(str(item.ReferencedSOPInstanceUID))
    series.SeriesInstanceUID = pseudonyms.uid(str(series.SeriesInstanceUID))
    data.PatientIdentityRemoved, data.LongitudinalTemporalInformationModified = "YES", "REMOVED"
    data.DeidentificationMethod = "DICOM PS3.15 Basic Application Confidentiality Profile"
    data.DeidentificationMethodCodeSequence = [_code("113100", "Basic Application Confidentiality Profile")]


def _new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def _save(path: Path, data: Dataset) -> None:
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    settings: Mapping[str, Any] = {"enforce_file_format": True}
    if int(pydicom.__version__.split(".")[0]) < 3:
        data.is_little_endian, data.is_implicit_VR = True, False
        settings = {"write_like_original": False}
    data.save_as(path, **settings)
