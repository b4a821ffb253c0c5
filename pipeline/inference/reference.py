"""Images of the target modality to translate in the likeness of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.utils import convert_to_tensor

from pipeline.data.checks import DataError, check_images
from transforms import extract_slices, nonempty_slices

MIN_FOREGROUND = 0.05
"""Least share of a slice that has to lie above the background for it to be taken."""


def load_reference(
    path: str | Path | None,
    preprocessing: Callable[[dict[str, Any]], Any],
    slice_axis: int = 2,
    max_slices: int = 8,
) -> torch.Tensor | None:
    """Load slices of a volume of the target modality.

    Args:
        path: an image file; None for no reference.
        preprocessing: loads ``{"label": path}`` and makes a volume (1, H, W, D) in [-1, 1] of it, as in training.
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        max_slices: number of slices to take, spread evenly over those that are not empty.

    Returns:
        Plain tensor (N, 1, h, w), N at most ``max_slices``; None without a path.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: the file cannot be used (see `pipeline.data.checks.check_images`), or all its slices are empty.
        ValueError: ``max_slices`` is below 1.
    """
    if path is None:
        return None
    if max_slices < 1:
        raise ValueError(f"max_slices must be at least 1, got {max_slices}")
    file = Path(str(path)).expanduser()  # the command line makes numbers of names that look like one
    if not file.exists():
        raise FileNotFoundError(f"reference image: {file} does not exist")
    check_images([file])
    volume = convert_to_tensor(preprocessing({"label": str(file)})["label"], dtype=torch.float32, track_meta=False)
    filled = nonempty_slices(volume, slice_axis, MIN_FOREGROUND)
    if not filled:
        raise DataError([f"{file}: no slice along axis {slice_axis} has {MIN_FOREGROUND:.0%} of it above background"])
    count = min(max_slices, len(filled))
    # The middles of as many equal stretches: the first and the last slice of a head show little of it.
    chosen = [filled[(2 * i + 1) * len(filled) // (2 * count)] for i in range(count)]
    return extract_slices(volume, slice_axis)[chosen]
