"""Stand-ins for data and models, to measure with: nothing is read, and nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import Dataset

from pipeline.workflow import ConfigWorkflow


class InMemory(Dataset):
    """Pairs in memory, standing in for ``pipeline.data.SliceDataset``."""

    target_window = (0.0, 1000.0)
    channels, patients, min_foreground, masks = 1, 1, 0.0, 0
    descriptions = ()
    slice_transform = None

    @classmethod
    def noise(cls, size: int, count: int) -> InMemory:
        """So many items, all the same pair of noise, `size` pixels along both axes."""
        pair = {name: torch.rand(1, size, size) * 2 - 1 for name in ("image", "label")}
        return cls([{**pair, "case": "a", "slice": index} for index in range(count)])

    @property
    def clean(self) -> InMemory:
        """These pairs: nothing is drawn."""
        return self

    def set_random_state(self, seed: int) -> InMemory:
        """Nothing to seed, either."""
        return self


def training(
    folder: Path, size: int, iterations: int, max_epochs: int, device: torch.device, **settings: Any
) -> ConfigWorkflow:
    """The default training config with all its handlers, on pairs of noise in memory.

    Args:
        folder: for all that it writes.
        size: of the images in pixels, along both axes.
        iterations: of an epoch, one pair each.
        max_epochs: of the run; only the last is validated and drawn.
        device: to train on.
        settings: further ones, which count.
    """
    data = InMemory.noise(size, iterations)
    fixed = {
        "output_dir": str(folder / "run"),
        "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
        "train#dataset": data,
        "validate#dataset": data,
        "device": str(device),
        "max_epochs": max_epochs,
        "val_interval": max_epochs,
        "picture_interval": max_epochs,
        "decay_epochs": 0,
        "batch_size": 1,
        "spatial_size": size,
    }
    return ConfigWorkflow(["train.json"], **fixed | settings)


TINY_NETWORKS = {
    "network_def#generator#filters": 4,
    "network_def#generator#residual_blocks": 1,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": [4, 4],
}
"""Settings of networks for images of 32x32, whose step costs next to nothing."""


def write_untrained(path: Path, size: int = 96, **settings: Any) -> None:
    """Weights of networks as they are at first, with the recipe of the default training at 1 mm a pixel.

    Args:
        path: of the file.
        size: of the images in pixels.
        settings: of the training.
    """
    workflow = ConfigWorkflow(["train.json"], **{"train#dataset": InMemory.noise(size, 1), **settings})
    torch.manual_seed(0)
    network = workflow.part("network_def")
    workflow.part("recipe").travel_with(network)
    torch.save(network.inference_state_dict(), path)


def write_volume(path: Path, shape: Sequence[int]) -> Path:
    """A head of noise at 1 mm, 16-bit whole numbers: an ellipsoid that leaves the first and last slices empty.

    Args:
        path: of the file, NIfTI.
        shape: voxels along the three axes.
    """
    axes = [np.linspace(-1, 1, length, dtype=np.float32) for length in shape]
    inside = sum((axis / 0.85) ** 2 for axis in np.ix_(*axes)) < 1
    values = np.random.default_rng(0).normal(500, 100, tuple(shape)).clip(1, 1000)
    nib.save(nib.Nifti1Image((values * inside).astype(np.int16), np.eye(4)), path)
    return path
