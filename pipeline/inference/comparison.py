"""What a volume to translate has that no training volume had."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform

from pipeline.models import ModelError, Recipe
from transforms import MASK_KEY, REMARKS_KEY, UNMEASURED_KEY, describe_volume, find_slice_axis, orientation_axes

DIFFERENCES_KEY = "differences_from_training"
"""Entry of an image's metadata that holds what was said of it."""

INTENSITY_TOLERANCE = 0.25
"""How far an intensity may lie beyond those of the training, as a share of their greatest magnitude."""
LENGTH_TOLERANCE = 0.1
"""How far a length may lie beyond those of the training, as a share of it."""
TILT_TOLERANCE = 5.0
"""How many degrees a volume may be tilted further than those of the training."""
AXES = ("left-right", "posterior-anterior", "inferior-superior")
PLANES = ("sagittal", "coronal", "axial")
"""Slices that are counted along these."""

logger = logging.getLogger(__name__)


def differences_from_training(description: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Say what leaves the range of the training data.

    Args:
        description: of a source volume, see `transforms.describe_volume`.
        recipe: of the model.

    Returns:
        A sentence for each difference, with both numbers; none where the recipe does not know the training data.

    Raises:
        ModelError: the volume cannot be translated: it has another number of channels, or is a single slice of another
            plane than the model's.
    """
    channels = recipe["source"]["channels"]
    if description["channels"] != channels:
        raise ModelError(f"has {description['channels']} channels, {recipe.path} was trained on images of {channels}")
    data = recipe["data"]
    planes = list(_planes(description, recipe))
    if data is None:
        return planes
    return [
        *planes,
        *_intensities(description, data["source"]),
        *_lengths(description, data, recipe.slice_axis, recipe["grid"]["orientation"]),
        *_directions(description, data),
    ]


def _intensities(description: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[str]:
    slack = INTENSITY_TOLERANCE * max(abs(value) for pair in seen.values() for value in pair)
    for name, percentile in (("low", "0.5th percentile"), ("high", "99.5th percentile")):
        low, high = seen[name]
        value = description[name]
        if not low - slack <= value <= high + slack:
            yield f"intensities: the {percentile} is {value:.4g}, in training {_span(low, high)}"


def _planes(description: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """Say where a volume was taken in another plane than the one in which it will be cut."""
    counting = orientation_axes(recipe["grid"]["orientation"])[recipe.slice_axis]
    lengths = [
        round(extent / size) for extent, size in zip(description["field_of_view"], description["spacing"], strict=True)
    ]
    found = find_slice_axis(description["spacing"], lengths)
    if found is None or found == counting:
        return
    if 1 in lengths:
        raise ModelError(
            f"is a single {PLANES[found]} slice; {recipe.path} translates {PLANES[counting]} slices (slice_axis "
            f"{recipe.slice_axis}), and of those it has none"
        )
    data = recipe["data"]
    trained = None if data is None else find_slice_axis([sum(pair) / 2 for pair in data["spacing"]], [2, 2, 2])
    if trained != found:  # who trained across the thick slices on purpose need not be told each time
        yield (
            f"slices: they are {PLANES[found]}, {description['spacing'][found]:.4g} mm thick, and the model cuts "
            f"{PLANES[counting]} ones (slice_axis {recipe.slice_axis}), in whose plane the voxels are as long as that"
        )


def _lengths(
    description: Mapping[str, Any], data: Mapping[str, Any], slice_axis: int, orientation: str
) -> Iterator[str]:
    counting = orientation_axes(orientation)[slice_axis]
    for name, title in (("spacing", "spacing"), ("field_of_view", "field of view")):
        for axis, words in enumerate(AXES):
            if name == "field_of_view" and axis == counting:
                continue  # slices are translated one by one: how many there are makes no difference
            low, high = data[name][axis]
            value = description[name][axis]
            if not low * (1 - LENGTH_TOLERANCE) <= value <= high * (1 + LENGTH_TOLERANCE):
                yield f"{title}: {value:.4g} mm {words}, in training {_span(low, high)} mm"


def _directions(description: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if description["orientation"] not in data["orientations"]:
        yield (
            f"orientation: the file's axes point to {description['orientation']}, in training to "
            f"{' or '.join(data['orientations'])}; it is turned by its header, which has to be right"
        )
    if description["tilt"] > data["tilt"][1] + TILT_TOLERANCE:
        yield (
            f"orientation: tilted by {description['tilt']:.3g} degrees, in training by at most {data['tilt'][1]:.3g}; "
            "tilt is not undone"
        )


def _span(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _unknown_planes(image: NdarrayOrTensor, recipe: Recipe) -> Iterator[str]:
    """Say along which axis a volume is cut whose file does not say how it was taken."""
    shape = tuple(image.shape[1:])
    letters = orientation_axes(recipe["grid"]["orientation"])
    if not isinstance(image, MetaTensor) or not image.meta.get(UNMEASURED_KEY, False) or len(shape) != 3:
        return
    axis = letters[recipe.slice_axis]  # such a volume points to R, A and S
    shown = "x".join(map(str, shape))
    if min(length for other, length in enumerate(shape) if other != axis) == 1 and shape.count(1) > 1:
        raise ModelError(f"has the shape {shown}: its slices, along axis {axis}, are lines of one voxel's width")
    if 1 not in shape:
        yield (
            f"slices: its file has no header that says how it was taken; it is cut along axis {axis} of {shown} "
            f"(slice_axis {recipe.slice_axis}); turn it if its slices lie along another"
        )


def _without_mask(meta: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """Say that a volume has no mask where those of the training had one."""
    masks = recipe["foreground"]["masks"]
    if masks and meta.get(MASK_KEY) is None:
        yield (
            f"foreground: {masks} training pairs had a mask of their foreground, and it has none: what is found in it "
            "is the foreground; --mask FILE gives one"
        )


class CompareWithTrainingd(MapTransform):
    """Warn of volumes unlike those of the training; stands behind ``ReadImaged``, and leaves the voxels as they are.

    What is said is kept in ``meta["differences_from_training"]`` as well, a list of sentences.

    Args:
        keys: keys of the source volumes.
        recipe: of the model.

    Raises:
        ModelError: (when called) the volume cannot be translated, see `differences_from_training`.
    """

    def __init__(self, keys: KeysCollection, recipe: Recipe) -> None:
        super().__init__(keys)
        self.recipe = recipe

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Compare every key of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            meta = image.meta if isinstance(image, MetaTensor) else {}
            name = meta.get("filename_or_obj", "the image")
            try:
                said = [
                    *_unknown_planes(image, self.recipe),
                    *_without_mask(meta, self.recipe),
                    *differences_from_training(describe_volume(image), self.recipe),
                ]
            except ModelError as error:
                raise ModelError(f"{name} {error}") from error
            for sentence in said:
                logger.warning("%s is unlike the training data of %s: %s", name, self.recipe.path, sentence)
            meta[DIFFERENCES_KEY] = said
        return d


class SayRemarksd(MapTransform):
    """Warn of what the scaling found other than it expects; stands behind it, and leaves the voxels as they are.

    Args:
        keys: keys of the scaled volumes.
    """

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Say what is remarked of every key of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            for remark in image.meta.get(REMARKS_KEY, []) if isinstance(image, MetaTensor) else []:
                logger.warning("%s: %s", image.meta.get("filename_or_obj", "the image"), remark)
        return d
