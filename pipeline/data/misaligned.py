"""Pairs that are misaligned once and for all, as a user's are, and may be registered before they are trained on."""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any, cast

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from pipeline.data.aligning import align
from pipeline.data.pairs import SILENCE, PairDataset
from transforms import RandDeformationNoised
from transforms.deformation import DEFAULT_AMPLITUDE
from transforms.displacement import true_displacement
from transforms.scale import BACKGROUND

__all__ = ["PAIRS", "Misalignment", "misalign"]

PAIRS = ("anew", "fixed", "registered")
"""How pairs are misaligned: whenever they are seen; once; once, and then registered."""
logger = logging.getLogger(__name__)


class Misalignment:
    """One misalignment for each slice pair of a data set, the same in every epoch, and what registration makes of it.

    In the noise study a pair is misaligned anew whenever it is seen, as in the paper; whoever has scans has one
    misalignment for each. It can be registered before training, which is what most people do first: the label is moved
    onto the image by `pipeline.data.aligning.align`, once.

    Args:
        noise: misaligns a pair; what it draws for an item follows from ``seed`` and the item's number. With level 0
            pairs stay as they are, and registration is that of the data's own misalignment.
        seed: of the misalignments.

    Attributes:
        maps: what `register` found, (N, 2, 3), see `align`; None before.
    """

    def __init__(self, noise: RandDeformationNoised, seed: int = 0) -> None:
        self.noise, self.seed = noise, seed
        self.maps: np.ndarray | None = None

    def __call__(self, item: dict[str, Any], index: int) -> dict[str, Any]:
        """An item with its label, and with noise its image, where they lie, and registered where that was done."""
        if self.noise.noise.level:
            [seed] = np.random.SeedSequence([self.seed, index]).generate_state(1)
            noisy = self.noise.set_random_state(seed=int(seed))({key: item[key] for key in self.noise.keys})
            item = item | {str(key): value for key, value in noisy.items()}
        return item if self.maps is None else item | {"label": _moved(item["label"], self.maps[index])}

    def register(self, dataset: PairDataset) -> None:
        """Register the pairs of a data set, in this process; what is left of the noise is logged.

        Args:
            dataset: whose items are slices (1, H, W), without this misalignment.

        Raises:
            ValueError: if its items are no slices.
        """
        found, before, after = [], [], []
        for index in tqdm(
            range(len(cast(Sized, dataset))), "registering pairs", unit="slice", delay=SILENCE, mininterval=SILENCE
        ):
            item = self(dataset[index], index)
            image, label = item["image"], item["label"]
            if image.ndim != 3:
                raise ValueError(f"pairs are registered as slices (1, H, W), got items of shape {tuple(image.shape)}")
            found.append(align(image[0].numpy(), label[0].numpy()))
            if self.noise.noise.level:
                of = self.noise.deformations
                true = true_displacement(of["label"], of["image"], image.shape[1:])[0]
                inside = image[0] > BACKGROUND
                before.append(_length(true, inside))
                after.append(_length(true - _field(found[-1], image.shape[1:]), inside))
        logger.info("registered %d pairs", len(found))
        if before:
            means = float(np.mean(before)), float(np.mean(after))
            logger.info("of a displacement of %.2f pixels, %.2f are left (at most %.2f)", *means, max(after))
        self.maps = np.stack(found)


def misalign(
    dataset: Any,
    pairs: str,
    level: float,
    kind: str = "affine",
    seed: int = 0,
    true_field: bool = False,
    amplitude: float = DEFAULT_AMPLITUDE,
) -> None:
    """Misalign the pairs of a data set once, and register them.

    Args:
        dataset: a `PairDataset`; left alone where ``pairs`` is "anew".
        pairs: among ``PAIRS``.
        level: noise level in [0, 5], see `transforms.DeformationNoise`.
        kind: of the noise.
        seed: of the misalignments.
        true_field: whether training asks for the field of the noise.
        amplitude: of the local part of noise that is not affine.

    Raises:
        ValueError: ``pairs`` is none of ``PAIRS``, or asks for what ``dataset`` or ``true_field`` does not allow.
    """
    if pairs not in PAIRS:
        raise ValueError(f"pairs must be one of {', '.join(PAIRS)}, got {pairs!r}")
    if kind == "affine" and amplitude != DEFAULT_AMPLITUDE:
        logger.warning("noise_amplitude %s has no effect on affine noise: ask for noise_kind nonaffine", amplitude)
    if pairs == "anew":
        return
    if true_field:
        raise ValueError(f"true_field is for noise that is drawn anew; expected pairs anew with it, got {pairs}")
    if not isinstance(dataset, PairDataset):
        raise ValueError(f"pairs {pairs} needs a data set that derives from PairDataset, got {type(dataset).__name__}")
    misalignment = Misalignment(RandDeformationNoised(level=level, kind=kind, amplitude=amplitude), seed)
    if pairs == "registered":
        misalignment.register(dataset.clean)
    dataset.misalignment = misalignment


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
