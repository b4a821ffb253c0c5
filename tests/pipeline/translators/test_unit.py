"""The UNIT translator: what its terms are worth, and the noise in its latent space."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks import MultiScaleDiscriminator, RegistrationNet, UNITGenerator
from pipeline.translators import UNITTranslator

NC = {"adversarial": 1.0, "reconstruction": 10.0, "kl": 0.01}
R = {"correction": 20.0, "smoothness": 10.0}
MODES = {"nc": NC, "nc+r": NC | R, "c": NC | {"cycle": 10.0}, "c+r": NC | R | {"cycle": 10.0}}


def build(weights):
    torch.manual_seed(0)
    return UNITTranslator(
        weights,
        generator=partial(UNITGenerator, filters=2, residual_blocks=1),
        discriminator=partial(MultiScaleDiscriminator, filters=2, layers=2),
        registration=partial(RegistrationNet, channels=(4, 4)),
    )


@pytest.fixture
def noise(monkeypatch):
    """Makes the noise known: 0.1 everywhere in what is drawn first, 0.2 in what is drawn next, and so on."""
    drawn = []

    def draw(shape, **settings):
        drawn.append(0.1 * (len(drawn) + 1))
        return torch.full(shape, drawn[-1], **settings)

    monkeypatch.setattr("torch.randn", draw)
    return drawn


@pytest.mark.parametrize("mode", MODES)
def test_terms_equal_an_independent_calculation(mode, batch, noise):
    t = build(MODES[mode])
    x, y = batch["image"], batch["label"]
    noise.clear()  # the networks' first weights are drawn, too
    outputs, terms = t.generator_terms(batch)

    z_x, z_y = t.encoder(x), t.target_encoder(y)
    pred = t.decoder(z_x + 0.1)
    torch.testing.assert_close(outputs["pred"], pred)
    reconstruction = F.l1_loss(t.source_decoder(z_x + 0.1), x) + F.l1_loss(t.decoder(z_y + 0.2), y)
    torch.testing.assert_close(terms["reconstruction"], reconstruction)
    adversarial = sum(((scale - 1) ** 2).mean() for scale in t.discriminator(pred))
    again = t.target_encoder(pred)
    kl = (z_x**2).mean() + (z_y**2).mean() + (again**2).mean()
    if "cycle" in MODES[mode]:
        source_pred = t.source_decoder(z_y + 0.2)
        torch.testing.assert_close(outputs["source_pred"], source_pred)
        source_again = t.encoder(source_pred)
        kl = kl + (source_again**2).mean()
        cycle = F.l1_loss(t.source_decoder(again + 0.3), x) + F.l1_loss(t.decoder(source_again + 0.4), y)
        torch.testing.assert_close(terms["cycle"], cycle)
        adversarial = adversarial + sum(((scale - 1) ** 2).mean() for scale in t.source_discriminator(source_pred))
    torch.testing.assert_close(terms["kl"], kl)
    torch.testing.assert_close(terms["adversarial"], adversarial)
    if "+r" in mode:
        warped, ddf = t.register(pred, y)
        torch.testing.assert_close(terms["correction"], F.l1_loss(warped, y))
        torch.testing.assert_close(terms["smoothness"], sum((ddf.diff(dim=axis) ** 2).mean() for axis in (2, 3)))
    assert len(noise) == (4 if "cycle" in MODES[mode] else 2)


def test_translation_decodes_the_mean_of_the_latent(batch):
    translator = build(NC)
    expected = translator.decoder(translator.encoder(batch["image"]))
    torch.testing.assert_close(translator(batch["image"]), expected)


def test_noise_is_a_standard_normal():
    torch.manual_seed(0)
    translator = build(NC)
    seen = []
    translator.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    images = {name: torch.rand(4, 1, 64, 64) * 2 - 1 for name in ("image", "label")}
    translator.generator_terms(images)
    latents = translator.encoder(images["image"]), translator.target_encoder(images["label"])
    for noisy, latent in zip(seen, latents, strict=True):
        noise = noisy - latent
        assert abs(noise.mean()) < 0.05
        assert abs(noise.std() - 1) < 0.05
