"""Datalists, slice data sets and the digital brain phantom."""

from pipeline.data.checks import DataError, check_cases
from pipeline.data.datalist import Cases, load_cases
from pipeline.data.slices import SliceDataset

__all__ = ["Cases", "DataError", "SliceDataset", "check_cases", "load_cases"]
