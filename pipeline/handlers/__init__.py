"""What attaches to the engines: checkpoints, progress, losses, seeding, pictures, tables and MLflow."""

from pipeline.handlers.averaging import WeightAverage, weight_average
from pipeline.handlers.checkpoint import CheckpointHandler
from pipeline.handlers.evaluation import EvaluationReport
from pipeline.handlers.exceptions import on_exception
from pipeline.handlers.first_evaluation import FirstEvaluation
from pipeline.handlers.losses import LossCollector, LossEvents
from pipeline.handlers.pictures import EvaluationPictures, PictureHandler
from pipeline.handlers.progress import ProgressHandler
from pipeline.handlers.seeding import EpochSeed
from pipeline.handlers.tables import CaseTable, SummaryHandler
from pipeline.handlers.tracking import MLflowTracker
from pipeline.handlers.volumes import VolumeScores

__all__ = [
    "CaseTable",
    "CheckpointHandler",
    "EpochSeed",
    "EvaluationPictures",
    "EvaluationReport",
    "FirstEvaluation",
    "LossCollector",
    "LossEvents",
    "MLflowTracker",
    "PictureHandler",
    "ProgressHandler",
    "SummaryHandler",
    "VolumeScores",
    "WeightAverage",
    "on_exception",
    "weight_average",
]
