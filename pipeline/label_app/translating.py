"""Our own requests: translation, which waits in a queue and not in the server's way, and the queue itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder

from pipeline.label_app.bodies import Sent, file_of, form_of, name_in, object_of, refusing
from pipeline.label_app.journal import CLIENT_CLOSED_REQUEST, request_id
from pipeline.label_app.stored import FolderResponse, IsUser, Text, session_image
from pipeline.label_app.uploads import Uploads
from pipeline.label_app.worker import (
    CancelledTranslationError,
    Job,
    NoPlaceError,
    Progress,
    TakenIdError,
    TranslationQueue,
)


def make_router(app: Any, uploads: Uploads) -> APIRouter:
    """The routes of translation and of its queue.

    Args:
        app: the app, see `pipeline.label_app.main.TranslationApp`.
        uploads: what clients send.
    """
    router = APIRouter(tags=["Infer"])

    @router.post("/infer/{model}", summary="Translate a volume")
    async def translate(
        request: Request,
        user: IsUser,
        model: Text,
        image: Text = "",
        session_id: Text = "",
        output: Literal["image", "json", "all"] | None = None,
    ) -> Response:
        async with form_of(request) as form:
            wanted = object_of(form, "params")
            file = file_of(form, "file", needed=False)
            return await answer(request, user, _asked(wanted, model, image, session_id, file), file, output)

    async def answer(
        request: Request, person: User, asked: dict[str, Any], file: Sent | None, output: str | None
    ) -> Response:
        user, roles = person.username, person.roles
        session_id = asked.pop("session_id")
        _, device, _ = await run_in_threadpool(app.check_infer, asked)
        if asked.get("store_derived") and settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR not in roles:
            raise HTTPException(403, "storing a derived series takes the role of an annotator")
        folder = Path(await run_in_threadpool(tempfile.mkdtemp, prefix="translation-", dir=app.uploads))
        kept = False
        try:
            upload = await run_in_threadpool(_source, app, uploads, file, session_id, folder)

            def work(progress: Progress) -> dict[str, Any]:
                return app.infer(asked, upload=upload, folder=folder, progress=progress)

            try:
                job = app.queue.submit(request_id.get(), work, asked["model"], device, user)
                result = await _wait(job, app.queue, request)
            except NoPlaceError as error:
                raise HTTPException(503, str(error), {"Retry-After": str(error.retry_after)}) from None
            except TakenIdError as error:
                raise HTTPException(409, str(error)) from None
            response = await run_in_threadpool(_answer, result, output, folder)
            kept = isinstance(response, FolderResponse)
            return response
        finally:
            if not kept:
                await asyncio.shield(run_in_threadpool(shutil.rmtree, folder, ignore_errors=True))

    @router.get("/queue", summary="Translations that wait or run, with their places and progress")
    def show_queue(user: IsUser) -> dict[str, Any]:
        translations = []
        for job, about in app.queue.describe():
            translations.append(about if _may_change(job, user) else {**about, "id": None})
        running = sum(about["state"] != "waiting" for about in translations)
        return {
            "limit": app.queue.limit,
            "running": running,
            "waiting": len(translations) - running,
            "translations": translations,
        }

    @router.get("/queue/{id}", summary="A translation's place and progress")
    def show_job(id: str, user: IsUser) -> dict[str, Any]:  # noqa: A002
        for job, about in app.queue.describe():
            if job.id == id and _may_change(job, user):
                return about
        raise _unknown(id)

    @router.delete("/queue/{id}", summary="Cancel a translation that waits or runs")
    def cancel(id: str, user: IsUser) -> dict[str, Any]:  # noqa: A002
        job = app.queue.find(id)
        if job is None or not _may_change(job, user):
            raise _unknown(id)
        app.queue.cancel(job)
        return {"id": id, "state": "cancelled"}

    return router


def _asked(wanted: Mapping[str, Any], model: str, image: str, session_id: str, file: Sent | None) -> dict[str, Any]:
    """The request for a translation, of one volume.

    Raises:
        HTTPException: 400, if none is named, or several are.
    """
    named = wanted.get("image")
    if named is not None:
        name_in(named, "image, the name of an image in the studies,")
        if image and image != named:
            raise HTTPException(400, f"image is given twice: {image!r} in the address and {named!r} in params")
    image = named or image
    if bool(image) + bool(session_id) + (file is not None) != 1:
        raise HTTPException(400, "one of these is needed: image, session_id or a file in the form")
    return {**wanted, "model": model, "image": image, "session_id": session_id}


def _source(app: Any, uploads: Uploads, file: Sent | None, session_id: str, folder: Path) -> Path | None:
    """What to translate instead of an image of the studies: the upload, or the volume of a session."""
    if file:
        try:
            with refusing(400):
                return uploads.save(file.stream, file.name, folder)
        finally:
            file.stream.close()  # it would take up as much disk again for as long as the translation waits
    return session_image(app, session_id, uploads.limit) if session_id else None


async def _wait(job: Job, queue: TranslationQueue, request: Request) -> dict[str, Any]:
    """The result of a job, which loses its place when the client hangs up.

    Raises:
        HTTPException: 409, if it was cancelled, 499, if nobody is there to be told.
        NoPlaceError: if the server is being stopped.
    """
    gone = asyncio.ensure_future(_hung_up(request.receive))
    result = asyncio.wrap_future(job.result)
    try:
        await asyncio.wait({gone, result}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            queue.cancel(job)
        return await result  # when the worker is done with the folder, not before
    except CancelledTranslationError:
        if queue.closed:
            raise queue.stopping() from None
        if gone.done():
            raise HTTPException(CLIENT_CLOSED_REQUEST, "the client hung up") from None
        raise HTTPException(409, f"the translation {job.id} was cancelled") from None
    except asyncio.CancelledError:
        queue.cancel(job)
        raise
    finally:
        gone.cancel()


async def _hung_up(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _answer(result: Mapping[str, Any], output: str | None, folder: Path) -> Response:
    """The answer that MONAI Label gives for a result, and what made it in the headers."""
    file, params = result["file"], result["params"]
    about = params["model"]
    headers = {
        "X-Model-Name": quote(str(about["name"])),
        "X-Model-Version": quote(str(about["version"])),
        "X-Model-SHA256": about["sha256"],
        "X-Warnings": str(len(params["warnings"])),
    }
    if output == "json":
        return JSONResponse(params, headers=headers)
    kind, name = get_mime_type(file), os.path.basename(file)
    if output == "image":
        return FolderResponse(file, folder, media_type=kind, filename=name, headers=headers)
    with open(file, "rb") as stream:
        fields = {"params": (None, json.dumps(params), "application/json"), "image": (name, stream, kind)}
        message = MultipartEncoder(fields=fields)
        return Response(message.to_string(), media_type=message.content_type, headers=headers)


def _may_change(job: Job, user: User) -> bool:
    return user.username == job.user or settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles


def _unknown(id: str) -> HTTPException:  # noqa: A002
    return HTTPException(404, f"no translation {id!r} waits or runs here")
