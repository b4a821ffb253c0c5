"""What the server answers beside translations, in place of MONAI Label's own routes, by the same addresses.

Those believe what they are told; here a request is checked before anything is done. What is not listed is not there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
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
from monailabel.endpoints.user.auth import RBAC, User, get_current_user, token_uri
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import run_background_task, tasks
from monailabel.utils.others.generic import file_checksum, get_mime_type
from pydantic import StringConstraints

from pipeline.files import replacing
from pipeline.label_app.access import Message, Receive, Send
from pipeline.label_app.bodies import file_of, form_of, name_in, object_in, object_of, refusing
from pipeline.label_app.limits import LARGEST_INFO, one_line
from pipeline.label_app.proxy import ProxyError, allowed_path, allowed_query, fetch
from pipeline.label_app.studies import image_path, lies_inside
from pipeline.label_app.uploads import SUFFIXES, Uploads, check_volume, suffix_of
from pipeline.models import Model

MOST_LINES = 10_000
"""Of the log, that one answer has."""

MOST_SESSIONS = 100
"""Sessions that may be open at a time."""

LONGEST_SESSION = 86_400
"""Seconds."""

KEPT_MODELS = "previous"
"""Folder beside the weights, for those that were there before."""

CHECKSUMS = ("SHA256", "SHA512", "MD5")
_UID = re.compile(r"[0-9]{1,64}(\.[0-9]{1,64})*")
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

logger = logging.getLogger(__name__)


class Listing(str, Enum):
    """What an answer to ``/datastore/`` has."""

    train = "train"
    stats = "stats"
    all = "all"


def _needs(role: str) -> Any:
    return Depends(RBAC(role))


IsUser = Annotated[User, _needs(settings.MONAI_LABEL_AUTH_ROLE_USER)]
IsAnnotator = Annotated[User, _needs(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR)]
IsAdmin = Annotated[User, _needs(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)]
Text = Annotated[str, StringConstraints(max_length=200)]


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
        return _without_paths(self.app, run_background_task(checked, method))

    def _about(self, method: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        app = self.app

        def status(user: IsUser, all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002
            found, reason = AsyncTask.status(method, all, check_if_running)
            if found is None:
                raise HTTPException(404, reason)
            return _without_paths(app, found)

        def stop(user: IsAdmin) -> Any:
            try:
                return _without_paths(app, AsyncTask.stop(method))
            except (psutil.Error, IndexError, StopIteration):  # it ended meanwhile
                return None

        return status, stop


class Images:
    """``/datastore``.

    Args:
        app: the `TranslationApp`.
        uploads: where its clients' files lie meanwhile.
    """

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    def register(self, router: APIRouter) -> None:
        """Add the routes."""
        for methods, path, handler in (
            (["GET"], "/datastore/", self.listing),
            (["PUT"], "/datastore/", self.add_image),
            (["DELETE"], "/datastore/", self.remove_image),
            (["PUT"], "/datastore/image", self.add_image),
            (["DELETE"], "/datastore/image", self.remove_image),
            (["HEAD"], "/datastore/image", self.check_image),
            (["GET"], "/datastore/image", self.image),
            (["GET"], "/datastore/image/info", self.image_info),
            (["PUT"], "/datastore/image/info", self.update_image_info),
            (["PUT"], "/datastore/label", self.save_label),
            (["DELETE"], "/datastore/label", self.remove_label),
            (["HEAD"], "/datastore/label", self.check_label),
            (["GET"], "/datastore/label", self.label),
            (["GET"], "/datastore/label/info", self.label_info),
            (["PUT"], "/datastore/label/info", self.update_label_info),
            (["GET"], "/datastore/dataset", self.dataset),
        ):
            router.add_api_route(path, handler, methods=methods)

    def listing(self, user: IsUser, output: Listing | None = None) -> Any:
        """What the studies hold."""
        with _asking_studies():
            store = self.app.datastore()
            if output == Listing.all:
                return store.json()
            if output == Listing.train:
                return _without_paths(self.app, store.datalist())
            return store.status()

    async def add_image(self, request: Request, user: IsAnnotator, image: Text = "") -> Any:
        """Keep a volume in the studies, under the name ``image`` or that of the file."""
        self._refuse_dicom()
        async with form_of(request) as form:
            sent, about = file_of(form, "file"), object_of(form, "params")
            _check_info(about)
            return await run_in_threadpool(self._add_image, sent, about, image, user.username)

    def _add_image(self, sent: Any, about: dict[str, Any], image: str, user: str) -> Any:
        with refusing(400):
            suffix = suffix_of(sent.name)
            name = name_in(image or sent.name[: -len(suffix)], "image" if image else "the file's name")
            if name.lower().endswith(SUFFIXES):
                raise HTTPException(400, f"image must be a name without the format's suffix, got {name!r}")
            with self.uploads.volume(sent.stream, sent.name) as upload:
                kept = self.app.datastore().add_image(name, str(upload), {**about, "user": user})
        logger.info("an image was put by %s", user)
        return {"image": kept}

    def remove_image(self, id: Text, user: IsAdmin) -> Any:  # noqa: A002
        """Remove a volume and its labels."""
        self._refuse_dicom()
        self.app.datastore().remove_image(id)
        logger.info("an image was removed by %s", user.username)
        return {}

    def check_image(self, image: Text, user: IsUser, check_sum: Text | None = None) -> Any:
        """Whether a volume is there, and is that of a check sum (``SHA256:HEX``)."""
        path = self._image_path(image)
        if check_sum:
            kind, _, digest = check_sum.rpartition(":")
            if (kind or "SHA256") not in CHECKSUMS:
                raise HTTPException(400, f"check_sum must be of {', '.join(CHECKSUMS)}, got {one_line(kind, 40)!r}")
            if file_checksum(path, algo=kind or "SHA256").rpartition(":")[2] != digest:
                raise HTTPException(404, f"the image {image!r} has another check sum")
        return {}

    def image(self, image: Text, user: IsUser) -> Response:
        """A volume of the studies."""
        return _send(self._image_path(image))

    def image_info(self, image: Text, user: IsUser) -> Any:
        """What is known of a volume."""
        self._known(image)
        about = self.app.datastore().get_image_info(image)
        return {name: value for name, value in about.items() if name != "path"}

    async def update_image_info(self, request: Request, image: Text, user: IsAnnotator) -> Any:
        """Keep something about a volume: the form's ``info``, a JSON object."""
        async with form_of(request) as form:
            about = object_of(form, "info")
        return await run_in_threadpool(self._update, about, user, image)

    async def save_label(
        self, request: Request, image: Text, user: IsAnnotator, tag: Text = DefaultLabelTag.FINAL.value
    ) -> Any:
        """Keep a volume as the label of an image; with the tag ``final`` it is what training learns from."""
        self._refuse_dicom()
        async with form_of(request) as form:
            sent, about = file_of(form, "label"), object_of(form, "params")
            _check_info(about)
            return await run_in_threadpool(self._save_label, sent, about, image, tag, user.username)

    def _save_label(self, sent: Any, about: dict[str, Any], image: str, tag: str, user: str) -> Any:
        self._known(image)
        tag = name_in(tag or DefaultLabelTag.FINAL.value, "tag")
        with refusing(400), self.uploads.volume(sent.stream, sent.name) as upload:
            label = self.app.datastore().save_label(image, str(upload), tag, about)
        logger.info("a label %s was put by %s", tag, user)
        return {**(self.app.on_save_label(image, label) or {}), "image": image, "label": label}

    def remove_label(self, id: Text, tag: Text, user: IsAdmin) -> Any:  # noqa: A002
        """Remove a label."""
        self._refuse_dicom()
        self.app.datastore().remove_label(id, tag)
        logger.info("a label %s was removed by %s", tag, user.username)
        return {}

    def check_label(self, user: IsUser, tag: Text, label: Text = "", image: Text = "") -> Any:
        """Whether a label is there."""
        self._label_path(label or image, tag)
        return {}

    def label(self, label: Text, tag: Text, user: IsUser) -> Response:
        """A label."""
        return _send(self._label_path(label, tag))

    def label_info(self, label: Text, tag: Text, user: IsUser) -> Any:
        """What is known of a label."""
        self._known(label)
        return self.app.datastore().get_label_info(label, tag)

    async def update_label_info(self, request: Request, label: Text, tag: Text, user: IsAnnotator) -> Any:
        """Keep something about a label: the form's ``info``, a JSON object."""
        async with form_of(request) as form:
            about = object_of(form, "info")
        return await run_in_threadpool(self._update, about, user, label, tag)

    def dataset(
        self, user: IsAnnotator, limit_cases: Annotated[int | None, Query(ge=1, le=100_000)] = None
    ) -> Response:
        """All pairs, as a zip file."""
        with _asking_studies():
            pairs = self.app.datastore().datalist()[:limit_cases]
        if not pairs:
            raise HTTPException(404, "the studies have no pairs")
        descriptor, path = tempfile.mkstemp(suffix=".zip", dir=self.uploads.folder)
        try:
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                for pair in pairs:
                    for kind, volume in pair.items():
                        archive.write(volume, f"{kind}/{os.path.basename(volume)}")
        except BaseException:
            os.unlink(path)
            raise
        return PassingResponse(path, media_type="application/zip", filename="dataset.zip")

    def _update(self, about: dict[str, Any], user: User, image: str, tag: str | None = None) -> Any:
        self._known(image)
        store = self.app.datastore()
        before = store.get_image_info(image) if tag is None else store.get_label_info(image, tag)
        about = {**about, "user": user.username}
        _check_info({**before, **about})
        with _asking_studies():
            if tag is None:
                store.update_image_info(image, about)
            else:
                store.update_label_info(image, tag, about)
        return {}

    def _known(self, image: str) -> None:
        store = self.app.datastore()
        if isinstance(store, DICOMWebDatastore):
            if not _UID.fullmatch(image):
                raise HTTPException(404, f"there is no image {image!r} in the studies: expected the UID of a series")
            return
        if not image or image not in store.list_images():
            raise HTTPException(404, f"there is no image {image!r} in the studies")

    def _image_path(self, image: str) -> str:
        self._known(image)
        with _asking_studies():
            path = image_path(self.app.datastore(), image)
        return self._inside(path, f"there is no image {image!r} in the studies")

    def _label_path(self, label: str, tag: str) -> str:
        self._known(label)
        if isinstance(self.app.datastore(), DICOMWebDatastore) and tag == DefaultLabelTag.FINAL.value:
            raise HTTPException(404, "labels with the tag 'final' are not fetched from a DICOM server")
        with _asking_studies():
            path = self.app.datastore().get_label_uri(label, tag)
        return self._inside(path, f"there is no label of {label!r} with the tag {tag!r}")

    def _inside(self, path: str, otherwise: str) -> str:
        if not path or not lies_inside(path, self.app.studies_folder):
            raise HTTPException(404, otherwise)
        return path

    def _refuse_dicom(self) -> None:
        if isinstance(self.app.datastore(), DICOMWebDatastore):
            raise HTTPException(400, "the studies are those of a DICOM server: change them there")


