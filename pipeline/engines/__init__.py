"""The Ignite trainer and evaluator."""

from pipeline.engines.batch import PrepareBatch
from pipeline.engines.determinism import seed_all
from pipeline.engines.evaluator import TranslationEvaluator
from pipeline.engines.precision import channels_last_pays, in_bfloat16
from pipeline.engines.schedule import linear_decay
from pipeline.engines.trainer import TranslationTrainer

__all__ = [
    "PrepareBatch",
    "TranslationEvaluator",
    "TranslationTrainer",
    "channels_last_pays",
    "in_bfloat16",
    "linear_decay",
    "seed_all",
]
