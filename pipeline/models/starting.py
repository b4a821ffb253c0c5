"""Where a training starts: from nothing, or from a model that it goes on from with other data."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.files import file_digest
from pipeline.models.describing import describe_class, unfold
from pipeline.models.errors import ContradictionError, ModelError
from pipeline.models.reading import BEST, EXTRA_STATE, CheckpointError, Model, load_checkpoint
from pipeline.models.recipe import Recipe
from pipeline.networks import PatchDiscriminator, RegistrationNet
from pipeline.translators import ADVERSARIAL, DEFAULT_BACKBONE, Translator, find_translator
from transforms import ScaleMRIntensityd

DEFAULT_TERMS = frozenset({"adversarial", "cycle", "correction", "smoothness"})
"""The loss terms that the weights of train.json name, unless they are replaced as a whole."""
KEPT = ("spatial_dims", "spatial_size", "slice_axis", "orientation", "spacing", "fit")
"""Of the grid, what a training that starts from a model cannot change."""
OF_TRAINING = ("overlap_only",)
"""Arguments of a registration network that say how it is trained with, not what its weights are."""
KNOWN_WHERE_NONE = ("spacing",)
"""Entries whose None says something: volumes keep their voxel size."""

logger = logging.getLogger(__name__)


class StartingPoint:
    """What a training takes over from a model: its weights, networks, scaling and grid.

    Settings that are not given are the model's; those that are given and contradict it are refused by `check`.

    Args:
        path: ``model.pt``, ``best.pt`` or ``last.pt`` of another training, or None for fresh weights. Networks that
            only training has, such as the discriminator, are taken from the file, or from the ``checkpoints/best.pt``
            beside it if that holds the same weights, and start anew where they are in neither.
        trusted_modules: modules beside the project's whose classes the recipe may name.

    Raises:
        ModelError: the file cannot be used.
    """

    def __init__(self, path: str | Path | None = None, trusted_modules: Collection[str] = ()) -> None:
        try:
            self.model = None if path is None else Model(path, trusted_modules)
        except ModelError as error:
            raise ModelError(f"start_from: {error}") from error

    @property
    def digest(self) -> str | None:
        """SHA-256 of the model file; None for fresh weights."""
        return None if self.model is None else file_digest(self.model.path)

    def inherit(self, name: str, default: Any) -> Any:
        """The model's value of a setting; the default for fresh weights, and where the model does not know.

        Args:
            name: entry of the recipe, its grid, or its foreground; or ``source_modality``, ``target_modality``.
            default: of the config.
        """
        if self.model is None:
            return default
        recipe = self.model.recipe.content
        domain, _, entry = name.partition("_")
        places = (recipe, recipe["grid"], recipe["foreground"])
        value = next((place[name] for place in places if name in place), None)
        if entry == "modality":
            value = recipe[domain]["modality"]
        return default if value is None else value

    def weight(self, term: str, default: float) -> float:
        """Weight of a loss term: the model's, 0 where it has none; the default for fresh or imported weights."""
        known = {} if self.model is None else self.model.recipe["weights"]
        return known.get(term, 0) if known else default

    def weights(self, given: Mapping[str, float]) -> dict[str, float]:
        """All weights of loss terms: those of the config and, unless it replaced them all, the model's other ones."""
        if not isinstance(given, Mapping):
            return given  # for `pipeline.settings.check` to refuse
        known = {} if self.model is None or not given.keys() >= DEFAULT_TERMS else self.model.recipe["weights"]
        return {**known, **given}

    def scaling(self, domain: str) -> Callable[..., Any]:
        """What makes the scaling of a domain, "source" or "target"; arguments that are given win, and are checked."""
        if self.model is None:
            return ScaleMRIntensityd
        kind: Callable[..., Any] = type(self.model.recipe.scaling(domain, "image"))
        return functools.partial(kind, **self.model.recipe[domain]["scaling"]["arguments"])

    def builder(self, translator: str) -> Callable[..., Translator]:
        """What builds the translator of a training.

        Args:
            translator: name of a backbone, or path of a class.
        """
        if self.model is None:
            return find_translator(translator)
        return functools.partial(self._build, translator)

    def check(self, recipe: Recipe) -> None:
        """Compare the recipe of a training with that of the model that it starts from.

        Raises:
            ContradictionError: networks, scaling or grid are others; the message names each, with both values.
        """
        if self.model is None:
            return
        ours, theirs = recipe.content, self.model.recipe.content
        found = [
            (name, ours["grid"][name], theirs["grid"][name])
            for name in KEPT
            if (theirs["grid"][name] is not None or name in KNOWN_WHERE_NONE)
            and ours["grid"][name] != theirs["grid"][name]
        ]
        found += [
            (f"{domain}_intensity", ours[domain]["scaling"], theirs[domain]["scaling"])
            for domain in ("source", "target")
            if ours[domain]["scaling"] != theirs[domain]["scaling"]
        ]
        if ours["source"]["channels"] != theirs["source"]["channels"]:
            found.append(("channels", ours["source"]["channels"], theirs["source"]["channels"]))
        if found:
            raise ContradictionError(self.model.path, found)

    def _build(self, translator: str, weights: Mapping[str, float], **given: Any) -> Translator:
        model = self.model
        if model is None:
            raise ModelError("there is no model to start from")
        networks = {name: factory for name, factory in given.items() if callable(factory)}
        settings = {name: value for name, value in given.items() if name not in networks and value is not None}
        of_the_model: dict[str, Any] = {}
        instead: dict[str, Callable[..., Any]] = {}
        unknown: dict[str, Callable[..., Any]] = {}  # what its training did not need, or imported weights come without
        for name, factory in networks.items():
            kind, arguments = unfold(factory)
            known = model.recipe["networks"].get(name)
            not_asked = ("spatial_dims", *(OF_TRAINING if name == "registration" else ()))
            asked = {key: value for key, value in arguments.items() if value is not None and key not in not_asked}
            if known is None and (model.recipe["weights"] == {} or name in Translator.training_only):
                if any(weights.get(term) for term in ADVERSARIAL):
                    self._refuse_default(name, kind)
                given_arguments = {key: value for key, value in arguments.items() if value is not None}
                unknown[name] = functools.partial(kind, **given_arguments)
                continue
            # The class may be the config's default, that of another backbone; what was asked of it is somebody's wish.
            if asked and (known is None or describe_class(kind) != known["class"]):
                of_the_model[name] = asked
            elif asked:
                of_the_model[name] = factory
            if known is not None and isinstance(kind, type) and issubclass(kind, RegistrationNet):
                # How pairs are registered is the method's, by its overlay; the weights are of one kind, and go on.
                of_weights = {key: value for key, value in known["arguments"].items() if key not in OF_TRAINING}
                of_training = {key: value for key, value in arguments.items() if key in OF_TRAINING}
                instead[name] = functools.partial(kind, **of_weights, **of_training)
        model.recipe.agree({"translator": translator, "network_def": of_the_model})
        network = model.recipe.translator(weights, unknown, instead, **settings)
        network.recipe = None
        self._load(network)
        return network

    def _refuse_default(self, name: str, kind: type) -> None:
        """Refuse the discriminator of train.json alone for a model of another backbone, which it does not fit."""
        model = self.model
        if model is not None and kind is PatchDiscriminator and model.recipe["backbone"] != DEFAULT_BACKBONE:
            backbone = model.recipe["backbone"]
            raise ModelError(f"{model.path} does not say what its {name} was: stack {backbone}.json, which does")

    def _load(self, network: Translator) -> None:
        """Load what translates strictly, and of the rest, network by network, what fits."""
        model = self.model
        if model is None:
            return
        model.build()  # refuses a file whose tensors are not those of its recipe
        state = self._whole_state(model)
        own = {name: value for name, value in network.state_dict().items() if not name.endswith(EXTRA_STATE)}
        fits = {name: name in state and getattr(state[name], "shape", None) == own[name].shape for name in own}
        parts = {name.partition(".")[0] for name in own}
        anew = {part for part in parts if not all(fits[name] for name in own if name.partition(".")[0] == part)}
        with torch.no_grad():
            for name, value in own.items():
                if name.partition(".")[0] not in anew:
                    value.copy_(state[name])
        logger.info(
            "training starts from %s, epoch %s%s",
            model.path,
            model.recipe["training"]["epoch"],
            f"; these networks start anew: {', '.join(sorted(anew))}" if anew else "",
        )

    @staticmethod
    def _whole_state(model: Model) -> Mapping[str, Any]:
        """The state of all networks, where there is a checkpoint of the very weights; or else the model's."""
        path = model.path.parent / "checkpoints" / BEST
        if "network" in model.content or not path.is_file():
            return model.state
        try:
            whole = load_checkpoint(path)["network"]
        except (CheckpointError, KeyError) as error:
            logger.warning("networks that only training has start anew: %s", error)
            return model.state
        tensors = {name: value for name, value in model.state.items() if not name.endswith(EXTRA_STATE)}
        same = all(name in whole and torch.equal(whole[name], value) for name, value in tensors.items())
        return whole if same else model.state
