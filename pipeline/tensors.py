"""What torch.save wrote: written whole or not at all, and read only where it is as it was written, without code."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from pipeline.files import replacing


class UnreadableFileError(ValueError):
    """A file that is not read, or whose content is of no use; the message says which and why.

    Attributes:
        holds_objects: whether it is whole, but holds objects that could run code.
    """

    def __init__(self, message: str, holds_objects: bool = False) -> None:
        super().__init__(message)
        self.holds_objects = holds_objects


def save_tensors(content: Any, path: str | Path) -> None:
    """Write what `load_tensors` reads, whole or not at all (see `replacing`)."""
    with replacing(path) as beside, beside.open("wb") as file:
        torch.save(content, file)


def load_tensors(path: str | Path, *, allow_legacy: bool = False) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU, running no code of the file, and only if it is as it was written.

    PyTorch itself does not look at the checksums in its files: a flipped bit would come out as another weight.

    Args:
        path: file of tensors and plain values, such as a state dictionary.
        allow_legacy: also read the format of PyTorch before 1.6, which has no checksums, so that damage to it can go
            unseen.

    Raises:
        UnreadableFileError: if the file is missing, damaged, or holds more than tensors and plain values.
    """
    with _opened(path) as file:
        if _LEGACY_MAGIC in file.read(32):
            if not allow_legacy:
                raise UnreadableFileError(
                    f"{path} is in the format of PyTorch before 1.6, which has no checksums: damage to it would "
                    "go unseen; if you trust it, load it and save it again with a newer PyTorch"
                )
        else:
            records = _verified(file, path)
            if any(record.name.endswith("/constants.pkl") for record in records):
                raise _holds_objects(path)
            compressed = [record.name for record in records if record.compressed]
            if compressed:
                raise UnreadableFileError(
                    f"{path} was not written by torch.save: its record {compressed[0]} is compressed, expected it to "
                    "be stored as it is"
                )
        file.seek(0)  # from the very file that was verified, even if another has taken its name meanwhile
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the bytes of a foreign file make the unpickler raise
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which stands for a jump out of a cut file
                raise
            if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
                raise _holds_objects(path) from error
            raise UnreadableFileError(f"{path} {_CUT_OR_FOREIGN} ({type(error).__name__})") from error


def verify_zip(path: str | Path) -> None:
    """Check that a zip file that PyTorch wrote is as it was written; reads it once, in blocks.

    Holds for ``torch.save``, ``torch.jit.save`` and ``torch.export.save``, whose readers do not look at the checksums.
    Every byte of the file has to belong to a record or to the directory at the end, and what is said twice, there and
    in front of the record, has to be said alike; so any single flipped bit is found, but for those that change nothing:
    in the padding, in the number of the version that wrote the directory, behind the end of what is packed. It
    is no protection from somebody who changes the checksums as well.

    Raises:
        UnreadableFileError: if the file is missing, damaged, or no such zip file, naming the record where it is one.
    """
    with _opened(path) as file:
        _verified(file, path)


def check_finite(tensors: Mapping[str, Any], path: str | Path) -> None:
    """Check that no tensor holds NaN or infinite values.

    Args:
        tensors: a state dictionary. Looks at the floating-point and complex tensors in it by name; whatever else is in
            it is passed over, dictionaries of tensors, too.
        path: the file that they are from, for the message.

    Raises:
        UnreadableFileError: some do, naming the first three with their numbers of such values, and how many there are.
    """
    faults = []
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            if count:
                faults.append(f"{name} ({count} of {tensor.numel()} values)")
    if faults:
        more = f" and {len(faults) - 3} more tensors" if len(faults) > 3 else ""
        raise UnreadableFileError(
            f"{path} holds values that are NaN or infinite, in {', '.join(faults[:3])}{more}; the training that wrote "
            "it diverged: take an earlier file, or train again"
        )


