"""Translation of one volume on request, as `inference.json` does it offline."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from monai.transforms import SaveImage
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.generic import name_to_device

from pipeline.bundle import check_image_size
from pipeline.bundle import device as torch_device
from pipeline.handlers import load_network
from pipeline.inference.volumes import OUTPUT_SUFFIXES

WEIGHTS = Path("models") / "model.pt"
"""Where a bundle keeps the weights of its network."""

logger = logging.getLogger(__name__)


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
        if suffix not in OUTPUT_SUFFIXES:
            raise ValueError(f"result_extension must be one of {', '.join(OUTPUT_SUFFIXES)}, got {asked!r}")
        return suffix
    return next((suffix for suffix in OUTPUT_SUFFIXES if source.endswith(suffix)), OUTPUT_SUFFIXES[0])


class TranslationTask(BundleInferTask):
    """MONAI Label's bundle task, for a bundle whose result is an image and not a segmentation.

    The weights are loaded strictly, into the network that the config's other parts refer to, and again whenever their
    file has changed. The result is written in float32 with the source's affine, whatever data type a client asks for.

    Args:
        path: folder of the bundle; its weights must be there.
        conf: what ``--conf`` gave.
    """

    def __init__(self, path: str | Path, conf: dict[str, str]) -> None:
        self.weights = Path(path) / WEIGHTS
        self._loaded: tuple[str, int, int] | None = None
        super().__init__(str(path), conf, type=InferType.OTHERS, add_post_restore=False, load_strict=True)
        if self.valid:  # MONAI Label would let the client pick any file in models/
            self._config.pop("model_filename", None)

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str, dict[str, Any]]:
        """Translate.

        Args:
            request: ``image`` (path), ``device`` (a PyTorch device) and, optionally, ``result_extension``.
            callbacks: see MONAI Label.

        Returns:
            Path of the translated volume, and what there is to say about it.

        Raises:
            CheckpointError: if the weights cannot be read or are not those of the bundle's network.
            ValueError: if the image cannot be translated.
        """
        self._refresh(str(request["device"]))
        return super().__call__(request, callbacks)

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[str, dict]:
        """Write the translated volume as offline inference does, float32 always."""
        suffix = result_suffix(extension or data.get("result_extension"), str(data.get("image_path", "")))
        descriptor, path = tempfile.mkstemp(suffix=suffix)
        os.close(descriptor)
        save = SaveImage(output_ext=suffix, output_dtype=np.float32, resample=False, print_log=False)
        save(data[self.output_label_key], filename=path.removesuffix(suffix))
        return path, {}

    def _refresh(self, device: str) -> None:
        """Read config and weights again if the weights or the device are others than last time."""
        status = self.weights.stat()
        wanted = (device, status.st_mtime_ns, status.st_size)
        if self._loaded == wanted:
            return
        self._loaded = None
        # All of it, since image size and intensity window come with the weights; and these strictly, whatever the
        # bundle's config does.
        self.bundle_config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
        self.bundle_config[self.const.key_device()] = device
        network = load_network(self.bundle_config.get_parsed_content("network"), self.weights)
        check_image_size(self.bundle_config.get_parsed_content("image_size"), network)
        self._network = network.eval()
        self._loaded = wanted
        logger.info("loaded %s on %s", self.weights, device)

    def _get_network(self, device: str, data: Any) -> Any:
        return self._network

    def _load_bundle_config(self, path: str, config: str) -> ConfigParser:
        parser = super()._load_bundle_config(path, config)
        parser["checkpoint"] = str(self.weights)
        return parser
