"""Translation with an exported ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import Tensor, nn

from pipeline.inference.seal import SealError, verify_seal
from pipeline.models import ModelError, decode_recipe

INPUT, OUTPUT = "image", "pred"
NEEDED = ("recipe", "minimum_size")
"""Entries of the file's metadata that its use needs."""


class OnnxError(ModelError):
    """An ONNX file that cannot be used; the message says which and why."""


class OnnxModel:
    """An exported translator with its recipe.

    Args:
        path: file written by ``scripts/export.py``.
        trusted: not needed, since nothing is built from classes; here so that all models are opened alike.

    Attributes:
        path: the file.
        recipe: how it was made.
        minimum_size: smallest size of an image along any axis.

    Raises:
        ModelError: ONNX Runtime is not installed or cannot read the file, or the file lacks what its use needs.
    """

    has_registration = False

    def __init__(self, path: str | Path, trusted: Collection[str] = ()) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise OnnxError(
                f"checkpoint {self.path} does not exist; scripts/export.py makes an ONNX file of a model.pt"
            )
        self._session = _session(self.path, "cpu")
        found = self._session.get_modelmeta().custom_metadata_map
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise OnnxError(
                f"{self.path} was not written by scripts/export.py: its metadata lacks {', '.join(missing)}"
            )
        self.recipe = decode_recipe(found["recipe"], self.path, trusted)
        try:
            self.minimum_size = int(found["minimum_size"])
        except ValueError as error:
            raise OnnxError(f"{self.path}: minimum_size must be a number, got {found['minimum_size']!r}") from error

    def build(self, registration: bool = False, **settings_of_use: Any) -> OnnxNetwork:
        """The network.

        Raises:
            OnnxError: a setting of use is given: the file has them fixed.
        """
        if settings_of_use:
            raise OnnxError(f"{self.path} has its style fixed; give {', '.join(settings_of_use)} when it is exported")
        return OnnxNetwork(self.path, self.minimum_size, self._session)

    def baselines(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """What to score beside it: the source as it is."""
        return {"source": lambda source: source}


class OnnxNetwork(nn.Module):
    """Stands in for a translator in inference: ``forward(source) -> prediction`` by ONNX Runtime.

    Uses as many threads as PyTorch does, and the GPU if it was moved to one and ONNX Runtime was built for it.

    Args:
        path: file written by ``scripts/export.py``.
        minimum_size: smallest size of an image along any axis.
        session: ONNX Runtime's session of the file on the CPU, if it is open already.

    Raises:
        OnnxError: ONNX Runtime is not installed or cannot read the file, the file is damaged, or its inputs and outputs
            are others.
    """

    registration = None
    place: Tensor

    def __init__(self, path: str | Path, minimum_size: int = 1, session: Any = None) -> None:
        super().__init__()
        self.path, self.minimum_size = Path(path), minimum_size
        self.register_buffer("place", torch.empty(0), persistent=False)  # goes where the network is moved to
        self._session, self._runs_on = session or _session(self.path, "cpu"), "cpu"
        names = [
            [entry.name for entry in entries] for entries in (self._session.get_inputs(), self._session.get_outputs())
        ]
        if names != [[INPUT], [OUTPUT]]:
            raise OnnxError(
                f"{self.path} was not written by scripts/export.py: expected input {INPUT!r} and output {OUTPUT!r}, "
                f"got {names[0]} and {names[1]}"
            )

    def forward(self, source: Tensor) -> Tensor:
        """Translate.

        Args:
            source: (B, C, *spatial) in [-1, 1].

        Returns:
            Prediction of the target modality as float32, (B, C, *spatial) in [-1, 1], on the device of the source.
        """
        if self.place.device.type != self._runs_on:
            self._session, self._runs_on = _session(self.path, self.place.device), self.place.device.type
        image = source.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self._session.run([OUTPUT], {INPUT: image})[0]).to(source.device)


def _session(path: Path, device: torch.device | str) -> Any:
    runtime, installed = optional_import("onnxruntime")
    if not installed:
        raise OnnxError("running an ONNX file needs the package onnxruntime: pip install -e '.[export]'")
    try:
        verify_seal(path)
    except (SealError, OSError) as error:
        raise OnnxError(str(error)) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CPUExecutionProvider"]
    if torch.device(device).type == "cuda":
        wanted.insert(0, "CUDAExecutionProvider")
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime has an exception of its own for each kind of damage
        raise OnnxError(f"{path} is no ONNX file that ONNX Runtime can read ({type(error).__name__})") from error
