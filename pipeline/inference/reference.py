"""Images of the target modality to translate in the likeness of."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from pipeline.data.checks import DataError, check_images
from pipeline.io import ReadImaged
from pipeline.models import Recipe
from transforms import extract_slices, nonempty_slices

MIN_FOREGROUND = 0.05
"""Least share of a slice that has to lie above the background for it to be taken."""


def load_reference(path: str | Path, recipe: Recipe, max_slices: int = 8) -> torch.Tensor:
    """Load slices of a volume of the target modality, as the training saw them.

    Args:
        path: an image file.
        recipe: of the model, which says how targets are scaled and cut.
        max_slices: number of slices to take, spread evenly over those that are not empty.

    Returns:
        Plain tensor (N, 1, h, w), N at most ``max_slices``.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be used (see `pipeline.data.checks.check_images`), or all its slices are empty.
        ValueError: ``max_slices`` is below 1.
    """
    if max_slices < 1:
        raise ValueError(f"max_slices must be at least 1, got {max_slices}")
    file = Path(str(path)).expanduser()  # the command line makes numbers of names that look like one
    if not file.exists():
        raise FileNotFoundError(f"reference image: {file} does not exist")
    check_images([file])
    steps = [ReadImaged("label"), recipe.scaling("target", "label")]
    loaded = Compose([*steps, *recipe.spatial_preprocessing("label").transforms])({"label": str(file)})
    volume = convert_to_tensor(loaded["label"], dtype=torch.float32, track_meta=False)
    slice_axis = recipe.slice_axis
    filled = nonempty_slices(volume, slice_axis, MIN_FOREGROUND)
    if not filled:
        raise DataError([f"{file}: no slice along axis {slice_axis} has {MIN_FOREGROUND:.0%} of it above background"])
    count = min(max_slices, len(filled))
    # The middles of as many equal stretches: the first and the last slice of a head show little of it.
    chosen = [filled[(2 * i + 1) * len(filled) // (2 * count)] for i in range(count)]
    return extract_slices(volume, slice_axis)[chosen]
