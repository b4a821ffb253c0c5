"""The sampler of slices: volumes are given out slice by slice."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.data.pairs import PairDataset
from pipeline.data.store import StoredVolume

__all__ = ["SliceDataset"]


class SliceDataset(PairDataset):
    """Slices of preprocessed volume pairs, without the empty ones.

    An item is ``{"image": (1, H, W), "label": (1, H, W), "case": patient, "slice": index along slice_axis}`` with plain
    tensors in [-1, 1]. It is read from the store when it is asked for, or, without one, lies in memory; the items are
    the same.
    """

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice pair."""
        number, place = self.places[index]
        pair = self.pairs[number]
        image, label = (_slice(slices, pair.rows[place]) for slices in (pair.image, pair.label))
        if self.slice_transform is not None:
            image, label = image.clone(), label.clone()  # a transform may write in place
        return self.finished({"image": image, "label": label, "case": pair.case, "slice": pair.indices[place]}, index)


def _slice(slices: torch.Tensor | StoredVolume, row: int) -> torch.Tensor:
    """One slice; that of a file is read into memory of its own."""
    return torch.from_numpy(slices[row]) if isinstance(slices, StoredVolume) else slices[row]
