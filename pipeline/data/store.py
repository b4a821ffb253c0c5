"""Preprocessed volumes on disk: a training's memory does not grow with its data, and a second start reads no image."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from monai.transforms import Compose, Randomizable

from pipeline.files import folder_beside, not_written, put_in_place, remove_leftovers, replacing
from pipeline.io.npy import read_npy, read_npy_header

__all__ = ["StoredPair", "VolumeStore", "fingerprint", "open_store", "source_of_room"]

VERSION = 1
"""Raised when all that lies in a store is to be made anew."""
OWN = ("transforms", "pipeline")
"""Packages whose classes are known by their source; those of MONAI are by its version."""

NONE = "and --store none keeps them in memory"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredVolume:
    """A volume (N, C, H, W) in a file of NumPy's format; ``volume[row]`` reads that slice.

    Not a memory map: of one, every page that was looked at counts as the process's memory, which grows with the data.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, path: Path) -> StoredVolume:
        """The volume in that file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """
        header = read_npy_header(path)
        header.check_length(path)
        return cls(path, header.offset, header.shape, header.dtype)

    def __getitem__(self, row: int) -> np.ndarray:
        """The slice (C, H, W), in memory of its own."""
        shape = self.shape[1:]
        count = math.prod(shape)
        start = self.offset + row * count * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=start).reshape(shape)


class StoredPair(NamedTuple):
    """A preprocessed pair: its volumes, slices first, and plain values about it."""

    image: StoredVolume
    label: StoredVolume
    about: dict[str, Any]


class VolumeStore:
    """A folder of preprocessed pairs, each under a key that says what it was made of.

    A pair is written beside its place and renamed, so what is there is whole. Several trainings may share a store; it
    may be deleted at any time when none of them runs.

    Args:
        folder: made when the first pair is kept.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(str(folder)).expanduser().absolute()
        self._tidied = False

    @staticmethod
    def key(*made_of: Any) -> str:
        """The key of what was made of these plain values, such as digests of files and of what was done to them."""
        return hashlib.sha256(json.dumps([VERSION, *made_of]).encode()).hexdigest()[:32]

    def get(self, key: str) -> StoredPair | None:
        """The pair of that key; None where there is none that can be read."""
        place = self.folder / key
        try:
            about = json.loads((place / "about.json").read_text(encoding="utf-8"))
            image, label = (StoredVolume.of(place / f"{name}.npy") for name in ("image", "label"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is left aside: %s", place, error)
            return None
        return StoredPair(image, label, about)

    def put(self, key: str, image: torch.Tensor, label: torch.Tensor, about: Mapping[str, Any]) -> StoredPair:
        """Keep a pair, and return it as `get` does.

        Args:
            key: see `key`.
            image: (N, C, H, W).
            label: likewise.
            about: plain values.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        if not self._tidied:
            self._tidied = True
            remove_leftovers(self.folder)
        place = self.folder / key
        try:
            with folder_beside(place) as beside:
                whole = beside / key
                whole.mkdir()
                for name, volume in (("image", image), ("label", label)):
                    np.save(whole / f"{name}.npy", volume.contiguous().numpy())
                (whole / "about.json").write_text(json.dumps(about), encoding="utf-8")
                try:
                    put_in_place(whole, place)
                except OSError:
                    if self.get(key) is None:  # what lies there is damaged; or else another training was faster
                        shutil.rmtree(place, ignore_errors=True)
                        put_in_place(whole, place)
        except OSError as error:
            told = not_written(place, error) or error
            raise OSError(
                f"{told}. It is of the store of preprocessed volumes: --store FOLDER moves it, {NONE}"
            ) from error
        pair = self.get(key)
        if pair is None:
            raise OSError(f"{place} could not be read back; --store FOLDER moves it, {NONE}")
        return pair

    def once(self, key: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor that follows from what is in the store: read where it was made before, or else made and kept.

        Args:
            key: see `key`.
            make: makes it.

        Returns:
            It, plain, in memory.
        """
        place = self.folder / f"{key}.npy"
        try:
            return torch.from_numpy(read_npy(place))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is made anew: %s", place, error)
        made = make()
        with replacing(place) as beside, beside.open("wb") as file:
            np.save(file, made.numpy())
        return made


def open_store(folder: str | os.PathLike[str] | None) -> VolumeStore | None:
    """The store in a folder; None for None, and for "none", as the command line has it."""
    return None if folder is None or str(folder).lower() == "none" else VolumeStore(folder)


def fingerprint(transform: Any) -> str | None:
    """A digest of what a chain of transforms does: its classes, their source or version, and their arguments.

    Returns:
        SHA-256 in hexadecimal; None where that cannot be told, as of a function, or where random numbers are drawn.
    """
    try:
        described = [monai.__version__, torch.__version__, np.__version__, _describe(transform)]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()
    except TypeError:
        return None


def _describe(value: Any) -> Any:
    """A value as JSON.

    Raises:
        TypeError: nobody can tell what it does.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | torch.Tensor):
        return np.asarray(value).tolist()
    if isinstance(value, np.dtype | torch.dtype | type):
        return str(value)
    if isinstance(value, Mapping):
        return [[_describe(key), _describe(entry)] for key, entry in value.items()]
    if isinstance(value, Sequence):
        return [_describe(entry) for entry in value]
    if isinstance(value, Compose):
        return [_describe(step) for step in value.transforms]
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    if isinstance(value, Randomizable) or package not in (*OWN, "monai") or not hasattr(value, "__dict__"):
        raise TypeError(f"{kind.__module__}.{kind.__qualname__}")
    source = ""
    if package in OWN:
        source = source_of_room(inspect.getfile(kind))
    # What MONAI's transforms keep for each thread, once they are called, is whether they trace.
    state = {name: entry for name, entry in vars(value).items() if not isinstance(entry, threading.local)}
    return [kind.__module__, kind.__qualname__, source, _describe(state)]


@functools.cache
def source_of_room(file: str) -> str:
    """A digest of all sources in a file's folder: a transform calls the functions of its neighbours."""
    digest = hashlib.sha256()
    for path in sorted(Path(file).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
