"""The trainer's step: who learns from what, and how often each network runs."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events

from pipeline.engines import PrepareBatch, TranslationTrainer, linear_decay
from pipeline.handlers import WeightAverage


def optimizers(translator):
    # Plain descent: Adam would blow rounding up where a gradient is zero but for rounding (a bias before a norm).
    generator = torch.optim.SGD(translator.generator_parameters(), lr=1e-2)
    discriminator = list(translator.discriminator_parameters())
    return generator, torch.optim.SGD(discriminator, lr=1e-2) if discriminator else None


def make_trainer(translator, loader, weights, **kwargs):
    generator, discriminator = optimizers(translator)
    return TranslationTrainer(
        "cpu", kwargs.pop("max_epochs", 1), loader, translator, generator, discriminator, weights, **kwargs
    )


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def test_a_step_trains_all_three_networks(make_translator, batch, reggan_weights):
    translator = make_translator()
    before = state(translator)
    make_trainer(translator, [batch], reggan_weights).run()
    for network in ("generator", "registration", "discriminator"):
        assert any(name.startswith(network) for name in changed(before, translator)), network


def test_each_half_changes_its_own_networks_only(make_translator, batch, reggan_weights):
    translator = make_translator()
    trainer = make_trainer(translator, [batch], reggan_weights)
    seen = []
    original = trainer._update

    def spy(optimizer, terms):
        before = state(translator)
        original(optimizer, terms)
        seen.append({name.split(".")[0] for name in changed(before, translator)})

    trainer._update = spy
    trainer.run()
    assert seen == [{"generator", "registration"}, {"discriminator"}]


def test_generator_runs_once_and_discriminator_gets_no_gradient_from_it(make_translator, batch, reggan_weights):
    translator = make_translator()
    trainer = make_trainer(translator, [batch], reggan_weights)
    runs = []
    translator.generator.register_forward_hook(lambda *_: runs.append(1))
    original = trainer._update

    def spy(optimizer, terms):
        if optimizer is trainer.generator_optimizer:
            translator.discriminator.zero_grad(set_to_none=True)
            original(optimizer, terms)
            assert all(parameter.grad is None for parameter in translator.discriminator.parameters())
        else:
            original(optimizer, terms)

    trainer._update = spy
    trainer.run()
    assert len(runs) == 1


def test_step_equals_the_algorithm_written_out(make_translator, batch, reggan_weights):
    ours, plain = make_translator(), make_translator()
    make_trainer(ours, [batch], reggan_weights).run()

    g, d = optimizers(plain)
    _, terms = plain.generator_terms(batch)
    g.zero_grad()
    (terms["adversarial"] + 20 * terms["correction"] + 10 * terms["smoothness"]).backward()
    prediction = None
    with torch.no_grad():
        prediction = plain(batch["image"])
    g.step()
    d.zero_grad()
    ((plain.discriminator(prediction) ** 2).mean() + ((plain.discriminator(batch["label"]) - 1) ** 2).mean()).backward()
    d.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


CYCLEGAN = {"adversarial": 1.0, "cycle": 10.0}


def in_parts(batch, *sizes):
    """A batch in smaller ones."""
    parts = {name: value.split(sizes) for name, value in batch.items()}
    return [{name: parts[name][number] for name in batch} for number in range(len(sizes))]


def train_in_parts(translator, batches, accumulation, weights, max_epochs=2, **kwargs):
    translator.double()
    average = WeightAverage(translator, 0.5)
    options = {"max_epochs": max_epochs, "train_handlers": [average], "accumulation": accumulation, **kwargs}
    trainer = make_trainer(translator, batches, weights, **options)
    trainer.run()
    return {name: value for name, value in translator.state_dict().items() if isinstance(value, torch.Tensor)}, trainer


@pytest.fixture
def four():
    torch.manual_seed(3)
    return {name: torch.rand(4, 1, 32, 32, dtype=torch.float64) * 2 - 1 for name in ("image", "label")}


@pytest.mark.parametrize("weights", [None, CYCLEGAN], ids=["reggan", "cyclegan, with its pools"])
@pytest.mark.parametrize(("sizes", "accumulation"), [((2, 2), 2), ((1, 1, 1, 1), 4)])
def test_accumulated_batches_are_one_large_batch(make_translator, reggan_weights, four, weights, sizes, accumulation):
    weights = weights or reggan_weights
    whole, _ = train_in_parts(make_translator(weights), [four], 1, weights)
    parts, _ = train_in_parts(make_translator(weights), in_parts(four, *sizes), accumulation, weights)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-12, msg=name)
    # Not as without accumulation, or nothing was shown.
    one_by_one, _ = train_in_parts(make_translator(weights), in_parts(four, *sizes), 1, weights)
    assert any(not torch.allclose(one_by_one[name], value, rtol=1e-6) for name, value in whole.items())


def test_the_last_step_of_an_epoch_has_the_batches_that_are_left(make_translator, reggan_weights, four):
    """Three batches of one sample, two in a step: as batches of two and of one."""
    three = in_parts(four, 1, 1, 1, 1)[:3]
    stepped = []

    def watch(engine):
        stepped.append(engine.stepped)

    parts, trainer = train_in_parts(make_translator(), three, 2, reggan_weights)
    whole, _ = train_in_parts(make_translator(), in_parts(four, 2, 1, 1)[:2], 1, reggan_weights)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-10, atol=1e-12, msg=name)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, watch)
    trainer.state.max_epochs = 4
    trainer.run()
    assert stepped == [False, True, True] * 2


@pytest.mark.parametrize(("accumulation", "compiled"), [(0, "off"), (2, "reduce-overhead")])
def test_accumulation_that_cannot_be_is_refused(make_translator, batch, reggan_weights, accumulation, compiled):
    with pytest.raises(ValueError, match="accumulation must be"):
        make_trainer(make_translator(), [batch], reggan_weights, accumulation=accumulation, compile=compiled)


def test_losses_stay_on_the_device_detached(make_translator, batch, reggan_weights):
    trainer = make_trainer(make_translator(), [batch], reggan_weights)
    trainer.run()
    losses = trainer.state.output["losses"]
    assert set(losses) == {
        "generator/adversarial",
        "generator/correction",
        "generator/smoothness",
        "discriminator/adversarial",
    }
    assert all(
        isinstance(value, torch.Tensor) and value.ndim == 0 and not value.requires_grad for value in losses.values()
    )


def test_a_step_never_copies_to_the_host(make_translator, batch, reggan_weights, monkeypatch):
    trainer = make_trainer(make_translator(), [batch], reggan_weights)

    def refuse(*_args, **_kwargs):
        raise AssertionError("a tensor was copied to the host")

    generator, discriminator = trainer.generator_optimizer, trainer.discriminator_optimizer
    generator.step = discriminator.step = lambda: None  # torch's own optimiser reads its step counter
    for method in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    trainer._iteration(trainer, batch)


def test_training_without_a_discriminator(make_translator, batch):
    weights = {"correction": 20.0}
    translator = make_translator(weights)
    before = state(translator)
    make_trainer(translator, [batch], weights).run()
    assert changed(before, translator)


def test_optimizer_and_discriminator_must_agree(make_translator, batch, reggan_weights):
    translator = make_translator()
    generator, _ = optimizers(translator)
    with pytest.raises(ValueError, match="discriminator: True; discriminator_optimizer given: False"):
        TranslationTrainer("cpu", 1, [batch], translator, generator, None, reggan_weights)


def test_mixed_precision_runs_the_networks_in_bfloat16_and_keeps_float32_weights(
    make_translator, batch, reggan_weights
):
    translator = make_translator()
    seen = []
    translator.generator.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    make_trainer(translator, [batch], reggan_weights, amp=True).run()
    assert seen == [torch.bfloat16]
    assert all(parameter.dtype == torch.float32 for parameter in translator.parameters())


def test_same_seed_same_weights(make_translator, batch, reggan_weights):
    first, second = make_translator(), make_translator()
    for translator in (first, second):
        make_trainer(translator, [copy.deepcopy(batch)] * 3, reggan_weights).run()
    assert not changed(state(first), second)


def test_prepare_batch_applies_the_transform_to_tensors_and_keeps_the_rest():
    prepare = PrepareBatch(lambda batch: {**batch, "image": batch["image"] + 1})
    batch = prepare({"image": torch.zeros(1, 1, 2, 2), "case": ["a"]}, device="cpu")
    assert batch["image"].eq(1).all()
    assert batch["case"] == ["a"]


@pytest.mark.parametrize(("decay", "expected"), [(0, [1, 1, 1, 1]), (3, [1, 0.75, 0.5, 0.25]), (1, [1, 1, 1, 0.5])])
def test_linear_decay(decay, expected):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = linear_decay(optimizer, max_epochs=4, decay_epochs=decay)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected)


def test_a_finished_schedule_goes_on_in_a_longer_one():
    """A finished run ends with a rate of zero, which must not be that of the first epoch after it is resumed."""

    def run(max_epochs, epochs, state=None):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = linear_decay(optimizer, max_epochs, decay_epochs=2)
        if state is not None:
            optimizer.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
        rates = [optimizer.param_groups[0]["lr"]]
        for _ in range(epochs):
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates, (optimizer.state_dict(), schedule.state_dict())

    rates, state = run(max_epochs=2, epochs=2)
    assert rates[-1] == 0
    resumed, _ = run(max_epochs=4, epochs=2, state=state)
    assert resumed == run(max_epochs=4, epochs=4)[0][2:]


def test_linear_decay_refuses_more_than_all_epochs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"decay_epochs must lie in \[0, max_epochs = 4\], got 5"):
        linear_decay(optimizer, max_epochs=4, decay_epochs=5)
