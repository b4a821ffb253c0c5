"""Translation of one volume on request, as `inference.json` does it offline."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import name_to_device

from pipeline.bundle import check_image_size
from pipeline.bundle import device as torch_device
from pipeline.errors import first_cause
from pipeline.files import replacing
from pipeline.inference import derivation
from pipeline.inference.comparison import DIFFERENCES_KEY
from pipeline.io import WRITABLE, write_image, write_series
from pipeline.label_app.worker import Progress
from pipeline.models import Recipe, file_digest

WEIGHTS = Path("models") / "model.pt"
"""Where a bundle keeps the weights of its network."""

RESULT_SUFFIXES = tuple(suffix for suffix in WRITABLE if suffix != ".mhd")
"""Formats that an answer may have: of one file each; the voxels of a ``.mhd`` lie in another one beside it."""

SERIES_SUFFIX = ".dcm"
"""What a client asks for to be given the derived DICOM series, of an image of a DICOM server: its files in a zip."""

logger = logging.getLogger(__name__)


def keep_previous(weights: Path, *others: str) -> None:
    """Keep weights that will be replaced in the folder ``previous`` beside them, by the time that they are of.

    Args:
        weights: the file.
        others: names of files beside it that are kept with it, where they are there.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(weights.stat().st_mtime))
    for path in filter(Path.is_file, (weights, *map(weights.with_name, others))):
        with replacing(path.parent / "previous" / f"{path.stem}-{stamp}{path.suffix}") as kept:
            shutil.copy2(path, kept)


def wants_series(asked: Any) -> bool:
    """Whether a client's ``result_extension`` asks for a derived DICOM series."""
    return isinstance(asked, str) and asked.lower().removeprefix(".") == SERIES_SUFFIX[1:]


