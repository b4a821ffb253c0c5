"""How each format of images is read and written; a new one is a function or two, and a line in the tables below."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import itk
import nibabel as nib
import numpy as np
from isal import igzip
from monai.data import ITKReader, ITKWriter
from monai.data.utils import to_affine_nd

from pipeline.io.npy import read_npy, read_npy_header
from transforms import UNMEASURED_KEY

HEADER_KEY = "nifti_header"
"""Entry of an image's metadata: its NIfTI header as bytes."""

LIMIT_VARIABLE, LIMIT = "REGGAN_MAX_IMAGE_GB", 8.0
"""Environment variable that says how many GB the voxels of one image may take, and how many they may without it."""

# Fields of a NIfTI header that say where the voxels lie, beside the first four of pixdim.
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_GEOMETRY = ("qform_code", "sform_code", *_QUATERNION, "srow_x", "srow_y", "srow_z", "xyzt_units")


class ImageError(ValueError):
    """A file that is no image this project can take; the message says what it is and what was expected."""


class Raw(NamedTuple):
    """What a file holds: voxels as they lie in it, the 4x4 affine to RAS in mm, and metadata to keep."""

    voxels: np.ndarray
    affine: np.ndarray
    meta: dict[str, Any]


def check_regular(path: str | os.PathLike[str], may_be_empty: bool = False) -> None:
    """Refuse what is no file that can be read from its beginning to its end.

    Args:
        path: of the file.
        may_be_empty: whether a file of 0 bytes passes.

    Raises:
        ImageError: it is a link to nothing, a pipe, a device or a socket, is empty, or is not there; the message does
            not name it.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            raise ImageError(
                f"is a link to {os.readlink(path)}, which is not there; was the data set fetched (datalad get)?"
            ) from error
        raise ImageError("no such file" if isinstance(error, FileNotFoundError) else str(error)) from error
    kinds = {stat.S_ISFIFO: "pipe", stat.S_ISCHR: "device", stat.S_ISBLK: "device", stat.S_ISSOCK: "socket"}
    kind = next((name for check, name in kinds.items() if check(status.st_mode)), None)
    if kind is not None:
        raise ImageError(f"is a {kind}, expected a regular file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0 and not may_be_empty:
        raise ImageError("is empty: a file of 0 bytes")


def _check_size(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Refuse, by what its header says, an image that would not fit, before any of it is unpacked.

    Raises:
        ImageError: it has a negative axis, or is larger than allowed.
    """
    if any(length < 0 for length in shape):
        raise ImageError(f"has shape {tuple(shape)} in its header, expected no negative length")
    said = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(said) if said else LIMIT
    except ValueError as error:
        raise ImageError(f"{LIMIT_VARIABLE} must be a number of GB, got {said!r}") from error
    size = math.prod(int(length) for length in shape) * max(bytes_per_voxel, 4) / 1e9  # float32 in the end
    if size > limit:
        raise ImageError(
            f"has shape {tuple(shape)} in its header, {size:.3g} GB of voxels; at most {limit:g} GB are read "
            f"(set the environment variable {LIMIT_VARIABLE} to allow more)"
        )


def _read_nibabel(path: Path) -> Raw:
    image: Any = nib.load(path)
    _check_size(image.shape, image.header.get_data_dtype().itemsize)
    # nibabel's affine is the sform where there is one; MONAI's reader takes the qform where their scales differ.
    header = image.header.binaryblock if isinstance(image, nib.Nifti1Image) else b""
    meta = {HEADER_KEY: np.frombuffer(header, np.uint8).copy()} if header else {}
    voxels = _unpack(path, image) if path.name.lower().endswith("z") else np.asarray(image.dataobj)
    return Raw(voxels, image.affine, meta)


def _unpack(path: Path, image: Any) -> np.ndarray:
    """The voxels of a compressed file, read to its end, where gzip keeps the sum that tells damage."""
    most = int(image.dataobj.offset) + math.prod(image.shape) * image.header.get_data_dtype().itemsize + (1 << 24)
    with igzip.open(path) as stream:
        holder = nib.FileHolder(fileobj=stream)
        voxels = np.asarray(type(image).from_file_map({"image": holder}).dataobj)
        while stream.tell() < most:
            if not stream.read(1 << 20):
                return voxels
    raise ImageError(f"unpacks to more than {most} bytes; its header speaks of an image of {tuple(image.shape)}")


