"""What viewers may ask of the DICOM server through this one: DICOMweb's reading requests, and nothing else of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import requests

from pipeline.label_app.limits import one_line

_UID = r"[0-9]{1,64}(?:\.[0-9]{1,64})*"
_STUDY, _SERIES, _INSTANCE = f"studies/{_UID}", f"studies/{_UID}/series/{_UID}", f"/instances/{_UID}"
_SHOWN = r"(?:/(?:rendered|thumbnail))?"
_FRAMES = rf"/frames/[0-9]{{1,6}}(?:,[0-9]{{1,6}}){{0,99}}{_SHOWN}"
_BULK = r"/bulk/[0-9A-Fa-f]{8}(?:/[0-9]{1,6}/[0-9A-Fa-f]{8}){0,8}"
PATHS = re.compile(
    "|".join(
        (
            "studies|series|instances",
            f"{_STUDY}(?:/metadata|/series|/instances|{_SHOWN})",
            f"{_SERIES}(?:/metadata|/instances|{_SHOWN})",
            f"{_SERIES}{_INSTANCE}(?:/metadata|{_FRAMES}|{_BULK}|{_SHOWN})",
        )
    )
)
"""Of DICOMweb (PS3.18): searches (QIDO-RS) and retrieval (WADO-RS) of what a UID names."""

_PARAMETER = re.compile(r"limit|offset|fuzzymatching|includefield|viewport|quality|[A-Za-z]{1,64}|[0-9A-Fa-f]{8}")
_ACCEPT = re.compile(r"[\x20-\x7e]{1,500}")
_TIMES_DECODED = 8
_BLOCK = 1 << 16


class ProxyError(Exception):
    """A request that is not passed on.

    Attributes:
        status: to answer with.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decoded(path: str) -> str:
    """A path that no further decoding changes.

    Raises:
        ProxyError: it is encoded too often to be meant well.
    """
    for _ in range(_TIMES_DECODED):
        plain = unquote(path)
        if plain == path:
            return path
        path = plain
    raise ProxyError(400, f"the address is encoded more than {_TIMES_DECODED} times")


def allowed_path(path: str) -> str:
    """The path of a request to the DICOM server, if it is one that viewers need.

    Args:
        path: as it came, behind ``/proxy/dicom/``; ``qido/`` or ``wado/`` may stand in front.

    Raises:
        ProxyError: it is another.
    """
    plain = decoded(path).strip("/")
    if not PATHS.fullmatch(plain) or any(len(part) > 64 for part in plain.split("/") if "," not in part):
        raise ProxyError(
            403,
            "only searches and retrieval by DICOMweb are passed on, such as studies/UID/series, got "
            f"{one_line(plain, 80)!r}",
        )
    return plain


def allowed_query(query: str) -> str:
    """The query of a request to the DICOM server, written anew.

    Raises:
        ProxyError: something in it is not of DICOMweb.
    """
    try:
        pairs: Sequence[tuple[str, str]] = parse_qsl(query, keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError:
        raise ProxyError(400, "the query must be names and values in UTF-8, at most 100") from None
    for name, value in pairs:
        if not all(_PARAMETER.fullmatch(part) for part in name.split(".")) or not value.isprintable():
            raise ProxyError(400, f"the query must have attributes of DICOM only, got {one_line(name, 80)!r}")
        if name in ("limit", "offset") and not re.fullmatch(r"[0-9]{1,9}", value):
            raise ProxyError(400, f"{name} must be a whole number, got {one_line(value, 80)!r}")
    return urlencode(pairs)


def fetch(
    server: str,
    path: str,
    query: str = "",
    accept: str | None = None,
    auth: Any = None,
    headers: dict[str, str] | None = None,
    timeout: float = 30.0,
) -> tuple[int, str, Iterator[bytes]]:
    """Ask the DICOM server; of the client's headers it is told ``Accept`` alone.

    Args:
        server: address of its DICOMweb root, with a prefix where it has one.
        path: see `allowed_path`.
        query: see `allowed_query`.
        accept: what the client accepts.
        auth: of this server, for requests.
        headers: of this server.
        timeout: seconds of silence after which it counts as gone.

    Returns:
        Status, type of the content, and the content.

    Raises:
        ProxyError: it does not answer, or with an error of its own.
    """
    sent = {"Accept-Encoding": "identity", **(headers or {})}
    if accept and _ACCEPT.fullmatch(accept):
        sent["Accept"] = accept
    address = f"{server.rstrip('/')}/{path}" + (f"?{query}" if query else "")
    try:
        answer = requests.get(address, headers=sent, auth=auth, timeout=timeout, stream=True, allow_redirects=False)
    except requests.RequestException:
        raise ProxyError(504, "the DICOM server does not answer") from None
    if answer.status_code >= 300:
        answer.close()
        status = answer.status_code if 400 <= answer.status_code < 500 and answer.status_code not in (401, 407) else 502
        raise ProxyError(status, f"the DICOM server answered {answer.status_code} to {path}")
    kind = answer.headers.get("Content-Type", "application/octet-stream")

    def content() -> Iterator[bytes]:
        with answer:
            yield from answer.iter_content(_BLOCK)

    return answer.status_code, kind if _ACCEPT.fullmatch(kind) else "application/octet-stream", content()
