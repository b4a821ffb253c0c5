"""The one way in which an image comes in."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from pipeline.io.formats import READABLE, READERS, ImageError, check_regular, suffix_of

SHAPE_KEY = "file_shape"
"""Entry of an image's metadata: the shape of the array in its file."""
AFFINE_KEY = "file_affine"
"""Entry of an image's metadata: the file's affine, which no transform changes."""


def read_image(path: str | os.PathLike[str]) -> MetaTensor:
    """Read an image of one channel as a volume.

    Axes of length one are no obstacle: ``(X, Y, Z, 1, 1)`` is a volume, ``(H, W)``, ``(H, W, 1)`` and, as ``.npy``,
    ``(1, H, W)`` are one slice. The position in space is that of the file's header as nibabel and FSL understand it
    (the sform where there is one); a ``.npy`` has voxels of 1 mm along R, A and S.

    Args:
        path: a file that ends in one of `READABLE`.

    Returns:
        (1, X, Y, Z), float32, in the file's own units and axes, with its 4x4 affine to RAS in mm. The metadata are
        ``filename_or_obj``, ``original_affine``, and what `pipeline.io.write_image` needs to write a result alike.

    Raises:
        ImageError: it is no regular file, is of another format, is larger than the environment variable
            ``REGGAN_MAX_IMAGE_GB`` allows (8), has other axes, or holds no real numbers; the message does not name it.
        Exception: what the format's library raises of a file that is missing or damaged.
    """
    path = Path(path)
    read = READERS[suffix_of(path, READABLE)]
    check_regular(path)
    raw = read(path)
    shape = raw.voxels.shape
    if raw.voxels.dtype.names:
        raise ImageError(f"holds colours ({', '.join(raw.voxels.dtype.names)}), expected an image of one channel")
    if not (np.issubdtype(raw.voxels.dtype, np.number) or raw.voxels.dtype == bool) or np.iscomplexobj(raw.voxels):
        raise ImageError(f"holds values of type {raw.voxels.dtype}, expected an image of real numbers")
    spatial = shape[:3] + (1,) * (3 - len(shape))
    if len(shape) < 2 or any(length != 1 for length in shape[3:]):
        raise ImageError(f"has shape {tuple(shape)}, expected a 2D or 3D image of one channel")
    voxels = torch.from_numpy(np.ascontiguousarray(raw.voxels, dtype=np.float32).reshape(1, *spatial))
    affine = np.asarray(raw.affine, dtype=np.float64)
    meta: dict[str, Any] = {
        "filename_or_obj": str(path),
        "original_affine": affine.copy(),
        AFFINE_KEY: affine.copy(),
        SHAPE_KEY: np.array(shape),
        **raw.meta,
    }
    return MetaTensor(voxels, affine=torch.from_numpy(affine.copy()), meta=meta)


def shape_in_file(image: MetaTensor) -> tuple[int, ...]:
    """The shape of the array in the file that an image was read from."""
    return tuple(int(length) for length in np.asarray(image.meta[SHAPE_KEY]).ravel())


class ReadImaged(MapTransform):
    """Dictionary form of `read_image`: paths become volumes; images that are read already pass.

    Args:
        keys: keys of the paths.
        allow_missing_keys: whether keys may be missing.

    Raises:
        ImageError: (when called) see `read_image`; the message names the file.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

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
        return d
