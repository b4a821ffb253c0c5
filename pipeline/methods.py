"""The methods by name, as chains of configs: those that the paper compares, and what was added to them here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.translators import DEFAULT_BACKBONE, TRANSLATORS

BACKBONES = tuple(TRANSLATORS)
# By mode, the overlays that turn the default weights into it; train.json is mode NC+R with the CycleGAN backbone.
MODES = {
    "nc": ("no_registration.json",),
    "nc+r": (),
    "c": ("cycle.json", "no_registration.json"),
    "c+r": ("cycle.json",),
}
# What the paper calls by a name of its own.
NAMES = {"cyclegan-nc+r": "reggan", "cyclegan-c": "cyclegan"}
# Ways to find the fields of a mode +R, of no meaning in the others; and what any mode can have, by what is added to the
# name of the method, in this order.
REGISTRATIONS = ("affine", "true")
VARIANTS = (*REGISTRATIONS, "unet", "fixed", "registered")


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """One of the compared methods.

    Attributes:
        name: as ``method_name`` gives it; also the default name of its runs.
        backbone: overlay of the backbone, without ".json"; train.json itself has the first one.
        overlays: config files to stack over train.json, in this order.
    """

    name: str
    backbone: str
    overlays: tuple[str, ...]

    @property
    def training(self) -> tuple[str, ...]:
        """The chain of configs to train with."""
        return ("train.json", *self.overlays)


def method_name(backbone: str, weights: Mapping[str, float], variants: Collection[str] = ()) -> str:
    """Name of what a backbone trained with these loss weights is.

    Args:
        backbone: the config's name of the backbone.
        weights: weight of each loss term.
        variants: among ``VARIANTS``, what overlays change beside the weights.

    Returns:
        For instance "reggan", "cyclegan", "pix2pix", "munit-c+r", "reggan-affine-unet". Weights that make none of the
        paper's modes are named like the nearest one.
    """
    terms = {term for term, weight in weights.items() if weight}
    registered = "pixel" not in terms and bool(terms & {"correction", "smoothness"})
    if "pixel" in terms:
        name = "pix2pix" if backbone == DEFAULT_BACKBONE else f"{backbone}-pix2pix"
    else:
        mode = ("c" if "cycle" in terms else "nc") + ("+r" if registered else "")
        name = NAMES.get(f"{backbone}-{mode}", f"{backbone}-{mode}")
    idle = [] if registered else [one for one in REGISTRATIONS if one in variants]
    if idle:
        logger.warning(
            "this trains %s: what was asked for by '%s' has no effect without a weight for correction or smoothness "
            "(and with one for pixel); a model that a training starts from brings its weights, unless all are given",
            name,
            "', '".join(idle),
        )
    added = [one for one in VARIANTS if one in variants and (registered or one not in REGISTRATIONS)]
    return "-".join([name, *added])


def _backbone_overlays(backbone: str) -> tuple[str, ...]:
    return () if backbone == DEFAULT_BACKBONE else (f"{backbone}.json",)


def _methods() -> dict[str, Method]:
    methods = [Method("pix2pix", DEFAULT_BACKBONE, ("pix2pix.json",))]
    for backbone in BACKBONES:
        for mode, overlays in MODES.items():
            name = NAMES.get(f"{backbone}-{mode}", f"{backbone}-{mode}")
            methods.append(Method(name, backbone, (*_backbone_overlays(backbone), *overlays)))
    methods += [
        Method("reggan-affine", DEFAULT_BACKBONE, ("affine.json",)),
        Method("reggan-true", DEFAULT_BACKBONE, ("true_field.json",)),
        Method("pix2pix-unet", DEFAULT_BACKBONE, ("pix2pix.json", "unet.json")),
        Method("reggan-affine-unet", DEFAULT_BACKBONE, ("affine.json", "unet.json", "anchored.json")),
        Method("pix2pix-fixed", DEFAULT_BACKBONE, ("pix2pix.json", "fixed_noise.json")),
        Method("reggan-fixed", DEFAULT_BACKBONE, ("fixed_noise.json",)),
        Method("pix2pix-registered", DEFAULT_BACKBONE, ("pix2pix.json", "registered.json")),
        Method("reggan-registered", DEFAULT_BACKBONE, ("registered.json",)),
        Method("pix2pix-unet-registered", DEFAULT_BACKBONE, ("pix2pix.json", "unet.json", "registered.json")),
    ]
    return {method.name: method for method in methods}


METHODS = _methods()
"""The paper's 17 by name, in the order of its table, then ours."""
