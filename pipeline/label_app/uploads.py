"""Which files are taken as volumes: whole ones of single-file formats, checked before any library opens them.

A header that names another file (a pair, a list, ``ElementDataFile = /etc/passwd``) would have the libraries read that.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.files import ProcessLock

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Of the formats that are taken."""

DEFAULT_LIMIT = 1024
"""Megabytes (2**20 bytes) that a volume may have in float32, and an upload as it comes."""

FOLDER, LOCK = "label-uploads-", ".lock"
"""Beginning of the name of a server's folder for temporary files, and the file in it that the server holds locked."""

_VOXEL = 4  # bytes: everything is translated in float32
_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16
_MOST_MEMBERS = 1 << 16  # of a gzip file; programs that pack in parallel write one for each 64 kB
_LONGEST_HEADER = 1 << 16
_LARGEST_EXTENSION = 1 << 24  # of a NIfTI header; some keep a whole DICOM header in it
_SLACK = 1 << 16  # bytes behind the voxels, such as padding
_NIFTI_SIZES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
_META_SIZES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8},
}
_NRRD_SIZES = {
    1: "signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
    2: "short,short int,signed short,signed short int,int16,int16_t,"
    "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
    8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
    "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
}
_NRRD_TYPES = {name: size for size, names in _NRRD_SIZES.items() for name in names.split(",")}


_NO_FILE = "is no regular file, but a folder, a device or a pipe"


class VolumeFileError(ValueError):
    """A file is not taken as a volume; the message says why, without the folders that it lies in."""


