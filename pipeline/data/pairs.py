"""Pairs of volumes, each loaded and preprocessed once and kept in the store or in memory: what samplers take from."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ignite.distributed as idist
import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from pipeline.data.checks import FILES
from pipeline.data.inspection import inspect_all
from pipeline.data.store import OWN, StoredVolume, VolumeStore, fingerprint, open_store, source_of_room
from pipeline.errors import innermost_cause
from pipeline.files import cores
from pipeline.io import name_of
from transforms import CROPPED_KEY, DESCRIPTION_KEY, REMARKS_KEY, WINDOW_KEY, extract_slices, foreground_shares
from transforms.scale import BACKGROUND

__all__ = ["Pair", "PairDataset"]

Self = TypeVar("Self", bound="PairDataset")
UNIT = 5.0
"""From which factor on the range of a target is another unit's, see `is_other_unit`."""
SILENCE = 5.0
"""Seconds after which the preprocessing begins to say how far it is."""

logger = logging.getLogger(__name__)


def is_other_unit(width: float, usual: float) -> bool:
    """Whether a range of intensities is so much wider or narrower than usual that they must be in another unit."""
    return max(width, usual) > UNIT * min(width, usual)


@dataclass
class Pair:
    """What is kept of one pair.

    Its slices ``(N, 1, H, W)`` (all of them in the store, or those that are filled as tensors), the filled ones' places
    in these and along the axis that counts slices, and where they come from; the greatest and the mean share of
    a slice that are foreground; and its key in the store, if it lies there.
    """

    name: str
    case: str
    rows: list[int]
    indices: list[int]
    image: torch.Tensor | StoredVolume
    label: torch.Tensor | StoredVolume
    window: tuple[float, float] | None
    description: dict[str, Any] | None
    greatest_share: float = 1.0
    mean_share: float = 1.0
    key: str | None = None


