"""Translators: a backbone's networks and the loss terms they are trained with."""

import importlib

from pipeline.translators.base import ADVERSARIAL, Translator, decode_recipe, decode_signature
from pipeline.translators.cyclegan import CycleGANTranslator
from pipeline.translators.image_pool import ImagePool
from pipeline.translators.munit import MUNITTranslator
from pipeline.translators.nicegan import NICETranslator
from pipeline.translators.unit import UNITTranslator

TRANSLATORS: dict[str, type[Translator]] = {
    "cyclegan": CycleGANTranslator,
    "unit": UNITTranslator,
    "munit": MUNITTranslator,
    "nicegan": NICETranslator,
}
"""The backbones by their names in configs, in the order of the paper's table."""
DEFAULT_BACKBONE = "cyclegan"
"""Backbone of train.json alone."""


def find_translator(name: str) -> type[Translator]:
    """The translator of a backbone.

    Args:
        name: of the backbone, one of `TRANSLATORS`, or the path of a class, such as "my_module.MyTranslator".

    Raises:
        ValueError: there is none of that name.
    """
    if name in TRANSLATORS:
        return TRANSLATORS[name]
    module, _, attribute = str(name).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"backbone: {name!r} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Translator)):
        raise ValueError(
            f"backbone must be one of {', '.join(TRANSLATORS)}, or the path of a class derived from Translator, "
            f"got {name!r}"
        )
    return kind


__all__ = [
    "ADVERSARIAL",
    "DEFAULT_BACKBONE",
    "TRANSLATORS",
    "CycleGANTranslator",
    "ImagePool",
    "MUNITTranslator",
    "NICETranslator",
    "Translator",
    "UNITTranslator",
    "decode_recipe",
    "decode_signature",
    "find_translator",
]
