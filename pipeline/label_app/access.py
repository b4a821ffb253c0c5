"""Who may ask the server for what: tokens, origins, and names that are no paths."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pipeline.label_app.limits import LARGEST_JSON, is_name, one_line
from pipeline.label_app.listening import is_loopback
from pipeline.label_app.proxy import ProxyError, decoded

__all__ = ["Guard", "is_name", "read_token"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

SHORTEST_TOKEN = 16
"""Characters that a token must have at least."""

LONGEST_ADDRESS = 8192
"""Bytes of a path, and of a query."""

WITH_FILES = ("/infer/", "/datastore/", "/session/", "/model/")
"""Where requests may carry files."""

NAME_PARAMETERS = ("image", "id", "label", "tag", "session_id")
"""Query parameters that name something on the server."""

logger = logging.getLogger(__name__)


def read_token(path: str | Path) -> str:
    """The token out of its file.

    Raises:
        ValueError: if there is no such file, or what it holds is too short to keep anybody out.
    """
    path = Path(path).expanduser()
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"token_file {path} cannot be read: {error}") from error
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"token_file {path} must hold at least {SHORTEST_TOKEN} printable ASCII characters without spaces, "
            f"got {len(token)} characters"
        )
    return token


class TooLargeError(Exception):
    """A request carries more than it may."""


class Guard:
    """Answers in place of the server what the server must not answer.

    With a token, every request has to carry it. Without one, and without MONAI Label's own authentication, only this
    machine is served. A web page of another origin is refused, unless its origin is listed. No request may be larger
    than it needs to be, and none is answered with a trace.

    Args:
        app: the server.
        token: expected in the header ``Authorization: Bearer TOKEN``; None for none.
        origins: that web pages may come from, such as ``https://viewer.example.org``.
        others: serve other machines without a token of ours, since MONAI Label's own authentication is on.
        largest_file: bytes that a request with a file may have.
    """

    def __init__(
        self,
        app: App,
        token: str | None = None,
        origins: Iterable[str] = (),
        others: bool = False,
        largest_file: int = 1 << 30,
    ) -> None:
        self.app = app
        self._token = token
        self._origins = {origin.rstrip("/") for origin in origins}
        self._others = others
        self._largest_file = largest_file

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            try:
                await self.app(scope, self._bounded(scope, receive), note)
                return
            except TooLargeError as error:
                refusal = 413, str(error)
            except Exception:  # the server's own last resort has answered where it could
                logger.exception("a request failed")
                refusal = 500, "the server failed; its log says why"
            if started:
                return
        await self._refuse(scope, send, *refusal)

    async def _refuse(self, scope: Message, send: Send, status: int, reason: str) -> None:
        # What a client wrote may be somebody's name: the answer has it, the log has not.
        logger.warning("refused: %d, %s", status, one_line(reason.partition(", got ")[0]))
        headers = [(b"content-type", b"application/json")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 413:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        return self._refuse_stranger(scope, headers) or _refuse_path(scope) or self._refuse_size(scope, headers)

    def _largest(self, scope: Message) -> int:
        with_file = any(part in scope["path"] for part in WITH_FILES) and scope["method"] in ("POST", "PUT")
        return self._largest_file if with_file else LARGEST_JSON

    def _refuse_size(self, scope: Message, headers: dict[bytes, str]) -> tuple[int, str] | None:
        length = headers.get(b"content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "content-length must be a whole number"
        largest = self._largest(scope)
        return (413, _too_large(largest)) if len(length) > 18 or int(length) > largest else None

    def _bounded(self, scope: Message, receive: Receive) -> Receive:
        largest, found = self._largest(scope), 0

        async def bounded() -> Message:
            nonlocal found
            message = await receive()
            found += len(message.get("body", b""))
            if found > largest:
                raise TooLargeError(_too_large(largest))
            return message

        return bounded

    def _refuse_stranger(self, scope: Message, headers: dict[bytes, str]) -> tuple[int, str] | None:
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        if origin and origin not in self._origins and urlsplit(origin).netloc != host:
            return (
                403,
                f"web pages from {one_line(origin, 100)} are not served; list the origin in MONAI_LABEL_CORS_ORIGINS",
            )
        if self._token is not None:
            if scope["method"] == "OPTIONS" and origin:  # a browser asks without the token whether it may ask
                return None
            kind, _, given = headers.get(b"authorization", "").partition(" ")
            if kind.lower() != "bearer" or not given:
                return 401, "a token is needed: send the header 'Authorization: Bearer TOKEN'"
            if not hmac.compare_digest(given.strip().encode(), self._token.encode()):
                return 401, "this is not the server's token"
            return None
        # A page of another site whose name is made to point to this machine shows in the header Host.
        client = (scope.get("client") or ("127.0.0.1",))[0]
        if not self._others and not (is_loopback(client) and is_loopback(_name(host))):
            return 403, "without a token this server serves its own machine only; start it with --conf token_file FILE"
        return None


def _name(host: str) -> str:
    """The host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _too_large(largest: int) -> str:
    return f"the request is too large: at most {largest} bytes are taken"


def _refuse_path(scope: Message) -> tuple[int, str] | None:
    """Refuse what would lead out of the studies, and what the server does not do."""
    if len(scope["path"]) > LONGEST_ADDRESS or len(scope.get("query_string", b"")) > LONGEST_ADDRESS:
        return 414, f"path and query must have at most {LONGEST_ADDRESS} bytes each"
    try:
        path = decoded(scope["path"])
    except ProxyError as error:
        return error.status, str(error)
    if not path.isprintable():
        return 400, "the address must not contain control characters"
    if ".." in path.replace("\\", "/").split("/"):
        return 400, "the address must not contain '..'"
    if path.rstrip("/").endswith("/reload"):
        return 403, "reloading is not offered; start the server again"
    query: Sequence[tuple[str, str]] = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    for name, value in query:
        if name in NAME_PARAMETERS and not is_name(value):
            shown = one_line(repr(value), 200)
            return 400, f"{name} must be a name as GET /datastore/?output=all lists it, not a path, got {shown}"
        if name == "output" and value == "dicom_seg":
            return 400, "a translated volume is no segmentation: output must be image, json or all, got 'dicom_seg'"
    return None
