"""The sampler of slices that are misaligned once and for all, as a user's pairs are, and may be registered beforehand."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from pipeline.data.aligning import align
from pipeline.data.pairs import SILENCE
from pipeline.data.samplers.slices import SliceDataset
from transforms import RandDeformationNoised
from transforms.displacement import true_displacement
from transforms.scale import BACKGROUND

__all__ = ["MisalignedSlices"]

Self = TypeVar("Self", bound="MisalignedSlices")
logger = logging.getLogger(__name__)


class MisalignedSlices(SliceDataset):
    """Slices of which each pair has one misalignment, the same in every epoch.

    In the noise study a pair is misaligned anew whenever it is seen, as in the paper; whoever has scans has one
    misalignment for each. It can be registered before training, which is what most people do first: the label is moved
    onto the image by `pipeline.data.aligning.align`, once, when the data set is made.

    Args:
        args: see `SliceDataset`.
        noise: misaligns a pair; what it draws for an item follows from ``seed`` and the item's number. With level 0
            pairs stay as they are, and ``register`` is that of the data's own misalignment.
        seed: of the misalignments.
        register: whether each pair is registered.
        true_field: of the configs; refused, since the batch would hold the field of another noise.
        kwargs: see `SliceDataset`.

    Attributes:
        maps: what registering found, (N, 2, 3), see `align`; None without.

    Raises:
        ValueError: with ``true_field``; see `SliceDataset`.
    """

    def __init__(
        self,
        *args: Any,
        noise: RandDeformationNoised,
        seed: int = 0,
        register: bool = False,
        true_field: bool = False,
        **kwargs: Any,
    ) -> None:
        if true_field:
            raise ValueError("true_field is for noise that is drawn anew, got true with pairs that are misaligned once")
        super().__init__(*args, **kwargs)
        self.noise, self.seed = noise, seed
        self.maps: np.ndarray | None = None
        self._clean = False
        if register:
            self.maps = self._register()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice pair."""
        if self._clean:
            return super().__getitem__(index)
        item = self._misaligned(index)
        if self.maps is not None:
            item["label"] = _moved(item["label"], self.maps[index])
        return self.finished(item, index)

    @property
    def clean(self: Self) -> Self:
        """The same items as they are in the files: neither augmented nor misaligned."""
        view = super().clean
        view._clean = True
        return view

    def _misaligned(self, index: int) -> dict[str, Any]:
        item = SliceDataset.__getitem__(self.clean, index)
        if self.noise.noise.level == 0:
            return item
        [seed] = np.random.SeedSequence([self.seed, index]).generate_state(1)
        return dict(self.noise.set_random_state(seed=int(seed))(item))

    def _register(self) -> np.ndarray:
        found, before, after = [], [], []
        for index in tqdm(range(len(self)), "registering pairs", unit="slice", delay=SILENCE, mininterval=SILENCE):
            item = self._misaligned(index)
            found.append(align(item["image"][0].numpy(), item["label"][0].numpy()))
            if self.noise.noise.level:
                of = self.noise.deformations
                true = true_displacement(of["label"], of["image"], item["image"].shape[1:])[0]
                inside = item["image"][0] > BACKGROUND
                before.append(_length(true, inside))
                after.append(_length(true - _field(found[-1], item["image"].shape[1:]), inside))
        if before:
            logger.info(
                "registered %d pairs: of a displacement of %.2f pixels, %.2f are left (at most %.2f)",
                len(found),
                float(np.mean(before)),
                float(np.mean(after)),
                max(after),
            )
        else:
            logger.info("registered %d pairs", len(found))
        return np.stack(found)


def _centred(size: Any) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))


def _field(affine: np.ndarray, size: Any) -> torch.Tensor:
    matrix = torch.from_numpy(affine).float()
    return torch.einsum("ij,jhw->ihw", matrix[:, :2], _centred(size)) + matrix[:, 2, None, None]


def _length(field: torch.Tensor, inside: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(field, dim=0)[inside].mean())


def _moved(label: torch.Tensor, affine: np.ndarray) -> torch.Tensor:
    """A slice (1, H, W) moved by a map; background from outside."""
    centre = (np.array(label.shape[1:]) - 1) / 2
    matrix = affine[:, :2] + np.eye(2)
    offset = centre + affine[:, 2] - matrix @ centre
    moved = ndimage.affine_transform(label[0].numpy(), matrix, offset, order=1, cval=BACKGROUND)
    return torch.from_numpy(moved)[None]
