"""Images in and out: one reader, and one writer that leaves a whole file or none."""

from pipeline.io.formats import READABLE, WRITABLE, ImageError, check_regular, name_of
from pipeline.io.reading import AFFINE_KEY, ReadImaged, read_image, shape_in_file
from pipeline.io.writing import WriteImaged, write_image

__all__ = [
    "AFFINE_KEY",
    "READABLE",
    "WRITABLE",
    "ImageError",
    "ReadImaged",
    "WriteImaged",
    "check_regular",
    "name_of",
    "read_image",
    "shape_in_file",
    "write_image",
]
