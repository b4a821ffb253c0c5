"""What clients keep on the server: volumes of the studies, and those of sessions.

Like `pipeline.label_app.endpoints`, it answers in place of MONAI Label's own routes, by the same addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import requests
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.others.generic import file_checksum, get_mime_type
from pydantic import StringConstraints

from pipeline.label_app.access import Message, Receive, Send
from pipeline.label_app.bodies import file_of, form_of, name_in, object_of, refusing
from pipeline.label_app.limits import LARGEST_INFO, one_line
from pipeline.label_app.studies import image_path, lies_inside
from pipeline.label_app.uploads import SUFFIXES, Uploads, check_volume, suffix_of

MOST_SESSIONS = 100
"""Sessions that may be open at a time."""

LONGEST_SESSION = 86_400
"""Seconds."""

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
        with asking_studies():
            store = self.app.datastore()
            if output == Listing.all:
                return store.json()
            if output == Listing.train:
                return without_paths(self.app, store.datalist())
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
        return send_file(self._image_path(image))

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
        return send_file(self._label_path(label, tag))

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
        with asking_studies():
            pairs = self.app.datastore().datalist()[:limit_cases]
        if not pairs:
            raise HTTPException(404, "the studies have no pairs")
        folder = Path(tempfile.mkdtemp(dir=self.uploads.folder))
        path = folder / "dataset.zip"
        try:
            with zipfile.ZipFile(path, "w") as archive:
                for pair in pairs:
                    for kind, volume in pair.items():
                        archive.write(volume, f"{kind}/{os.path.basename(volume)}")
        except BaseException:
            shutil.rmtree(folder)
            raise
        return FolderResponse(path, folder, media_type="application/zip", filename=path.name)

    def _update(self, about: dict[str, Any], user: User, image: str, tag: str | None = None) -> Any:
        self._known(image)
        store = self.app.datastore()
        before = store.get_image_info(image) if tag is None else store.get_label_info(image, tag)
        about = {**about, "user": user.username}
        _check_info({**before, **about})
        with asking_studies():
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
        with asking_studies():
            path = image_path(self.app.datastore(), image)
        return self._inside(path, f"there is no image {image!r} in the studies")

    def _label_path(self, label: str, tag: str) -> str:
        self._known(label)
        if isinstance(self.app.datastore(), DICOMWebDatastore) and tag == DefaultLabelTag.FINAL.value:
            raise HTTPException(404, "labels with the tag 'final' are not fetched from a DICOM server")
        with asking_studies():
            path = self.app.datastore().get_label_uri(label, tag)
        return self._inside(path, f"there is no label of {label!r} with the tag {tag!r}")

    def _inside(self, path: str, otherwise: str) -> str:
        if not path or not lies_inside(path, self.app.studies_folder):
            raise HTTPException(404, otherwise)
        return path

    def _refuse_dicom(self) -> None:
        if isinstance(self.app.datastore(), DICOMWebDatastore):
            raise HTTPException(400, "the studies are those of a DICOM server: change them there")


class FolderResponse(FileResponse):
    """Sends a file out of a folder, which is gone afterwards, whatever becomes of the client.

    Args:
        path: of the file.
        folder: that it lies in.
        kwargs: see ``FileResponse``.
    """

    def __init__(self, path: str | Path, folder: Path, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self._folder = folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send, and clean up before the last byte: whoever has the answer knows that nothing else is left of it."""

        async def clean_up() -> None:
            await asyncio.shield(run_in_threadpool(shutil.rmtree, self._folder, ignore_errors=True))

        async def send_and_clean_up(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await clean_up()
            await send(message)

        try:
            await super().__call__(scope, receive, send_and_clean_up)
        finally:
            await clean_up()


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
        return send_file(about.image) if image else _describe_session(about)

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


@contextlib.contextmanager
def asking_studies() -> Iterator[None]:
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


def send_file(path: str, name: str | None = None) -> Response:
    """Answer with a file, under its name or another."""
    return FileResponse(path, media_type=get_mime_type(path), filename=name or os.path.basename(path))


def without_paths(app: Any, said: Any) -> Any:
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
