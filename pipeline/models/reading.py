"""Files of weights with their recipe: read, verified, and built from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.metrics import IntensityMap
from pipeline.models.errors import ModelError
from pipeline.models.recipe import Recipe
from pipeline.tensors import UnreadableFileError, check_finite, load_tensors
from pipeline.translators import Translator, decode_recipe, decode_signature

EXTRA_STATE = "_extra_state"  # PyTorch's name of what a module keeps beside its tensors
LAST, BEST, MODEL = "last.pt", "best.pt", "model.pt"
logger = logging.getLogger(__name__)


class CheckpointError(ModelError):
    """A checkpoint that cannot be read or does not fit; the message says which and why."""


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file written by ``torch.save``, onto the CPU, without running any code in it, its checksums verified.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        content = load_tensors(path)
    except UnreadableFileError as error:
        raise CheckpointError(f"checkpoint {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary")
    return content


class Model:
    """A translator's weights with their recipe, from ``model.pt``, ``best.pt`` or ``last.pt``.

    Args:
        path: the file.
        trusted: modules beside the project's whose classes the recipe may name.

    Attributes:
        path: the file.
        recipe: how it was made.
        content: all that the file holds.
        state: the state dictionary of the translator.

    Raises:
        ModelError: the file cannot be read, holds NaN or infinite weights, or holds no valid recipe.
    """

    def __init__(self, path: str | Path, trusted: Collection[str] = ()) -> None:
        self.path = Path(str(path)).expanduser()
        self.content = load_checkpoint(self.path)
        state = self.content.get("network", self.content)
        encoded = state.get(EXTRA_STATE) if isinstance(state, Mapping) else None
        recipe = decode_recipe(encoded) if isinstance(encoded, Tensor) else None
        if recipe is None:
            raise CheckpointError(
                f"{self.path} holds no recipe, so nobody can tell how its images have to be scaled and cut: expected a "
                "model.pt, best.pt or last.pt of a training; scripts/import_weights.py takes over weights of the "
                "authors' code"
            )
        self.state: Mapping[str, Any] = state
        self.recipe = Recipe(recipe, self.path, trusted)
        refuse_unsound(state, self.path)

    @property
    def has_registration(self) -> bool:
        """Whether the file has the weights of a registration network that has learned to register."""
        if self.recipe["training"].get("settings", {}).get("true_field"):
            return False  # the known field stood in its place
        return any(name.startswith("registration.") for name in self.state)

    def build(self, registration: bool = False, **settings_of_use: Any) -> Translator:
        """The translator, with all that it needs to translate, on the CPU.

        Args:
            registration: whether it shall also have its registration network, where the file has one.
            settings_of_use: see `Recipe.translator`.

        Raises:
            ModelError: it cannot be built, or the tensors are not those of the recipe.
        """
        network = self.recipe.translator({}, **settings_of_use)
        state = network.without_training_only(self.state)
        if registration and self.has_registration:
            factory = self.recipe.network("registration")
            if factory is None:
                raise CheckpointError(f"{self.path} has a registration network that its recipe does not describe")
            network.registration = factory()
            state |= {name: value for name, value in self.state.items() if name.startswith("registration.")}
        load_strictly(network, state, self.path)
        return network

    def baselines(self, device: torch.device | str = "cpu") -> dict[str, Callable[[Tensor], Tensor]]:
        """What to score beside a network: the source as it is and, where the file has it, the intensity map.

        Args:
            device: where the map is applied.
        """
        found: dict[str, Callable[[Tensor], Tensor]] = {"source": lambda source: source}
        state = self.content.get("intensity_map")
        if state is None:
            logger.warning("%s holds no intensity map: that baseline is left out", self.path)
            return found
        intensity_map = IntensityMap()
        load_strictly(intensity_map, state, self.path)
        return {**found, "intensity_map": intensity_map.to(device)}


def refuse_unsound(state: Mapping[str, Any], path: str | Path) -> None:
    """Refuse weights that are NaN or infinite: a training that diverged, which neither translates nor goes on.

    Raises:
        CheckpointError: naming the first tensors.
    """
    try:
        check_finite(state, path)
    except UnreadableFileError as error:
        raise CheckpointError(str(error)) from error


def load_strictly(network: nn.Module, state: Mapping[str, Any], path: object, assign: bool = False) -> None:
    """Load weights, all of them and no others: the one way in which a network gets any.

    Args:
        network: gets them.
        state: a state dictionary; what it does not say beside its tensors is taken from the network.
        path: where they are from, for messages.
        assign: give the network these very tensors, in place of their values; for one that has none, on "meta".

    Raises:
        CheckpointError: naming the first tensors that differ, and the settings that do.
    """
    state = dict(state)
    own = network.state_dict()
    check_signature(network, state, path)
    for name in own:
        if name.endswith(EXTRA_STATE) and name not in state:  # weights from elsewhere do not say whose they are
            state[name] = own[name]
    tensors = {name: value for name, value in own.items() if not name.endswith(EXTRA_STATE)}
    faults = [f"missing: {name}" for name in tensors if name not in state]
    faults += [f"unexpected: {name}" for name in state if name not in own]
    faults += [
        f"{name}: file has {tuple(getattr(state[name], 'shape', ()))}, network expects {tuple(value.shape)}"
        for name, value in tensors.items()
        if name in state and getattr(state[name], "shape", None) != value.shape
    ]
    if faults:
        shown = "\n  ".join(faults[:5])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(
            f"{path} was not made by this {type(network).__name__} (other widths, backbone or mode); use the config "
            f"chain it was trained with. {len(faults)} tensors differ:\n  {shown}{more}"
        )
    network.load_state_dict(state, assign=assign)


def check_signature(network: nn.Module, state: Mapping[str, Any], path: object) -> None:
    """Refuse weights of another backbone, and for training also those of another mode or kind of registration.

    Raises:
        CheckpointError: naming both.
    """
    encoded = state.get(EXTRA_STATE)
    if not isinstance(network, Translator) or not isinstance(encoded, Tensor):
        return
    theirs, ours = decode_signature(encoded), network.signature
    if not network.terms:  # for translating, the loss terms make no difference
        ours = type(network).__name__
    if ours != theirs and ours != theirs.split("(")[0]:
        raise CheckpointError(
            f"{path} was trained as {theirs}, but this config builds {ours}; use the config chain it was trained with"
        )
    # Kinds of registration may have the same weights: only the recipe tells them apart.
    then, now = (_registration_class(recipe) for recipe in (decode_recipe(encoded), network.recipe))
    if network.terms and then and now and then != now:
        raise CheckpointError(
            f"{path} was trained with {then}, but this config builds {now}; use the config chain it was trained with"
        )


def _registration_class(recipe: Mapping[str, Any] | None) -> str | None:
    networks = {} if recipe is None else recipe.get("networks") or {}
    return (networks.get("registration") or {}).get("class")
