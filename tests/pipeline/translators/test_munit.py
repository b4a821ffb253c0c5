"""The MUNIT translator: what its terms are worth, and in which style it translates."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks import MultiScaleDiscriminator, MUNITGenerator, RegistrationNet
from pipeline.translators import MUNITTranslator

NC = {"adversarial": 1.0, "reconstruction": 10.0, "content": 1.0, "style": 1.0}
R = {"correction": 20.0, "smoothness": 10.0}
MODES = {"nc": NC, "nc+r": NC | R, "c": NC | {"cycle": 10.0}, "c+r": NC | R | {"cycle": 10.0}}
CODE = [0.5, -1, 2.0]


def build(weights, **style):
    torch.manual_seed(0)
    return MUNITTranslator(
        weights,
        generator=partial(
            MUNITGenerator, filters=2, residual_blocks=1, style_dim=3, style_downsamplings=3, mlp_width=4
        ),
        discriminator=partial(MultiScaleDiscriminator, filters=2, layers=2),
        registration=partial(RegistrationNet, channels=(4, 4)),
        **style,
    )


@pytest.fixture
def styles(monkeypatch):
    """Styles that are drawn, in their order."""
    drawn, draw = [], torch.randn

    def record(*size, **arguments):
        drawn.append(draw(*size, **arguments))
        return drawn[-1]

    monkeypatch.setattr("torch.randn", record)
    return drawn


@pytest.mark.parametrize("mode", MODES)
def test_terms_equal_an_independent_calculation(mode, batch, styles):
    t = build(MODES[mode])
    x, y = batch["image"], batch["label"]
    styles.clear()
    outputs, terms = t.generator_terms(batch)
    assert [tuple(style.shape) for style in styles] == [(2, 3)] * (2 if "cycle" in MODES[mode] else 1)

    c_x, c_y = t.encoder(x), t.target_encoder(y)
    s_x, s_y = t.source_style_encoder(x), t.style_encoder(y)
    pred = t.decoder(c_x, styles[0])
    torch.testing.assert_close(outputs["pred"], pred)
    reconstruction = F.l1_loss(t.source_decoder(c_x, s_x), x) + F.l1_loss(t.decoder(c_y, s_y), y)
    torch.testing.assert_close(terms["reconstruction"], reconstruction)
    adversarial = sum(((scale - 1) ** 2).mean() for scale in t.discriminator(pred))
    again = t.target_encoder(pred)
    content = F.l1_loss(again, c_x)
    style = F.l1_loss(t.style_encoder(pred), styles[0])
    if "cycle" in MODES[mode]:
        source_pred = t.source_decoder(c_y, styles[1])
        torch.testing.assert_close(outputs["source_pred"], source_pred)
        source_again = t.encoder(source_pred)
        content = content + F.l1_loss(source_again, c_y)
        style = style + F.l1_loss(t.source_style_encoder(source_pred), styles[1])
        cycle = F.l1_loss(t.source_decoder(again, s_x), x) + F.l1_loss(t.decoder(source_again, s_y), y)
        torch.testing.assert_close(terms["cycle"], cycle)
        adversarial = adversarial + sum(((scale - 1) ** 2).mean() for scale in t.source_discriminator(source_pred))
    torch.testing.assert_close(terms["content"], content)
    torch.testing.assert_close(terms["style"], style)
    torch.testing.assert_close(terms["adversarial"], adversarial)
    if "+r" in mode:
        warped, ddf = t.register(pred, y)
        torch.testing.assert_close(terms["correction"], F.l1_loss(warped, y))
        torch.testing.assert_close(terms["smoothness"], sum((ddf.diff(dim=axis) ** 2).mean() for axis in (2, 3)))


def test_style_is_the_zero_code_unless_said_otherwise(batch):
    translator, source = build({}), batch["image"]
    content = translator.encoder(source)
    torch.testing.assert_close(translator(source), translator.decoder(content, torch.zeros(2, 3)))
    given = build({}, style=CODE)(source)
    torch.testing.assert_close(given, translator.decoder(content, torch.tensor([CODE, CODE])))
    assert (given - translator(source)).abs().max() > 1e-4


def test_style_of_reference_images_is_the_mean_of_their_codes(batch):
    references = torch.rand(3, 1, 20, 24) * 2 - 1
    translator, source = build({}, reference=references), batch["image"]
    codes = translator.encode_style(references)
    assert codes.shape == (3, 3)
    mean = torch.stack([translator.style_encoder(one[None])[0] for one in references]).mean(0)
    expected = translator.decoder(translator.encoder(source), mean.expand(2, -1))
    torch.testing.assert_close(translator(source), expected)
    torch.testing.assert_close(build({}, style=mean.tolist())(source), expected)


def test_style_of_a_reference_is_that_of_the_weights_that_are_loaded(batch):
    trained = build(NC)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    served = build({}, reference=batch["label"])
    served.load_state_dict(trained.inference_state_dict())
    style = trained.encode_style(batch["label"]).mean(0, keepdim=True).expand(2, -1)
    expected = trained.decoder(trained.encoder(batch["image"]), style)
    torch.testing.assert_close(served(batch["image"]), expected)


def test_style_is_no_part_of_the_weights():
    names = set(build(NC).state_dict())
    assert set(build(NC, style=CODE).state_dict()) == names
    referring = build(NC, reference=torch.zeros(2, 1, 16, 16))
    assert set(referring.state_dict()) == names
    referring.load_state_dict(build(NC, style=CODE).state_dict())
    assert {name for name, _ in referring.named_buffers()} >= {"style_code", "reference"}  # so that they move along


def test_exported_translator_has_its_style_in_it(batch):
    translator = build({}, style=CODE).eval()
    exported = torch.export.export(translator, (batch["image"],)).module()
    torch.testing.assert_close(exported(batch["image"]), translator(batch["image"]))


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"style": [1, 2]}, r"style must be a code of 3 finite numbers, got \[1, 2\]"),
        ({"style": [1, 2, float("nan")]}, "style must be a code of 3 finite numbers"),
        ({"style": ["a", 1, 2]}, "style must be a code of 3 finite numbers"),
        ({"style": 0.5}, "style must be a code of 3 finite numbers, got 0.5"),
        ({"style": "1,2"}, "style must be a code of 3 finite numbers, got '1,2'"),
        ({"reference": torch.zeros(1, 32, 32)}, r"reference must be images of shape .*, got \(1, 32, 32\)"),
        ({"reference": torch.zeros(0, 1, 32, 32)}, "reference must be images of shape"),
        ({"reference": "a.nii.gz"}, "reference must be images of shape .*, got 'a.nii.gz'"),
        ({"reference": torch.full((1, 1, 32, 32), 40.0)}, r"reference must lie in \[-1, 1\], got values from 40 to 40"),
        ({"reference": torch.full((1, 1, 32, 32), float("nan"))}, r"reference must lie in \[-1, 1\]"),
        ({"style": CODE, "reference": torch.zeros(1, 1, 32, 32)}, "style and reference are both given"),
    ],
)
def test_bad_styles_are_refused(style, message):
    with pytest.raises(ValueError, match=message):
        build({}, **style)
