"""What MLflow is told: runs, kept on disk until the store has them."""

from pipeline.tracking.evaluation import TrackedEvaluation
from pipeline.tracking.run import MLflowRun, now

__all__ = ["MLflowRun", "TrackedEvaluation", "now"]
