"""Translation with an exported ONNX file in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from torch import Tensor, nn

from pipeline.inference.seal import SealError, verify_seal

INPUT, OUTPUT = "image", "pred"
NEEDED = ("name", "version", "target_window", "trained_size", "minimum_size")


class OnnxError(ValueError):
    """An ONNX file that cannot be used; the message says which and why."""


class OnnxNetwork(nn.Module):
    """Stands in for a translator in inference: ``forward(source) -> prediction`` by ONNX Runtime.

    Uses as many threads as PyTorch does, and the GPU if the device is one and ONNX Runtime was built for it.

    Args:
        path: file written by ``scripts/export.py``.
        device: where to compute.

    Attributes:
        target_window: buffer of 2 values, the physical intensities that -1 and 1 stand for in the target modality.
        minimum_size: smallest size of an image along any axis.
        metadata: everything that the file says about itself.

    Raises:
        OnnxError: ONNX Runtime is not installed or cannot read the file, the file is damaged or has no seal that would
            tell, or it lacks what inference has to know.
    """

    target_window: Tensor

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.path = Path(path)
        runtime, installed = optional_import("onnxruntime")
        if not installed:
            raise OnnxError("running an ONNX file needs the package onnxruntime: pip install -e '.[export]'")
        if not self.path.is_file():
            raise OnnxError(
                f"checkpoint {self.path} does not exist; scripts/export.py makes an ONNX file of a model.pt"
            )
        try:
            verify_seal(self.path)
        except (SealError, OSError) as error:
            raise OnnxError(str(error)) from error
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = ["CPUExecutionProvider"]
        if torch.device(device).type == "cuda":
            wanted.insert(0, "CUDAExecutionProvider")
        providers = [name for name in wanted if name in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has an exception of its own for each kind of damage
            raise OnnxError(
                f"{self.path} is no ONNX file that ONNX Runtime can read ({type(error).__name__})"
            ) from error
        self.metadata = self._read_metadata()
        self.minimum_size = int(self.metadata["minimum_size"])
        self.register_buffer("target_window", torch.tensor(self.metadata["target_window"], dtype=torch.float32))

    def forward(self, source: Tensor) -> Tensor:
        """Translate.

        Args:
            source: (B, C, *spatial) in [-1, 1].

        Returns:
            Prediction of the target modality as float32, (B, C, *spatial) in [-1, 1], on the device of the source.
        """
        image = source.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: image})[0]).to(source.device)

    def trained_size(self) -> list[int]:
        """Size in pixels of the images that the network was trained on.

        Raises:
            OnnxError: if the file does not say.
        """
        sizes = [int(size) for size in self.metadata["trained_size"]]
        if not sizes:
            raise OnnxError(f"{self.path} does not say at which image size it was trained; pass spatial_size")
        return sizes

    def _read_metadata(self) -> dict[str, Any]:
        found = self.session.get_modelmeta().custom_metadata_map
        names = [
            [entry.name for entry in entries] for entries in (self.session.get_inputs(), self.session.get_outputs())
        ]
        missing = [name for name in NEEDED if name not in found]
        if missing or names != [[INPUT], [OUTPUT]]:
            raise OnnxError(
                f"{self.path} was not written by scripts/export.py: expected input {INPUT!r}, output {OUTPUT!r} and "
                f"metadata {', '.join(NEEDED)}; got {names[0]}, {names[1]}, without {missing}"
            )
        try:
            metadata = {name: json.loads(text) for name, text in found.items()}
            low, high = metadata["target_window"]
            sound = low < high
        except (ValueError, TypeError) as error:
            raise OnnxError(f"{self.path}: its metadata cannot be read: {error}") from error
        if not sound:
            raise OnnxError(f"{self.path}: target_window must be (low, high) with low < high, got ({low}, {high})")
        return metadata
