"""DICOM series: found, checked and read as volumes, and written as derived ones."""

from pipeline.io.dicom.series import Series, choose_series, find_series, holds_dicom
from pipeline.io.dicom.volume import DIRECTION_TOLERANCE, PLACE_TOLERANCE, SOURCE_KEY, read_raw

__all__ = [
    "DIRECTION_TOLERANCE",
    "PLACE_TOLERANCE",
    "SOURCE_KEY",
    "Series",
    "choose_series",
    "find_series",
    "holds_dicom",
    "read_raw",
]
