"""The one way in which an image comes in."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from pipeline.io.dicom import choose_series, find_series, holds_dicom, name_for_files, read_raw
from pipeline.io.formats import READABLE, READERS, ImageError, Raw, check_regular, name_of, suffix_of
from transforms import MASK_KEY

GRID_TOLERANCE = 0.05
"""How far a mask may lie from its image's grid, as a share of the shortest side of a voxel."""

SHAPE_KEY = "file_shape"
"""Entry of an image's metadata: the shape of the array in its file."""
AFFINE_KEY = "file_affine"
"""Entry of an image's metadata: the file's affine, which no transform changes."""


NAME_KEY = "name"
"""Entry of an image's metadata: what files that are made of it are called, where its own name does not say."""

SERIES_MARK = "::"
"""Stands between a place of several DICOM series and the one that is meant: ``study::*T1*``."""


def split_series(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """A place and the series in it that is meant, out of ``place::series``; the latter None where it is not said."""
    text = os.fspath(path)
    place, mark, series = text.rpartition(SERIES_MARK)
    return (Path(place), series) if mark and place and not os.path.lexists(text) else (Path(text), None)


def read_image(path: str | os.PathLike[str], series: str | None = None) -> MetaTensor:
    """Read an image of one channel as a volume.

    Axes of length one are no obstacle: ``(X, Y, Z, 1, 1)`` is a volume, ``(H, W)``, ``(H, W, 1)`` and, as ``.npy``,
    ``(1, H, W)`` are one slice. The position in space is that of the file's header as nibabel and FSL understand it
    (the sform where there is one); a ``.npy`` has voxels of 1 mm along R, A and S.

    Args:
        path: a file that ends in one of `READABLE`; or DICOM: a file of whatever name, which is one slice unless it has
            several frames, a folder or a DICOMDIR (see `pipeline.io.dicom.find_series`), or any of these with ``::``
            and the series that is meant behind it.
        series: of DICOM, which series is meant, see `pipeline.io.dicom.choose_series`.

    Returns:
        (1, X, Y, Z), float32, in the file's own units and axes, with its 4x4 affine to RAS in mm. Which axis is the
        innermost in memory is the file's, too (X in NIfTI). The metadata are
        ``filename_or_obj``, ``original_affine``, and what `pipeline.io.write_image` needs to write a result alike.

    Raises:
        ImageError: it is no regular file, is of another format, is larger than the environment variable
            ``REGGAN_MAX_IMAGE_GB`` allows (8), has other axes, holds no real numbers, or is DICOM that is not one sound
            volume (see `pipeline.io.dicom`); the message does not name it.
        Exception: what the format's library raises of a file that is missing or damaged.
    """
    place, named = split_series(path)
    known = place.name.lower().endswith(READABLE) and not place.is_dir()
    if known or (os.path.lexists(place) and not place.is_dir()):
        check_regular(place)
    if not known and holds_dicom(place):
        every = find_series(place)
        chosen = choose_series(every, series or named)
        name = name_for_files(place, chosen, sum(one.image for one in every) > 1)
        return _as_image(path, read_raw(chosen), name)
    return _as_image(place, READERS[suffix_of(place, READABLE)](place))


def image_name(image: MetaTensor) -> str:
    """What files that are made of an image are called: like its file, and of DICOM without who the patient is."""
    return str(image.meta.get(NAME_KEY) or name_of(image.meta["filename_or_obj"]))


def _as_image(path: str | os.PathLike[str], raw: Raw, name: str = "") -> MetaTensor:
    shape = raw.voxels.shape
    if raw.voxels.dtype.names:
        raise ImageError(f"holds colours ({', '.join(raw.voxels.dtype.names)}), expected an image of one channel")
    if not (np.issubdtype(raw.voxels.dtype, np.number) or raw.voxels.dtype == bool) or np.iscomplexobj(raw.voxels):
        raise ImageError(f"holds values of type {raw.voxels.dtype}, expected an image of real numbers")
    spatial = shape[:3] + (1,) * (3 - len(shape))
    if len(shape) < 2 or any(length != 1 for length in shape[3:]):
        raise ImageError(f"has shape {tuple(shape)}, expected a 2D or 3D image of one channel")
    # In the file's own order in memory: to turn a large volume round there takes longer than to unpack it.
    voxels = torch.from_numpy(np.array(raw.voxels, dtype=np.float32, order="K")).reshape(1, *spatial)
    affine = np.asarray(raw.affine, dtype=np.float64)
    meta: dict[str, Any] = {
        "filename_or_obj": str(path),
        "original_affine": affine.copy(),
        AFFINE_KEY: affine.copy(),
        SHAPE_KEY: np.array(shape),
        **raw.meta,
    }
    if name:
        meta[NAME_KEY] = name
    return MetaTensor(voxels, affine=torch.from_numpy(affine.copy()), meta=meta)


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `read_image` reads for a path: itself, or those of a DICOM series.

    Raises:
        ImageError: it is DICOM, and no series or several fit.
    """
    place, named = split_series(path)
    if place.name.lower().endswith(READABLE) or not holds_dicom(place):
        return [place]
    return list(choose_series(place, named).files)


def shape_in_file(image: MetaTensor) -> tuple[int, ...]:
    """The shape of the array in the file that an image was read from."""
    return tuple(int(length) for length in np.asarray(image.meta[SHAPE_KEY]).ravel())


class ReadImaged(MapTransform):
    """Dictionary form of `read_image`: paths become volumes; images that are read already pass.

    Args:
        keys: keys of the paths.
        allow_missing_keys: whether keys may be missing.
        mask_key: key of the path of a mask, not 0 inside the patient, on the grid of the images; where there is one, it
            goes into the images' metadata, for the scaling, and is no key of the result.

    Raises:
        ImageError: (when called) see `read_image`, or the mask is of another grid or empty; the message names the file.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, mask_key: str = "mask") -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read every key of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], torch.Tensor):
                continue
            try:
                d[key] = read_image(d[key])
            except ImageError as error:
                raise ImageError(f"{d[key]} {error}") from error
        path = d.pop(self.mask_key, None)
        if path is not None:
            try:
                mask = read_image(path)
                for key in self.key_iterator(d):
                    d[key].meta[MASK_KEY] = mask_on_grid(mask, d[key])
            except ImageError as error:
                raise ImageError(f"{path} {error}") from error
        return d


def mask_on_grid(mask: MetaTensor, image: MetaTensor) -> np.ndarray:
    """A mask in the order of an image's voxels, boolean (X, Y, Z).

    Args:
        mask: (1, X, Y, Z), not 0 inside; its axes may be stored in another order or point the other way.
        image: (1, X, Y, Z) on the same grid.

    Raises:
        ImageError: the grids differ, or nothing is inside.
    """
    voxels, affine = mask.as_tensor()[0].numpy() != 0, mask.affine.numpy()
    wanted = image.affine.numpy()
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(wanted))
    turned = nib.orientations.apply_orientation(voxels, turn)
    placed = affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape)
    size = np.linalg.norm(wanted[:3, :3], axis=0).min()
    if turned.shape != tuple(image.shape[1:]) or np.abs(placed - wanted).max() > GRID_TOLERANCE * size:
        raise ImageError(
            f"is a mask of shape {voxels.shape} at {placed[:3, 3].round(2).tolist()} mm, expected the grid of "
            f"{image_name(image)}: shape {tuple(image.shape[1:])} at {wanted[:3, 3].round(2).tolist()} mm"
        )
    if not turned.any():
        raise ImageError("is an empty mask: every voxel is 0")
    return turned
