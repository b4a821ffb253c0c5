"""Our own requests: translation, which waits in a queue and not in the server's way, and the queue itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder

from pipeline.data.datalist import IMAGE_SUFFIXES
from pipeline.label_app.access import Message
from pipeline.label_app.journal import CLIENT_CLOSED_REQUEST, request_id
from pipeline.label_app.worker import CancelledTranslationError, Job, Progress, QueueFullError, TranslationQueue

CurrentUser = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Saver = Callable[[UploadFile, Path], Path]


def save_upload(upload: UploadFile, folder: Path) -> Path:
    """Write what a client sent into a folder, under a name of ours.

    Args:
        upload: of the client.
        folder: an empty one.

    Raises:
        HTTPException: 400, if its name says of no format that is read.
    """
    name = (upload.filename or ".nii.gz").lower()
    suffix = next((suffix for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)
    if suffix is None:
        raise HTTPException(400, f"the file's name must end in one of {', '.join(IMAGE_SUFFIXES)}")
    path = folder / f"upload{suffix}"
    with path.open("xb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)
    return path


def make_router(app: Any, save: Saver = save_upload) -> APIRouter:
    """The routes of translation and of its queue.

    Args:
        app: the app, see `pipeline.label_app.main.TranslationApp`.
        save: writes an upload into a folder and returns its path.
    """
    router = APIRouter(tags=["Infer"])

    @router.post("/infer/{model}", summary="Translate a volume")
    async def translate(
        request: Request,
        user: CurrentUser,
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        output: Literal["image", "json", "all"] | None = None,
    ) -> Response:
        asked = {"image": image, **_settings(params), "model": model}
        if not (file or session_id or asked["image"]):
            raise HTTPException(400, "image, session_id or a file is needed: none was given")
        _, device, _ = await run_in_threadpool(app.check_infer, asked)
        folder = Path(await run_in_threadpool(tempfile.mkdtemp, prefix="translation-", dir=app.uploads))
        kept = False
        try:
            upload = await run_in_threadpool(_source, app, save, file, session_id, folder)

            def work(progress: Progress) -> dict[str, Any]:
                return app.infer(asked, upload=upload, folder=folder, progress=progress)

            try:
                job = app.queue.submit(request_id.get(), work, model, device, user.username)
            except QueueFullError as error:
                raise HTTPException(503, str(error), {"Retry-After": str(error.retry_after)}) from None
            except ValueError as error:
                raise HTTPException(409, str(error)) from None
            result = await _wait(job, app.queue, request)
            answer = await run_in_threadpool(_answer, result, output, folder)
            kept = isinstance(answer, FolderResponse)
            return answer
        finally:
            if not kept:
                await asyncio.shield(run_in_threadpool(shutil.rmtree, folder, ignore_errors=True))

    @router.get("/queue", summary="Translations that wait or run, with their places and progress")
    def show_queue(user: CurrentUser) -> dict[str, Any]:
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
    def show_job(id: str, user: CurrentUser) -> dict[str, Any]:  # noqa: A002
        for job, about in app.queue.describe():
            if job.id == id and _may_change(job, user):
                return about
        raise _unknown(id)

    @router.delete("/queue/{id}", summary="Cancel a translation that waits or runs")
    def cancel(id: str, user: CurrentUser) -> dict[str, Any]:  # noqa: A002
        job = app.queue.find(id)
        if job is None or not _may_change(job, user):
            raise _unknown(id)
        app.queue.cancel(job)
        return {"id": id, "state": "cancelled"}

    return router


class FolderResponse(FileResponse):
    """Sends a file out of a folder, which is gone afterwards, whatever becomes of the client.

    Args:
        path: of the file.
        folder: that it lies in.
        kwargs: see ``FileResponse``.
    """

    def __init__(self, path: str, folder: Path, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self._folder = folder

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Send, and clean up."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(run_in_threadpool(shutil.rmtree, self._folder, ignore_errors=True))


def _settings(params: str) -> dict[str, Any]:
    """What the form's field ``params`` holds.

    Raises:
        HTTPException: 400, if that is no JSON object.
    """
    try:
        given = json.loads(params or "{}")
    except ValueError as error:
        raise HTTPException(400, f"params must be JSON: {error}") from error
    if not isinstance(given, dict):
        raise HTTPException(400, f"params must be a JSON object, got {type(given).__name__}")
    return given


def _source(app: Any, save: Saver, file: UploadFile | None, session_id: str, folder: Path) -> Path | None:
    """What to translate instead of an image of the studies: the upload, or the volume of a session."""
    if file:
        try:
            return save(file, folder)
        finally:
            file.file.close()  # it would take up as much disk again for as long as the translation waits
    if session_id:
        session = app.sessions().get_session(session_id) if app.sessions() else None
        if session is None or not os.path.exists(session.image):
            raise HTTPException(404, f"there is no session {session_id!r}")
        return Path(session.image)
    return None


async def _wait(job: Job, queue: TranslationQueue, request: Request) -> dict[str, Any]:
    """The result of a job, which loses its place when the client hangs up."""
    gone = asyncio.ensure_future(_hung_up(request.receive))
    result = asyncio.wrap_future(job.result)
    try:
        await asyncio.wait({gone, result}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            queue.cancel(job)
        return await result  # when the worker is done with the folder, not before
    except CancelledTranslationError:
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
