"""Whether the server lives, and whether it should be sent requests: what supervisors and load balancers ask."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.label_app.access import App, Message, Receive, Send

LEAST_FREE_GB = 1.0
"""Free disk, in GB, below which the server is not ready, unless ``--conf min_free_gb`` says otherwise."""
LIVE, READY = "/health/live", "/health/ready"

logger = logging.getLogger(__name__)


def find_obstacles(work: Path, folders: Sequence[Path], least_free: int) -> list[str]:
    """Why nothing could be written, without names and places.

    Args:
        work: folder for temporary files.
        folders: others that are written to; one that does not exist yet is made by whoever needs it.
        least_free: bytes that must be free on the disk of each.
    """
    obstacles = []
    try:
        with tempfile.TemporaryFile(dir=work) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError:
        obstacles.append("cannot write temporary files")
    there = [_nearest(folder) for folder in folders]
    if not all(os.access(folder, os.W_OK) for folder in there):
        obstacles.append("cannot write to its folders")
    free = [shutil.disk_usage(folder).free for folder in {*there, _nearest(work)}]
    if min(free) < least_free:
        obstacles.append("disk full")
    return obstacles


def _nearest(folder: Path) -> Path:
    """The folder, or that above it which exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


class Health:
    """Answers ``GET /health/live`` and ``GET /health/ready`` in place of the server; to everybody, so without details.

    Args:
        app: the server.
        why_not_ready: says why it should not be sent requests, in words for everybody; empty if it may.
    """

    def __init__(self, app: App, why_not_ready: Callable[[], Sequence[str]]) -> None:
        self.app = app
        self._why_not_ready = why_not_ready
        self._reasons: list[str] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["path"] not in (LIVE, READY) or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        status = 200
        answer: dict[str, Any] = {"status": "live"}
        if scope["path"] == READY:
            reasons = await asyncio.to_thread(self._ask)
            status = 503 if reasons else 200
            answer = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        body = json.dumps(answer).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _ask(self) -> list[str]:
        try:
            reasons = list(self._why_not_ready())
        except Exception:
            logger.exception("could not find out whether the server is ready")
            reasons = ["internal error"]
        if reasons != self._reasons:
            logger.warning("not ready: %s", "; ".join(reasons)) if reasons else logger.info("ready again")
        self._reasons = reasons
        return reasons
