"""What a training starts from is scored before its first step, once, and is the best until an epoch is better."""

from __future__ import annotations

from types import SimpleNamespace

from ignite.engine import Engine, Events

from pipeline.handlers import FirstEvaluation


class Evaluator:
    """Stands in for MONAI's: its scores get better, and it takes each for the best."""

    def __init__(self):
        self.runs = 0
        self.state = SimpleNamespace(metrics={}, best_metric=-1, best_metric_epoch=-1)

    def run(self):
        self.runs += 1
        self.state.metrics = {"psnr": 20.0 + self.runs, "source_psnr": 15.0}
        self.state.best_metric, self.state.best_metric_epoch = self.state.metrics["psnr"], 1


def trained(evaluator, resumed=False):
    trainer = Engine(lambda engine, batch: events.append("step"))
    events = []
    saved = SimpleNamespace(
        resumed=resumed, save=lambda engine: events.append(f"saved {evaluator.state.best_metric_epoch}")
    )
    FirstEvaluation(evaluator, saved).attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda: events.append(f"evaluated {evaluator.runs} times"))
    trainer.run([0, 1], max_epochs=3)
    return events


def test_it_is_scored_once_before_the_first_step(capsys):
    evaluator = Evaluator()
    assert trained(evaluator) == ["saved 0", "evaluated 1 times", *["step"] * 6]
    assert evaluator.runs == 1
    printed = capsys.readouterr().out
    assert "Validation before training, of the model that it starts from:" in printed
    assert "Prediction against source as it is: +6.00 dB PSNR." in printed


def test_it_counts_as_epoch_0():
    evaluator = Evaluator()
    trained(evaluator)
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (21.0, 0)


def test_a_resumed_training_has_none(capsys):
    evaluator = Evaluator()
    trained(evaluator, resumed=True)
    assert evaluator.runs == 0
    assert "before training" not in capsys.readouterr().out