# The zip format as PyTorch writes it: records one after the other, each as header, name, padding, data and, since the
# checksum is known only after the data, a descriptor; then the directory, and the end in the forms for 64 and 32 bits.
_HEADER = struct.Struct("<4s10s3I2H")  # signature, _SHARED, CRC-32, stored size, size, lengths of name and extra
_ENTRY = struct.Struct("<4s2s10s3I3HHHII")  # with length of the comment, disk, attributes inside and outside, offset
_SHARED = struct.Struct("<4H2s")  # version needed, flags, method, time and date
_DESCRIPTORS = {16: struct.Struct("<4s3I"), 24: struct.Struct("<4sI2Q")}  # signature, CRC-32, stored size, size
_END = struct.Struct("<4s4H2IH")  # signature, disks, entries twice, size and place of the directory, comment's length
_END64 = struct.Struct("<4sQ4s2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_HAS_DESCRIPTOR, _UTF8, _STORED, _DEFLATED = 0x8, 0x800, 0, 8
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF  # stand for a number that is elsewhere, in 64 bits
_LIMITS = (_MAX16, _MAX16, _MAX32, _MAX32)
_BLOCK = 1 << 20  # bytes
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_CUT_OR_FOREIGN = "cannot be read, it may be cut short or not written by torch.save"


class _Record(NamedTuple):
    name: str
    shared: bytes
    crc: int
    stored: int
    size: int
    offset: int

    @property
    def flags(self) -> int:
        return _SHARED.unpack(self.shared)[1]

    @property
    def compressed(self) -> bool:
        return _SHARED.unpack(self.shared)[2] == _DEFLATED


class _DamageError(Exception):
    """What is wrong with the bytes of a file."""


def _holds_objects(path: str | Path) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path} holds objects other than tensors and plain values (a whole module or a script); it is not "
        "loaded, since that could run code of whoever wrote it",
        holds_objects=True,
    )


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    path = Path(path)
    if not path.is_file():
        raise UnreadableFileError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error}") from error


def _verified(file: BinaryIO, path: str | Path) -> list[_Record]:
    """The records of a zip file, after a look at every byte of it."""
    try:
        records, start = _read_directory(file, path)
        at = 0
        for record, end in zip(records, [*(record.offset for record in records[1:]), start], strict=True):
            if record.offset != at:
                raise _DamageError(f"its record {record.name} is not where the record before it ends")
            try:
                _verify_record(file, record, end)
            except _DamageError as error:
                raise _DamageError(f"its record {record.name} {error}") from None
            at = end
    except _DamageError as error:
        raise UnreadableFileError(f"{path} is damaged: {error}; copy it again, or train or export it again") from error
    return records


def _read_directory(file: BinaryIO, path: str | Path) -> tuple[list[_Record], int]:
    """The records in the order of the file, and where the last of them ends."""
    length = file.seek(0, os.SEEK_END)
    ends = length - _END.size
    end = _unpack(file, _END, ends, b"PK\x05\x06") if ends >= 0 else None
    if end is None:
        raise UnreadableFileError(f"{path} {_CUT_OR_FOREIGN} (what a zip file ends with is not at its end)")
    disk, first_disk, *numbers, comment = end
    located = _unpack(file, _LOCATOR, ends - _LOCATOR.size, b"PK\x06\x07")
    if located is not None:
        ends -= _LOCATOR.size + _END64.size
        end64 = _unpack(file, _END64, ends, b"PK\x06\x06")
        if end64 is None or located != (0, ends, 1) or (end64[0], *end64[2:4]) != (_END64.size - 12, 0, 0):
            raise _DamageError("its directory of records cannot be found")
        numbers64 = list(end64[4:])
        if any(short not in (long, limit) for short, long, limit in zip(numbers, numbers64, _LIMITS, strict=True)):
            raise _DamageError("it says in two ways where its directory of records is")
        numbers = numbers64
    count, total, size, start = numbers
    if (disk, first_disk, comment) != (0, 0, 0) or count != total or start + size != ends:
        raise _DamageError("its directory of records is not where it should be")
    if size < count * _ENTRY.size or not count:
        raise _DamageError(f"it has {count} records in a directory of {size} bytes")
    file.seek(start)
    directory, at, records = file.read(size), 0, []
    for _ in range(count):
        record, at = _read_entry(directory, at)
        records.append(record)
    if at != size:
        raise _DamageError("its directory of records is longer than its records")
    names = [record.name for record in records]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _DamageError(f"its record {twice} is there twice")
    return records, start


