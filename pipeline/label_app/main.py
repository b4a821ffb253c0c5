"""What ``monailabel start_server --app pipeline/label_app`` runs."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monailabel
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag

from pipeline.bundle import project_dir
from pipeline.data.checks import check_images
from pipeline.label_app.access import is_name, read_token
from pipeline.label_app.answers import answering, tag_of
from pipeline.label_app.batch import BatchTranslation
from pipeline.label_app.guarding import guard_server, guard_tasks
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
        save, tag = bool(request.get("save_label", False)), tag_of(request)
        image = request.get("image")
        path, known = self._find_image(image, datastore)
        with answering(422, path):
            device = request_device(request.get("device"))
            result_suffix(request.get("result_extension"), path)
            if not os.path.isdir(path):
                check_images([path])
        with answering(409, task.weights):
            task.prepare(device)
        with answering(422, path, task.weights):
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
            tag = tag_of(request)
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
            with answering(409, trainer.weights):
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
        guard_server(self._token)
        guard_tasks(self)

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


if __name__ == "__main__":
    sys.exit("start it with: monailabel start_server --app pipeline/label_app --studies FOLDER --conf models reggan")
