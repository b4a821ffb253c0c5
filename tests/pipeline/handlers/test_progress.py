"""Properties of the progress display on terminals and elsewhere."""

from __future__ import annotations

import io
import math
import re

import pytest
import torch
from ignite.engine import Engine, Events

from pipeline.handlers.losses import LossCollector, LossEvents
from pipeline.handlers.progress import ProgressHandler


class Terminal(io.StringIO):
    """Text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_trainer(handler: ProgressHandler, fail_at: int | None = None) -> Engine:
    def step(engine: Engine, batch: int) -> None:
        if engine.state.iteration == fail_at:
            raise RuntimeError("no data")

    trainer = Engine(step)
    handler.attach(trainer)
    return trainer


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def last_bar(stream: io.StringIO) -> str:
    return re.split(r"[\r\n]", stream.getvalue().rstrip())[-1]


def test_without_a_terminal_each_epoch_gives_one_line():
    stream = io.StringIO()
    make_trainer(ProgressHandler(stream=stream)).run(range(20), max_epochs=3)
    shown = lines(stream)
    assert [line.split(", ")[:2] for line in shown] == [
        ["epoch 1/3", "iteration 20/60"],
        ["epoch 2/3", "iteration 40/60"],
        ["epoch 3/3", "iteration 60/60"],
    ]
    assert all("it/s" in line and "left" in line and "\r" not in line for line in shown)
    assert "00:00 left" in shown[-1]


def test_long_epochs_give_a_line_at_each_tenth():
    stream = io.StringIO()
    make_trainer(ProgressHandler(seconds=0, stream=stream)).run(range(50), max_epochs=1)
    assert [line.split(", ")[1] for line in lines(stream)] == [f"iteration {i}/50" for i in range(5, 51, 5)]


def test_short_pauses_between_lines_are_kept():
    stream = io.StringIO()
    make_trainer(ProgressHandler(seconds=3600, stream=stream)).run(range(50), max_epochs=1)
    assert len(lines(stream)) == 1


def test_terminal_gets_a_bar_over_the_whole_training():
    stream = Terminal()
    make_trainer(ProgressHandler(stream=stream)).run(range(20), max_epochs=3)
    assert "\r" in stream.getvalue()
    assert "epoch 3/3: 100%" in last_bar(stream)
    assert "60/60" in last_bar(stream)
    assert stream.getvalue().endswith("\n")


def test_losses_are_the_mean_of_what_was_collected_last():
    for stream, expected in ((io.StringIO(), "generator/adversarial 2"), (Terminal(), "G advers 2")):
        trainer = make_trainer(ProgressHandler(stream=stream))

        @trainer.on(Events.ITERATION_COMPLETED(every=10))
        def publish(engine: Engine) -> None:
            engine.state.recent_losses = {"iteration": [1, 2], "generator/adversarial": [1.0, 3.0]}
            engine.fire_event(LossEvents.LOSSES_READY)

        trainer.run(range(10), max_epochs=1)
        assert expected in stream.getvalue()


def test_losses_come_from_the_collector_whatever_was_attached_first():
    for collector_first in (True, False):
        stream = io.StringIO()
        trainer = Engine(lambda engine, batch: {"losses": {"discriminator/adversarial": torch.tensor(0.25)}})
        handlers = [LossCollector(interval=2), ProgressHandler(stream=stream)]
        for handler in handlers if collector_first else handlers[::-1]:
            handler.attach(trainer)
        trainer.run(range(4), max_epochs=2)
        assert "discriminator/adversarial 0.25" in lines(stream)[-1]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["plain", "terminal"])
def test_validation_metrics_follow_on_one_line(stream):
    evaluator = Engine(lambda engine, batch: None)

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        engine.state.metrics = {"nmae": 0.0412, "psnr": torch.tensor(24.314), "ssim": math.nan, "source_psnr": 1.0}

    trainer = make_trainer(ProgressHandler(evaluator, stream=stream))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    trainer.run(range(3), max_epochs=2)
    shown = re.split(r"[\r\n]+", stream.getvalue())
    assert "validation after epoch 2: PSNR 24.31 dB, SSIM nan, NMAE 0.0412" in shown
    assert sum(line.startswith("validation") for line in shown) == 2


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["plain", "terminal"])
def test_a_resumed_run_shows_its_position(stream):
    trainer = make_trainer(ProgressHandler(stream=stream))

    # As a checkpoint handler does, after the progress handler was attached.
    @trainer.on(Events.STARTED)
    def resume(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = 2, 20

    trainer.run(range(10), max_epochs=3)
    shown = stream.getvalue()
    assert "epoch 3/3" in shown
    assert "30/30" in shown
    assert "epoch 1/3" not in shown


def test_an_exception_closes_the_bar_and_is_raised():
    stream = Terminal()
    trainer = make_trainer(ProgressHandler(stream=stream), fail_at=7)
    with pytest.raises(RuntimeError, match="no data"):
        trainer.run(range(10), max_epochs=1)
    assert "6/10" in last_bar(stream)
    assert stream.getvalue().endswith("\n")


def test_a_second_run_starts_a_new_bar():
    stream = Terminal()
    trainer = make_trainer(ProgressHandler(stream=stream))
    for _ in range(2):
        trainer.run(range(5), max_epochs=1)
    assert stream.getvalue().count("\n") == 2
    assert "5/5" in last_bar(stream)


def test_negative_pause_is_refused():
    with pytest.raises(ValueError, match="seconds must not be negative, got -1"):
        ProgressHandler(seconds=-1)
