"""Volumes as a data set of slices, preprocessed once and kept in memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from pipeline.io import name_of
from transforms import CROPPED_KEY, DESCRIPTION_KEY, WINDOW_KEY, extract_slices, nonempty_slices

__all__ = ["SliceDataset"]

logger = logging.getLogger(__name__)


@dataclass
class _Volume:
    """What is kept of one pair: its filled slices ``(N, 1, H, W)``, their indices, and where they come from."""

    name: str
    case: str
    indices: list[int]
    image: torch.Tensor
    label: torch.Tensor
    window: tuple[float, float] | None
    description: dict[str, Any] | None


class SliceDataset(Dataset):
    """Slices of preprocessed volume pairs, without the empty ones.

    Each pair is loaded and preprocessed once; its slices then lie in two float32 tensors, so that an item costs a
    look-up. An item is ``{"image": (1, H, W), "label": (1, H, W), "case": patient, "slice": index along slice_axis}``
    with plain tensors in [-1, 1].

    Args:
        data: list of ``{"image": path, "label": path}``, optionally with ``"case"``, the patient; without it the
            image's file name stands for the patient.
        transform: loads and preprocesses a pair to volumes ``(1, H, W, D)`` in [-1, 1], the same way each time. The
            label's ``meta["intensity_window"]`` (written by the scaling transforms) is kept for `target_window`.
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        min_foreground: least share, in [0, 1], of a slice's label that lies above ``background``.
        background: intensity at and below which a pixel counts as background.
        slice_transform: applied to an item's dictionary whenever it is asked for (random augmentation, say); `clean`
            is without it.
        num_workers: threads that preprocess volumes; 0 works in the calling thread.
        progress: whether to show a progress bar while preprocessing.

    Attributes:
        descriptions: what `transforms.DescribeVolumed` said of each pair, by key; None where it did not.
        patients: number of patients.

    Raises:
        ValueError: ``data`` is empty or malformed, a transformed pair is no ``(1, H, W, D)`` of one shape, slices
            differ in size between volumes, or no slice of any volume shows enough.
        RuntimeError: the transform failed on a pair; the message names its files.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], Any],
        slice_axis: int = 2,
        min_foreground: float = 0.05,
        background: float = -1.0,
        slice_transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int = 2,
        progress: bool = False,
    ) -> None:
        if isinstance(data, Mapping) or not all(isinstance(item, Mapping) for item in data):
            raise ValueError('data must be one list of {"image": path, "label": path}, such as cases["training"]')
        if not data:
            raise ValueError("data is empty, expected at least one pair")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        for index, item in enumerate(data):
            missing = [key for key in ("image", "label") if key not in item]
            if missing:
                raise ValueError(f'data[{index}] has no "{missing[0]}": {dict(item)}')
        self.slice_axis = slice_axis
        self.min_foreground = min_foreground
        self.background = background
        self.slice_transform = slice_transform
        self._gather(self._load_all(data, transform, num_workers, progress))

    def _load_all(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], Any],
        num_workers: int,
        progress: bool,
    ) -> list[_Volume]:
        """Preprocess all pairs, in order."""
        load = partial(self._load, transform=transform)
        bar = partial(tqdm, total=len(data), desc="preprocessing volumes", unit="volume", disable=not progress)
        if num_workers == 0:
            return list(bar(map(load, data)))
        with ThreadPoolExecutor(max_workers=min(num_workers, len(data))) as pool:
            try:
                return list(bar(pool.map(load, data)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _load(self, item: Mapping[str, Any], transform: Callable[[dict[str, Any]], Any]) -> _Volume:
        """Preprocess one pair and take its filled slices."""
        name = f"{item['image']} and {item['label']}"
        try:
            # Threads share the transforms: those that are not safe in several threads are copied by Compose.
            pair = transform(dict(item), threading=True) if isinstance(transform, Compose) else transform(dict(item))
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise RuntimeError(f"preprocessing {name} failed: {cause}") from error
        window = getattr(pair["label"], "meta", {}).get(WINDOW_KEY)
        described = {key: getattr(pair[key], "meta", {}).get(DESCRIPTION_KEY) for key in ("image", "label")}
        image = convert_to_tensor(pair["image"], dtype=torch.float32, track_meta=False)
        label = convert_to_tensor(pair["label"], dtype=torch.float32, track_meta=False)
        if image.shape != label.shape or image.ndim != 4 or image.shape[0] != 1:
            raise ValueError(
                f"{name}: expected two volumes (1, H, W, D) of one shape from the transform, "
                f"got {tuple(image.shape)} and {tuple(label.shape)}"
            )
        lost = max(getattr(pair[key], "meta", {}).get(CROPPED_KEY, 0.0) for key in ("image", "label"))
        if lost > 0:
            logger.warning("%s: %.1f %% of what it shows lies outside of the slices and is cut off", name, 100 * lost)
        indices = nonempty_slices(label, self.slice_axis, self.min_foreground, self.background)
        return _Volume(
            name=name,
            case=str(item.get("case") or name_of(item["image"])),
            indices=indices,
            image=extract_slices(image, self.slice_axis)[indices],
            label=extract_slices(label, self.slice_axis)[indices],
            window=(float(window[0]), float(window[1])) if window is not None else None,
            description=described if None not in described.values() else None,
        )

    def _gather(self, volumes: list[_Volume]) -> None:
        """Lay the slices of all volumes out in two tensors; ``volumes`` is emptied on the way to save memory."""
        sizes: dict[tuple[int, ...], str] = {}
        for volume in volumes:
            sizes.setdefault(tuple(volume.image.shape[2:]), volume.name)
        if len(sizes) > 1:
            found = "; ".join(f"{size} in {name}" for size, name in sizes.items())
            raise ValueError(f"slices must agree in size, found {found}: resample them to one spatial_size")
        count = sum(len(volume.indices) for volume in volumes)
        if count == 0:
            raise ValueError(
                f"no slice has at least {self.min_foreground:.0%} of its pixels above {self.background:g} in "
                f"{'; '.join(volume.name for volume in volumes)}: lower min_foreground or check the scaling"
            )
        (size,) = sizes
        self._windows = [volume.window for volume in volumes]
        self.descriptions = [volume.description for volume in volumes]
        self.patients = len({volume.case for volume in volumes})
        self._cases = [volume.case for volume in volumes for _ in volume.indices]
        self._slices = [index for volume in volumes for index in volume.indices]
        self._images = torch.empty((count, 1, *size))
        self._labels = torch.empty((count, 1, *size))
        start = 0
        while volumes:
            volume = volumes.pop(0)
            stop = start + len(volume.indices)
            self._images[start:stop] = volume.image
            self._labels[start:stop] = volume.label
            start = stop

    @property
    def target_window(self) -> tuple[float, float]:
        """Physical values (low, high) of -1 and 1 in the target's contrast: the medians over the volumes' labels.

        Raises:
            ValueError: a volume's label carries no window.
        """
        windows = [window for window in self._windows if window is not None]
        if len(windows) < len(self._windows):
            raise ValueError(
                f"{len(self._windows) - len(windows)} of {len(self._windows)} labels carry no {WINDOW_KEY}: "
                'the transform must scale the key "label" with ScaleMRIntensityd or ScaleCTIntensityd'
            )
        low, high = np.median(np.array(windows), axis=0)
        return float(low), float(high)

    @property
    def channels(self) -> int:
        """Channels of every slice."""
        return int(self._images.shape[1])

    @property
    def spatial_size(self) -> tuple[int, int]:
        """Size (H, W) of every slice."""
        return int(self._images.shape[2]), int(self._images.shape[3])

    @property
    def clean(self) -> SliceDataset:
        """The same slices, in the same order, as they are: a view on the same tensors that has no ``slice_transform``.

        For all that must not see augmented images, such as a baseline fitted to the training pairs. To look at it draws
        nothing, so that the draws of this data set stay what they are.
        """
        view = copy.copy(self)
        view.slice_transform = None
        return view

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SliceDataset:
        """Seed ``slice_transform``, if it is random: with one seed and one order of items, the same draws.

        Args:
            seed: seed of the draws.
            state: random state to draw from, instead of a seed.

        Returns:
            This data set.
        """
        if isinstance(self.slice_transform, Randomizable):
            self.slice_transform.set_random_state(seed, state)
        return self

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one slice pair, through ``slice_transform`` if there is one; images are plain tensors all the same."""
        image, label = self._images[index], self._labels[index]
        if self.slice_transform is not None:
            image, label = image.clone(), label.clone()  # a transform may write in place
        item = {"image": image, "label": label, "case": self._cases[index], "slice": self._slices[index]}
        if self.slice_transform is None:
            return item
        item = self.slice_transform(item)
        # MONAI's transforms return MetaTensors, which cost time in every operation and do not belong in checkpoints
        return item | {key: convert_to_tensor(item[key], track_meta=False) for key in ("image", "label")}
