"""Bodies of requests: forms and JSON, read within bounds and answered with 4xx where they are none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, BinaryIO, NamedTuple

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from pipeline.label_app.limits import LARGEST_JSON, is_name, one_line, read_object
from pipeline.label_app.uploads import VolumeFileError


class Sent(NamedTuple):
    """A file of a form.

    Attributes:
        name: that the client gives it.
        stream: its content.
    """

    name: str
    stream: BinaryIO


@asynccontextmanager
async def form_of(request: Request) -> AsyncIterator[FormData]:
    """The form that a request carries; empty where it carries something else.

    Raises:
        HTTPException: 400 if it is broken, 413 if it is too large.
        OSError: there is no room for it.
    """
    try:
        form = await request.form(max_files=4, max_fields=16, max_part_size=LARGEST_JSON)
    except (HTTPException, ClientDisconnect, OSError):
        raise
    except Exception:  # of the parser, of encodings that nobody knows, ...
        raise HTTPException(400, "the form cannot be read: expected multipart/form-data") from None
    try:
        yield form
    finally:
        await form.close()


async def object_in(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries, empty where it carries nothing.

    Raises:
        HTTPException: 400 if it is none, 413 if it is too large.
    """
    with refusing(400):
        return read_object(await request.body(), "the body")


def object_of(form: FormData, name: str) -> dict[str, Any]:
    """The JSON object in a field of a form, empty where there is no such field.

    Raises:
        HTTPException: 400 if it is none.
    """
    value = form.get(name, "")
    if not isinstance(value, str):
        raise HTTPException(400, f"{name} must be a field of text, got a file")
    with refusing(400):
        return read_object(value, name)


def file_of(form: FormData, name: str, needed: bool = True) -> Sent | None:
    """The file in a field of a form.

    Raises:
        HTTPException: 400 if there is none and it is needed, or several.
    """
    values = form.getlist(name)
    if len(values) > 1:
        raise HTTPException(400, f"one file is taken at a time, got {len(values)} as '{name}'")
    if values and isinstance(values[0], UploadFile):
        return Sent(values[0].filename or "", values[0].file)
    if values or needed:
        raise HTTPException(400, f"a file is needed in the field '{name}' of a form (multipart/form-data)")
    return None


def name_in(value: Any, what: str) -> str:
    """A plain name.

    Raises:
        HTTPException: 400 if it is none.
    """
    if not is_name(value):
        raise HTTPException(400, f"{what} must be a plain name, not a path, got {one_line(value, 80)!r}")
    return value


@contextmanager
def refusing(status: int) -> Iterator[None]:
    """Answer with a status where a value is wrong, and with 422 where a volume is."""
    try:
        yield
    except VolumeFileError as error:
        raise HTTPException(422, one_line(error, 500)) from None
    except ValueError as error:
        raise HTTPException(status, one_line(error, 500)) from None
