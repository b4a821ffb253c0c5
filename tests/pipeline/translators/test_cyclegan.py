"""The CycleGAN translator: which terms, what they are worth, which networks exist."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import Warp


def test_terms_are_those_with_a_weight(make_translator, batch, reggan_weights):
    translator = make_translator()
    outputs, terms = translator.generator_terms(batch)
    assert set(terms) == set(reggan_weights)
    assert set(outputs) == {"pred", "warped", "ddf"}
    assert set(translator.discriminator_terms(batch, outputs)) == {"adversarial"}


def test_terms_equal_an_independent_calculation(make_translator, batch):
    translator = make_translator()
    torch.nn.init.normal_(next(translator.registration.parameters()), std=0.5)
    x, y = batch["image"], batch["label"]
    outputs, terms = translator.generator_terms(batch)
    pred = translator.generator(x)
    ddf = translator.registration(pred, y)
    warped = Warp(mode="bilinear", padding_mode="border")(pred, ddf)
    torch.testing.assert_close(terms["correction"], F.l1_loss(warped, y))
    steps = [(ddf.diff(dim=axis) ** 2).mean() for axis in (2, 3)]
    torch.testing.assert_close(terms["smoothness"], sum(steps))
    torch.testing.assert_close(terms["adversarial"], ((translator.discriminator(pred) - 1) ** 2).mean())
    d_terms = translator.discriminator_terms(batch, {"pred": outputs["pred"].detach()})
    fake, real = translator.discriminator(pred), translator.discriminator(y)
    torch.testing.assert_close(d_terms["adversarial"], (fake**2).mean() + ((real - 1) ** 2).mean())


def test_forward_is_the_prediction_never_the_warped_image(make_translator, batch):
    translator = make_translator()
    torch.testing.assert_close(translator(batch["image"]), translator.generator_terms(batch)[0]["pred"])


@pytest.mark.parametrize(
    ("weights", "built"),
    [
        ({}, set()),
        ({"adversarial": 1}, {"discriminator"}),
        ({"correction": 20, "smoothness": 10}, {"registration"}),
        ({"adversarial": 0, "correction": 20}, {"registration"}),
    ],
)
def test_networks_without_a_term_are_not_built(make_translator, weights, built):
    translator = make_translator(weights)
    assert {name for name in ("discriminator", "registration") if getattr(translator, name) is not None} == built


def test_unknown_term_is_refused(make_translator):
    with pytest.raises(ValueError, match=r"\['corection'\].*expected among \[.*'correction', .*'smoothness'\]"):
        make_translator({"corection": 20})


def test_missing_network_is_refused(make_translator, reggan_weights):
    from pipeline.networks import ResNetGenerator
    from pipeline.translators import CycleGANTranslator

    with pytest.raises(ValueError, match="need the network 'registration'"):
        CycleGANTranslator(reggan_weights, generator=lambda: ResNetGenerator(filters=4, residual_blocks=1))


def test_every_parameter_belongs_to_one_optimiser(make_translator):
    translator = make_translator()
    generator = {id(p) for p in translator.generator_parameters()}
    discriminator = {id(p) for p in translator.discriminator_parameters()}
    assert not generator & discriminator
    assert generator | discriminator == {id(p) for p in translator.parameters()}


def test_inference_state_loads_into_a_translator_without_weights(make_translator, batch):
    trained = make_translator()
    trained.describe_data((0.0, 900.0), (32, 32))
    served = make_translator({}, seed=5)
    served.load_state_dict(trained.inference_state_dict())
    torch.testing.assert_close(served(batch["image"]), trained(batch["image"]))
    assert served.target_window.tolist() == [0.0, 900.0]
    assert served.trained_size.tolist() == [32, 32, 0]


def test_registration_is_refused_without_a_network(make_translator, batch):
    with pytest.raises(RuntimeError, match="no registration network"):
        make_translator({"adversarial": 1}).register(batch["image"], batch["label"])


@pytest.mark.parametrize("window", [(1.0, 1.0), (5.0, 0.0), (0.0, float("nan"))])
def test_bad_target_window_is_refused(make_translator, window):
    with pytest.raises(ValueError, match="low < high"):
        make_translator({}).describe_data(window, (32, 32))


@pytest.mark.parametrize("weights", [{}, {"adversarial": 1, "correction": 20, "cycle": 10}])
def test_scripting_keeps_what_inference_uses(make_translator, weights):
    """As MONAI's ckpt_export does it; losses and the other networks cannot be scripted, and need not be."""
    translator = make_translator(weights).eval()
    translator.describe_data((0, 700), (32, 32))
    scripted = torch.jit.script(translator)
    images = torch.rand(3, 1, 33, 46)
    torch.testing.assert_close(scripted(images), translator(images))
    assert scripted.target_window.tolist() == [0, 700]
    assert scripted.trained_size.tolist() == [32, 32, 0]