class PassingResponse(FileResponse):
    """Sends a file that is gone afterwards, whatever becomes of the client and whatever part of it is asked for."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send, and clean up."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


class Sessions:
    """``/session``: a volume that is asked for several times, and not kept.

    Args:
        app: the `TranslationApp`.
        uploads: where its clients' files lie meanwhile.
    """

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    def register(self, router: APIRouter) -> None:
        """Add the routes."""
        router.add_api_route("/session/", self.create, methods=["PUT"], summary="Send a volume for several requests")
        router.add_api_route("/session/{session_id}", self.get, methods=["GET"])
        router.add_api_route("/session/{session_id}", self.remove, methods=["DELETE"])

    async def create(
        self,
        request: Request,
        user: IsUser,
        uncompress: bool = False,
        expiry: Annotated[int, Query(ge=0, le=LONGEST_SESSION)] = 0,
    ) -> Any:
        """Keep the form's ``files``, one volume, for a while."""
        if uncompress:
            raise HTTPException(400, "an archive is not unpacked here: send the volume itself, as one file")
        if _sessions(self.app).remove_expired() is not None and len(_open_sessions(self.app)) >= MOST_SESSIONS:
            raise HTTPException(
                429, f"{MOST_SESSIONS} sessions are open already: delete one, or wait until one has ended"
            )
        async with form_of(request) as form:
            return await run_in_threadpool(self._create, file_of(form, "files"), expiry)

    def _create(self, sent: Any, expiry: int) -> Any:
        sessions = _sessions(self.app)
        with refusing(400), self.uploads.volume(sent.stream, sent.name) as upload:
            before = _open_sessions(self.app)
            try:
                id_, about = sessions.add_session(str(upload), expiry)
            except BaseException:
                for left in _open_sessions(self.app) - before:
                    sessions.remove_session(left)
                raise
        return {"session_id": id_, "session_info": _describe_session(about)}

    def get(self, session_id: Text, user: IsUser, update_ts: bool = False, image: bool = False) -> Any:
        """A session, or its volume."""
        about = _session(self.app, session_id, update_ts)
        return _send(about.image) if image else _describe_session(about)

    def remove(self, session_id: Text, user: IsUser) -> Any:
        """End a session."""
        about = _session(self.app, session_id)
        _sessions(self.app).remove_session(session_id)
        return _describe_session(about)


