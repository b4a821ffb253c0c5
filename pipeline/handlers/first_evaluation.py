"""The evaluation before a training that goes on from a model."""

from __future__ import annotations

import sys

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from tqdm import tqdm

from pipeline.handlers.tables import ScoreTable


class FirstEvaluation:
    """Score what a training starts from, on its own validation cases, before the first step.

    The scores are printed, and logged as step 0 by whatever listens to the evaluator. They do not count as the best so
    far: ``model.pt`` is of an epoch of this training. A resumed training has none.

    Attach it behind the handler that restores checkpoints.

    Args:
        evaluator: of the validation.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Evaluate, unless there was an epoch before."""
        if engine.state.epoch > 0:
            return
        state = self.evaluator.state
        best = state.best_metric, state.best_metric_epoch
        self.evaluator.run()
        state.best_metric, state.best_metric_epoch = best
        table = ScoreTable(state.metrics).text()
        tqdm.write(f"\nValidation before training, of the model that it starts from:\n\n{table}\n", file=sys.stdout)
