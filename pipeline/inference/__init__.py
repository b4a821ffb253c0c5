"""Translation of whole volumes."""

from pipeline.inference.export import Exporter, ExportError
from pipeline.inference.onnx import OnnxError, OnnxNetwork
from pipeline.inference.slices import ForegroundSliceInferer
from pipeline.inference.volumes import find_volumes, output_suffix

__all__ = [
    "ExportError",
    "Exporter",
    "ForegroundSliceInferer",
    "OnnxError",
    "OnnxNetwork",
    "find_volumes",
    "output_suffix",
]
