"""The running mean of the weights: what it is, where it is used, and that training does not notice it."""

import copy

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset

from pipeline.engines import TranslationTrainer
from pipeline.handlers import CheckpointHandler, WeightAverage, weight_average
from pipeline.models import Model, Recipe, load_checkpoint

WEIGHTS = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


def run(make_translator, folder, decay=0.8, epochs=3, resume=False, stop=None, recipe=None):
    """A training; stopped in front of the last step of the epoch ``stop``."""
    generator = torch.Generator().manual_seed(5)
    pairs = [{key: torch.rand(1, 32, 32, generator=generator) * 2 - 1 for key in ("image", "label")} for _ in range(6)]
    translator = make_translator()
    if recipe is not None:
        Recipe(recipe).travel_with(translator)
    g = torch.optim.Adam(translator.generator_parameters(), lr=1e-2)
    d = torch.optim.Adam(translator.discriminator_parameters(), lr=1e-2)
    average = weight_average(translator, decay)
    stateful = {"generator_optimizer": g, "discriminator_optimizer": d, "average": average}
    checkpoints = CheckpointHandler(folder, translator, stateful, resume=resume)
    handlers = [handler for handler in (average, checkpoints) if handler is not None]
    loader = DataLoader(Dataset(pairs), batch_size=2)
    trainer = TranslationTrainer("cpu", epochs, loader, translator, g, d, WEIGHTS, train_handlers=handlers)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: seen.append({name: value.detach().clone() for name, value in translator.named_parameters()}),
    )

    def interrupt(engine):
        if engine.state.iteration == 3 * stop - 1:
            raise KeyboardInterrupt

    if stop is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    else:
        trainer.run()
    return translator, seen


def test_it_is_the_mean_of_what_translates_and_does_not_change_the_training(make_translator, tmp_path):
    averaged, weights = run(make_translator, tmp_path / "mean")
    plain, expected = run(make_translator, tmp_path / "plain", decay=0)
    for step, ours in zip(expected, weights, strict=True):
        assert all(torch.equal(step[name], ours[name]) for name in step)
    for name, value in averaged.named_parameters():
        mean = weights[0][name]
        for step in weights[1:]:
            mean = 0.8 * mean + 0.2 * step[name]
        alone = name.startswith(("registration", "discriminator"))
        torch.testing.assert_close(value.detach(), weights[-1][name] if alone else mean)
    assert not torch.equal(averaged.generator.stem[0].weight, plain.generator.stem[0].weight)


@pytest.mark.parametrize("stop", [2, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(make_translator, tmp_path, assert_same, stop):
    whole, _ = run(make_translator, tmp_path / "whole")
    run(make_translator, tmp_path / "parts", stop=stop)
    assert load_checkpoint(tmp_path / "parts/checkpoints/last.pt")["trainer"]["epoch"] == stop - 1
    run(make_translator, tmp_path / "parts", resume=True)
    first, second = (load_checkpoint(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "parts"))
    for content in (first, second):
        del content["random"]  # of the data order, which is fixed here
    assert_same(first, second)
    again, _ = run(make_translator, tmp_path / "parts", resume=True)  # nothing is left to do
    assert_same(dict(whole.state_dict()), dict(again.state_dict()))


def test_every_file_translates_with_the_mean(make_translator, make_recipe, tmp_path):
    translator, _ = run(make_translator, tmp_path, recipe=make_recipe())
    source = torch.rand(1, 1, 32, 32)
    for name in ("model.pt", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert torch.equal(Model(tmp_path / name).build()(source), translator(source)), name


def test_state_of_other_weights_is_refused(make_translator):
    translator = make_translator()
    average = WeightAverage(translator, 0.9)
    average._update()
    average._put_in()
    state = copy.deepcopy(average.state_dict())
    state["trained"].pop(next(iter(state["trained"])))
    with pytest.raises(KeyError, match="expected the weights"):
        average.load_state_dict(state)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5])
def test_decay_must_lie_between_zero_and_one(make_translator, decay):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got"):
        WeightAverage(make_translator(), decay)