def suffix_of(name: str) -> str:
    """Suffix of a file's name, out of `SUFFIXES`; of the rest of the name nothing is used.

    Raises:
        VolumeFileError: it has none of these.
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    ending = re.sub(r"[^.A-Za-z0-9]", "?", "".join(Path(name).suffixes[-2:]))[-20:] or "no suffix"
    raise VolumeFileError(f"a volume must be one file in one of the formats {', '.join(SUFFIXES)}, got {ending}")


def check_volume(path: str | os.PathLike[str], limit: int = DEFAULT_LIMIT, inside: str | Path | None = None) -> None:
    """Check that a file holds a whole volume, in the format that its name says, and nothing else.

    Args:
        path: of the file.
        limit: megabytes that it may have as float32.
        inside: folder that it has to lie in, links followed; None for any.

    Raises:
        VolumeFileError: naming the file and what is wrong.
    """
    name = os.path.basename(path)
    try:
        suffix = suffix_of(name)
        real = os.path.realpath(path)
        if inside is not None and not Path(real).is_relative_to(os.path.realpath(inside)):
            raise VolumeFileError("is a link that leads out of the studies, expected a file in there")
        with _open_regular(real) as file:
            _CHECKS[suffix](file, limit << 20)
    except VolumeFileError as error:
        raise VolumeFileError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise VolumeFileError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise VolumeFileError(f"{name}: {_NO_FILE}") from None
    except OSError as error:
        raise VolumeFileError(f"{name}: cannot be read, {error.strerror}") from None


@contextmanager
def _open_regular(path: str) -> Iterator[BinaryIO]:
    # Opening a pipe would wait for a writer, a device may never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise VolumeFileError(_NO_FILE)
        yield file


def _check_size(dimensions: list[int], voxel: int, limit: int) -> int:
    """Bytes of the voxels, if they are not too many."""
    if not 1 <= len(dimensions) <= 7 or any(not 0 < length < 1 << 31 for length in dimensions):
        raise VolumeFileError(f"its header says a size of {tuple(dimensions)} voxels, expected positive numbers")
    voxels = math.prod(dimensions)
    if voxels * _VOXEL > limit:
        raise VolumeFileError(
            f"has {voxels} voxels, {voxels * _VOXEL >> 20} MB in float32, which is more than the {limit >> 20} MB that "
            "this server takes (--conf max_volume_mb)"
        )
    return voxels * voxel


def _check_length(length: int, needed: int) -> None:
    if length < needed:
        raise VolumeFileError(f"is cut short: {length} bytes are there, its header says {needed}")
    if length > needed + _SLACK:
        raise VolumeFileError(f"holds more than its header says: at least {length} bytes, expected {needed}")


class _Unpacked:
    """The bytes that a file is packed of, of which no more than asked for are ever in memory."""

    def __init__(self, file: BinaryIO, window: int) -> None:
        self._file, self._window = file, window
        self._unpacker: Any = zlib.decompressobj(window)
        self._left = b""
        self._members = 1

    def read(self, count: int) -> bytes:
        """The next bytes; fewer at the end."""
        parts, found = [], 0
        while found < count:
            part = self._part(min(_BLOCK, count - found))
            if not part:
                break
            parts.append(part)
            found += len(part)
        return b"".join(parts)

    def length(self, most: int) -> int:
        """How many bytes are left, counted up to a bound."""
        found = 0
        while found <= most:
            part = self._part(_BLOCK)
            if not part:
                break
            found += len(part)
        return found

    def _part(self, count: int) -> bytes:
        while True:
            if self._unpacker.eof:  # another member may follow
                rest = self._unpacker.unused_data or self._file.read(_PACKED_BLOCK)
                if not rest.strip(b"\0"):  # as some programs fill up their last block
                    return b""
                self._members += 1
                if self._members > _MOST_MEMBERS:
                    raise VolumeFileError(f"is packed in more than {_MOST_MEMBERS} parts")
                self._unpacker, self._left = zlib.decompressobj(self._window), rest
            block = self._left or self._file.read(_PACKED_BLOCK)
            if not block:
                raise VolumeFileError("is cut short: what it is packed of does not end")
            try:
                part = self._unpacker.decompress(block, count)
            except zlib.error:
                raise VolumeFileError("is damaged: it cannot be unpacked") from None
            self._left = self._unpacker.unconsumed_tail
            if part:
                return part


def _check_packed_nifti(file: BinaryIO, limit: int) -> None:
    if file.read(2) != b"\x1f\x8b":
        raise VolumeFileError("is not packed with gzip, as its name says")
    file.seek(0)
    content = _Unpacked(file, zlib.MAX_WBITS | 16)
    header = content.read(540)
    needed = _read_nifti(header, limit)
    _check_length(len(header) + content.length(needed + _SLACK), needed)


def _check_nifti(file: BinaryIO, limit: int) -> None:
    needed = _read_nifti(file.read(540), limit)
    _check_length(os.fstat(file.fileno()).st_size, needed)


def _read_nifti(header: bytes, limit: int) -> int:
    """Bytes that a NIfTI file has, by its header."""
    first = header[:4]
    order = ">" if first in (b"\0\0\x01\x5c", b"\0\0\x02\x1c") else "<"
    size = struct.unpack(f"{order}i", first)[0] if len(first) == 4 else 0
    if size == 348 and len(header) >= 348 and header[344:348] == b"n+1\0":
        dimensions = list(struct.unpack_from(f"{order}8h", header, 40))
        kind = struct.unpack_from(f"{order}h", header, 70)[0]
        offset = struct.unpack_from(f"{order}f", header, 108)[0]
        least = 352
    elif size == 540 and len(header) >= 540 and header[4:12] == b"n+2\0\r\n\x1a\n":
        dimensions = list(struct.unpack_from(f"{order}8q", header, 16))
        kind = struct.unpack_from(f"{order}h", header, 12)[0]
        offset = struct.unpack_from(f"{order}q", header, 168)[0]
        least = 544
    else:
        raise VolumeFileError("is no NIfTI file of one part, as its name says")
    if kind not in _NIFTI_SIZES:
        raise VolumeFileError(f"has voxels of NIfTI's type {kind}, expected whole numbers or floats")
    if not 1 <= dimensions[0] <= 7:
        raise VolumeFileError(f"its header says {dimensions[0]} dimensions, expected 1 to 7")
    bytes_ = _check_size([int(length) for length in dimensions[1 : dimensions[0] + 1]], _NIFTI_SIZES[kind], limit)
    if not (offset == 0 or least <= offset <= _LARGEST_EXTENSION):  # also where it is NaN
        raise VolumeFileError(
            f"its voxels are said to begin at byte {offset}, expected {least} to {_LARGEST_EXTENSION}"
        )
    return int(offset or least) + bytes_


def _read_lines(file: BinaryIO, last: Any) -> list[str]:
    """Lines of a header, up to the one that ends it; the file is at the data then."""
    start = file.read(_LONGEST_HEADER)
    lines: list[str] = []
    at = 0
    while True:
        end = start.find(b"\n", at)
        if end < 0:
            raise VolumeFileError(f"its header does not end within {_LONGEST_HEADER} bytes")
        line = start[at:end]
        at = end + 1
        if any(not 32 <= byte < 127 and byte != 9 for byte in line):
            raise VolumeFileError("its header has other than printable ASCII characters and line feeds")
        lines.append(line.decode("ascii"))
        if last(lines[-1]):
            file.seek(at)
            return lines


def _check_nrrd(file: BinaryIO, limit: int) -> None:
    lines = _read_lines(file, lambda line: not line.strip())
    if not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise VolumeFileError("is no NRRD file, as its name says")
    fields: dict[str, str] = {}
    for line in lines[1:-1]:
        if line.startswith("#") or ":=" in line:
            continue
        name, separator, value = line.partition(":")
        name = name.strip().lower()
        if not separator:
            raise VolumeFileError("its header has a line that is none of NRRD")
        if name.replace(" ", "") in ("datafile", "lineskip", "byteskip"):
            raise VolumeFileError(f"its header says '{name}', expected the voxels in the file itself, at once")
        if name in fields:
            raise VolumeFileError(f"its header says '{name}' twice")
        fields[name] = value.strip()
    if re.search(r"(?i)data\s*file\s*:", "\n".join(lines)):
        raise VolumeFileError("its header names a data file, expected the voxels in the file itself")
    kind = fields.get("type", "")
    if kind.lower() not in _NRRD_TYPES:
        raise VolumeFileError(f"has voxels of the type {kind!r}, expected whole numbers or floats")
    sizes = _numbers(fields.get("sizes", ""), "sizes")
    if str(len(sizes)) != fields.get("dimension"):
        raise VolumeFileError("its header says another number of dimensions than sizes")
    needed = _check_size(sizes, _NRRD_TYPES[kind.lower()], limit)
    encoding = fields.get("encoding", "").lower()
    if encoding == "raw":
        _check_length(os.fstat(file.fileno()).st_size - file.tell(), needed)
    elif encoding in ("gzip", "gz"):
        _check_length(_Unpacked(file, zlib.MAX_WBITS | 16).length(needed + _SLACK), needed)
    else:
        raise VolumeFileError(f"has the encoding {encoding!r}, expected raw or gzip")


def _check_meta(file: BinaryIO, limit: int) -> None:
    lines = _read_lines(file, lambda line: line.replace(" ", "").lower().startswith("elementdatafile"))
    fields: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not separator or not re.fullmatch(r"\w+", name):
            raise VolumeFileError("is no MetaImage file, as its name says")
        if name in fields:
            raise VolumeFileError(f"its header says '{name}' twice")
        fields[name] = value
    if fields.get("elementdatafile") != "LOCAL":
        raise VolumeFileError("its header names a data file, expected ElementDataFile = LOCAL")
    if fields.get("objecttype", "Image") != "Image" or fields.get("binarydata", "True").lower() != "true":
        raise VolumeFileError("is no binary image, as its name says")
    if fields.get("headersize", "0") != "0" or fields.get("elementnumberofchannels", "1") != "1":
        raise VolumeFileError("its header says HeaderSize or several channels, expected neither")
    kind = fields.get("elementtype", "")
    if kind not in _META_SIZES:
        raise VolumeFileError(f"has voxels of the type {kind!r}, expected whole numbers or floats")
    sizes = _numbers(fields.get("dimsize", ""), "DimSize")
    if str(len(sizes)) != fields.get("ndims"):
        raise VolumeFileError("its header says another number of dimensions than sizes")
    needed = _check_size(sizes, _META_SIZES[kind], limit)
    if fields.get("compresseddata", "False").lower() == "true":
        _check_length(_Unpacked(file, zlib.MAX_WBITS | 32).length(needed + _SLACK), needed)
    else:
        _check_length(os.fstat(file.fileno()).st_size - file.tell(), needed)


def _numbers(text: str, name: str) -> list[int]:
    words = text.split()
    if not words or not all(re.fullmatch(r"[0-9]{1,10}", word) for word in words):
        raise VolumeFileError(f"its header says {name} {text[:40]!r}, expected whole numbers")
    return [int(word) for word in words]


_CHECKS = {".nii.gz": _check_packed_nifti, ".nii": _check_nifti, ".nrrd": _check_nrrd, ".mha": _check_meta}


class Uploads:
    """What clients send, in a folder of the server's own, apart from the studies and from other temporary files.

    Args:
        folder: for the files.
        limit: megabytes that a volume may have in float32, and any upload as it comes.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder, self.limit = folder, limit

    @contextmanager
    def kept(self, stream: BinaryIO, suffix: str) -> Iterator[Path]:
        """A client's file, for a ``with`` block.

        Args:
            stream: its content.
            suffix: of the file here; of the client's name nothing else is used.

        Raises:
            OSError: it cannot be written.
        """
        descriptor, name = tempfile.mkstemp(suffix=suffix, prefix="upload-", dir=self.folder)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(stream, file, _BLOCK)
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def volume(self, stream: BinaryIO, name: str) -> Iterator[Path]:
        """A client's volume, checked, for a ``with`` block.

        Args:
            stream: its content.
            name: that the client gives it.

        Raises:
            VolumeFileError: it is none that is taken.
            OSError: it cannot be written.
        """
        with self.kept(stream, suffix_of(name)) as path:
            self.check(path)
            yield path

    def save(self, stream: BinaryIO, name: str, folder: Path) -> Path:
        """Write a client's volume into a folder, under a name of ours, and check it.

        Args:
            stream: its content.
            name: that the client gives it.
            folder: an empty one.

        Raises:
            VolumeFileError: it is none that is taken.
            OSError: it cannot be written.
        """
        path = folder / f"upload{suffix_of(name)}"
        with path.open("xb") as file:
            shutil.copyfileobj(stream, file, _BLOCK)
        self.check(path)
        return path

    def check(self, path: Path) -> None:
        """Check a client's volume.

        Raises:
            VolumeFileError: it is none that is taken.
        """
        try:
            check_volume(path, self.limit)
        except VolumeFileError as error:
            raise VolumeFileError(f"the uploaded file: {str(error).removeprefix(f'{path.name}: ')}") from None


def own_folder(parent: Path) -> Path:
    """Make a folder for what is sent and answered, and remove those of servers that were killed.

    Args:
        parent: folder that they lie in.
    """
    for path in parent.glob(f"{FOLDER}*/{LOCK}"):
        about = path.parent.lstat()
        if path.is_symlink() or not stat.S_ISDIR(about.st_mode) or (os.name != "nt" and about.st_uid != os.getuid()):
            continue
        lock = ProcessLock(path)
        if lock.acquire():  # which nobody holds any more
            shutil.rmtree(path.parent, ignore_errors=True)
            lock.release()
    folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=parent)).resolve()
    ProcessLock(folder / LOCK).acquire()
    return folder
