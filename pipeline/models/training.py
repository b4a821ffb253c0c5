"""The recipe of a training, read off the parts that train: what is built and used, not what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd

from pipeline.data import SliceDataset
from pipeline.io import ReadImaged
from pipeline.models.describing import describe_scaling, describe_translator, plain
from pipeline.models.errors import ModelError
from pipeline.models.recipe import FIT, FORMAT, PAD, VERSION, Recipe, in_plane
from pipeline.models.starting import StartingPoint
from pipeline.provenance import git_state
from pipeline.translators import Translator
from transforms import ABOVE_BACKGROUND, DescribeVolumed, ResampleInPlaned

DOMAINS = {"source": "image", "target": "label"}
"""The key of a batch by the domain that it is of."""


def training_recipe(
    network: Translator,
    preprocessing: Compose,
    dataset: SliceDataset,
    weights: Mapping[str, float],
    backbone: str,
    method: str | None = None,
    network_size: str | None = None,
    modalities: Mapping[str, str | None] | None = None,
    data_digest: str | None = None,
    training: Mapping[str, Any] | None = None,
    start: StartingPoint | None = None,
) -> Recipe:
    """Describe a training.

    Args:
        network: the translator.
        preprocessing: what every pair goes through: loading, scaling, orientation, resampling.
        dataset: the slices that are trained on.
        weights: weight of each loss term.
        backbone: its name.
        method: name of the method.
        network_size: setting that the networks' sizes go by.
        modalities: name of the modality by domain, ``source`` and ``target``; where there is none, that of ``start``.
        data_digest: of the data set.
        training: ``noise_level``, ``noise_kind``, ``seed`` and further settings to remember.
        start: where the weights come from; the recipe has to agree with that of the model that they are of.

    Raises:
        ContradictionError: it does not.
        ModelError: a part cannot be described, so that whoever uses the model could not do the same.
    """
    translator, networks = describe_translator(network)
    settings = dict(training or {})
    known = {name: settings.pop(name, None) for name in ("noise_level", "noise_kind", "seed")}
    named = {domain: (modalities or {}).get(domain) for domain in DOMAINS}
    if start is not None:
        named = {domain: name or start.inherit(f"{domain}_modality", None) for domain, name in named.items()}
    grid, scalings = describe_preprocessing(preprocessing)
    grid["spatial_dims"] = spatial_dims_of(networks)
    state = git_state(Path(__file__).resolve())
    channels = dataset.channels
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "method": method,
        "backbone": backbone,
        "network_size": network_size,
        "translator": translator,
        "networks": networks,
        "weights": plain({name: weight for name, weight in weights.items() if weight}, "weights"),
        **{
            domain: {"modality": named[domain], "channels": channels, "scaling": scalings[domain]} for domain in DOMAINS
        },
        "grid": grid,
        "foreground": {
            "rule": scalings["target"]["arguments"].get("foreground", ABOVE_BACKGROUND),
            "min_foreground": dataset.min_foreground,
            "masks": dataset.masks,
        },
        "data": describe_data(dataset),
        "training": {
            "origin": "trained",
            "data_digest": data_digest,
            **known,
            "commit": None if state is None else state[0] + ("+" if state[1] else ""),
            "epoch": 0,
            "iteration": 0,
            "settings": plain(settings, "the training"),
            "started_from": None if start is None else start.digest,
        },
    }
    content["target"]["window"] = list(dataset.target_window)
    recipe = Recipe(content, "this training")
    if start is not None:
        start.check(recipe)
    return recipe


def describe_preprocessing(preprocessing: Compose) -> tuple[dict[str, Any], dict[str, Any]]:
    """The grid, and the scaling of each domain, of a chain of transforms.

    Raises:
        ModelError: it holds a transform that a recipe has no word for, lacks one that it needs, or has them in another
            order than `Recipe.pair_preprocessing`.
    """
    grid: dict[str, Any] = {"spacing": None, "fit": FIT}
    scalings: dict[str, Any] = {}
    steps = list(_flat(preprocessing))
    for step in steps:
        if hasattr(step, "scaler"):
            scalings |= {domain: describe_scaling(step) for domain, key in DOMAINS.items() if key in step.keys}
        elif isinstance(step, Orientationd):
            grid["orientation"] = "".join(step.ornt_transform.axcodes)
        elif isinstance(step, Spacingd):
            grid["spacing"] = [float(value) for value in step.spacing_transform.pixdim]
        elif isinstance(step, ResampleInPlaned):
            grid["spatial_size"] = list(step.resampler.spatial_size)
            grid["slice_axis"] = step.resampler.slice_axis
            if step.resampler.spacing is not None:
                if grid["spacing"] is not None:
                    raise ModelError(
                        "train#preprocessing holds Spacingd and gives ResampleInPlaned a spacing, for which a model's "
                        "recipe has no word: leave out one of them (--fit resize takes away the second)"
                    )
                grid |= {"fit": PAD, "spacing": in_plane(step.resampler.spacing, step.resampler.slice_axis)}
        elif not isinstance(step, LoadImaged | ReadImaged | DescribeVolumed):
            raise ModelError(
                f"train#preprocessing holds {type(step).__name__}, which a model's recipe cannot describe: whoever "
                "translates would leave it out. Apply it to the files beforehand, or teach pipeline/models/recipe.py"
            )
    missing = [name for name in ("orientation", "spatial_size") if name not in grid]
    missing += [f"scaling of the {domain}" for domain in DOMAINS if domain not in scalings]
    if missing:
        raise ModelError(f"train#preprocessing says nothing of: {', '.join(missing)}")
    _check_order(steps)
    return grid, scalings


def describe_data(dataset: SliceDataset) -> dict[str, Any] | None:
    """The ranges that the training volumes span; None where the transforms did not describe them."""
    pairs = [pair for pair in dataset.descriptions if pair is not None]
    if not pairs or len(pairs) < len(dataset.descriptions):
        return None
    sources = [pair["image"] for pair in pairs]
    return {
        "patients": dataset.patients,
        "volumes": len(pairs),
        "slices": len(dataset),
        **{
            domain: {name: _range([pair[key][name] for pair in pairs]) for name in ("low", "high")}
            for domain, key in DOMAINS.items()
        },
        "orientations": sorted({source["orientation"] for source in sources}),
        "tilt": _range([source["tilt"] for source in sources]),
        **{
            name: [_range([source[name][axis] for source in sources]) for axis in range(3)]
            for name in ("spacing", "field_of_view")
        },
    }


def spatial_dims_of(networks: Mapping[str, Mapping[str, Any]]) -> int:
    """Spatial axes of the images that networks take, by their own word."""
    said = (entry["arguments"].get("spatial_dims") for entry in networks.values())
    return next((count for count in said if count is not None), 2)


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def _check_order(steps: Sequence[Any]) -> None:
    """Refuse an order in which something else would come out than whoever translates would get."""
    kinds = {Orientationd: 1, Spacingd: 2, ResampleInPlaned: 3}
    places = [(0 if hasattr(step, "scaler") else kinds.get(type(step), -1), type(step).__name__) for step in steps]
    ordered = [entry for entry in places if entry[0] >= 0]
    for (before, first), (place, name) in pairwise(ordered):
        if place < before or place == before > 0:
            raise ModelError(
                f"train#preprocessing holds {name} behind {first}; a model's recipe has the scalings first, then "
                "Orientationd, Spacingd and ResampleInPlaned, each once"
            )


def _flat(transform: Any) -> Iterator[Any]:
    if isinstance(transform, Compose):
        for step in transform.transforms:
            yield from _flat(step)
    else:
        yield transform
