"""The recipe of an imported model: what the files tell, and what whoever imports them knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from pipeline.compat.common import Backbone, WeightsError
from pipeline.models import ModelError, Recipe
from pipeline.models.describing import describe_class, describe_factory, describe_scaling
from pipeline.models.recipe import FIT, FORMAT, VERSION
from pipeline.translators import TRANSLATORS
from transforms import ABOVE_BACKGROUND, ScaleCTIntensityd, ScaleMRIntensityd

UNKNOWN_WINDOW = (-1.0, 1.0)
"""Window of predictions whose physical values nobody knows."""
MIN_FOREGROUND = 0.1
"""That of train.json; it counts only where a training goes on from the model."""
_PLANES = ("RL", "AP", "SI")


@dataclass(frozen=True)
class Known:
    """What no file of weights tells.

    The authors' code trains on slices that somebody scaled to [-1, 1] before; how, has to be said here.

    Attributes:
        target_window: physical values (low, high) that -1 and 1 stand for in the target modality; None leaves
            predictions in [-1, 1].
        source_window: physical values (low, high) that became -1 and 1 in the source modality, such as HU; None where
            each volume was scaled by its own foreground, as this project scales MR.
        image_size: size in pixels of the images that were trained on; () where it is not known.
        slice_axis: axis of the oriented volume that counted the slices.
        orientation: where the axes of the volumes pointed, three letters.
        source_modality: name of the modality, None where it is not known.
        target_modality: name of the modality, None where it is not known.
        method: name of the method, None where it is not known.
    """

    target_window: Sequence[float] | None = None
    source_window: Sequence[float] | None = None
    image_size: Sequence[int] = ()
    slice_axis: int = 2
    orientation: str = "RAS"
    source_modality: str | None = None
    target_modality: str | None = None
    method: str | None = None


def imported_recipe(
    backbone: Backbone,
    networks: Mapping[str, tuple[type[nn.Module], Mapping[str, Any]]],
    channels: tuple[int, int],
    spatial_dims: int,
    known: Known,
) -> Recipe:
    """The recipe of a model that the authors' code trained.

    Args:
        backbone: name of the backbone.
        networks: class and arguments by the translator's argument that builds the network.
        channels: of source and target.
        spatial_dims: spatial axes of the images.
        known: what the files do not tell.

    Raises:
        WeightsError: something in ``known`` is out of its range.
    """
    letters = sorted(next((n for n, pair in enumerate(_PLANES) if letter in pair), -1) for letter in known.orientation)
    if letters != [0, 1, 2]:
        raise WeightsError(
            f"orientation must have one letter of each of R/L, A/P and S/I, such as RAS, got {known.orientation!r}"
        )
    window = UNKNOWN_WINDOW if known.target_window is None else known.target_window
    size = list(known.image_size)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "method": known.method,
        "backbone": backbone,
        "network_size": None,
        "translator": {"class": describe_class(TRANSLATORS[backbone]), "arguments": {}},
        "networks": {
            part: describe_factory(partial(kind, **arguments)) for part, (kind, arguments) in networks.items()
        },
        "weights": {},
        "source": {
            "modality": known.source_modality,
            "channels": channels[0],
            "scaling": describe_scaling(_scaling("source", known.source_window)),
        },
        "target": {
            "modality": known.target_modality,
            "channels": channels[1],
            "scaling": describe_scaling(_scaling("target", known.target_window)),
            "window": [float(value) for value in window],
        },
        "grid": {
            "spatial_dims": spatial_dims,
            "orientation": known.orientation,
            "spacing": None,
            "slice_axis": known.slice_axis,
            "spatial_size": size or None,
            "fit": FIT,
        },
        "foreground": {"rule": ABOVE_BACKGROUND, "min_foreground": MIN_FOREGROUND, "masks": 0},
        "data": None,
        "training": {
            "origin": "imported",
            "data_digest": None,
            "noise_level": None,
            "noise_kind": None,
            "seed": None,
            "commit": None,
            "epoch": None,
            "iteration": None,
            "settings": {},
            "started_from": None,
        },
    }
    try:
        return Recipe(content, "the imported model")
    except ModelError as error:
        raise WeightsError(str(error)) from error


def _scaling(domain: str, window: Sequence[float] | None) -> ScaleMRIntensityd:
    if window is None:
        return ScaleMRIntensityd("image")
    try:
        return ScaleCTIntensityd("image", window=window)
    except ValueError as error:
        raise WeightsError(f"{domain} window must be two finite values, low < high, got {tuple(window)}") from error
