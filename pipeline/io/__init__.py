"""Images in and out: one reader, and one writer that leaves a whole file or none."""

from pipeline.io.dicom import SOURCE_KEY as DICOM_KEY
from pipeline.io.dicom import Derivation, Pseudonyms, Series, choose_series, find_series, holds_dicom
from pipeline.io.formats import READABLE, WRITABLE, ImageError, check_regular, name_of
from pipeline.io.reading import (
    AFFINE_KEY,
    ReadImaged,
    files_of,
    image_name,
    read_image,
    shape_in_file,
    split_series,
)
from pipeline.io.writing import WriteImaged, WriteSeriesd, write_image, write_series

__all__ = [
    "AFFINE_KEY",
    "DICOM_KEY",
    "READABLE",
    "WRITABLE",
    "Derivation",
    "ImageError",
    "Pseudonyms",
    "ReadImaged",
    "Series",
    "WriteImaged",
    "WriteSeriesd",
    "check_regular",
    "choose_series",
    "files_of",
    "find_series",
    "holds_dicom",
    "image_name",
    "name_of",
    "read_image",
    "shape_in_file",
    "split_series",
    "write_image",
    "write_series",
]
