"""A checksum within an ONNX file, which has none of its own: a flipped bit would come out as another image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.files import replacing

SEAL = "sha256"
"""Key of the seal in the metadata of an ONNX file."""
PLACEHOLDER = json.dumps("0" * 64)
"""What the writer of the file puts there; as JSON, as all of our metadata. `seal` replaces the zeros."""

_METADATA_PROPS = 14  # number of ModelProto's field; its items have the key as field 1 and the value as field 2
_BYTES = 2  # protobuf's wire type of all that has a length in front
_FIXED = {1: 8, 5: 4}  # bytes of the other wire types; 0 is a varint
_KEY = b"\x0a" + bytes([len(SEAL)]) + SEAL.encode()
_VALUE = b"\x12" + bytes([len(PLACEHOLDER)])
_BLOCK = 1 << 20  # bytes


class SealError(ValueError):
    """An ONNX file that has no seal, or another content than when it was sealed; the message says which."""


def seal(path: str | Path) -> None:
    """Write the SHA-256 of an ONNX file into it.

    It is that of the file with zeros in place of its hexadecimal digits. What the file keeps outside of itself
    (external data) is not in it.

    Args:
        path: file whose metadata has `PLACEHOLDER` under the key `SEAL`; replaced whole or not at all.

    Raises:
        SealError: it is no ONNX file, or the placeholder is not there exactly once.
    """
    path = Path(path)
    with path.open("rb") as file:
        place, found = _find(file, path)
        if found != PLACEHOLDER.encode():
            raise SealError(f"{path} cannot be sealed: expected {PLACEHOLDER} as its metadata {SEAL}, got {found!r}")
        sha256 = _sha256(file, place)
    with replacing(path) as beside:
        shutil.copyfile(path, beside)
        with beside.open("r+b") as file:
            file.seek(place)
            file.write(json.dumps(sha256).encode())


def verify_seal(path: str | Path) -> None:
    """Check that an ONNX file is as it was when it was sealed; reads it once, in blocks.

    It is no protection from somebody who seals the file again.

    Raises:
        SealError: it has no seal, since it is from elsewhere or was written before there were seals, or its content is
            not what was sealed.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        place, found = _find(file, path)
        if found != json.dumps(_sha256(file, place)).encode():
            raise SealError(
                f"{path} is damaged: its content does not have the SHA-256 that it was written with; copy it again, or "
                "export it again with scripts/export.py"
            )


def _find(file: BinaryIO, path: str | Path) -> tuple[int, bytes]:
    """Where the seal's value is in the file, in bytes from its start, and the value."""
    items = []
    try:
        for start, length in _metadata(file):
            file.seek(start)
            if length >= len(_KEY) and file.read(len(_KEY)) == _KEY:
                items.append((start, length))
    except EOFError:
        raise SealError(
            f"{path} is no ONNX file, or it is damaged or cut short; copy it again, or export it again with "
            "scripts/export.py"
        ) from None
    if not items:
        raise SealError(
            f"{path} has no checksum ({SEAL} in its metadata), so that damage to it would go unseen: it is from "
            "elsewhere or was exported before there were any; export it again with scripts/export.py"
        )
    start, length = items[0]
    place = start + len(_KEY) + len(_VALUE)
    file.seek(start + len(_KEY))
    if len(items) > 1 or length != place - start + len(PLACEHOLDER) or file.read(len(_VALUE)) != _VALUE:
        raise SealError(
            f"{path} is damaged: its metadata {SEAL} must be there once, with 64 digits; copy it again, or export it "
            "again with scripts/export.py"
        )
    return place, file.read(len(PLACEHOLDER))


def _metadata(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Start and length in bytes of every item of the metadata; the file has to be fields of protobuf from end to end.

    Raises:
        EOFError: it is not.
    """
    end = file.seek(0, os.SEEK_END)
    at = 0
    while at < end:
        file.seek(at)
        number, wire = divmod(_varint(file), 8)
        length = 0
        if wire == _BYTES:
            length = _varint(file)
        elif wire == 0:
            _varint(file)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise EOFError
        start = file.tell()
        at = start + length
        if at > end:
            raise EOFError
        if wire == _BYTES and number == _METADATA_PROPS:
            yield start, length
    if not end:
        raise EOFError


def _varint(file: BinaryIO) -> int:
    """A number in groups of seven bits, the lowest first, of which all but the last have the eighth bit set."""
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    raise EOFError


def _sha256(file: BinaryIO, place: int) -> str:
    """SHA-256 of a file with the zeros of `PLACEHOLDER` at a place, in hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    left = place
    while left:
        block = file.read(min(left, _BLOCK))
        digest.update(block)
        left -= len(block)
        if not block:  # somebody is writing into it
            break
    digest.update(PLACEHOLDER.encode())
    file.seek(place + len(PLACEHOLDER))
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
