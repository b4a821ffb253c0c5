"""Images in and out: one reader, and one writer that leaves a whole file or none."""

from pipeline.io.dicom import SOURCE_KEY as DICOM_KEY
from pipeline.io.dicom import Series, choose_series, find_series, holds_dicom
from pipeline.io.formats import READABLE, WRITABLE, ImageError, name_of
from pipeline.io.reading import AFFINE_KEY, ReadImaged, files_of, read_image, read_series, shape_in_file, split_series
from pipeline.io.writing import WriteImaged, write_image

__all__ = [
    "AFFINE_KEY",
    "DICOM_KEY",
    "READABLE",
    "WRITABLE",
    "ImageError",
    "ReadImaged",
    "Series",
    "WriteImaged",
    "choose_series",
    "files_of",
    "find_series",
    "holds_dicom",
    "name_of",
    "read_image",
    "read_series",
    "shape_in_file",
    "split_series",
    "write_image",
]
