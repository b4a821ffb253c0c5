"""What ``monailabel start_server --app pipeline/label_app`` runs."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monailabel
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from pipeline.bundle import project_dir
from pipeline.data.checks import check_images
from pipeline.errors import first_cause
from pipeline.label_app.access import Guard, is_name, read_token
from pipeline.label_app.infer import WEIGHTS, TranslationTask, request_device, result_suffix
from pipeline.label_app.train import TranslationTrainTask, training_settings

SETTINGS = ("models", "bundles", "output_dir", "token_file", "tracking_uri")
"""What ``--conf NAME VALUE`` can set."""

FEWEST_PAIRS = 2
"""Pairs that a training needs: one to train on and one to validate."""

logger = logging.getLogger(__name__)


def find_bundles(names: str, folder: Path) -> dict[str, Path]:
    """Find the bundles to serve.

    Args:
        names: of the bundles, separated by commas.
        folder: that they lie in.

    Raises:
        ValueError: if no name is given, or one is of no bundle in the folder.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    there = sorted(path.parent.parent.name for path in folder.glob("*/configs/inference.json"))
    if not asked:
        raise ValueError(f"--conf models must name the bundles to serve, separated by commas; in {folder}: {there}")
    unknown = [name for name in asked if name not in there]
    if unknown:
        raise ValueError(f"--conf models names {unknown}, expected bundles in {folder}: {there}")
    return {name: (folder / name).resolve() for name in asked}


