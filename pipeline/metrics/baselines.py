"""What a translation has to beat: the best look-up of intensities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch import nn

from pipeline.metrics.image import foreground_mask
from transforms.scale import BACKGROUND, INTENSITY_RANGE


class IntensityMap(nn.Module):
    """The best map from source intensity to target intensity, voxel by voxel.

    For each of 256 bins of source intensity in [-1, 1] it holds the mean of the target intensities that were seen there
    in training. No other map that is constant on these bins has a smaller squared error on the training pairs, so a
    network that does not beat this one has learned no more than a look-up. It is fitted to the voxels that are
    foreground in both images; empty bins are interpolated between their neighbours; background becomes background.

    Args:
        bins: number of bins, at least 2.

    Attributes:
        values: target intensity of each bin, (bins,), the one entry of the state dict; nan before fitting.

    Raises:
        ValueError: when there are fewer than 2 bins.
    """

    values: torch.Tensor

    def __init__(self, bins: int = 256) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        self.bins = bins
        self.fitted = False
        self.register_buffer("values", torch.full((bins,), torch.nan))
        self.register_load_state_dict_post_hook(_note_fitted)

    @torch.no_grad()
    def fit(self, pairs: Iterable[Mapping[str, Any]]) -> IntensityMap:
        """Fit to aligned training pairs.

        Args:
            pairs: dictionaries with `image` (source) and `label` (target) of one shape, in [-1, 1]: a data set of
                single images as well as a loader of batches.

        Returns:
            The map itself.

        Raises:
            ValueError: when shapes differ, or no voxel is foreground in both images.
        """
        count = torch.zeros(self.bins, dtype=torch.float64)
        total = torch.zeros(self.bins, dtype=torch.float64)
        for pair in pairs:
            source, target = (convert_to_tensor(pair[key], track_meta=False) for key in ("image", "label"))
            if source.shape != target.shape:
                raise ValueError(
                    f"image and label must have one shape, got {tuple(source.shape)} and {tuple(target.shape)}"
                )
            seen = foreground_mask(source) & foreground_mask(target)
            index = self._bin(source[seen])
            count += torch.bincount(index, minlength=self.bins).cpu()
            total += torch.bincount(index, weights=target[seen].double(), minlength=self.bins).cpu()
        bins, filled = np.arange(self.bins), count.numpy() > 0
        if not filled.any():
            raise ValueError("no pair has a voxel that is foreground in both images; an intensity map needs some")
        self.values.copy_(torch.from_numpy(np.interp(bins, bins[filled], (total / count).numpy()[filled])))
        self.fitted = True
        return self

    def fit_once(self, dataset: Any) -> IntensityMap:
        """Fit to all items of a data set as they are, which it may have kept from an earlier run.

        Args:
            dataset: has ``clean``, see `fit`, and may have ``once``, see `pipeline.data.PairDataset`.

        Returns:
            The map itself.

        Raises:
            ValueError: see `fit`.
        """
        if not hasattr(dataset, "once"):
            return self.fit(dataset.clean)
        self.values.copy_(dataset.once(self, lambda items: self.fit(items).values, self.bins))
        self.fitted = True
        return self

    def forward(self, source: torch.Tensor) -> torch.Tensor:
        """Look the intensities up.

        Args:
            source: intensities in [-1, 1], of any shape; what lies outside takes the first or last bin.

        Returns:
            Predicted target intensities, the shape and device of `source`, float32.

        Raises:
            RuntimeError: before `fit` or loading a fitted state.
        """
        if not self.fitted:
            raise RuntimeError("the intensity map is not fitted: call fit(pairs) or load a fitted state first")
        mapped = self.values.to(source.device)[self._bin(source)]
        return torch.where(foreground_mask(source), mapped, BACKGROUND)

    def _bin(self, intensity: torch.Tensor) -> torch.Tensor:
        low, high = INTENSITY_RANGE
        position = (intensity - low) * (self.bins / (high - low))
        return position.long().clamp(0, self.bins - 1)


def _note_fitted(module: nn.Module, incompatible_keys: Any) -> None:
    """Take a loaded map for fitted, unless it was saved before it was."""
    if isinstance(module, IntensityMap):
        module.fitted = bool(module.values.isfinite().all())
