"""The one way in which an image goes out: beside its place, read back, and only then under its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from pipeline.files import folder_beside, put_in_place, remove_leftovers
from pipeline.io.dicom import SOURCE_KEY, Derivation, Pseudonyms, write_derived
from pipeline.io.formats import COMPRESSION, WRITABLE, WRITERS, ImageError, suffix_of
from pipeline.io.reading import AFFINE_KEY, image_name, read_image, shape_in_file

AFFINE_TOLERANCE = 1e-3
"""How far, in mm, a header may round where an affine places its voxels' axes."""

logger = logging.getLogger(__name__)


def write_image(path: str | os.PathLike[str], voxels: Any, like: MetaTensor, compression: int = COMPRESSION) -> Path:
    """Write a volume where its source lies in space.

    The file is written in a folder beside its place, read back and compared, and renamed at the end: under its name is
    all of it, or what was there before.

    Args:
        path: the file; the end of its name, one of `WRITABLE`, says which format. Its folder is made.
        voxels: (1, X, Y, Z) or (X, Y, Z), as many as the source has; written as float32.
        like: the source as `read_image` returned it, or what transforms made of it. The result has the shape of its
            file and its affine, as NIfTI with the same qform, sform and codes.
        compression: of ``.nii.gz``, from 0 (fastest) to 3 (smallest); other formats have their own.

    Returns:
        The path.

    Raises:
        ImageError: the name says no format that can be written.
        ValueError: there are more or fewer voxels than the source has, or some are NaN or infinite.
        OSError: the file cannot be written, or what is read back is not what was written; on a full disk, or where
            nothing may be written, `pipeline.files.NotWrittenError`.
    """
    path = Path(path)
    write = WRITERS[suffix_of(path, WRITABLE)]
    array = np.asarray(convert_to_tensor(voxels, dtype=torch.float32, track_meta=False).cpu())
    shape = shape_in_file(like)
    if array.size != np.prod(shape):
        raise ValueError(f"{path}: expected the voxels of an image of shape {shape}, got {array.shape}")
    array = array.reshape(shape)
    count = array.size - int(np.isfinite(array).sum())
    if count:
        raise ValueError(
            f"{path} was not written: {count} of {array.size} voxels are NaN or infinite, expected finite numbers; the "
            "model, or --amp with it, does not cope with this volume"
        )
    affine = np.asarray(like.meta[AFFINE_KEY], dtype=np.float64).reshape(4, 4)
    # Under its own name, since the formats go by it, and a .mhd names the file of its voxels.
    with folder_beside(path) as folder:
        beside = folder / path.name
        try:
            write(beside, array, affine, like.meta, compression)
            found = read_image(beside)
        except Exception as error:  # each library has exceptions of its own
            raise OSError(f"{path} could not be written: {str(error).strip() or type(error).__name__}") from error
        same = np.array_equal(found.as_tensor().numpy().reshape(array.shape), array)
        if not same or not np.allclose(found.affine.numpy(), affine, atol=AFFINE_TOLERANCE):
            raise OSError(f"{path} could not be written: what was read back is not what was written; is the disk full?")
        for part in sorted(folder.iterdir(), key=lambda part: part == beside):  # the named file last
            put_in_place(part, path.with_name(part.name))
    return path


