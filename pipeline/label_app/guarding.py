"""Puts what is ours in front of MONAI Label's server, which is built before it reads any app."""

from __future__ import annotations

import functools
import json
import shutil
import tarfile
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelException

from pipeline.label_app.access import Guard
from pipeline.label_app.health import LIVE, READY, Health
from pipeline.label_app.journal import Journal
from pipeline.label_app.translating import make_router


def guard_server(app: Any, token: str | None, others: bool = False) -> None:
    """Put our routes, the guard, the answers about health and the journal in front of the running server.

    MONAI Label builds its server before it reads any app, and lets every origin in where none is listed.

    Args:
        app: that is served.
        token: that every request needs; None for none.
        others: serve other machines without a token of ours.
    """
    from monailabel.app import app as server
    from monailabel.endpoints.user import auth

    if isinstance(server.middleware_stack, Journal):
        return
    if hasattr(tarfile, "data_filter"):  # archives of sessions must not unpack to elsewhere
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    server.add_exception_handler(json.JSONDecodeError, _answer_bad_json)
    server.add_exception_handler(MONAILabelException, _answer_unknown)
    for kind in (tarfile.TarError, shutil.ReadError):
        server.add_exception_handler(kind, _answer_bad_archive)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        # PyJWT wants to be told what it may accept; without it MONAI Label refuses every token.
        auth.jwt = SimpleNamespace(decode=functools.partial(auth.jwt.decode, algorithms=["RS256"]))
    origins = [str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    if not origins:
        server.user_middleware = [entry for entry in server.user_middleware if "CORS" not in entry.cls.__name__]
    put_first(server, make_router(app))
    guard = Guard(server.build_middleware_stack(), token, origins, others=others or settings.MONAI_LABEL_AUTH_ENABLE)
    health = Health(guard, app.why_not_ready)
    server.middleware_stack = Journal(health, functools.partial(find_template, server), lambda: app.bundles)


def put_first(server: Any, router: Any) -> None:
    """Let a router answer before what the server has for the same paths."""
    before = len(server.router.routes)
    server.include_router(router)
    server.router.routes[:] = server.router.routes[before:] + server.router.routes[:before]
    server.openapi_schema = None


def find_template(server: Any, scope: Any) -> tuple[str | None, dict[str, str]]:
    """The template of a request's path, such as ``/infer/{model}``, and what stands in the place of its names.

    None and nothing if the server has no such path.
    """
    path = scope["path"].removeprefix(settings.MONAI_LABEL_API_STR)
    if path in (LIVE, READY):
        return path, {}
    for entry in server.router.routes:
        for route in getattr(getattr(entry, "original_router", None), "routes", [entry]):
            match = route.path_regex.match(path) if hasattr(route, "path_regex") else None
            if match:
                return route.path, match.groupdict()
    return None, {}


async def _answer_bad_json(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"params must be JSON: {error}"}, 400)


async def _answer_bad_archive(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"the archive cannot be unpacked: {error}"}, 400)


async def _answer_unknown(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(getattr(error, "msg", error))}, 404)


def guard_tasks(app: Any) -> None:
    """Check background tasks before they start; MONAI Label starts whatever it is told and lets it fail."""
    from monailabel.utils.async_tasks.task import AsyncTask
    from monailabel.utils.async_tasks.utils import tasks

    start = AsyncTask.run

    def run(
        method: str,
        request: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        force_sync: bool = False,
        enqueue: bool = False,
    ) -> Any:
        if force_sync and method == "train":
            raise HTTPException(400, "run_sync is not offered: ask GET /train/ how far it is")
        if force_sync and method == "batch_infer":  # the server would answer nobody meanwhile
            raise HTTPException(400, "run_sync is not offered: ask GET /batch/infer how far it is")
        checked = app.check_task(method, {**(params or {}), **(request or {})})
        # MONAI Label looks at processes, and has none yet for a task that was submitted just now.
        if not enqueue and any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks(method)):
            return None, f"a task of the kind {method} is running already"
        return start(method, checked, {}, force_sync, enqueue)

    AsyncTask.run = staticmethod(run)