def _read_itk(path: Path) -> Raw:
    about = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if about is not None:  # or else the reader says what is wrong
        about.SetFileName(str(path))
        about.ReadImageInformation()
        shape = [int(about.GetDimensions(axis)) for axis in range(about.GetNumberOfDimensions())]
        _check_size([*shape, int(about.GetNumberOfComponents())], int(about.GetComponentSize()))
    reader = ITKReader()
    voxels, meta = reader.get_data(reader.read(str(path)))
    return Raw(voxels, to_affine_nd(3, np.asarray(meta["affine"], dtype=np.float64)), {})


def _read_numpy(path: Path) -> Raw:
    header = read_npy_header(path)
    _check_size(header.shape, header.dtype.itemsize)
    voxels = read_npy(path, header)
    # Without a position in space, an axis in front that counts nothing is the channel's: (1, H, W) is a slice.
    if voxels.ndim == 3 and voxels.shape[0] == 1:
        voxels = voxels[0]
    return Raw(voxels, np.eye(4), {UNMEASURED_KEY: True})


def _write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any], level: int) -> None:
    image = nib.Nifti1Image(np.asfortranarray(voxels), affine)  # as it will lie in the file
    block = np.asarray(meta.get(HEADER_KEY, []), dtype=np.uint8).tobytes()
    if block:
        # What ITK, FSL and nibabel each make of the source's header, they shall make of the result's.
        source = (nib.Nifti1Header if len(block) == nib.Nifti1Header.sizeof_hdr else nib.Nifti2Header)(block)
        for name in _GEOMETRY:
            image.header[name] = source[name]
        image.header["pixdim"][:4] = source["pixdim"][:4]
    else:
        image.header.set_xyzt_units("mm")
    if path.name.lower().endswith(".gz"):
        # As nibabel would, at level 1, several times as fast; no time in it, so that equal images are equal files.
        with path.open("wb") as file, igzip.IGzipFile(fileobj=file, mode="wb", compresslevel=level, mtime=0) as stream:
            image.to_stream(stream)
    else:
        nib.save(image, path)


def _volume(voxels: np.ndarray) -> np.ndarray:
    """Voxels with three axes, for formats in which a slice has no position in space otherwise."""
    return np.ascontiguousarray(voxels.reshape((*voxels.shape, 1)[:3]))


def _write_mgh(path: Path, voxels: np.ndarray, affine: np.ndarray, _: Mapping[str, Any], level: int) -> None:
    nib.save(nib.MGHImage(_volume(voxels), affine), path)


def _write_itk(path: Path, voxels: np.ndarray, affine: np.ndarray, _: Mapping[str, Any], level: int) -> None:
    writer = ITKWriter(output_dtype=np.float32)
    writer.set_data_array(_volume(voxels), channel_dim=None)
    writer.set_metadata({"affine": affine}, resample=False)
    writer.write(str(path))


READERS: dict[str, Callable[[Path], Raw]] = {
    ".nii.gz": _read_nibabel,
    ".nii": _read_nibabel,
    ".npy": _read_numpy,
    ".nrrd": _read_itk,
    ".mha": _read_itk,
    ".mhd": _read_itk,
    ".mgz": _read_nibabel,
    ".mgh": _read_nibabel,
}
"""What reads a file, by the end of its name."""

WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray, Mapping[str, Any], int], None]] = {
    ".nii.gz": _write_nifti,
    ".nii": _write_nifti,
    ".nrrd": _write_itk,
    ".mha": _write_itk,
    ".mhd": _write_itk,
    ".mgz": _write_mgh,
}
"""What writes float32 voxels with their position in space, by the end of a file's name."""

COMPRESSION = 2
"""Of ``.nii.gz``: from 0, fastest, to 3, smallest."""

READABLE, WRITABLE = tuple(READERS), tuple(WRITERS)


def name_of(path: str | os.PathLike[str]) -> str:
    """A file's name without folder and suffix (``.nii.gz`` counts as one)."""
    name = Path(path).name
    suffix = next((suffix for suffix in READABLE if name.lower().endswith(suffix)), Path(name).suffix)
    return name.removesuffix(name[len(name) - len(suffix) :])


def suffix_of(path: Path, known: tuple[str, ...]) -> str:
    """The end of a file's name that says its format.

    Raises:
        ImageError: it is none of those that are known.
    """
    found = next((suffix for suffix in known if path.name.lower().endswith(suffix)), None)
    if found is None:
        dicom = ", or DICOM" if known is READABLE else ""
        raise ImageError(f"is of no known format: expected a name that ends in {', '.join(known)}{dicom}")
    return found
