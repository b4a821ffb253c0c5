"""Translation of whole volumes."""

from pipeline.inference.comparison import CompareWithTrainingd, differences_from_training
from pipeline.inference.deriving import derivation, derivation_of
from pipeline.inference.export import Exporter, ExportError
from pipeline.inference.onnx import OnnxError, OnnxModel, OnnxNetwork
from pipeline.inference.opening import build_network, open_model
from pipeline.inference.slices import FlipAveragingInferer, ForegroundSliceInferer
from pipeline.inference.translation import Translation
from pipeline.inference.volumes import ReadAhead, find_volumes

__all__ = [
    "CompareWithTrainingd",
    "ExportError",
    "Exporter",
    "FlipAveragingInferer",
    "ForegroundSliceInferer",
    "OnnxError",
    "OnnxModel",
    "OnnxNetwork",
    "ReadAhead",
    "Translation",
    "build_network",
    "derivation",
    "derivation_of",
    "differences_from_training",
    "find_volumes",
    "open_model",
]
