"""DICOM series: found, checked and read as volumes, and written as derived ones."""

from pipeline.io.dicom.derived import KEPT, Derivation, Pseudonyms, check_free, write_derived
from pipeline.io.dicom.series import Series, choose_series, find_series, holds_dicom, name_for_files
from pipeline.io.dicom.volume import DIRECTION_TOLERANCE, PLACE_TOLERANCE, SOURCE_KEY, read_raw

__all__ = [
    "DIRECTION_TOLERANCE",
    "KEPT",
    "PLACE_TOLERANCE",
    "SOURCE_KEY",
    "Derivation",
    "Pseudonyms",
    "Series",
    "check_free",
    "choose_series",
    "find_series",
    "holds_dicom",
    "name_for_files",
    "read_raw",
    "write_derived",
]
