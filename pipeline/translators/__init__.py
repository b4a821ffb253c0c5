"""Translators: a backbone's networks and the loss terms they are trained with."""

from pipeline.translators.base import Translator, decode_signature
from pipeline.translators.cyclegan import CycleGANTranslator
from pipeline.translators.image_pool import ImagePool

__all__ = ["CycleGANTranslator", "ImagePool", "Translator", "decode_signature"]
