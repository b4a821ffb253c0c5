"""The recipe: what a model knows of how it was made. Its schema has this one owner; `docs/recipe.md` shows it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jsonschema
from monai.transforms import Compose, Orientationd, Spacingd
from torch import nn

from pipeline.io import ReadImaged
from pipeline.models.describing import (
    build_factory,
    build_scaling,
    defaults_of,
    describe_class,
    describe_scaling,
    differences,
    find_class,
    unfold,
)
from pipeline.models.errors import ContradictionError, ModelError
from pipeline.translators import Translator
from transforms import FOREGROUND_RULES, ResampleInPlaned, ScaleMRIntensityd

FORMAT = "reggan-recipe"
VERSION = 1
"""Raised when a reader of the version before would misunderstand the new one."""
FIT = "resize"
"""How slices come to their size: padded around the centre to its proportions, then resized, counted in voxels."""
PAD = "pad"
"""Likewise: resampled to pixels of one size in mm, the same in every volume, and padded around the centre."""

_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_RANGE = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_BUILT = {
    "type": "object",
    "properties": {
        "class": {**_TEXT, "description": "path of the class"},
        "arguments": {"type": "object", "description": "all of its arguments, defaults included"},
    },
    "required": ["class", "arguments"],
    "additionalProperties": False,
}


def _described(kind: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**kind, "description": text}


def _or_null(kind: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {"anyOf": [dict(kind), {"type": "null"}], "description": text}


def _section(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": text,
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _triple(text: str) -> dict[str, Any]:
    return {"type": "array", "items": _RANGE, "minItems": 3, "maxItems": 3, "description": text}


def _domain(text: str, **more: Any) -> dict[str, Any]:
    return _section(
        text,
        {
            "modality": _or_null(_TEXT, "name of the modality, such as T1 or CT"),
            "channels": {"type": "integer", "minimum": 1, "description": "channels of an image"},
            "scaling": _described(_BUILT, "the transform that scales an image to [-1, 1], with every parameter"),
            **more,
        },
    )


def _seen(text: str) -> dict[str, Any]:
    return _section(
        text,
        {
            "low": _described(_RANGE, "least and greatest 0.5th percentile of a volume's voxels, in its own units"),
            "high": _described(_RANGE, "least and greatest 99.5th percentile of a volume's voxels above its minimum"),
        },
    )


SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Recipe of a model",
    **_section(
        "What a model knows of how it was made.",
        {
            "format": {"const": FORMAT, "description": "what this is"},
            "version": {"const": VERSION, "description": "version of the format"},
            "method": _or_null(_TEXT, "the method by its name, such as reggan or munit-c+r"),
            "backbone": _described(_TEXT, "the backbone by its name"),
            "network_size": _or_null(_TEXT, "the setting that the networks' sizes go by; null where there was none"),
            "translator": _described(_BUILT, "the class that translates"),
            "networks": {
                "type": "object",
                "additionalProperties": _BUILT,
                "description": "class and arguments of each network that was built, by the argument that takes it",
            },
            "weights": {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": 0},
                "description": "weight of each loss term; empty where it is not known",
            },
            "source": _domain("The images that are translated."),
            "target": _domain(
                "The images that are made.",
                window=_described(_RANGE, "physical values that -1 and 1 stand for in a prediction"),
            ),
            "grid": _section(
                "The grid that volumes are brought to.",
                {
                    "spatial_dims": {"enum": [2, 3], "description": "spatial axes of the networks' images"},
                    "orientation": {
                        "type": "string",
                        "pattern": "^[RLAPSI]{3}$",
                        "description": "where the axes of a volume point",
                    },
                    "spacing": _or_null(
                        {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
                        "voxel size in mm that volumes are resampled to, -1 where an axis keeps its own; "
                        "null where all do",
                    ),
                    "slice_axis": {"enum": [0, 1, 2], "description": "axis of the oriented volume that counts slices"},
                    "spatial_size": _or_null(
                        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 3},
                        "size of a slice in pixels; null where it is not known",
                    ),
                    "fit": {
                        "enum": [FIT, PAD],
                        "description": "how slices are brought to that size: resize, until they fill it, whatever the "
                        "size of their voxels; pad, to pixels of the spacing above, with background around them",
                    },
                },
            ),
            "foreground": _section(
                "What counts as foreground.",
                {
                    "rule": {
                        "enum": list(FOREGROUND_RULES),
                        "description": "what the target's scaling places above -1: found, by a threshold from the "
                        "histogram, the largest component, its holes filled; above-background, all that is brighter",
                    },
                    "min_foreground": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 1,
                        "description": "least share of a slice's target that has to be foreground for it to be used",
                    },
                    "masks": _described(_COUNT, "number of training pairs whose foreground is a mask of the user's"),
                },
            ),
            "data": _or_null(
                _section(
                    "What the training data looked like.",
                    {
                        "patients": _described(_COUNT, "number of training patients"),
                        "volumes": _described(_COUNT, "number of training pairs"),
                        "slices": _described(_COUNT, "number of slices trained on"),
                        "source": _seen("Intensities of the source."),
                        "target": _seen("Intensities of the target."),
                        "orientations": {
                            "type": "array",
                            "items": _TEXT,
                            "description": "where the axes of the files pointed before they were turned",
                        },
                        "tilt": _described(_RANGE, "angle between a volume's axes and the patient's, degrees"),
                        "spacing": _triple("least and greatest voxel size in mm along the axes R, A and S"),
                        "field_of_view": _triple("least and greatest extent in mm along the axes R, A and S"),
                    },
                ),
                "what the training data looked like; null where it is not known",
            ),
            "training": _section(
                "How it was trained.",
                {
                    "origin": {"enum": ["trained", "imported"], "description": "here, or by the authors' code"},
                    "data_digest": _or_null(_TEXT, "SHA-256 of the data set"),
                    "noise_level": _or_null({"type": "number"}, "level of the misalignment added"),
                    "noise_kind": _or_null(_TEXT, "kind of the misalignment added"),
                    "seed": _or_null(_COUNT, "seed of everything random"),
                    "commit": _or_null(_TEXT, "commit of the source code, with + where files differed from it"),
                    "epoch": _or_null(_COUNT, "epochs behind these weights"),
                    "iteration": _or_null(_COUNT, "steps behind these weights"),
                    "settings": {"type": "object", "description": "further settings, such as batch_size"},
                    "started_from": _or_null(_TEXT, "SHA-256 of the model file that the training started from"),
                },
            ),
        },
    ),
}


class Recipe:
    """A recipe that agrees with the schema.

    Args:
        content: see `SCHEMA`.
        path: the file that it is from, for messages.
        trusted: modules beside the project's whose classes it may name.

    Raises:
        ModelError: it does not agree with the schema, or is of another version; the message says where.
    """

    def __init__(self, content: Mapping[str, Any], path: object = "a model", trusted: Collection[str] = ()) -> None:
        check_recipe(content, path)
        self.content: dict[str, Any] = copy.deepcopy(dict(content))
        self.path = path
        self.trusted = (trusted,) if isinstance(trusted, str) else tuple(trusted)

    def __getitem__(self, section: str) -> Any:
        return self.content[section]

    @property
    def target_window(self) -> tuple[float, float]:
        """Physical values that -1 and 1 stand for in a prediction."""
        low, high = self["target"]["window"]
        return float(low), float(high)

    @property
    def data_range(self) -> float:
        """Width of that window."""
        low, high = self.target_window
        return high - low

    @property
    def spatial_size(self) -> tuple[int, ...]:
        """Size of a slice in pixels.

        Raises:
            ModelError: the model does not know.
        """
        size = self["grid"]["spatial_size"]
        if size is None:
            raise ModelError(f"{self.path} does not say at which image size it was trained; pass spatial_size")
        return tuple(size)

    @property
    def slice_axis(self) -> int:
        """Axis of the oriented volume that counts slices."""
        return self["grid"]["slice_axis"]

    def translator(
        self,
        weights: Mapping[str, float],
        networks: Mapping[str, Callable[..., nn.Module]] | None = None,
        instead: Mapping[str, Callable[..., nn.Module]] | None = None,
        **arguments: Any,
    ) -> Translator:
        """Build the translator, with fresh networks.

        Args:
            weights: of the loss terms; without any, only what translates is built.
            networks: what builds those that the recipe does not describe.
            instead: what builds those that are to be others than the recipe describes.
            arguments: settings of use that the translator takes, such as a style.

        Raises:
            ModelError: it cannot be built, or the settings of use are none of this translator's.
        """
        kind = find_class(self["translator"]["class"], Translator, self.trusted)
        foreign = [name for name in arguments if name not in kind.settings_of_use]
        if foreign:
            raise ModelError(f"{foreign[0]} is no setting of {kind.__name__}, the translator of {self.path}")
        known = {name: build_factory(entry, self.trusted) for name, entry in self["networks"].items()}
        every = {**(networks or {}), **known, **(instead or {})}
        try:
            built = kind(weights=weights, **self["translator"]["arguments"], **every, **arguments)
        except TypeError as error:
            raise ModelError(f"the networks of {self.path} cannot be built: {error}") from error
        self.travel_with(built)
        return built

    def travel_with(self, network: Translator) -> None:
        """Give a network this recipe; it is saved with its weights from then on."""
        network.recipe = copy.deepcopy(self.content)

    def network(self, name: str) -> Any:
        """What builds one of the networks, None where the recipe has none of that name."""
        entry = self["networks"].get(name)
        return None if entry is None else build_factory(entry, self.trusted)

    def scaling(self, domain: str, keys: str | Sequence[str]) -> Any:
        """The transform that scales images of a domain ("source" or "target") to [-1, 1], for these keys."""
        return build_scaling(self[domain]["scaling"], keys, self.trusted)

    def spatial_preprocessing(self, keys: str | Sequence[str], crop: bool = False) -> Compose:
        """The transforms that bring scaled images onto the model's grid; `monai.transforms.Invertd` undoes them.

        Args:
            keys: keys of the images.
            crop: whether slices have the size of the training's even where the field of view is larger than that (see
                `transforms.ResampleInPlane`); without it, they are larger there, and nothing is lost.
        """
        grid = self["grid"]
        steps: list[Any] = [Orientationd(keys, axcodes=grid["orientation"], labels=None)]
        pixel = pixel_size(grid)
        if grid["spacing"] is not None and pixel is None:
            steps.append(Spacingd(keys, pixdim=grid["spacing"], padding_mode="border"))
        steps.append(ResampleInPlaned(keys, self.spatial_size, grid["slice_axis"], spacing=pixel, crop=crop))
        return Compose(steps)

    def pair_preprocessing(self) -> Compose:
        """``{"image": path, "label": path}`` to a pair of volumes in [-1, 1] on the model's grid, as in training."""
        keys = ("image", "label")
        scalings = [self.scaling(domain, key) for domain, key in zip(("source", "target"), keys, strict=True)]
        spatial = self.spatial_preprocessing(keys, crop=True).transforms
        return Compose([ReadImaged(keys), *scalings, *spatial])

    def agree(self, settings: Mapping[str, Any]) -> Recipe:
        """Compare settings that were given with what the model knows.

        Args:
            settings: by name; None is not given. Known are ``backbone``, ``translator`` (name or path of its class),
                ``network_size``, the entries of the grid, ``foreground``, ``min_foreground``, ``source_modality``,
                ``target_modality``, ``source_intensity`` and ``target_intensity`` (a transform, or a dictionary with
                some of its arguments), and ``network_def``, for each network a dictionary with some of its arguments,
                or what builds it.

        Returns:
            The recipe, with what it did not know and was given.

        Raises:
            ContradictionError: some are others than the model's; the message names each, with both values.
        """
        known, found = self.content, []
        adopted = copy.deepcopy(known)
        for name, value in settings.items():
            if value is None:
                continue
            if name in _SCALINGS:
                found += list(self._scaling_differences(name, value))
            elif name == "network_def":
                found += list(self._network_differences(value))
            elif name == "translator":
                path = known["translator"]["class"]
                if "." not in str(value) and value != known["backbone"]:
                    found.append(("backbone", value, known["backbone"]))
                elif "." in str(value) and value != path:
                    found.append((name, value, path))
            else:
                section, entry = _PLACES[name]
                place = adopted if section is None else adopted[section]
                if name == "spatial_size" and isinstance(value, int):
                    value = [value] * known["grid"]["spatial_dims"]  # one number stands for all axes
                if name == "spacing" and isinstance(value, int | float):
                    value = in_plane(value, known["grid"]["slice_axis"])  # one number stands for both axes of a pixel
                if place[entry] is None and name in _FILLED_IN:
                    place[entry] = list(value) if isinstance(value, tuple) else value
                elif place[entry] is not None or name in ("spacing",):
                    found += list(differences(value, place[entry], name))
        if found:
            raise ContradictionError(self.path, found)
        return Recipe(adopted, self.path, self.trusted)

    def _scaling_differences(self, name: str, value: Any) -> Iterator[tuple[str, Any, Any]]:
        known = self[_SCALINGS[name]]["scaling"]
        if not isinstance(value, Mapping):
            given = describe_scaling(value)
            if given["class"] != known["class"]:
                yield f"{name}#_target_", _with_arguments(given), _with_arguments(known)
                return
            value = given["arguments"]
        kind = value.get("_target_")
        if kind is not None and kind not in (known["class"], known["class"].rpartition(".")[2]):
            yield f"{name}#_target_", kind, _with_arguments(known)
            return
        value = {key: entry for key, entry in value.items() if key not in ("_target_", "keys", "allow_missing_keys")}
        # A model of before an argument was there does what its default says.
        defaults = defaults_of(find_class(known["class"], ScaleMRIntensityd, self.trusted))
        yield from differences(value, {**defaults, **known["arguments"]}, name)

    def _network_differences(self, value: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        for part, given in value.items():
            known = self["networks"].get(part)
            if given is None or (isinstance(given, Mapping) and not given):
                continue
            name = f"network_def#{part}"
            if not isinstance(given, Mapping):
                kind, given = unfold(given)
                path = describe_class(kind)
                if known is not None and path != known["class"]:
                    yield f"{name}#_target_", path, known["class"]
                    continue
            if known is None:
                if self["weights"] and part in Translator.training_only:
                    continue  # none of its loss terms needed it, in training and now
                if any(entry is not None for entry in given.values()):
                    yield name, given, None
                continue
            yield from differences(given, known["arguments"], name)


_SCALINGS = {"source_intensity": "source", "target_intensity": "target"}
# Where a setting stands in a recipe: section and entry.
_PLACES: dict[str, tuple[str | None, str]] = {
    "backbone": (None, "backbone"),
    "network_size": (None, "network_size"),
    "spatial_dims": ("grid", "spatial_dims"),
    "spatial_size": ("grid", "spatial_size"),
    "slice_axis": ("grid", "slice_axis"),
    "orientation": ("grid", "orientation"),
    "spacing": ("grid", "spacing"),
    "fit": ("grid", "fit"),
    "foreground": ("foreground", "rule"),
    "min_foreground": ("foreground", "min_foreground"),
    "source_modality": ("source", "modality"),
    "target_modality": ("target", "modality"),
}
_FILLED_IN = ("spatial_size", "source_modality", "target_modality")


def _with_arguments(built: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in built["arguments"].items())
    return f"{built['class']}({arguments})"


def check_recipe(content: Any, path: object) -> None:
    """Check a recipe against the schema.

    Raises:
        ModelError: naming the first entry that is not as it should be, its value and what was expected.
    """
    if isinstance(content, Mapping) and content.get("format") == FORMAT and content.get("version") != VERSION:
        raise ModelError(
            f"the recipe of {path} is of version {content.get('version')!r}, this project reads version {VERSION}; "
            "use the version of the project that wrote it"
        )
    error = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(SCHEMA).iter_errors(content))
    if error is not None:
        where = "#".join(map(str, error.absolute_path)) or "the whole"
        raise ModelError(f"the recipe of {path} is not valid: {where}: {error.message[:300]}")
    grid = content["grid"]
    if grid["fit"] == PAD:
        pixels = [size for axis, size in enumerate(grid["spacing"] or ()) if axis != grid["slice_axis"]]
        if not pixels or pixels[0] <= 0 or grid["spacing"] != in_plane(pixels[0], grid["slice_axis"]):
            raise ModelError(
                f"the recipe of {path} is not valid: with fit pad, grid#spacing must be one size along both axes of a "
                f"slice and -1 along the axis that counts them, got {grid['spacing']}"
            )
    low, high = content["target"]["window"]
    if not low < high:
        raise ModelError(
            f"the recipe of {path} is not valid: target#window must be (low, high) with low < high, got ({low}, {high})"
        )


def in_plane(pixel: float, slice_axis: int) -> list[float]:
    """The spacing of a grid whose pixels have one size in mm, and whose slices keep their distance."""
    return [-1.0 if axis == slice_axis else float(pixel) for axis in range(3)]


def pixel_size(grid: Mapping[str, Any]) -> float | None:
    """Size of a pixel in mm, where it is the same in every volume."""
    if grid["fit"] != PAD:
        return None
    return next(float(size) for axis, size in enumerate(grid["spacing"]) if axis != grid["slice_axis"])


def encode_recipe(content: Mapping[str, Any]) -> str:
    """A recipe as text; the same content gives the same text."""
    return json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)


def decode_recipe(text: str, path: object, trusted: Collection[str] = ()) -> Recipe:
    """The recipe out of `encode_recipe`'s text.

    Raises:
        ModelError: it is no recipe.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the recipe of {path} is no JSON: {error}") from error
    return Recipe(content, path, trusted)
