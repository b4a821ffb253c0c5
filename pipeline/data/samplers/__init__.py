"""What a training gets to see of the volumes, one file for each way."""

from pipeline.data.samplers.slices import SliceDataset

__all__ = ["SliceDataset"]
