"""The way of a volume through a model: from its file to the network's slices, and back into its own space and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import CastToTyped, Compose, Invertd

from pipeline.inference.comparison import CompareWithTrainingd, SayRemarksd
from pipeline.inference.slices import ForegroundSliceInferer
from pipeline.io import ReadImaged
from pipeline.models import Recipe
from transforms import RestoreIntensityd


class Translation:
    """The transforms and the inferer that a recipe asks for; whatever translates or scores volumes takes these.

    Args:
        recipe: of the model.
        slices_at_once: slices that the network sees together.
        flips: axes of a slice over whose mirror images to average, see `FlipAveragingInferer`.

    Attributes:
        spatial_preprocessing: onto the model's grid.
        preprocessing: ``{"image": path}`` to a source volume (C, H, W, D) in [-1, 1] on that grid; warns of what is
            unlike the training data.
        inferer: applies a network slice by slice.
        postprocessing: ``pred`` beside its ``image`` to the target's physical units in the source's geometry, float32.

    Raises:
        ValueError: see `FlipAveragingInferer`.
    """

    def __init__(self, recipe: Recipe, slices_at_once: int = 8, flips: Sequence[int] = ()) -> None:
        self.recipe = recipe
        self.spatial_preprocessing = recipe.spatial_preprocessing("image")
        self.preprocessing = Compose(
            [
                ReadImaged("image"),
                CompareWithTrainingd("image", recipe),
                recipe.scaling("source", "image"),
                SayRemarksd("image"),
                *self.spatial_preprocessing.transforms,
            ]
        )
        self.inferer = ForegroundSliceInferer(recipe.slice_axis, slices_at_once, flips)
        # Scaling stands before the spatial transforms, so that only these are undone.
        undo: Any = Invertd("pred", self.spatial_preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
        self.postprocessing = Compose(
            [CastToTyped("pred", dtype=torch.float32), undo, RestoreIntensityd("pred", recipe.target_window)]
        )
