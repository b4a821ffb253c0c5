"""Puts what is ours in front of MONAI Label's server, which is built before it reads any app."""

from __future__ import annotations

import functools
import shutil
import signal
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelException
from starlette.requests import ClientDisconnect

from pipeline.files import no_room
from pipeline.label_app.access import Guard
from pipeline.label_app.endpoints import make_other_routes
from pipeline.label_app.health import LIVE, READY, Health
from pipeline.label_app.journal import Journal
from pipeline.label_app.limits import one_line
from pipeline.label_app.tokens import ProviderError, TokenError, Verifier, roles_of
from pipeline.label_app.translating import make_router
from pipeline.label_app.uploads import Uploads
from pipeline.label_app.worker import TranslationQueue

KEPT_PATHS = ("/", "/favicon.ico", "/docs", "/openapi.json", "/static")
"""Of MONAI Label's own, which show its pages; whatever else it has is answered by routes of ours, or not at all."""


def guard_server(
    app: Any,
    uploads: Uploads,
    token: str | None,
    others: bool = False,
    issuer: str | None = None,
    audience: str | None = None,
) -> None:
    """Put our routes, the guard, the answers about health and the journal in the running server.

    This is all that is changed of MONAI Label: of the one object that is its server, the routes, the handlers of
    errors, the dependency that tells who a user is, and the outermost layer; and how the one server of uvicorn that
    runs it shuts down. No module or class is patched.

    Args:
        app: that is served.
        uploads: what its clients send.
        token: that every request needs; None for none.
        others: serve other machines without a token of ours.
        issuer: that tokens of MONAI Label's own login have to name; None for the address of the realm.
        audience: whom they have to be for; None for the client's id.
    """
    from monailabel.app import app as server
    from monailabel.endpoints.user.auth import get_current_user

    if isinstance(server.middleware_stack, Journal):
        return
    server.router.routes[:] = [route for route in server.router.routes if getattr(route, "path", None) in KEPT_PATHS]
    server.include_router(make_other_routes(app, uploads), prefix=settings.MONAI_LABEL_API_STR)
    server.include_router(make_router(app, uploads), prefix=settings.MONAI_LABEL_API_STR)
    server.openapi_schema = None
    for kind, answer in (
        (RequestValidationError, _answer_invalid),
        (MONAILabelException, _answer_unknown),
        (ClientDisconnect, _answer_nobody),
        (OSError, _answer_failure),
        (Exception, _answer_failure),
    ):
        server.add_exception_handler(kind, answer)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        # MONAI Label's own look at a token refuses all, and would accept those for everybody and for ever.
        verifier = Verifier(
            settings.MONAI_LABEL_AUTH_REALM_URI,
            audience or settings.MONAI_LABEL_AUTH_CLIENT_ID,
            issuer,
            settings.MONAI_LABEL_AUTH_TIMEOUT,
        )
        server.dependency_overrides[get_current_user] = _user_of(verifier)
    origins = [str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    if not origins:  # MONAI Label lets every origin in then
        server.user_middleware = [entry for entry in server.user_middleware if "CORS" not in entry.cls.__name__]
    guard = Guard(
        server.build_middleware_stack(),
        token,
        origins,
        others=others or settings.MONAI_LABEL_AUTH_ENABLE,
        largest_file=uploads.limit << 20,
    )
    end_well(app.queue, uploads.folder)
    health = Health(guard, app.why_not_ready)
    server.middleware_stack = Journal(health, functools.partial(find_template, server), lambda: app.bundles)


def end_well(queue: TranslationQueue, folder: Path) -> None:
    """When the server is told to end, send those in the queue away, whom it would wait for, and remove a folder.

    uvicorn ends with the signal that it got, which no ``atexit`` sees. Its server is found by its handler of signals.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):  # in a test, say
        return
    shut_down = server.shutdown

    async def close_and_shut_down(*args: Any, **kwargs: Any) -> None:
        queue.close()
        try:
            await shut_down(*args, **kwargs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    server.shutdown = close_and_shut_down


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


def _user_of(verifier: Verifier) -> Any:
    """The dependency that tells who sends a request."""
    from monailabel.endpoints.user.auth import User

    async def current_user(request: Request) -> Any:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if kind.lower() != "bearer" or not token.strip():
                raise TokenError("a token is needed: send the header 'Authorization: Bearer TOKEN'")
            claims = await run_in_threadpool(verifier.claims, token.strip())
            name = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or claims.get("sub")
            if not isinstance(name, str) or not name:
                raise TokenError("the token names no user")
        except TokenError as error:
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from None
        except ProviderError as error:
            raise HTTPException(503, str(error)) from None
        more = {
            field: claims.get(claim) if isinstance(claims.get(claim), str) else None
            for field, claim in (
                ("email", settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
                ("name", settings.MONAI_LABEL_AUTH_TOKEN_NAME),
            )
        }
        return User(username=name, roles=roles_of(claims, settings.MONAI_LABEL_AUTH_TOKEN_ROLES), **more)

    return current_user


async def _answer_invalid(request: Any, error: Exception) -> JSONResponse:
    """One sentence about the first value that is wrong."""
    faults: list[Any] = getattr(error, "errors", list)()
    first = faults[0] if faults else {"loc": (), "msg": "is not understood"}
    where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    return JSONResponse({"detail": one_line(f"{where}: {first['msg']}")}, 422)


async def _answer_unknown(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": one_line(getattr(error, "msg", error))}, 404)


async def _answer_nobody(request: Any, error: Exception) -> Response:
    return Response(status_code=400)


async def _answer_failure(request: Any, error: Exception) -> JSONResponse:
    if no_room(error):
        return JSONResponse({"detail": "the server's disk is full; nothing was kept"}, 507)
    raise error