def _sessions(app: Any) -> Any:
    sessions = app.sessions()
    if sessions is None:
        raise HTTPException(404, "this server has no sessions")
    return sessions


def _open_sessions(app: Any) -> set[str]:
    try:
        return set(os.listdir(_sessions(app).store_path))
    except FileNotFoundError:
        return set()


def _session(app: Any, session_id: str, update_ts: bool = False) -> Any:
    sessions = _sessions(app)
    about = sessions.get_session(session_id, update_ts=update_ts) if _SESSION.fullmatch(session_id) else None
    if about is None or not lies_inside(about.image, sessions.store_path):
        raise HTTPException(404, f"there is no session {one_line(session_id, 80)!r}")
    return about


def session_image(app: Any, session_id: str, limit: int) -> Path:
    """The volume of a session.

    Raises:
        HTTPException: 404 or 422.
    """
    path = _session(app, session_id).image
    with refusing(422):
        check_volume(path, limit, _sessions(app).store_path)
    return Path(path)


def _describe_session(about: Any) -> dict[str, Any]:
    said = about.to_json()
    return {**{name: value for name, value in said.items() if name != "path"}, "image": os.path.basename(about.image)}


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
        return _send(str(self._weights(model)), f"{model}.pt")

    async def replace(self, request: Request, model: Text, user: IsAdmin) -> Any:
        """Replace the weights by the form's ``file``, if that is a model; those of before are kept."""
        self._bundle(model)
        async with form_of(request) as form:
            return await run_in_threadpool(self._replace, model, file_of(form, "file"), user.username)

    def remove(self, model: Text, user: IsAdmin) -> Any:
        """Take the weights out of use; they are kept."""
        path = self._weights(model)
        _keep_model(path)
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
                _keep_model(path)
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


