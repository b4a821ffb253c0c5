"""What every translator is: networks, the named loss terms that train them, and the translation itself."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.losses import CorrectionLoss, LeastSquaresAdversarialLoss, SmoothnessLoss, WeightedSum
from pipeline.networks import overlap, warp

NetworkFactory = Callable[..., nn.Module]
Terms = dict[str, Tensor]
ADVERSARIAL = frozenset({"adversarial", "conditional_adversarial"})
"""Loss terms that a discriminator is needed for."""
TRUE_FIELD = "true_ddf"  # of a batch whose noise returns its displacement


class Translator(nn.Module):
    """Base of all translators.

    A translator owns a backbone's networks and answers three questions: ``forward`` translates, ``generator_terms`` and
    ``discriminator_terms`` name the unweighted loss terms of one training step. The trainer weighs and minimises them
    and knows nothing else. Subclasses add their networks and terms; the registration correction (Kong et al.,
    NeurIPS 2021, section 3) is here, since any backbone can be given it.

    A term without a weight is not computed, and a network that no term needs is not built: with no weights at all, only
    what ``forward`` uses exists, which is what inference loads.

    The second direction, target into source, is there where ``cycle`` has a weight (modes C and C+R): the adversarial
    term is then the sum over both directions.

    Args:
        weights: weight of each loss term by name; 0 is the same as none. Names outside ``known_terms`` are refused.
        registration: builds the registration network, ``forward(moving, fixed) -> displacement field in voxels``;
            called only if ``correction`` or ``smoothness`` has a weight.

    Attributes:
        arguments: what it was made with, by the names of the constructor's arguments.
        recipe: what is known of how it was made (see `pipeline.models`), plain values that travel with the weights;
            None where nothing is known.
        settings_of_use: arguments that say how it is used and not what it is, such as a style to translate in.
        terms: names of the terms in use.
        training_only: beginnings of the names of state that inference does not need, such as ``("discriminator",)``.

    Raises:
        ValueError: if a weight is of no known term, or a network that a term needs was not given.
    """

    registration_terms: ClassVar[frozenset[str]] = frozenset({"correction", "smoothness"})
    known_terms: ClassVar[frozenset[str]] = registration_terms
    training_only: ClassVar[tuple[str, ...]] = ("registration", "discriminator")
    settings_of_use: ClassVar[tuple[str, ...]] = ()
    arguments: dict[str, Any]
    recipe: dict[str, Any] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments, of whatever subclass, so that a recipe can name them."""
        self = super().__new__(cls)
        if args or kwargs:  # none where it is copied or unpickled
            try:
                bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs).arguments
                self.arguments = {name: value for name, value in bound.items() if value is not self}
            except TypeError:  # which the constructor says better
                self.arguments = {}
        return self

    def __init__(self, weights: Mapping[str, float], registration: NetworkFactory | None = None) -> None:
        super().__init__()
        self.terms = WeightedSum(weights).terms if weights else ()
        unknown = sorted(set(self.terms) - self.known_terms)
        if unknown:
            raise ValueError(
                f"weights names {unknown}, which {type(self).__name__} does not know; "
                f"expected among {sorted(self.known_terms)}"
            )
        self.registration = self._build_if_needed("registration", registration, self.registration_terms)
        self.correction_loss = CorrectionLoss()
        self.smoothness_loss = SmoothnessLoss()
        self.adversarial_loss = LeastSquaresAdversarialLoss()
        self._trained_as: str | None = None

    def forward(self, source: Tensor) -> Tensor:
        """Translate.

        Args:
            source: (B, C, *spatial) in [-1, 1].

        Returns:
            Prediction of the target modality, (B, C, *spatial) in [-1, 1].
        """
        raise NotImplementedError

    def generator_terms(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """Outputs and unweighted loss terms of the generator's (and the registration network's) step.

        Args:
            batch: ``image`` and ``label``, each (B, C, *spatial) in [-1, 1].

        Returns:
            Outputs (``pred``; with registration ``warped``, ``ddf`` and what ``correct`` adds) and terms by name, each
            a scalar.
        """
        raise NotImplementedError

    def discriminator_terms(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Terms:
        """Unweighted loss terms of the discriminator's step, on what ``generator_terms`` returned, detached."""
        raise NotImplementedError

    def draw(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What one step of the generator draws at random, by the keys under which ``generator_terms`` finds it.

        The trainer adds it to the batch, so that a step itself draws nothing and can be compiled or replayed; where it
        is missing, ``generator_terms`` draws.
        """
        return {}

    def shown(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the discriminators are shown in place of this step's outputs, detached; here the outputs themselves."""
        return outputs

    def discriminator_networks(self) -> tuple[nn.Module, ...]:
        """Modules that the discriminator's optimiser owns; everything else belongs to the generator's."""
        raise NotImplementedError

    def discriminator_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the discriminator's optimiser updates."""
        for network in self.discriminator_networks():
            yield from network.parameters()

    def generator_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the generator's optimiser updates: generator and registration net, from one summed loss."""
        owned = {id(parameter) for parameter in self.discriminator_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in owned)

    def register(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Warp ``moving`` onto ``fixed`` with the registration network.

        Args:
            moving: (B, C, *spatial), the prediction.
            fixed: (B, C, *spatial), the misaligned target.

        Returns:
            The warped image (B, C, *spatial) and the displacement field (B, spatial_dims, *spatial) in voxels,
            pull-back: the warped image at x is the moving one at x + ddf(x).

        Raises:
            RuntimeError: if this translator has no registration network.
        """
        if self.registration is None:
            raise RuntimeError(f"no registration network: none of {sorted(self.registration_terms)} has a weight")
        ddf = self.registration(moving, fixed)
        return self._warp(moving, ddf), ddf

    def correct(self, pred: Tensor, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """Outputs and terms of the registration correction (paper, equations 5 and 6); empty without its weights.

        Where the registration finds part of its field without weights (``in_parts``, see ``AffineRegistrationNet``),
        smoothness weighs the network's own part alone, and what is known of the other is among the outputs, as scalars
        whose names begin with ``registration/``. Where the batch holds the true field, that is taken in place of the
        network's: no real pair has one, and what it gives is the bound of what any registration can. With a
        registration whose ``overlap_only`` is set, images are compared only where the field stays inside of them.

        Args:
            pred: (B, C, *spatial), the prediction.
            batch: ``label``, the misaligned target, of the same shape; ``true_ddf``, if the training's noise returns
                its displacement.
        """
        if self.registration is None:
            return {}, {}
        target, facts = batch["label"], {}
        if TRUE_FIELD in batch:
            ddf = own = batch[TRUE_FIELD]
        elif hasattr(self.registration, "in_parts"):
            ddf, own, facts = cast(Any, self.registration).in_parts(pred, target)
        else:
            ddf = own = self.registration(pred, target)
        warped = self._warp(pred, ddf)
        terms = {}
        if "correction" in self.terms:
            seen = overlap(ddf) if getattr(self.registration, "overlap_only", False) else None
            terms["correction"] = self.correction_loss(warped, target, seen)
        if "smoothness" in self.terms:
            terms["smoothness"] = self.smoothness_loss(own)
        return {"warped": warped, "ddf": ddf} | {f"registration/{name}": fact for name, fact in facts.items()}, terms

    @staticmethod
    def _warp(moving: Tensor, ddf: Tensor) -> Tensor:
        # Where training has diverged, PyTorch's CPU sampling reads outside its memory at NaN and kills the process.
        return warp(moving, ddf.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))

    def inference_state_dict(self) -> dict[str, Tensor]:
        """State of what ``forward`` uses: loads strictly into the same translator built without weights."""
        return self.without_training_only(self.state_dict())

    def without_training_only(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a state dictionary that ``forward`` uses."""
        prefixes = tuple(f"{name}." for name in self.training_only)
        return {name: value for name, value in state.items() if not name.startswith(prefixes)}

    @property
    def only_size(self) -> tuple[int, ...] | None:
        """The size of the only images that ``forward`` takes, by its networks' ``image_size``; None if it takes any."""
        parts = (part for name, part in self.named_children() if name not in self.training_only)
        return next((size for part in parts if (size := getattr(part, "image_size", None)) is not None), None)

    def example_input(self) -> Tensor:
        """Two small blank images that ``forward`` takes, of another size along each axis, to trace it with.

        Where a network takes one size only, they are of that. They are made for the first network that has
        ``in_channels``, ``spatial_dims`` and ``minimum_size`` and that inference needs; a translator without such a
        network brings its own.
        """
        parts = [part for name, part in self.named_children() if name not in self.training_only]
        taker: Any = next(part for part in parts if hasattr(part, "in_channels"))
        sizes = self.only_size or [max(8, taker.minimum_size) * factor for factor in (4, 5, 6)]
        return torch.zeros(2, taker.in_channels, *sizes[: taker.spatial_dims])

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles in place of this: ``forward`` as traced, without what only training uses.

        That is how MONAI's ``ckpt_export`` asks for TorchScript.
        """
        return _Traced(self)

    @property
    def signature(self) -> str:
        """What the weights belong to: the translator, and the loss terms that they were trained with."""
        if self.terms or self._trained_as is None:
            return _signature(type(self).__name__, self.terms)
        return self._trained_as

    def get_extra_state(self) -> Tensor:
        """The recipe as JSON, or the signature, kept with the weights; as a tensor, as readers of weights expect."""
        text = self.signature if self.recipe is None else json.dumps(self.recipe, sort_keys=True, allow_nan=False)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the signature of loaded weights, and their recipe where this translator has none of its own."""
        self._trained_as = decode_signature(state)
        if self.recipe is None:
            self.recipe = decode_recipe(state)

    def _build_if_needed(self, name: str, factory: NetworkFactory | None, used_by: frozenset[str]) -> nn.Module | None:
        needed = sorted(used_by.intersection(self.terms))
        if not needed:
            return None
        if factory is None:
            raise ValueError(f"the loss terms {needed} need the network '{name}', which was not given")
        return factory()


class _Traced(nn.Module):
    """A translator's ``forward`` as TorchScript, at any image size."""

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        example = translator.example_input().to(next(translator.parameters()).device)
        with warnings.catch_warnings(), torch.no_grad():  # the checks of an image's size are not traced
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            self.network = torch.jit.trace(translator, example)

    def forward(self, source: Tensor) -> Tensor:
        return self.network(source)


def decode_signature(state: Tensor) -> str:
    """The text of ``Translator.signature`` out of the extra state of a state dictionary."""
    recipe = decode_recipe(state)
    if recipe is None:
        return _text(state)
    terms = [name for name, weight in recipe.get("weights", {}).items() if weight]
    kind = str(recipe.get("translator", {}).get("class", "")).rpartition(".")[2]
    return _signature(kind, terms or (recipe.get("training", {}).get("origin", "untrained"),))


def decode_recipe(state: Tensor) -> dict[str, Any] | None:
    """The recipe out of the extra state of a state dictionary, not checked; None where it holds none."""
    try:
        content = json.loads(_text(state))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _text(state: Tensor) -> str:
    return bytes(state.to(torch.uint8).flatten().tolist()).decode(errors="replace")


def _signature(kind: str, terms: Any) -> str:
    return f"{kind}({', '.join(sorted(terms)) or 'untrained'})"
