"""Who may ask the server for what: tokens, origins, and names that are no paths."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

SHORTEST_TOKEN = 16
"""Characters that a token must have at least."""

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


def is_name(value: Any) -> bool:
    """Whether a value is a plain name, which leads nowhere else when it is joined to a folder."""
    return (
        isinstance(value, str)
        and value not in (".", "..")
        and not any(character in value for character in "/\\\0")
        and not (len(value) > 1 and value[1] == ":")  # a drive of Windows
    )


class Guard:
    """Answers in place of the server what the server must not answer.

    With a token, every request has to carry it. Without one, and without MONAI Label's own authentication, only this
    machine is served. A web page of another origin is refused, unless its origin is listed.

    Args:
        app: the server.
        token: expected in the header ``Authorization: Bearer TOKEN``; None for none.
        origins: that web pages may come from, such as ``https://viewer.example.org``.
        others: serve other machines without a token of ours, since MONAI Label's own authentication is on.
    """

    def __init__(self, app: App, token: str | None = None, origins: Iterable[str] = (), others: bool = False) -> None:
        self.app = app
        self._token = token
        self._origins = {origin.rstrip("/") for origin in origins}
        self._others = others

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, reason = refusal
        logger.warning("refused %s %s: %d, %s", scope.get("method"), scope.get("path"), status, reason)
        headers = [(b"content-type", b"application/json")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        return self._refuse_stranger(scope, headers) or _refuse_path(scope)

    def _refuse_stranger(self, scope: Message, headers: dict[bytes, str]) -> tuple[int, str] | None:
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        if origin and origin not in self._origins and urlsplit(origin).netloc != host:
            return 403, f"web pages from {origin} are not served; list the origin in MONAI_LABEL_CORS_ORIGINS"
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
        if not self._others and not (_is_here((scope.get("client") or ("127.0.0.1",))[0]) and _is_here(_name(host))):
            return 403, "without a token this server serves its own machine only; start it with --conf token_file FILE"
        return None


def _name(host: str) -> str:
    """The host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_here(host: str) -> bool:
    """Whether an address is that of this machine itself."""
    if host in ("localhost", "testclient"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _refuse_path(scope: Message) -> tuple[int, str] | None:
    """Refuse what would lead out of the studies, and what the server does not do."""
    path = scope["path"]
    if ".." in path.split("/"):
        return 400, "the address must not contain '..'"
    if path.rstrip("/").endswith("/reload"):
        return 403, "reloading is not offered; start the server again"
    query: Sequence[tuple[str, str]] = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    for name, value in query:
        if name in NAME_PARAMETERS and not is_name(value):
            return 400, f"{name} must be a name as GET /datastore/?output=all lists it, not a path, got {value!r}"
        if name == "output" and value == "dicom_seg":
            return 400, "a translated volume is no segmentation: output must be image, json or all, got 'dicom_seg'"
    return None