def _read_entry(directory: bytes, at: int) -> tuple[_Record, int]:
    """A record by its entry in the directory, and where the next entry begins."""
    if at + _ENTRY.size > len(directory) or directory[at : at + 4] != b"PK\x01\x02":
        raise _DamageError("its directory of records has a gap")
    _, _, shared, crc, stored, size, name_length, extra_length, *unused, offset = _ENTRY.unpack_from(directory, at)
    at += _ENTRY.size
    name = directory[at : at + name_length].decode("utf-8", "backslashreplace")
    at += name_length
    extra = directory[at : at + extra_length]
    at += extra_length
    # PyTorch's reader takes an attribute of old file systems for a folder, and gives back memory as it happens to be.
    if at > len(directory) or any(unused):
        raise _DamageError(f"the directory's entry for its record {name} has what PyTorch does not write")
    stored, size, offset = _in_64_bits(extra, name, size, stored, offset)
    record = _Record(name, shared, crc, stored, size, offset)
    _, flags, method, *_ = _SHARED.unpack(shared)
    if flags & ~(_HAS_DESCRIPTOR | _UTF8) or method not in (_STORED, _DEFLATED):
        raise _DamageError(f"its record {name} is encrypted or packed (flags {flags:#x}, method {method})")
    if method == _STORED and size != stored:
        raise _DamageError(f"its record {name} has {size} bytes, of which {stored} are stored")
    return record, at


def _in_64_bits(extra: bytes, name: str, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Stored size, size and offset; those that do not fit an entry are in its extra field, in this order."""
    wide: list[int] = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1 and not length % 8 and at + length <= len(extra):
            wide = list(struct.unpack_from(f"<{length // 8}Q", extra, at))
        at += length
    numbers = [size, stored, offset]
    if numbers.count(_MAX32) > len(wide):
        raise _DamageError(f"its record {name} does not say its size or place")
    size, stored, offset = (wide.pop(0) if number == _MAX32 else number for number in numbers)
    return stored, size, offset


def _verify_record(file: BinaryIO, record: _Record, end: int) -> None:
    """Check a record, which together with its descriptor takes up everything from its offset to ``end``."""
    header = _unpack(file, _HEADER, record.offset, b"PK\x03\x04")
    if header is None:
        raise _DamageError("does not begin where the directory says")
    shared, *told, name_length, extra_length = header
    if file.read(name_length).decode("utf-8", "backslashreplace") != record.name:
        raise _DamageError("has another name in the directory than in front of the data")
    # Zeros in the header leave all three numbers to the descriptor, ones leave a size to the extra field.
    numbers = (record.crc, record.stored, record.size)
    left = record.flags & _HAS_DESCRIPTOR and told == [0, 0, 0]
    same = told[0] == record.crc and all(
        short in (long, _MAX32) for short, long in zip(told[1:], numbers[1:], strict=True)
    )
    if shared != record.shared or not (left or same):
        raise _DamageError("is described in another way in the directory than in front of the data")
    data = record.offset + _HEADER.size + name_length + extra_length
    after = data + record.stored
    if record.flags & _HAS_DESCRIPTOR:
        layout = _DESCRIPTORS.get(end - after)
        if layout is None or _unpack(file, layout, after, b"PK\x07\x08") != numbers:
            raise _DamageError("is described in another way in the directory than after the data")
    elif after != end:
        raise _DamageError("does not end where the next one begins")
    file.seek(data)
    if _checksum(file, record) != (record.crc, record.size):
        raise _DamageError("does not have the checksum that it was written with")


def _checksum(file: BinaryIO, record: _Record) -> tuple[int, int]:
    """CRC-32 and size in bytes of a record's content, which begins at the file's position."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS) if record.compressed else None
    crc, size, left = 0, 0, record.stored
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise _DamageError("is cut short")
        left -= len(block)
        while block:
            content, rest = block, b""
            if unpacker is not None:
                try:
                    content, rest = unpacker.decompress(block, _BLOCK), unpacker.unconsumed_tail
                except zlib.error as error:
                    raise _DamageError(f"cannot be unpacked: {error}") from None
            crc, size, block = zlib.crc32(content, crc), size + len(content), rest
            if size > record.size:
                raise _DamageError(f"has more than its {record.size} bytes")
    if unpacker is not None:
        content = unpacker.flush()
        crc, size = zlib.crc32(content, crc), size + len(content)
        if not unpacker.eof or unpacker.unused_data:
            raise _DamageError("cannot be unpacked: its end is not where it should be")
    return crc, size


def _unpack(file: BinaryIO, layout: struct.Struct, at: int, signature: bytes) -> tuple[Any, ...] | None:
    """What stands at a place of the file after a signature, or None if that is not there."""
    if at < 0:
        return None
    file.seek(at)
    found = file.read(layout.size)
    return layout.unpack(found)[1:] if len(found) == layout.size and found.startswith(signature) else None
