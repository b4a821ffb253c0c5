"""Translators: a backbone's networks and the loss terms they are trained with."""

from pipeline.translators.base import Translator, decode_signature
from pipeline.translators.cyclegan import CycleGANTranslator
from pipeline.translators.image_pool import ImagePool
from pipeline.translators.munit import MUNITTranslator
from pipeline.translators.nicegan import NICETranslator
from pipeline.translators.unit import UNITTranslator

__all__ = [
    "CycleGANTranslator",
    "ImagePool",
    "MUNITTranslator",
    "NICETranslator",
    "Translator",
    "UNITTranslator",
    "decode_signature",
]
