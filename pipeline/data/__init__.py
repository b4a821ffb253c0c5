"""Datalists, slice data sets and the digital brain phantom."""

from pipeline.data.cases import Cases
from pipeline.data.checks import DataError, check_cases, check_images
from pipeline.data.datalist import load_cases
from pipeline.data.grid import training_pixel_size, training_slice_axis
from pipeline.data.misaligned import Misalignment, misalign
from pipeline.data.pairs import PairDataset
from pipeline.data.phantom import ensure_phantom, make_phantom
from pipeline.data.samplers import SliceDataset

__all__ = [
    "Cases",
    "DataError",
    "Misalignment",
    "PairDataset",
    "SliceDataset",
    "check_cases",
    "check_images",
    "ensure_phantom",
    "load_cases",
    "make_phantom",
    "misalign",
    "training_pixel_size",
    "training_slice_axis",
]