def request_device(value: Any) -> str:
    """The device that a client asks for, as PyTorch calls it.

    Args:
        value: name of a device, as MONAI Label or as PyTorch has it, or a list that begins with one; None for the first
            GPU or else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    first = value[0] if isinstance(value, list) and value else value
    if first is not None and not isinstance(first, str):
        raise ValueError(f"device must be the name of a device, got {value!r}")
    return str(torch_device(name_to_device(first)))


def result_suffix(asked: str | None, source: str) -> str:
    """Suffix of the file to answer with.

    Args:
        asked: what the client wants; None or empty for the source's own.
        source: path of the image to translate.

    Raises:
        ValueError: if the client wants a format that does not hold a translated volume.
    """
    if asked:
        suffix = asked if str(asked).startswith(".") else f".{asked}"
        if suffix not in RESULT_SUFFIXES:
            raise ValueError(f"result_extension must be one of {', '.join(RESULT_SUFFIXES)}, got {asked!r}")
        return suffix
    return next((suffix for suffix in RESULT_SUFFIXES if source.endswith(suffix)), RESULT_SUFFIXES[0])


def describe_model(name: str, version: str | None, recipe: Recipe, sha256: str) -> dict[str, Any]:
    """What a client is told of the model behind a translation.

    Args:
        name: of the bundle.
        version: of the bundle, as its ``metadata.json`` has it.
        recipe: of the model.
        sha256: of the model file, in hexadecimal.

    Returns:
        ``name``, ``version``, ``method``, ``backbone``, ``source_modality`` and ``target_modality`` (None where the
        model does not know), ``target_window`` (physical values that the prediction lies between), ``data_range``
        (width of that window) and ``sha256``.
    """
    return {
        "name": name,
        "version": version,
        "method": recipe["method"],
        "backbone": recipe["backbone"],
        "source_modality": recipe["source"]["modality"],
        "target_modality": recipe["target"]["modality"],
        "target_window": list(recipe.target_window),
        "data_range": recipe.data_range,
        "sha256": sha256,
    }


class TranslationTask(BundleInferTask):
    """MONAI Label's bundle task, for a bundle whose result is an image and not a segmentation.

    The bundle's `inference.json` is given the model file and nothing else: the recipe in there says how to build the
    network, to scale and to cut. The file is opened at the first use, and again whenever it has changed. The result is
    written in float32 with the source's affine, whatever data type a client asks for. One translation of it runs at a
    time, however many threads ask.

    Args:
        path: folder of the bundle; its weights must be there.
        conf: what ``--conf`` gave.

    Attributes:
        weights: the model file.
        about: what the opened model is, see `describe_model`; empty before the first use.
        fault: why the file that is there now cannot be used, once that was tried; else None.
    """

    def __init__(self, path: str | Path, conf: dict[str, str]) -> None:
        self.weights = Path(path) / WEIGHTS
        self.about: dict[str, Any] = {}
        self._loaded: tuple[str, int, int] | None = None
        self._refused: tuple[tuple[int, int], str] | None = None
        self._network: Any = None
        self._slice_axis = 0
        self._recipe: Any = None
        self._progress = Progress()
        self._one_at_a_time = threading.RLock()
        super().__init__(str(path), conf, type=InferType.OTHERS, add_post_restore=False, load_strict=True)
        if self.valid:  # MONAI Label would let the client pick any file in models/
            self._config.pop("model_filename", None)

    @property
    def fault(self) -> str | None:
        """Why the file that is there now cannot be used, once that was tried; else None."""
        refused = self._refused
        try:
            return refused[1] if refused and refused[0] == self._state_of_file("")[1:] else None
        except OSError:
            return None

    def __call__(
        self, request: dict[str, Any], callbacks: Any = None, progress: Progress | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Translate.

        Args:
            request: ``image`` (path), ``device`` (a PyTorch device) and, optionally, ``result_extension`` and
                ``result_dir``, an existing folder for the result.
            callbacks: see MONAI Label.
            progress: is told how far it is, and asked whether to go on.

        Returns:
            Path of the translated volume, and what there is to say about it: beside MONAI Label's entries, ``model``
            (see `describe_model`) and ``warnings``, a sentence for each thing that is unlike the training data.

        Raises:
            ValueError: if the model cannot be used (see `prepare`), or the image cannot be translated.
            CancelledTranslationError: if ``progress`` says that it is no longer wanted.
        """
        with self._one_at_a_time:
            self._progress = progress or Progress()
            try:
                self.prepare(str(request["device"]))
                self._progress.check()
                # Below this level MONAI Label writes names of images into the log.
                return super().__call__({**request, "logging": "WARNING"}, callbacks)
            finally:
                self._progress = Progress()

    def prepare(self, device: str) -> None:
        """Open the model, unless it is the file of last time on the device of last time.

        Args:
            device: as PyTorch calls it.

        Raises:
            ValueError: if the file is damaged, holds NaN or no recipe, or contradicts the bundle's `inference.json`, or
                its images are too small for its network. MONAI may have wrapped it, see `pipeline.errors.first_cause`.
        """
        with self._one_at_a_time:
            wanted = self._state_of_file(device)
            while self._loaded != wanted:
                self._loaded = None
                try:
                    self._open(device)
                except Exception as error:
                    if isinstance(first_cause(error), ValueError):  # not what only this device lacks
                        self._refused = wanted[1:], str(first_cause(error))
                    raise
                self._loaded = wanted
                # A file that was replaced meanwhile is read again: what is said of a model has to be of the one in use.
                wanted = self._state_of_file(device)
                logger.info(
                    "loaded the weights of %s (%s, SHA-256 %s) on %s",
                    *(self.about[key] for key in ("name", "method", "sha256")),
                    device,
                )

    def _open(self, device: str) -> None:
        parser = super()._load_bundle_config(self.bundle_path, self.bundle_config_path)
        parser["checkpoint"] = str(self.weights)
        parser[self.const.key_device()] = device
        network = parser.get_parsed_content("network")
        check_image_size(parser.get_parsed_content("image_size"), network)
        recipe = parser.get_parsed_content("model").recipe
        version = json.loads((Path(self.bundle_path) / "configs" / self.const.metadata_json()).read_text())["version"]
        about = describe_model(Path(self.bundle_path).name, version, recipe, file_digest(self.weights))
        self.bundle_config, self._network, self.about = parser, network.eval(), about
        self._slice_axis, self._recipe = recipe.slice_axis, recipe

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[str, dict]:
        """Write the translated volume as offline inference does, float32 always.

        Raises:
            OSError: it could not be written as a whole; nothing is left of it.
        """
        warnings = data[self.input_key].meta.get(DIFFERENCES_KEY, [])
        about = {"model": dict(self.about), "warnings": list(warnings)}
        if wants_series(data.get("result_extension")):
            return self._write_series(data), about
        suffix = result_suffix(extension or data.get("result_extension"), str(data.get("image_path", "")))
        descriptor, path = tempfile.mkstemp(suffix=suffix, dir=data.get("result_dir"))
        os.close(descriptor)
        try:
            write_image(path, data[self.output_label_key], like=data[self.input_key])
        except OSError as error:
            os.unlink(path)
            raise OSError(errno.ENOSPC, "the translated volume could not be written as a whole") from error
        return path, about

    def _write_series(self, data: dict[str, Any]) -> str:
        """Write the derived series of a DICOM source, and return a zip of its files."""
        made_by = derivation(self._recipe, self.about["sha256"], self.bundle_path)
        with tempfile.TemporaryDirectory(dir=data.get("result_dir")) as folder:
            try:
                series = write_series(
                    Path(folder) / "series", data[self.output_label_key], data[self.input_key], made_by
                )
                descriptor, path = tempfile.mkstemp(suffix=".zip", dir=data.get("result_dir"))
                with (
                    os.fdopen(descriptor, "wb") as stream,
                    zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
                ):
                    for file in sorted(series.iterdir()):
                        archive.write(file, file.name)
            except OSError as error:
                raise OSError(errno.ENOSPC, "the derived series could not be written as a whole") from error
        return path

    def _state_of_file(self, device: str) -> tuple[str, int, int]:
        status = self.weights.stat()
        return device, status.st_mtime_ns, status.st_size

    def _get_network(self, device: str, data: Any) -> Any:
        progress, network = self._progress, self._network
        if data is None:
            return network
        progress.total = int(data[self.input_key].shape[1 + self._slice_axis])

        def translate(slices: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            progress.check()
            translated = network(slices, *args, **kwargs)
            progress.done += len(slices)
            return translated

        return translate

    def run_post_transforms(self, data: dict[str, Any], transforms: Any) -> dict[str, Any]:
        """Put the volume back onto its own grid, which may take a while, if somebody still waits for it."""
        self._progress.check()
        return super().run_post_transforms(data, transforms)

    def _load_bundle_config(self, path: str, config: str) -> ConfigParser:
        # MONAI Label builds a network when the task is made: a file of no use would keep the server from starting.
        parser = super()._load_bundle_config(path, config)
        parser[self.const.key_network_def()] = None
        return parser
