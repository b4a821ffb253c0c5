"""Tables and pictures of translations: what is made of scores and slices to look at."""

from pipeline.reporting.drawing import draw_translation
from pipeline.reporting.samples import Sample
from pipeline.reporting.tables import ScoreTable

__all__ = ["Sample", "ScoreTable", "draw_translation"]