class WriteImaged(MapTransform):
    """Dictionary form of `write_image`: an image goes into a folder, named like its source.

    Args:
        keys: keys of the images, (1, X, Y, Z) each, on the grid of the source's file.
        like: key of the source.
        output_dir: folder.
        output_ext: end of the files' names, one of `WRITABLE`.
        compression: see `write_image`.
        background: whether to write in a thread, while the next image is read and translated. One image at a time is
            written so; what went wrong with it is raised by the next call, or by `finish`.
        postfix: what the name has behind that of the source, after an underscore.

    Raises:
        ValueError: ``output_ext`` says no format that can be written, or ``compression`` is out of range.
        OSError: (when called) see `write_image`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        like: str,
        output_dir: str | os.PathLike[str],
        output_ext: str = ".nii.gz",
        postfix: str = "translated",
        compression: int = COMPRESSION,
        background: bool = False,
    ) -> None:
        super().__init__(keys)
        if output_ext not in WRITABLE:
            raise ValueError(f"output_ext must be one of {', '.join(WRITABLE)}, got {output_ext!r}")
        if isinstance(compression, bool) or compression not in range(4):
            raise ValueError(f"compression must be 0 (fastest), 1, 2 or 3 (smallest), got {compression!r}")
        self.like, self.output_ext, self.postfix, self.compression = like, output_ext, postfix, compression
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writing") if background else None
        self._pending: Future[None] | None = None
        self.output_dir = Path(str(output_dir)).expanduser()
        remove_leftovers(self.output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every key of ``data``, which passes as it is."""
        d = dict(data)
        source = d[self.like]
        for key in self.key_iterator(d):
            path = self.output_dir / f"{image_name(source)}_{self.postfix}{self.output_ext}"
            self.finish()
            if self._thread is None:
                self._write(path, d[key], source)
            else:
                self._pending = self._thread.submit(self._write, path, d[key], source)
        return d

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def attach(self, engine: Engine) -> None:
        """Finish when an engine does."""
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def _write(self, path: Path, voxels: torch.Tensor, source: MetaTensor) -> None:
        logger.info("wrote %s", write_image(path, voxels, source, self.compression))


def write_series(
    folder: str | os.PathLike[str],
    voxels: Any,
    like: MetaTensor,
    derivation: Derivation,
    pseudonyms: Pseudonyms | None = None,
) -> Path:
    """Write a volume as a DICOM series that is derived from its source, see `pipeline.io.dicom.write_derived`.

    Args:
        folder: for its files.
        voxels: (1, X, Y, Z) or (X, Y, Z), as many as the source has; HU where it becomes CT.
        like: the source as `read_image` returned it, or what transforms made of it.
        derivation: how the volume was made.
        pseudonyms: to deidentify; None keeps patient and study.

    Returns:
        The folder.

    Raises:
        ImageError: the source is not DICOM.
        ValueError, FileExistsError, OSError: see `pipeline.io.dicom.write_derived`.
    """
    if SOURCE_KEY not in like.meta:
        raise ImageError("is no DICOM, of which alone a DICOM series can be derived")
    array = np.asarray(convert_to_tensor(voxels, dtype=torch.float32, track_meta=False).cpu())
    shape = shape_in_file(like)
    if array.size != np.prod(shape):
        raise ValueError(f"{folder}: expected the voxels of an image of shape {shape}, got {array.shape}")
    affine = np.asarray(like.meta[AFFINE_KEY], dtype=np.float64).reshape(4, 4)
    return write_derived(folder, array.reshape(shape), like.meta[SOURCE_KEY], affine, derivation, pseudonyms)


class WriteSeriesd(MapTransform):
    """Dictionary form of `write_series`: an image goes into a folder of its own; of what is no DICOM, none is written.

    Args:
        keys: keys of the images, (1, X, Y, Z) each, on the grid of the source.
        like: key of the source.
        output_dir: folder for the folders, each named like its source.
        derivation: how the images were made.
        deidentify: whether to leave out who the patient is; all that this object writes has consistent pseudonyms.
        key_file: of these pseudonyms, where they shall agree with those of other times; see `Pseudonyms.of_file`.
        enabled: False passes everything.

    Raises:
        OSError, ValueError: (when called) see `write_series`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        like: str,
        output_dir: str | os.PathLike[str],
        derivation: Derivation,
        deidentify: bool = False,
        key_file: str | os.PathLike[str] | None = None,
        enabled: bool = True,
    ) -> None:
        super().__init__(keys)
        self.like, self.derivation, self.enabled = like, derivation, enabled
        self.output_dir = Path(str(output_dir)).expanduser()
        self.pseudonyms: Pseudonyms | None = None
        if deidentify:
            self.pseudonyms = Pseudonyms() if key_file is None else Pseudonyms.of_file(Path(str(key_file)).expanduser())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every key of ``data``, which passes as it is."""
        d = dict(data)
        source = d[self.like]
        if self.enabled and SOURCE_KEY in source.meta:
            for key in self.key_iterator(d):
                folder = self.output_dir / f"{image_name(source)}_derived"
                logger.info("wrote %s", write_series(folder, d[key], source, self.derivation, self.pseudonyms))
        return d
