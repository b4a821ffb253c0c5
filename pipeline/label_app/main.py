"""What ``monailabel start_server --app pipeline/label_app`` runs."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
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
from pipeline.label_app.batch import BatchTranslation, check_batch
from pipeline.label_app.conf import ALL, SETTINGS, find_bundles, is_on, number
from pipeline.label_app.guarding import guard_server
from pipeline.label_app.health import LEAST_FREE_GB, find_obstacles
from pipeline.label_app.infer import WEIGHTS, TranslationTask, request_device, result_suffix, wants_series
from pipeline.label_app.journal import keep_names_out_of_logs
from pipeline.label_app.listening import auth_is_off, check_listening, host_of_command
from pipeline.label_app.studies import AnyImage, Studies, image_path, series_folder, store_series
from pipeline.label_app.train import TranslationTrainTask, training_settings
from pipeline.label_app.uploads import DEFAULT_LIMIT, Uploads, check_volume, own_folder
from pipeline.label_app.worker import LONGEST_QUEUE, Progress, TranslationQueue

FEWEST_PAIRS = 2
"""Pairs that a training needs: one to train on and one to validate."""

logger = logging.getLogger(__name__)


class TranslationApp(MONAILabelApp):
    """Serves bundles of this project: translation of a volume, of all volumes, and training on the studies' pairs.

    Args:
        app_dir: this folder.
        studies: folder of the images, with the target volumes in ``labels/final``; or the address of a DICOMweb server.
        conf: ``models`` (names of the bundles, by commas, or ``all``) and, optionally, ``bundles`` (their folder),
            ``output_dir`` (for what trainings write), ``token_file``, ``auth`` (``off`` to serve everybody), ``queue``
            (how many translations may wait or run), ``min_free_gb`` (below which the server is not ready),
            ``max_volume_mb`` (of a volume in float32), ``auth_issuer`` and ``auth_audience`` (that tokens of MONAI
            Label's own login have to name) and ``tracking_uri``.

    Attributes:
        bundles: folder of each bundle by its name.
        queue: of the translations that clients wait for.
        limit: megabytes that a volume may have in float32.
        uploads: folder for what is sent and what is answered; None before the server runs.

    Raises:
        ValueError: if a setting is unknown or cannot be used.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        unknown = sorted(set(conf) - {*SETTINGS, "server_mode"})
        if unknown:
            raise ValueError(f"--conf does not know {unknown}, expected {', '.join(SETTINGS)}")
        # Wrong settings stop the server at its start, not a client later.
        self._token = read_token(conf["token_file"]) if conf.get("token_file") else None
        self._open = auth_is_off(conf.get("auth"))
        self._store_derived = is_on("store_derived", conf)
        self.queue = TranslationQueue(number("queue", conf, LONGEST_QUEUE, int, 1))
        self._min_free = int(number("min_free_gb", conf, LEAST_FREE_GB, float, 0) * 1e9)
        self.limit = number("max_volume_mb", conf, DEFAULT_LIMIT, int, 1)
        self._folder = Path(conf.get("bundles") or project_dir() / "bundles").expanduser()
        self.bundles = find_bundles(conf.get("models", ""), self._folder)
        self._bundles_lock = threading.Lock()
        self._broken: dict[str, str] = {}
        self._infers: dict[str, Any]
        self._trainers: dict[str, Any]
        self._outputs = Path(conf.get("output_dir") or project_dir() / "outputs" / "label").expanduser().absolute()
        self.uploads: Path | None = None
        if "monailabel.app" in sys.modules:  # the server, not the process of a batch, whose last lines a client may see
            keep_names_out_of_logs(self._image_names)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Image-to-image translation",
            description="Translates one modality into another with bundles trained on misaligned pairs",
            version=monailabel.__version__,
        )

    def _image_names(self) -> list[str]:
        """Names of the images in the folder of the studies; a DICOM server has numbers, and is not asked."""
        store = self.__dict__.get("_datastore")
        return store.list_images() if isinstance(store, Studies) else []

    def init_infers(self) -> dict[str, Any]:
        """A task for every bundle that has weights."""
        return {name: TranslationTask(path, self.conf) for name, path in self.bundles.items() if _has_weights(path)}

    def init_trainers(self) -> dict[str, Any]:
        """A training for every bundle."""
        return {name: self._trainer(name) for name, path in self.bundles.items() if _trains(path)}

    def _trainer(self, name: str) -> TranslationTrainTask:
        uri = self.conf.get("tracking_uri") or settings.MONAI_LABEL_TRACKING_URI or None
        return TranslationTrainTask(name, self.bundles[name], self.conf, self._outputs / name, uri)

    def look_for_models(self) -> None:
        """Offer what was put into the folder of the bundles since, and no more what was taken out of it."""
        with self._bundles_lock:
            if self.conf.get("models", "").strip() == ALL:
                self.bundles = find_bundles(ALL, self._folder)
            for name, path in self.bundles.items():
                try:
                    if name not in self._infers and _has_weights(path):
                        self._infers = {**self._infers, name: TranslationTask(path, self.conf)}
                    if name not in self._trainers and _trains(path) and settings.MONAI_LABEL_TASKS_TRAIN:
                        self._trainers = {**self._trainers, name: self._trainer(name)}
                    self._broken.pop(name, None)
                except Exception as error:  # whatever half a bundle's files raise, the others are served
                    if self._broken.get(name) != str(error):
                        logger.warning("the bundle %s cannot be used: %s", name, error)
                    self._broken[name] = str(error)
            there = {name: path for name, path in self.bundles.items() if name not in self._broken}
            self._infers = {
                name: task for name, task in self._infers.items() if name in there and _has_weights(there[name])
            }
            self._trainers = {name: task for name, task in self._trainers.items() if name in there}

    def init_strategies(self) -> dict[str, Any]:
        """The one way to choose an image without a target."""
        return {"random": AnyImage()}

    def init_batch_infer(self) -> BatchTranslation:
        """The batch task."""
        return BatchTranslation()

    def init_datastore(self) -> Any:
        """The folder of studies, or what MONAI Label makes of a server's address."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return Studies(
            self.studies,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    @property
    def studies_folder(self) -> str:
        """Folder of the studies, or of what was fetched of them."""
        return os.path.realpath(self.datastore()._datastore_path)

    @property
    def strategies(self) -> list[str]:
        """Names of the ways to choose an image without a target."""
        return list(self._strategies)

    def weights_of(self, model: str) -> Path:
        """Where the weights of a bundle are, or are to be."""
        return self.bundles[model] / WEIGHTS

    def train_stats(self, model: str) -> dict[str, Any]:
        """How far the training of a bundle is, or how the last one ended."""
        return self._trainers[model].stats() if model in self._trainers else {}

    def own_folders(self) -> list[str]:
        """Folders that no client needs to know."""
        folders = [self.studies_folder, self.app_dir, self._outputs, *self.bundles.values(), *sys.path, sys.prefix]
        folders += [*(path.parent for path in self.bundles.values()), project_dir(), Path.home()]
        folders += [self.studies, *([self.uploads] if self.uploads else []), tempfile.gettempdir()]
        return [str(folder).rstrip(os.sep) for folder in folders if len(str(folder)) > 1]

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
        self.look_for_models()
        return super().info()

    def infer(
        self,
        request: Mapping[str, Any],
        datastore: Any = None,
        *,
        upload: Path | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Translate one volume.

        Args:
            request: ``model``, ``image`` (its name in the datastore) and, optionally, ``device``,
                ``result_extension``, ``save_label`` and ``label_tag``; of an image of a DICOM server, also ``.dcm`` as
                extension, for a zip of the derived series, and with it ``store_derived``, to send that to the server,
                too. What else a client sends is left aside.
            datastore: that the image is in; default the server's.
            upload: translate this file or folder, and no image of the datastore.
            folder: for the result; default that of temporary files.
            progress: is told how far it is, and asked whether to go on.

        Returns:
            ``file`` and ``params`` (see `TranslationTask`), and ``label``, the name under which the result was kept if
            that was asked for.

        Raises:
            HTTPException: 400, 404, 409 or 422, saying what is wrong.
            CancelledTranslationError: if ``progress`` says that the result is no longer wanted.
        """
        datastore = datastore or self.datastore()
        task, device, tag = self.check_infer(request)
        series = wants_series(request.get("result_extension"))
        path = str(upload) if upload else self._find_image(request.get("image"), datastore, series)
        with answering(422, path):
            if series:
                check_images([path])
            else:
                result_suffix(request.get("result_extension"), path)
            if not os.path.isdir(path):  # the series of a DICOM server, as it was fetched
                check_volume(path, self.limit, None if upload else self.studies_folder)
                check_images([path])
        with answering(409, task.weights):
            task.prepare(device)
        asked = {"image": path, "device": device, "result_extension": request.get("result_extension")}
        with answering(422, path, task.weights):
            file, params = task({**asked, "result_dir": folder and str(folder)}, progress=progress)
        label = file
        if bool(request.get("save_label", False)) and not upload:
            label = datastore.save_label(request["image"], file, tag, {"model": request["model"], "params": params})
        if series and request.get("store_derived"):
            try:
                params["stored_series"] = store_series(datastore, file)
            except OSError as error:
                logger.exception("a derived series could not be stored")
                raise HTTPException(502, str(error)) from error
        return {"label": label, "tag": tag, "file": file, "params": params}

    def check_infer(self, request: Mapping[str, Any]) -> tuple[TranslationTask, str, str]:
        """Check what can be checked before a translation has its turn.

        Args:
            request: see `infer`.

        Returns:
            The task, the device and the tag for a result that is kept.

        Raises:
            HTTPException: 400, 404, 409 or 422, saying what is wrong.
        """
        task, tag = self._task(request.get("model")), tag_of(request)
        with answering(422):
            device = request_device(request.get("device"))
            if not wants_series(request.get("result_extension")):
                result_suffix(request.get("result_extension"), "")
        self._check_series(request)
        return task, device, tag

    def _check_series(self, request: Mapping[str, Any]) -> None:
        """Refuse what cannot be asked of a derived series."""
        series, store = wants_series(request.get("result_extension")), request.get("store_derived", False)
        if not isinstance(store, bool):
            raise HTTPException(400, f"store_derived must be true or false, got {store!r}")
        if (series or store) and not request.get("image"):
            raise HTTPException(400, "a derived DICOM series is made of an image of the studies only, not of a file")
        if series and request.get("save_label"):
            raise HTTPException(400, "a derived DICOM series is no label of the studies; store_derived sends it there")
        if store and not series:
            raise HTTPException(400, 'store_derived needs "result_extension": ".dcm"')
        if store and not self._store_derived:
            raise HTTPException(
                403, "this server stores no derived series: it was started without --conf store_derived on"
            )

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
            return {"model": model, **check_batch(request, self.datastore().list_images)}
        if method == "train":
            self.look_for_models()
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

    def why_not_ready(self) -> list[str]:
        """Why the server should not be sent requests now, without names and places; empty if it may."""
        self.look_for_models()
        faults = [task.fault for task in self._infers.values()]
        reasons = []
        if not faults:
            reasons.append("no weights")
        elif all(faults):
            reasons.append("weights that cannot be used")
        folders = [self._outputs] if self._trainers else []
        if not self.studies.startswith(("http://", "https://")) and not settings.MONAI_LABEL_DATASTORE_READ_ONLY:
            folders.append(Path(self.studies))
        return reasons + find_obstacles(self.uploads or Path(tempfile.gettempdir()), folders, self._min_free)

    def on_init_complete(self) -> None:
        """Put the guards up, once the server is there and before it answers.

        Raises:
            ValueError: if it would let everybody in without anybody having said so.
        """
        check_listening(host_of_command(), self._token is not None, settings.MONAI_LABEL_AUTH_ENABLE, self._open)
        super().on_init_complete()
        self.uploads = own_folder(Path(tempfile.gettempdir()))
        atexit.register(shutil.rmtree, self.uploads, ignore_errors=True)
        login = self.conf.get("auth_issuer") or None, self.conf.get("auth_audience") or None
        guard_server(self, Uploads(self.uploads, self.limit), self._token, self._open, *login)

    def _task(self, model: Any) -> TranslationTask:
        self.look_for_models()
        if not isinstance(model, str) or model not in self.bundles:
            raise HTTPException(404, f"there is no model {model!r}, expected one of {list(self.bundles)}")
        if not _has_weights(self.bundles[model]):
            raise HTTPException(
                409, f"the bundle {model!r} has no weights yet: train it, or put them into its {WEIGHTS.as_posix()}"
            )
        if model not in self._infers:
            raise HTTPException(409, f"the bundle {model!r} cannot be used; the server's log says why")
        return self._infers[model]

    def _find_image(self, image: Any, datastore: Any, series: bool = False) -> str:
        """Path of an image of the datastore."""
        if not is_name(image) or not image:
            raise HTTPException(400, f"image must be the name of an image in the studies, not a path, got {image!r}")
        try:
            with answering(422):
                path = series_folder(datastore, image) if series else image_path(datastore, image)
        except HTTPException:
            raise
        except Exception as error:  # whatever a DICOMweb server, its client and a conversion raise
            logger.exception("an image could not be fetched")
            raise HTTPException(404, f"image {image!r} could not be fetched from the studies") from error
        if not path or not os.path.exists(path):
            raise HTTPException(404, f"there is no image {image!r} in the studies")
        return path


def _has_weights(bundle: Path) -> bool:
    return (bundle / WEIGHTS).is_file()


def _trains(bundle: Path) -> bool:
    return (bundle / "configs" / "train.json").is_file()


if __name__ == "__main__":
    sys.exit("start it with: python -m pipeline.label_app.serve --studies FOLDER --models reggan")
