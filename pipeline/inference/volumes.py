"""What whole-volume translation needs beside the network: which files to read and which kind to write."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.checks import DataError, check_images
from pipeline.data.datalist import IMAGE_SUFFIXES, images_in

OUTPUT_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
"""Formats that hold float32 voxels and their position in space."""


def find_volumes(path: str | Path) -> list[dict[str, str]]:
    """Find the source volumes to translate, and look into each before any is translated.

    Args:
        path: an image file; a folder of image files; or a data set's folder, whose ``imagesTs`` is meant.

    Returns:
        One ``{"image": path}`` per volume, in the order of their names.

    Raises:
        FileNotFoundError: the path does not exist, or holds no image.
        DataError: an image cannot be translated (see `pipeline.data.checks.check_images`), or two would be translated
            into files of one name; the message lists every fault.
    """
    path = Path(str(path)).expanduser()  # the command line makes numbers of names that look like one
    if not path.exists():
        raise FileNotFoundError(f"image: {path} does not exist")
    files = _sources_in(path) if path.is_dir() else [path]
    check_images(files)
    return [{"image": str(file)} for file in files]


def output_suffix(value: str) -> str:
    """Check the suffix of the files to write.

    Raises:
        ValueError: it is of no format that can hold a translated volume.
    """
    if value not in OUTPUT_SUFFIXES:
        raise ValueError(f"output_ext must be one of {', '.join(OUTPUT_SUFFIXES)}, got {value!r}")
    return value


def _sources_in(folder: Path) -> list[Path]:
    """Return the images of a folder, or of its ``imagesTs`` if it has one."""
    folder = folder / "imagesTs" if (folder / "imagesTs").is_dir() else folder
    by_name, faults = images_in(folder)
    if not by_name:
        raise FileNotFoundError(f"image: no file ending in {', '.join(IMAGE_SUFFIXES)} in {folder}")
    if faults:
        raise DataError(faults)
    return list(by_name.values())
