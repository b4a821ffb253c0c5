"""The Ignite trainer and evaluator."""

from pipeline.engines.batch import PrepareBatch
from pipeline.engines.evaluator import TranslationEvaluator
from pipeline.engines.schedule import linear_decay, validation_interval
from pipeline.engines.trainer import TranslationTrainer

__all__ = ["PrepareBatch", "TranslationEvaluator", "TranslationTrainer", "linear_decay", "validation_interval"]
