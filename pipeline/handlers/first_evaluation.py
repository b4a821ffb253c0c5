"""The evaluation before a training that goes on from a model."""

from __future__ import annotations

import sys

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from tqdm import tqdm

from pipeline.handlers.checkpoint import CheckpointHandler
from pipeline.reporting import ScoreTable


class FirstEvaluation:
    """Score what a training starts from, on its own validation cases, before the first step.

    The scores are printed, logged as step 0 by whatever listens to the evaluator, and count as those of epoch 0: where
    no epoch is better, ``model.pt`` stays the model that the training started from. A resumed training has none.

    Attach it behind the handler of the checkpoints.

    Args:
        evaluator: of the validation.
        checkpoints: saves what was evaluated.
    """

    def __init__(self, evaluator: Evaluator, checkpoints: CheckpointHandler) -> None:
        self.evaluator, self.checkpoints = evaluator, checkpoints

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Evaluate, unless the training is a resumed one."""
        if self.checkpoints.resumed:
            return
        self.evaluator.run()
        self.evaluator.state.best_metric_epoch = engine.state.epoch
        if idist.get_rank() == 0:
            table = ScoreTable(self.evaluator.state.metrics).text()
            tqdm.write(f"\nValidation before training, of the model that it starts from:\n\n{table}\n", file=sys.stdout)
        self.checkpoints.save(engine)
