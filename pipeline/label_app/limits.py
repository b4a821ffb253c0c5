"""What a client may send: plain names, strict JSON and bounded sizes; needs nothing of MONAI Label."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

LONGEST_NAME = 128
"""Characters of a name, and of a tag; with its suffix it has to fit into a file name."""

LARGEST_JSON = 1 << 20
"""Bytes of a request that carries no file."""

LARGEST_INFO = 1 << 16
"""Bytes that may be kept about one image or label."""

DEEPEST_JSON = 16
"""Lists and objects within each other."""

LARGEST_NUMBER = 2**53
"""Whole numbers up to here are the same in every reader of JSON."""


def is_name(value: Any) -> bool:
    """Whether a value is a plain name, which leads nowhere else when it is joined to a folder.

    Characters count as what they look like, so that no reader can make dots or slashes of them afterwards.
    """
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        return False
    seen = unicodedata.normalize("NFKC", value)
    return all(
        not text.startswith(".")
        and text.strip() == text
        and not any(character in text for character in "/\\")
        and not (len(text) > 1 and text[1] == ":")  # a drive of Windows
        and len(text.encode()) <= 200
        for text in (value, seen)
    )


def one_line(text: Any, longest: int = 300) -> str:
    """A client's words as one line without control characters, for logs and answers."""
    text = str(text)
    shown = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def read_json(text: str | bytes, what: str) -> Any:
    """Read strict JSON: no NaN, no infinity, no number that another reader would take for a different one.

    Args:
        text: to read; empty for an empty object.
        what: it is, for the message.

    Raises:
        ValueError: it is none, saying why.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{what} must have at most {LARGEST_JSON} bytes, got {len(text)}")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        if not decoded.strip():
            return {}
        value = json.loads(decoded, parse_constant=_no_constant, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"{what} must not be nested deeper than {DEEPEST_JSON} levels") from None
    except ValueError as error:
        raise ValueError(f"{what} must be JSON: {one_line(error)}") from None
    _check_json(value, what, 0)
    return value


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Read a JSON object, see `read_json`; ``null`` is an empty one.

    Raises:
        ValueError: it is none, saying why.
    """
    value = read_json(text, what)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, got {one_line(json.dumps(value), 60)}")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _whole(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > LARGEST_NUMBER:
        raise ValueError(f"whole numbers must lie within 2**53, got one of {len(text)} digits")
    return int(text)


def _check_json(value: Any, what: str, depth: int) -> None:
    if depth > DEEPEST_JSON:
        raise ValueError(f"{what} must not be nested deeper than {DEEPEST_JSON} levels")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):  # 1e999
        raise ValueError(f"{what} must be JSON: a number is too large")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} must be JSON: half a character, got {one_line(ascii(value), 60)}") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_json(key, what, depth + 1)
            _check_json(item, what, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, what, depth + 1)
