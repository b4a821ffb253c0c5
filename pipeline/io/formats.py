"""How each format of images is read and written; a new one is a function or two, and a line in the tables below."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip
from monai.data import ITKReader, ITKWriter
from monai.data.utils import to_affine_nd

from transforms import UNMEASURED_KEY

HEADER_KEY = "nifti_header"
"""Entry of an image's metadata: its NIfTI header as bytes."""

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


def _read_gzipped_nifti(path: Path) -> Raw:
    with igzip.open(path) as file:
        content = file.read()
    kind = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(content) else nib.Nifti1Image
    return _raw(kind.from_bytes(content))


def _read_nibabel(path: Path) -> Raw:
    return _raw(nib.load(path))


def _raw(image: Any) -> Raw:
    # nibabel's affine is the sform where there is one; MONAI's reader takes the qform where their scales differ.
    header = image.header.binaryblock if isinstance(image, nib.Nifti1Image) else b""
    meta = {HEADER_KEY: np.frombuffer(header, np.uint8).copy()} if header else {}
    return Raw(np.asarray(image.dataobj), image.affine, meta)


def _read_itk(path: Path) -> Raw:
    reader = ITKReader()
    voxels, meta = reader.get_data(reader.read(str(path)))
    return Raw(voxels, to_affine_nd(3, np.asarray(meta["affine"], dtype=np.float64)), {})


def _read_numpy(path: Path) -> Raw:
    voxels = np.load(path, allow_pickle=False)
    # Without a position in space, an axis in front that counts nothing is the channel's: (1, H, W) is a slice.
    if voxels.ndim == 3 and voxels.shape[0] == 1:
        voxels = voxels[0]
    return Raw(voxels, np.eye(4), {UNMEASURED_KEY: True})


def _write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any], level: int) -> None:
    image = nib.Nifti1Image(voxels, affine)
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
    return voxels.reshape((*voxels.shape, 1)[:3])


def _write_mgh(path: Path, voxels: np.ndarray, affine: np.ndarray, _: Mapping[str, Any], level: int) -> None:
    nib.save(nib.MGHImage(_volume(voxels), affine), path)


def _write_itk(path: Path, voxels: np.ndarray, affine: np.ndarray, _: Mapping[str, Any], level: int) -> None:
    writer = ITKWriter(output_dtype=np.float32)
    writer.set_data_array(_volume(voxels), channel_dim=None)
    writer.set_metadata({"affine": affine}, resample=False)
    writer.write(str(path))


READERS: dict[str, Callable[[Path], Raw]] = {
    ".nii.gz": _read_gzipped_nifti,
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
