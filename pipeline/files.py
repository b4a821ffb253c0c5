"""Files that are whole or not there, what torch.save wrote, and folders that serve one process."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import re
import shutil
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

if os.name == "nt":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a disk says that takes no more."""
NO_ENTRY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""What a disk says where nothing may be written."""
LITTLE = 1 << 14
"""Bytes; a disk with less than these is full, whatever a library makes of it."""
_LEFTOVER = re.compile(r"\..+\.(\d+)\.(\w+\.)?part")
_STARTED = time.time()
_ABANDONED = 24 * 3600.0  # seconds; longer than anything takes to be written


class NotWrittenError(OSError):
    """A file that could not be written; the message says which, why, and what helps. What was there is as it was.

    Args:
        path: the file.
        number: of the error, as in ``errno``.
    """

    def __init__(self, path: str | Path, number: int) -> None:
        super().__init__(number, os.strerror(number), str(path))
        self.path = Path(path)

    def __str__(self) -> str:
        folder = self.path.parent
        if self.errno == errno.EFBIG:
            why = "files may not become that large here (see `ulimit -f`)"
        elif self.errno in NO_ROOM:
            quota = "the quota is used up" if self.errno == errno.EDQUOT else "the disk is full"
            why = f"{quota}: make room in {folder}, or choose another folder"
        elif self.errno == errno.EROFS:
            why = f"{folder} is on a file system that can only be read: choose another folder"
        else:
            why = f"writing in {folder} is not permitted: choose another folder, or ask for permission"
        return f"{self.path} could not be written: {why}"


def came_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it came of, whether that was said or not."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def no_room(error: BaseException) -> bool:
    """Whether an error came of a disk that takes no more."""
    return any(isinstance(one, OSError) and one.errno in NO_ROOM for one in came_of(error))


def not_written(path: str | Path, error: BaseException) -> NotWrittenError | None:
    """What the disk under a file has to do with an error that came up while it was written; None if it has nothing.

    Libraries make errors of their own of a full disk. So this looks at what an error was caused by, and at the disk.

    Args:
        path: the file, or what is written beside its place.
        error: the error.
    """
    path = Path(path)
    for seen in came_of(error):
        if isinstance(seen, NotWrittenError):
            return seen
        if isinstance(seen, OSError) and seen.errno in NO_ROOM | NO_ENTRY:
            told = None if seen.filename is None else Path(os.fsdecode(seen.filename))
            if told is None or told == path.parent or path.parent in told.parents or told in path.parents:
                return NotWrittenError(path, seen.errno)
    if not isinstance(error, Exception) or _free(path.parent) >= LITTLE:
        return None
    return NotWrittenError(path, errno.ENOSPC)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place and rename it at the end, so that readers never meet half of it.

    It is on the disk before it has its name: what a crash of the machine leaves under that name is whole, too.

    Args:
        path: where the file shall be; its folder is made.

    Yields:
        The path to write to. If the body raises, nothing is left of it and ``path`` is as it was.

    Raises:
        NotWrittenError: the disk is full, or nothing may be written there.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _told_of_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            put_in_place(beside, path)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """A folder beside a file's place, for writers that go by a file's name or write several; gone at the end.

    Args:
        path: where the file shall be, see `put_in_place`; its folder is made.

    Yields:
        The folder.

    Raises:
        NotWrittenError: the disk is full, or nothing may be written there.
    """
    path = Path(path)
    with _told_of_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{path.name}.{os.getpid()}."
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix, suffix=".part") as folder:
            yield Path(folder)


def put_in_place(beside: Path, path: Path) -> None:
    """Give what was written beside a place its name, once the disk has it.

    Args:
        beside: a file, or a folder of files, on the same file system.
        path: its name; a file there is replaced.
    """
    for written in (beside, *beside.iterdir()) if beside.is_dir() else (beside,):
        _sync(written)
    os.replace(beside, path)
    _sync(path.parent)


def remove_leftovers(folder: str | Path, alone: bool = False) -> None:
    """Remove what processes left in a folder that were killed while they wrote.

    Args:
        folder: whether it is there or not.
        alone: no other machine writes there; or else nothing is removed that was written to within a day.
    """
    for path in Path(folder).glob(".*part"):
        found = _LEFTOVER.fullmatch(path.name)
        with suppress(OSError):
            recent = not alone and time.time() - path.stat().st_mtime < _ABANDONED
            if found is None or recent or _writes_still(int(found[1]), path):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            logger.info("removed %s, which a process left that was killed while it wrote", path)


def save_tensors(content: Any, path: str | Path) -> None:
    """Write what `load_tensors` reads, whole or not at all (see `replacing`)."""
    with replacing(path) as beside, beside.open("wb") as file:
        torch.save(content, file)


@contextmanager
def _told_of_the_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = not_written(path, error)
        if told is None or told is error:
            raise
        raise told from error


def _sync(path: Path) -> None:
    """Have the disk take what was written to a file, or which files a folder has."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        with suppress(OSError) if is_folder else nullcontext():  # some network file systems know it of files alone
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writes_still(process: int, path: Path) -> bool:
    """Whether the process of that id may be the one that writes there."""
    if process == os.getpid():  # in a container, the one before often had the same
        return path.stat().st_mtime >= _STARTED
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _free(folder: Path) -> int:
    """Bytes that a disk still takes."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return LITTLE


class UnreadableFileError(ValueError):
    """A file that is not read, or whose content is of no use; the message says which and why.

    Attributes:
        holds_objects: whether it is whole, but holds objects that could run code.
    """

    def __init__(self, message: str, holds_objects: bool = False) -> None:
        super().__init__(message)
        self.holds_objects = holds_objects


def load_tensors(path: str | Path, map_location: Any = "cpu", *, allow_legacy: bool = False) -> Any:
    """Read what ``torch.save`` wrote, without running any code in the file, and only if it is as it was written.

    PyTorch itself does not look at the checksums in its files: a flipped bit would come out as another weight.

    Args:
        path: file of tensors and plain values, such as a state dictionary.
        map_location: device for the tensors.
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
            return torch.load(file, map_location=map_location, weights_only=True)
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


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; ``hashlib.file_digest`` is there from Python 3.11 on only."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ProcessLock:
    """A lock on a file that ends with the process that holds it, however that dies.

    Unlike ``flock``, which the `filelock` package uses, it is not inherited by forked children, so that the data loader
    workers of a killed process do not hold on to it.

    Args:
        path: file to lock; made where it is missing.
    """

    _held: ClassVar[set[str]] = set()
    _guard = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._name = os.path.abspath(path)
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Takes the lock if it is free; says whether it is ours now."""
        with self._guard:  # the system's locks do not part the threads of one process
            if self._name in self._held:
                return False
            descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if os.name == "nt":
                    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                else:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._held.add(self._name)
            self._descriptor = descriptor
            return True

    @contextmanager
    def waiting(self, timeout: float) -> Iterator[None]:
        """Holds the lock for a ``with`` block.

        Args:
            timeout: longest wait for it in seconds.

        Raises:
            TimeoutError: somebody else holds it that long.
        """
        deadline = time.monotonic() + timeout
        while not self.acquire():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._name} is locked by another process for more than {timeout:g} s")
            time.sleep(0.05)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                self._held.discard(self._name)
