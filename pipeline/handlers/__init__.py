"""Ignite handlers: progress, checkpoints, pictures, tables and MLflow."""

from pipeline.handlers.checkpoint import CheckpointHandler
from pipeline.handlers.drawing import Sample, draw_translation
from pipeline.handlers.evaluation import EvaluationReport
from pipeline.handlers.exceptions import on_exception
from pipeline.handlers.first_evaluation import FirstEvaluation
from pipeline.handlers.losses import LossCollector, LossEvents
from pipeline.handlers.pictures import EvaluationPictures, PictureHandler
from pipeline.handlers.progress import ProgressHandler
from pipeline.handlers.seeding import EpochSeed
from pipeline.handlers.tables import CaseTable, ScoreTable, SummaryHandler
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
    "Sample",
    "ScoreTable",
    "SummaryHandler",
    "VolumeScores",
    "draw_translation",
    "on_exception",
]