def _keep_model(path: Path) -> None:
    """Keep the weights of before, by the time that they are of."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    with replacing(path.parent / KEPT_MODELS / f"{path.stem}-{stamp}{path.suffix}") as kept:
        shutil.copy2(path, kept)


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
        with _asking_studies():
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
        path = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
        if not path.is_file():
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
    with _asking_studies():
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


@contextlib.contextmanager
def _asking_studies() -> Iterator[None]:
    """Answer with a word where a DICOM server does not."""
    try:
        yield
    except (HTTPException, MONAILabelException):
        raise
    except requests.HTTPError as error:
        status = 404 if error.response is not None and error.response.status_code in (400, 404) else 502
        raise HTTPException(status, "the DICOM server does not have this, or answers with an error") from error
    except requests.RequestException as error:
        raise HTTPException(504, "the DICOM server does not answer") from error
    except (LookupError, AttributeError) as error:  # a series that is not there, for MONAI Label
        logger.exception("the studies do not have this")
        raise HTTPException(404, "the studies do not have this") from error


def _check_info(about: dict[str, Any]) -> None:
    size = len(json.dumps(about, default=str))
    if size > LARGEST_INFO:
        raise HTTPException(413, f"what is kept about one volume must have at most {LARGEST_INFO} bytes, got {size}")


def _send(path: str, name: str | None = None) -> Response:
    return FileResponse(path, media_type=get_mime_type(path), filename=name or os.path.basename(path))


def _without_paths(app: Any, said: Any) -> Any:
    """What is said, without the folders of this machine."""
    folders = sorted({str(folder) for folder in app.own_folders()}, key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for folder in folders:
                value = value.replace(folder + os.sep, "")
            return value
        if isinstance(value, dict):
            return {name: clean(item) for name, item in value.items()}
        if isinstance(value, list | tuple | deque):
            return [clean(item) for item in value]
        return value

    return clean(said)
