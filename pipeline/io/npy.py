"""NumPy's files, read by several threads at a time.

NumPy has the header of a ``.npy`` read by Python's own parser. Two threads that parse at the same time can break each
other there (``SystemError: AST constructor recursion depth mismatch``, python/cpython#106905; seen with Python 3.11),
so that of many sound files one now and then could not be read. Headers are parsed one at a time here.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["NpyHeader", "read_npy", "read_npy_header"]

_PARSING = threading.Lock()


class NpyHeader(NamedTuple):
    """What the header of a ``.npy`` says.

    Attributes:
        shape: of the array.
        order: ``C`` or ``F``, how its values follow each other in the file.
        dtype: of its values.
        offset: where they begin, in bytes.
    """

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    offset: int

    def check_length(self, path: str | os.PathLike[str]) -> None:
        """Make sure that the file is as long as its header says.

        Raises:
            OSError: it cannot be looked at.
            ValueError: it was cut off.
        """
        length, expected = os.path.getsize(path), self.offset + math.prod(self.shape) * self.dtype.itemsize
        if length < expected:
            raise ValueError(f"was cut off: it holds {length} bytes, its header speaks of {expected}")


def read_npy_header(path: str | os.PathLike[str]) -> NpyHeader:
    """Read the header of a ``.npy``.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or holds Python objects.
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with _PARSING:
            shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("holds Python objects, expected numbers")
        return NpyHeader(shape, "F" if fortran else "C", dtype, file.tell())


def read_npy(path: str | os.PathLike[str], header: NpyHeader | None = None) -> np.ndarray:
    """Read the array in a ``.npy``.

    Args:
        path: the file.
        header: what `read_npy_header` gave, where it was asked before.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, holds Python objects, or was cut off.
    """
    header = header or read_npy_header(path)
    header.check_length(path)
    values = np.fromfile(path, header.dtype, math.prod(header.shape), offset=header.offset)
    return values.reshape(header.shape, order=header.order)