class PairDataset(Dataset):
    """Preprocessed pairs of volumes; a sampler derives from it, and says what its items are.

    Args:
        data: list of ``{"image": path, "label": path}``, optionally with ``"mask"``, the path of a mask that is the
            foreground, and with ``"case"``, the patient; without it the image's file name stands for the patient.
        transform: loads and preprocesses a pair to volumes ``(1, H, W, D)`` in [-1, 1], the same way each time. The
            label's ``meta["intensity_window"]`` (written by the scaling transforms) is kept for `target_window`.
        slice_axis: spatial axis (0, 1 or 2) that counts the slices.
        min_foreground: least share, in [0, 1], of a slice's label that lies above the background; others are empty.
        slice_transform: applied to an item's dictionary whenever it is asked for (random augmentation, say); `clean` is
            without it.
        num_workers: threads that preprocess volumes, by default one for each core; 0 works in the calling thread.
        progress: whether to say how far the preprocessing is, where it takes longer than some seconds.
        store: folder that keeps preprocessed volumes (see `pipeline.data.store`), so that memory does not grow with the
            data, and who starts again with the same files and the same ``transform`` reads and computes nothing; None
            keeps them in memory. A ``transform`` whose work cannot be told from its arguments is not stored.

    Attributes:
        pairs: what is kept, in the order of ``data``.
        misalignment: applied to each item and its number before ``slice_transform``, see `pipeline.data.misalign`; none
            at first.
        places: of each filled slice, in order, the number of its pair and which of that pair's ``rows`` it is.
        descriptions: what `transforms.DescribeVolumed` said of each pair, by key; None where it did not.
        patients: number of patients.
        masks: number of pairs that have a mask of the user's.

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
        slice_transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(data, Mapping) or not all(isinstance(item, Mapping) for item in data):
            raise ValueError('data must be one list of {"image": path, "label": path}, such as cases["training"]')
        if not data:
            raise ValueError("data is empty, expected at least one pair")
        num_workers = cores() if num_workers is None else num_workers
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        for index, item in enumerate(data):
            missing = [key for key in ("image", "label") if key not in item]
            if missing:
                raise ValueError(f'data[{index}] has no "{missing[0]}": {dict(item)}')
        if not 0 <= min_foreground <= 1:
            raise ValueError(f"min_foreground must lie in [0, 1], got {min_foreground}")
        self.slice_axis = slice_axis
        self.min_foreground = min_foreground
        self.slice_transform = slice_transform
        self.misalignment: Callable[[dict[str, Any], int], dict[str, Any]] | None = None
        self._seed: int | None = None
        self._made_by = None if store is None else fingerprint(transform)
        self._store = None if self._made_by is None else open_store(store)
        # Of several processes, the first one fills the store, and the others find it filled.
        with idist.one_rank_first() if idist.get_world_size() > 1 else nullcontext():
            self.pairs = self._load_all(data, transform, num_workers, progress and idist.get_rank() == 0)
        sizes: dict[tuple[int, ...], str] = {}
        for pair in self.pairs:
            sizes.setdefault(tuple(pair.image.shape[2:]), pair.name)
        if len(sizes) > 1:
            found = "; ".join(f"{size} in {name}" for size, name in sizes.items())
            raise ValueError(f"slices must agree in size, found {found}: resample them to one spatial_size")
        if not any(pair.indices for pair in self.pairs):
            raise ValueError(
                f"no slice has at least {self.min_foreground:.0%} of its pixels above {BACKGROUND:g} in "
                f"{'; '.join(pair.name for pair in self.pairs)}: lower min_foreground or check the scaling"
            )
        empty = [pair for pair in self.pairs if not pair.indices]
        for pair in empty:
            logger.warning(
                "%s: left out, no slice shows enough: at most %.1f %% of one is foreground, min_foreground is %g %%",
                pair.name,
                100 * pair.greatest_share,
                100 * self.min_foreground,
            )
        if empty:
            logger.warning("%d of %d pairs are used", len(self.pairs) - len(empty), len(self.pairs))
        shares = [pair.mean_share for pair in self.pairs]
        logger.info(
            "foreground: %.3g %% of a target on average (%.3g to %.3g %%)",
            *(100 * share for share in (float(np.mean(shares)), min(shares), max(shares))),
        )
        self._compare_windows()
        self._windows = [pair.window for pair in self.pairs]
        self.places = [(number, row) for number, pair in enumerate(self.pairs) for row in range(len(pair.rows))]
        self.descriptions = [pair.description for pair in self.pairs]
        self.masks = sum("mask" in item for item in data)
        self.patients = len({pair.case for pair in self.pairs})

    def _compare_windows(self) -> None:
        """Say which targets are of another unit than most: the window of predictions is the median's."""
        widths = [None if pair.window is None else pair.window[1] - pair.window[0] for pair in self.pairs]
        known = [width for width in widths if width is not None]
        middle = float(np.median(known)) if known else 0.0
        for pair, width in zip(self.pairs, widths, strict=True):
            if width is not None and is_other_unit(width, middle):
                low, high = pair.window or (0.0, 0.0)
                logger.warning(
                    "%s: the target's intensities range from %.4g to %.4g, %.3g times the range that the targets have "
                    "in the middle (%.4g): is it in another unit?",
                    pair.name,
                    low,
                    high,
                    width / middle,
                    middle,
                )

    def finished(self, item: dict[str, Any], index: int) -> dict[str, Any]:
        """An item as it is given out: misaligned, where that is done once, and through ``slice_transform``.

        Tensors are plain all the same.

        Args:
            item: with tensors that are the item's own.
            index: its number, from which follows, with `seed_draws`, what is drawn for it.
        """
        if self.misalignment is not None:
            item = self.misalignment(item, index)
        if self.slice_transform is None:
            return item
        if self._seed is not None and isinstance(self.slice_transform, Randomizable):
            [seed] = np.random.SeedSequence([self._seed, index]).generate_state(1)
            self.slice_transform.set_random_state(seed=int(seed))
        item = self.slice_transform(item)
        # MONAI's transforms return MetaTensors, which cost time in every operation and do not belong in checkpoints
        return item | {key: convert_to_tensor(item[key], track_meta=False) for key in ("image", "label")}

    def _load_all(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[dict[str, Any]], Any],
        num_workers: int,
        progress: bool,
    ) -> list[Pair]:
        """Preprocess all pairs, in order."""
        load = partial(self._load, transform=transform)
        bar = partial(
            tqdm,
            total=len(data),
            desc="preprocessing volumes",
            unit="volume",
            disable=not progress,
            delay=SILENCE,
            mininterval=SILENCE,
        )
        if num_workers == 0:
            return list(bar(map(load, data)))
        with ThreadPoolExecutor(max_workers=min(num_workers, len(data))) as pool:
            try:
                return list(bar(pool.map(load, data)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _load(self, item: Mapping[str, Any], transform: Callable[[dict[str, Any]], Any]) -> Pair:
        """Take the filled slices of one pair, from the store where it is there."""
        name = f"{item['image']} and {item['label']}"
        key = None if self._store is None else self._key(item)
        stored = None if self._store is None or key is None else self._store.get(key)
        if stored is None:
            image, label, about = self._preprocess(name, item, transform)
            if self._store is not None and key is not None:
                stored = self._store.put(key, image, label, about)
        if stored is not None:
            about = stored.about
        if about["lost"] > 0:
            logger.warning(
                "%s: %.1f %% of what it shows lies outside of the slices and is cut off", name, 100 * about["lost"]
            )
        for which, remarks in about["remarks"].items():
            for remark in remarks:
                logger.warning("%s: %s", item[which], remark)
        indices = torch.nonzero(torch.tensor(about["shares"]) >= self.min_foreground).flatten().tolist()
        return Pair(
            name=name,
            case=str(item.get("case") or name_of(item["image"])),
            rows=indices if stored is not None else list(range(len(indices))),
            indices=indices,
            image=stored.image if stored is not None else image[indices],
            label=stored.label if stored is not None else label[indices],
            window=tuple(about["window"]) if about["window"] is not None else None,
            description=about["description"],
            greatest_share=max(about["shares"], default=0.0),
            mean_share=float(np.mean(about["shares"])),
            key=None if stored is None else key,
        )

    def _key(self, item: Mapping[str, Any]) -> str | None:
        """The key of a pair in the store; None where its files are not such that their content is known."""
        paths = [os.fspath(item[key]) for key in FILES if isinstance(item.get(key), str | os.PathLike)]
        digests = [report.digest for report in inspect_all(paths).values()]
        if len(paths) < 2 + ("mask" in item) or not all(digests):
            return None
        return VolumeStore.key(digests, self._made_by, self.slice_axis)

    def _preprocess(
        self, name: str, item: Mapping[str, Any], transform: Callable[[dict[str, Any]], Any]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Preprocess one pair; returns all slices ``(N, 1, H, W)`` of both volumes, and what is to be kept of them."""
        try:
            # Threads share the transforms: those that are not safe in several threads are copied by Compose.
            pair = transform(dict(item), threading=True) if isinstance(transform, Compose) else transform(dict(item))
        except Exception as error:
            raise RuntimeError(f"preprocessing {name} failed: {innermost_cause(error)}") from error
        metas = {key: getattr(pair[key], "meta", {}) for key in ("image", "label")}
        image = convert_to_tensor(pair["image"], dtype=torch.float32, track_meta=False)
        label = convert_to_tensor(pair["label"], dtype=torch.float32, track_meta=False)
        if image.shape != label.shape or image.ndim != 4 or image.shape[0] != 1:
            raise ValueError(
                f"{name}: expected two volumes (1, H, W, D) of one shape from the transform, "
                f"got {tuple(image.shape)} and {tuple(label.shape)}"
            )
        window = metas["label"].get(WINDOW_KEY)
        described = {key: meta.get(DESCRIPTION_KEY) for key, meta in metas.items()}
        about = {
            "window": None if window is None else [float(value) for value in window],
            "description": None if None in described.values() else described,
            "lost": max(float(meta.get(CROPPED_KEY, 0.0)) for meta in metas.values()),
            "shares": foreground_shares(label, self.slice_axis).tolist(),
            "remarks": {key: list(meta.get(REMARKS_KEY, [])) for key, meta in metas.items()},
        }
        return extract_slices(image, self.slice_axis), extract_slices(label, self.slice_axis), about

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
        return int(self.pairs[0].image.shape[1])

    @property
    def spatial_size(self) -> tuple[int, int]:
        """Size (H, W) of every slice."""
        height, width = self.pairs[0].image.shape[2:]
        return int(height), int(width)

    @property
    def clean(self: Self) -> Self:
        """The same items, in the same order, as they are: a view on the same volumes, neither augmented nor misaligned.

        For all that must not see augmented images, such as a baseline fitted to the training pairs. To look at it draws
        nothing, so that the draws of this data set stay what they are.
        """
        view = copy.copy(self)
        view.slice_transform = view.misalignment = None
        return view

    def once(self, by: object, make: Callable[[PairDataset], torch.Tensor], *settings: Any) -> torch.Tensor:
        """What somebody computes of all items as they are, see `clean`: once, where the pairs lie in the store.

        Args:
            by: whose source it depends on.
            make: computes it of the items.
            settings: plain values that it depends on beside the items.
        """
        keys = [pair.key for pair in self.pairs]
        kinds = type(self), type(by)
        if self._store is None or None in keys or any(kind.__module__.partition(".")[0] not in OWN for kind in kinds):
            return make(self.clean)
        made_by = [[kind.__qualname__, source_of_room(inspect.getfile(kind))] for kind in kinds]
        return self._store.once(
            VolumeStore.key(made_by, keys, self.min_foreground, *settings), lambda: make(self.clean)
        )

    def seed_draws(self, seed: int) -> None:
        """From now on, what ``slice_transform`` draws for an item follows from this seed and the item's number alone.

        Neither the order in which items are asked for, nor in how many processes, makes a difference.
        """
        self._seed = seed
