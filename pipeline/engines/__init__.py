"""The Ignite trainer and evaluator."""

from pipeline.engines.batch import PrepareBatch
from pipeline.engines.determinism import seed_all
from pipeline.engines.evaluator import TranslationEvaluator
from pipeline.engines.precision import channels_last_pays, in_bfloat16
from pipeline.engines.processes import Processes, join_processes, leave_processes, own_part, part_of_batch
from pipeline.engines.schedule import linear_decay, validation_interval
from pipeline.engines.trainer import TranslationTrainer

__all__ = [
    "PrepareBatch",
    "Processes",
    "TranslationEvaluator",
    "TranslationTrainer",
    "channels_last_pays",
    "in_bfloat16",
    "join_processes",
    "leave_processes",
    "linear_decay",
    "own_part",
    "part_of_batch",
    "seed_all",
    "validation_interval",
]