class BatchTranslation(BatchInferTask):
    """MONAI Label's batch task, which goes on behind an image that cannot be translated."""

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Any) -> dict[str, Any]:
        """Translate all images that the request means and keep the results in the datastore.

        Raises:
            HTTPException: 422, at the end, if some could not be translated; the message says which.
        """
        failed: dict[str, str] = {}

        def translate(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                return infer(one, store)
            except HTTPException as error:
                failed[one["image"]] = error.detail
                return {"error": error.detail}

        # MONAI Label's defaults divide by the number of GPUs.
        results = super().__call__({**request, "multi_gpu": False, "max_workers": 1}, datastore, translate)
        if failed:
            lines = "\n".join(f"- {image}: {reason}" for image, reason in failed.items())
            raise HTTPException(422, f"{len(failed)} of {len(results)} images were not translated:\n{lines}")
        return results


class TranslationApp(MONAILabelApp):
    """Serves bundles of this project: translation of a volume, of all volumes, and training on the studies' pairs.

    Args:
        app_dir: this folder.
        studies: folder of the images, with the target volumes in ``labels/final``; or the address of a DICOMweb server.
        conf: ``models`` (names of the bundles, by commas) and, optionally, ``bundles`` (their folder), ``output_dir``
            (for what trainings write), ``token_file`` and ``tracking_uri``.

    Raises:
        ValueError: if a setting is unknown or cannot be used.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        unknown = sorted(set(conf) - {*SETTINGS, "server_mode"})
        if unknown:
            raise ValueError(f"--conf does not know {unknown}, expected {', '.join(SETTINGS)}")
        # Wrong settings stop the server at its start, not a client later.
        self._token = read_token(conf["token_file"]) if conf.get("token_file") else None
        self.bundles = find_bundles(
            conf.get("models", ""), Path(conf.get("bundles") or project_dir() / "bundles").expanduser()
        )
        self._outputs = Path(conf.get("output_dir") or project_dir() / "outputs" / "label").expanduser().absolute()
        self._uploads: Path | None = None
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Image-to-image translation",
            description="Translates one modality into another with bundles trained on misaligned pairs",
            version=monailabel.__version__,
        )

    def init_infers(self) -> dict[str, Any]:
        """A task for every bundle that has weights."""
        return {name: TranslationTask(path, self.conf) for name, path in self.bundles.items() if _has_weights(path)}

    def init_trainers(self) -> dict[str, Any]:
        """A training for every bundle."""
        uri = self.conf.get("tracking_uri") or settings.MONAI_LABEL_TRACKING_URI or None
        return {
            name: TranslationTrainTask(name, path, self.conf, self._outputs / name, uri)
            for name, path in self.bundles.items()
            if (path / "configs" / "train.json").is_file()
        }

    def init_batch_infer(self) -> BatchTranslation:
        """The batch task."""
        return BatchTranslation()

    def _init_dicomweb_datastore(self) -> Any:
        """The series that a DICOMweb server has of the modality that the first bundle translates."""
        default = type(settings).model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default  # CT, whatever is served
        if default == settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER:
            metadata = json.loads((next(iter(self.bundles.values())) / "configs" / "metadata.json").read_text())
            modality = metadata["network_data_format"]["inputs"]["image"]["modality"]
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = {"Modality": modality}
        return super()._init_dicomweb_datastore()

    def _download_dcmqi_tools(self) -> None:
        """They make segmentations, which we do not, and would be fetched from the internet."""

    def bundle_path(self, model: str) -> None:
        """None: a bundle that carries our packages must not put them in front of those that are installed."""
        return

    def info(self) -> dict[str, Any]:
        """What the server offers."""
        for name in self.bundles:
            if name not in self._infers and _has_weights(self.bundles[name]):
                self._infers[name] = TranslationTask(self.bundles[name], self.conf)
        return super().info()

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Translate one volume.

        Args:
            request: ``model``, ``image`` (its name in the datastore) and, optionally, ``device``,
                ``result_extension``, ``save_label`` and ``label_tag``. What else a client sends is left aside.
            datastore: that the image is in; default the server's.

        Returns:
            ``file`` and ``params`` (see `TranslationTask`), and ``label``, the name under which the result was kept if
            that was asked for.

        Raises:
            HTTPException: 400, 404, 409 or 422, saying what is wrong.
        """
        datastore = datastore or self.datastore()
        task = self._task(request.get("model"))
        save, tag = bool(request.get("save_label", False)), _tag(request)
        image = request.get("image")
        path, known = self._find_image(image, datastore)
        with _answering(422, path):
            device = request_device(request.get("device"))
            result_suffix(request.get("result_extension"), path)
            if not os.path.isdir(path):
                check_images([path])
        with _answering(409, task.weights):
            task.prepare(device)
        with _answering(422, path, task.weights):
            file, params = task({"image": path, "device": device, "result_extension": request.get("result_extension")})
        label = file
        if save and known:
            label = datastore.save_label(image, file, tag, {"model": request["model"], "params": params})
        return {"label": label, "tag": tag, "file": file, "params": params}

    def infer_wsi(self, request: Mapping[str, Any], datastore: Any = None) -> None:
        """Refused.

        Raises:
            HTTPException: 400.
        """
        raise HTTPException(400, "whole-slide images are not translated; ask /infer/MODEL")

    def check_task(self, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client wants to be done in the background, before it is started.

        Args:
            method: ``train`` or ``batch_infer``; others pass.
            request: of the client.

        Returns:
            The request, without what a client must not decide.

        Raises:
            HTTPException: 400, 404, 409 or 422, saying what is wrong.
        """
        model = request.get("model")
        if method == "batch_infer":
            self._task(model)
            tag = _tag(request)
            images = request.get("images", "all")
            if isinstance(images, list) and not all(is_name(image) for image in images):
                raise HTTPException(400, f"images must be names of images in the studies, not paths, got {images}")
            given = {name: request[name] for name in ("device", "max_batch_size") if name in request}
            return {"model": model, "images": images, "label_tag": tag, **given}
        if method == "train":
            if model not in self._trainers:
                raise HTTPException(404, f"there is no training of {model!r}, expected one of {list(self._trainers)}")
            try:
                chosen = training_settings(request)
            except ValueError as error:
                raise HTTPException(422, str(error)) from error
            pairs = len(self.datastore().datalist())
            if pairs < FEWEST_PAIRS:
                raise HTTPException(
                    422,
                    f"training needs at least {FEWEST_PAIRS} pairs, the studies have {pairs}: save target volumes as "
                    f"labels with the tag '{DefaultLabelTag.FINAL.value}'",
                )
            trainer = self._trainers[model]
            with _answering(409, trainer.weights):
                trainer.check_start(chosen)
            chosen["tracking"] = "mlflow" if chosen["tracking"] else "None"
            return {"model": model, **chosen}
        return dict(request)

    def on_init_complete(self) -> None:
        """Put the guards up, once the server is there and before it answers."""
        super().on_init_complete()
        # Uploads lie in a folder of their own, so that they can be told from other files.
        self._uploads = Path(tempfile.mkdtemp(prefix="label-uploads-")).resolve()
        tempfile.tempdir = str(self._uploads)
        atexit.register(shutil.rmtree, self._uploads, ignore_errors=True)
        _guard_server(self._token)
        _guard_tasks(self)

    def _task(self, model: Any) -> TranslationTask:
        if model not in self.bundles:
            raise HTTPException(404, f"there is no model {model!r}, expected one of {list(self.bundles)}")
        if not _has_weights(self.bundles[model]):
            raise HTTPException(
                409, f"the bundle {model!r} has no weights yet: train it, or put them into its {WEIGHTS.as_posix()}"
            )
        if model not in self._infers:
            self._infers[model] = TranslationTask(self.bundles[model], self.conf)
        return self._infers[model]

    def _find_image(self, image: Any, datastore: Any) -> tuple[str, bool]:
        """Path of an image, and whether it is one of the datastore's."""
        if is_name(image) and image:
            try:
                path = datastore.get_image_uri(image)
            except Exception as error:  # whatever a DICOMweb server, its client and a conversion raise
                logger.exception("no image %s", image)
                raise HTTPException(404, f"image {image!r} could not be fetched from the studies: {error}") from error
            if path and os.path.exists(path):
                return path, True
            raise HTTPException(404, f"there is no image {image!r} in the studies")
        sessions = Path(self._sessions.store_path).resolve() if self._sessions else None
        if isinstance(image, str) and os.path.exists(image):
            path = os.path.realpath(image)
            if any(folder is not None and Path(path).is_relative_to(folder) for folder in (self._uploads, sessions)):
                return path, False
        raise HTTPException(400, f"image must be the name of an image in the studies, not a path, got {image!r}")


def _has_weights(bundle: Path) -> bool:
    return (bundle / WEIGHTS).is_file()


def _tag(request: Mapping[str, Any]) -> str:
    """The tag to keep results under; not one that leads elsewhere, nor the one that marks what training learns from."""
    tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL
    tag = tag.value if isinstance(tag, DefaultLabelTag) else tag
    if not is_name(tag):
        raise HTTPException(400, f"label_tag must be a plain name, got {tag!r}")
    if tag == DefaultLabelTag.FINAL.value:
        raise HTTPException(
            400, f"label_tag must not be '{tag}': training would take translated volumes for real ones; use 'original'"
        )
    return tag


@contextmanager
def _answering(status: int, *paths: str | Path) -> Iterator[None]:
    """Answer with a status where a value is wrong, without the folders of paths: a client need not know them."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        cause = first_cause(error)
        if not isinstance(cause, ValueError):
            raise
        text = str(cause)
        for path in paths:
            text = text.replace(os.path.dirname(path) + os.sep, "")
        raise HTTPException(status, text) from error


def _guard_server(token: str | None) -> None:
    """Put the guard in front of the running server.

    MONAI Label builds its server before it reads any app, and lets every origin in where none is listed.
    """
    from monailabel.app import app as server
    from monailabel.endpoints.user import auth

    if isinstance(server.middleware_stack, Guard):
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
    server.middleware_stack = Guard(
        server.build_middleware_stack(), token, origins, others=settings.MONAI_LABEL_AUTH_ENABLE
    )


async def _answer_bad_json(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"params must be JSON: {error}"}, 400)


async def _answer_bad_archive(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"the archive cannot be unpacked: {error}"}, 400)


async def _answer_unknown(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(getattr(error, "msg", error))}, 404)


def _guard_tasks(app: TranslationApp) -> None:
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
            raise HTTPException(400, "run_sync is not offered for training: ask GET /train/ how far it is")
        checked = app.check_task(method, {**(params or {}), **(request or {})})
        # MONAI Label looks at processes, and has none yet for a task that was submitted just now.
        if not enqueue and any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks(method)):
            return None, f"a task of the kind {method} is running already"
        return start(method, checked, {}, force_sync, enqueue)

    AsyncTask.run = staticmethod(run)


if __name__ == "__main__":
    sys.exit("start it with: monailabel start_server --app pipeline/label_app --studies FOLDER --conf models reggan")
