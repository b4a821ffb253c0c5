"""The methods by name, as chains of configs: those that the paper compares, and what was added to them here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BACKBONES = ("cyclegan", "unit", "munit", "nicegan")
# By mode, the overlays that turn the default weights into it; train.json is mode NC+R with the CycleGAN backbone.
MODES = {
    "nc": ("no_registration.json",),
    "nc+r": (),
    "c": ("cycle.json", "no_registration.json"),
    "c+r": ("cycle.json",),
}
# What the paper calls by a name of its own.
NAMES = {"cyclegan-nc+r": "reggan", "cyclegan-c": "cyclegan"}
DEFAULT_BACKBONE = "cyclegan"
# Overlays that change how a mode +R finds its fields, by what they add to the name of the method.
REGISTRATIONS = {"affine": "affine.json", "true": "true_field.json"}
# Overlays that say how often pairs are misaligned and what is done about it before training, likewise.
PAIRS = {"fixed": "fixed_noise.json", "registered": "registered.json"}


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


def method_name(
    backbone: str, weights: Mapping[str, float], registration: str | None = None, pairs: str | None = None
) -> str:
    """Name of what a backbone trained with these loss weights is.

    Args:
        backbone: the config's name of the backbone.
        weights: weight of each loss term.
        registration: among ``REGISTRATIONS``, where fields are not found by the registration network alone; of no
            meaning where the weights need no registration.
        pairs: among ``PAIRS``, where they are not misaligned anew whenever they are seen.

    Returns:
        For instance "reggan", "cyclegan", "pix2pix", "munit-c+r", "reggan-affine". Weights that make none of the
        paper's modes are named like the nearest one.
    """
    terms = {term for term, weight in weights.items() if weight}
    suffix = f"-{pairs}" if pairs in PAIRS else ""
    if "pixel" in terms:
        return ("pix2pix" if backbone == DEFAULT_BACKBONE else f"{backbone}-pix2pix") + suffix
    mode = ("c" if "cycle" in terms else "nc") + ("+r" if terms & {"correction", "smoothness"} else "")
    name = NAMES.get(f"{backbone}-{mode}", f"{backbone}-{mode}")
    return (f"{name}-{registration}" if registration and mode.endswith("+r") else name) + suffix


def _backbone_overlays(backbone: str) -> tuple[str, ...]:
    return () if backbone == DEFAULT_BACKBONE else (f"{backbone}.json",)


def _methods() -> dict[str, Method]:
    methods = [Method("pix2pix", DEFAULT_BACKBONE, ("pix2pix.json",))]
    for backbone in BACKBONES:
        for mode, overlays in MODES.items():
            name = NAMES.get(f"{backbone}-{mode}", f"{backbone}-{mode}")
            methods.append(Method(name, backbone, (*_backbone_overlays(backbone), *overlays)))
    for registration, overlay in REGISTRATIONS.items():
        methods.append(Method(f"reggan-{registration}", DEFAULT_BACKBONE, (overlay,)))
    for pairs, overlay in PAIRS.items():
        methods.append(Method(f"pix2pix-{pairs}", DEFAULT_BACKBONE, ("pix2pix.json", overlay)))
        methods.append(Method(f"reggan-{pairs}", DEFAULT_BACKBONE, (overlay,)))
    return {method.name: method for method in methods}


METHODS = _methods()
"""The paper's 17 by name, in the order of its table, then ours."""
