"""What the server answers beside translations, in place of MONAI Label's own routes, by the same addresses.

Those believe what they are told; here a request is checked before anything is done. What is not listed is not there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import requests
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import ohif as monai_ohif
from monailabel.endpoints.user.auth import User, get_current_user, token_uri
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import run_background_task, tasks
from monailabel.utils.others.generic import file_checksum, get_mime_type

from pipeline.files import replacing
from pipeline.label_app.bodies import file_of, form_of, object_in
from pipeline.label_app.infer import keep_previous
from pipeline.label_app.journal import log_file
from pipeline.label_app.limits import one_line
from pipeline.label_app.proxy import ProxyError, allowed_path, allowed_query, fetch
from pipeline.label_app.stored import (
    Images,
    IsAdmin,
    IsUser,
    Sessions,
    Text,
    asking_studies,
    send_file,
    without_paths,
)
from pipeline.label_app.studies import lies_inside
from pipeline.label_app.uploads import Uploads
from pipeline.models import Model

MOST_LINES = 10_000
"""Of the log, that one answer has."""

logger = logging.getLogger(__name__)


def make_other_routes(app: Any, uploads: Uploads) -> APIRouter:
    """The routes of an app.

    Args:
        app: the `TranslationApp`.
        uploads: where its clients' files lie meanwhile.
    """
    router = APIRouter()
    for part in (Tasks(app), Images(app, uploads), Sessions(app, uploads), Models(app, uploads)):
        part.register(router)
    for register in (_register_proxy, _register_others):
        register(router, app)
    return router


class Tasks:
    """``/train`` and ``/batch/infer``: what runs in processes of its own.

    Args:
        app: the `TranslationApp`.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    def register(self, router: APIRouter) -> None:
        """Add the routes."""
        router.add_api_route("/train/{model}", self.train, methods=["POST"], summary="Train")
        router.add_api_route("/batch/infer/{model}", self.batch, methods=["POST"], summary="Translate many volumes")
        for method, path in (("train", "/train/"), ("batch_infer", "/batch/infer")):
            status, stop = self._about(method)
            router.add_api_route(path, status, methods=["GET"], summary=f"How far the last task is: {method}")
            router.add_api_route(path, stop, methods=["DELETE"], summary=f"Stop the task: {method}")

    async def train(
        self, request: Request, model: Text, user: IsAdmin, enqueue: bool = False, run_sync: bool = False
    ) -> Any:
        """Train on the pairs of the studies."""
        wanted = await object_in(request)
        return await run_in_threadpool(self._start, "train", {**wanted, "model": model}, enqueue, run_sync)

    async def batch(
        self, request: Request, model: Text, user: IsAdmin, images: Text | None = None, run_sync: bool = False
    ) -> Any:
        """Translate all images, those without a target (``unlabeled``), those with one (``labeled``), or a list."""
        wanted = await object_in(request)
        if images is not None and wanted.setdefault("images", images) != images:
            raise HTTPException(400, "images is given twice, in the address and in the body, and not the same")
        return await run_in_threadpool(self._start, "batch_infer", {**wanted, "model": model}, False, run_sync)

    def _start(self, method: str, wanted: dict[str, Any], enqueue: bool, run_sync: bool) -> Any:
        if run_sync:
            raise HTTPException(400, "run_sync is not offered: ask how far the task is, with GET")
        checked = self.app.check_task(method, wanted)
        # MONAI Label looks at processes, and has none yet for a task that was submitted just now.
        if not enqueue and any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks(method)):
            raise HTTPException(429, f"a task of the kind {method} is running already")
        if sum(task["status"] == "SUBMITTED" for task in tasks(method)) >= 10:
            raise HTTPException(429, f"ten tasks of the kind {method} wait already")
        logger.info("%s of %s begins", method, checked["model"])
        return without_paths(self.app, run_background_task(checked, method))

    def _about(self, method: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        app = self.app

        def status(user: IsUser, all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002
            found, reason = AsyncTask.status(method, all, check_if_running)
            if found is None:
                raise HTTPException(404, reason)
            return without_paths(app, found)

        def stop(user: IsAdmin) -> Any:
            try:
                return without_paths(app, AsyncTask.stop(method))
            except (psutil.Error, IndexError, StopIteration):  # it ended meanwhile
                return None

        return status, stop


class Models:
    """``/model``: the weights of a bundle.

    Args:
        app: the `TranslationApp`.
        uploads: where its clients' files lie meanwhile.
    """

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    def register(self, router: APIRouter) -> None:
        """Add the routes."""
        router.add_api_route("/model/info/{model}", self.info, methods=["GET"])
        router.add_api_route("/model/{model}", self.download, methods=["GET"])
        router.add_api_route("/model/{model}", self.replace, methods=["PUT"], summary="Replace the weights")
        router.add_api_route("/model/{model}", self.remove, methods=["DELETE"])

    def info(self, model: Text, user: IsAdmin) -> Any:
        """Check sum and age of the weights."""
        path = self._weights(model)
        return {**self._describe(path), "train_stats": self.app.train_stats(model)}

    def download(self, model: Text, user: IsAdmin) -> Response:
        """The weights."""
        return send_file(str(self._weights(model)), f"{model}.pt")

    async def replace(self, request: Request, model: Text, user: IsAdmin) -> Any:
        """Replace the weights by the form's ``file``, if that is a model; those of before are kept."""
        self._bundle(model)
        async with form_of(request) as form:
            return await run_in_threadpool(self._replace, model, file_of(form, "file"), user.username)

    def remove(self, model: Text, user: IsAdmin) -> Any:
        """Take the weights out of use; they are kept."""
        path = self._weights(model)
        keep_previous(path)
        path.unlink()
        logger.info("the weights of %s were taken out of use by %s", model, user.username)
        return {}

    def _replace(self, model: str, sent: Any, user: str) -> Any:
        path = self.app.weights_of(model)
        with self.uploads.kept(sent.stream, ".pt") as new:
            try:
                Model(new).build()
            except Exception as error:  # of what is in there, and of whatever it is instead
                text = one_line(error, 500) if isinstance(error, ValueError) else "it cannot be read"
                text = text.replace(str(new), "the file").replace(new.name, "the file")
                raise HTTPException(422, f"this is no model that can be used, the one in use stays: {text}") from None
            if path.is_file():
                keep_previous(path)
            with replacing(path) as beside:
                shutil.copyfile(new, beside)
        logger.info("the weights of %s were replaced by %s", model, user)
        return self._describe(path)

    @staticmethod
    def _describe(path: Path) -> dict[str, Any]:
        return {"checksum": file_checksum(path), "modified_time": int(path.stat().st_mtime)}

    def _bundle(self, model: str) -> None:
        if model not in self.app.bundles:
            raise HTTPException(
                404, f"there is no model {one_line(model, 80)!r}, expected one of {list(self.app.bundles)}"
            )

    def _weights(self, model: str) -> Path:
        self._bundle(model)
        path = self.app.weights_of(model)
        if not path.is_file():
            raise HTTPException(404, f"the bundle {model!r} has no weights")
        return path


def _register_proxy(router: APIRouter, app: Any) -> None:
    async def proxy(request: Request, path: str, user: IsUser) -> Response:
        if not isinstance(app.datastore(), DICOMWebDatastore):
            raise HTTPException(404, "the studies are a folder, there is no DICOM server to ask")
        kind, _, rest = path.partition("/")
        prefix = {"wado": settings.MONAI_LABEL_WADO_PREFIX, "qido": settings.MONAI_LABEL_QIDO_PREFIX}.get(kind)
        if kind in ("wado", "qido"):
            path = rest
            if path.endswith("metadata"):  # some versions of OHIF ask for it with a search
                prefix = settings.MONAI_LABEL_WADO_PREFIX
        try:
            wanted, query = allowed_path(path), allowed_query(request.url.query)
            server = settings.MONAI_LABEL_STUDIES.rstrip("/") + (f"/{prefix}" if prefix else "")
            user_pass = (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
            status, content_type, content = await run_in_threadpool(
                fetch,
                server,
                wanted,
                query,
                request.headers.get("accept"),
                user_pass if all(user_pass) else None,
                _google_headers(),
                settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
            )
        except ProxyError as error:
            raise HTTPException(error.status, str(error)) from None
        return StreamingResponse(content, status, media_type=content_type)

    router.add_api_route("/proxy/dicom/{path:path}", proxy, methods=["GET"], include_in_schema=False)


def _google_headers() -> dict[str, str]:
    if "googleapis.com" not in settings.MONAI_LABEL_STUDIES:
        return {}
    import google.auth
    import google.auth.transport.requests

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return {"Authorization": f"Bearer {credentials.token}"}


def _register_others(router: APIRouter, app: Any) -> None:
    async def refuse_slides(model: Text, user: IsUser) -> None:
        """Whole-slide images are not translated."""
        app.infer_wsi({"model": model})

    for path in ("/infer/wsi/{model}", "/infer/wsi_v2/{model}"):
        router.add_api_route(path, refuse_slides, methods=["POST"], include_in_schema=False)

    def info(user: IsUser) -> Any:
        """What the server offers."""
        with asking_studies():
            return app.info()

    async def sample(request: Request, strategy: Text, user: IsUser) -> Any:
        """An image of the studies without a target."""
        wanted = await object_in(request)
        client = wanted.get("client_id") or user.username
        if strategy not in app.strategies:
            raise HTTPException(404, f"there is no strategy {strategy!r}, expected one of {list(app.strategies)}")
        if not isinstance(client, str) or len(client) > 200:
            raise HTTPException(400, "client_id must be a text of at most 200 characters")
        return await run_in_threadpool(next_sample, app, strategy, client)

    def logs(
        user: IsAdmin, lines: Annotated[int, Query(ge=1, le=MOST_LINES)] = 300, html: bool = False, text: bool = True
    ) -> Response:
        """The end of the log, as text."""
        path = log_file()
        if path is None or not path.is_file():
            raise HTTPException(404, "there is no log")
        with path.open(encoding="utf-8", errors="replace") as file:
            return PlainTextResponse("".join(deque(file, lines)))

    def gpu(user: IsAdmin) -> Response:
        """What nvidia-smi says."""
        try:
            said = subprocess.run(["nvidia-smi"], capture_output=True, timeout=30, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            raise HTTPException(404, "there is no GPU, or no nvidia-smi that says so") from None
        return PlainTextResponse(said.decode("utf-8", "replace"))

    folder = Path(monai_ohif.__file__).parent / "static" / "ohif"

    def ohif(path: str, user: IsUser) -> Response:
        """The viewer that comes with MONAI Label."""
        file = folder / path.replace("/", os.sep)
        if len(path) > 200 or not lies_inside(file, folder):
            file = folder / "index.html"
        if not file.is_file():
            raise HTTPException(404, "the viewer is not installed")
        return FileResponse(file, media_type=get_mime_type(str(file)))

    router.add_api_route("/info/", info, methods=["GET"])
    router.add_api_route("/activelearning/{strategy}", sample, methods=["POST"])
    router.add_api_route("/logs/", logs, methods=["GET"])
    router.add_api_route("/logs/gpu", gpu, methods=["GET"])
    router.add_api_route("/ohif/{path:path}", ohif, methods=["GET"], include_in_schema=False)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        _register_login(router)


def _register_login(router: APIRouter) -> None:
    def enabled() -> Any:
        """Whether a login is needed, and where."""
        return {
            "enabled": True,
            "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
            "realm": settings.MONAI_LABEL_AUTH_REALM_URI,
        }

    async def token(request: Request) -> Any:
        """A token for a user and a password, from the realm."""
        async with form_of(request) as form:
            user, password = form.get("username"), form.get("password")
        if not isinstance(user, str) or not isinstance(password, str):
            raise HTTPException(400, "username and password are needed, as fields of a form")
        return await run_in_threadpool(_ask_for_token, user, password)

    def valid(user: Annotated[User, Depends(get_current_user)]) -> Any:
        """Whose token it is."""
        return user.model_dump()

    router.add_api_route("/auth/", enabled, methods=["GET"])
    router.add_api_route("/auth/token", token, methods=["POST"])
    router.add_api_route("/auth/token/valid", valid, methods=["GET"])


def _ask_for_token(user: str, password: str) -> Any:
    data = {
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "username": user,
        "password": password,
        "grant_type": "password",
    }
    try:
        answer = requests.post(token_uri(), data=data, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
        if 400 <= answer.status_code < 500:
            raise HTTPException(401, "the server of the logins does not accept this user and password")
        answer.raise_for_status()
        said = answer.json()
        return {"access_token": str(said["access_token"]), "token_type": str(said.get("token_type", "Bearer"))}
    except (requests.RequestException, ValueError, KeyError, TypeError):
        raise HTTPException(503, "the server of the logins does not answer; try again later") from None


def next_sample(app: Any, strategy: str, client: str) -> dict[str, Any]:
    """An image without a target, and note for whom it was; empty where every image has one."""
    with asking_studies():
        store = app.datastore()
        for image in store.get_unlabeled_images():  # what others wrote there must not be in the way
            if not isinstance(store.get_image_info(image).get("strategy", {}), dict):
                store.update_image_info(image, {"strategy": {}})
        found = app.next_sample({"strategy": strategy})
        if not found:
            return {}
        about = store.get_image_info(found["id"])
        noted = {**about.get("strategy", {}), strategy: {"ts": int(time.time()), "client_id": client}}
        with contextlib.suppress(MONAILabelException):  # a series of a DICOM server, which is not fetched yet
            store.update_image_info(found["id"], {"strategy": noted})
        found = {**about, **found}
        return {name: value for name, value in found.items() if name != "path"}
