"""Translators: a backbone's networks and the loss terms they are trained with."""

from pipeline.translators.base import Translator
from pipeline.translators.cyclegan import CycleGANTranslator

__all__ = ["CycleGANTranslator", "Translator"]
