"""What holds for both UNIT and MUNIT: which terms and networks each mode has, and who updates what."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.bundle import check_image_size
from pipeline.engines import TranslationTrainer
from pipeline.networks import MultiScaleDiscriminator, MUNITGenerator, RegistrationNet, UNITGenerator
from pipeline.translators import MUNITTranslator, UNITTranslator

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "reggan" / "configs"
R = {"correction": 20.0, "smoothness": 10.0}
MODES = {
    "nc": {"adversarial": 1.0},
    "nc+r": {"adversarial": 1.0} | R,
    "c": {"adversarial": 1.0, "cycle": 10.0},
    "c+r": {"adversarial": 1.0, "cycle": 10.0} | R,
}
OWN = {
    "unit": {"reconstruction": 10.0, "kl": 0.01},
    "munit": {"reconstruction": 10.0, "content": 1.0, "style": 1.0},
}
IN_USE = {"unit": {"encoder", "decoder"}, "munit": {"encoder", "decoder", "style_encoder"}}
TRAINING = {
    "unit": {"target_encoder", "source_decoder"},
    "munit": {"target_encoder", "source_decoder", "source_style_encoder"},
}

backbones = pytest.mark.parametrize("backbone", ["unit", "munit"])
modes = pytest.mark.parametrize("mode", MODES)


def build(backbone, weights, seed=0, spatial_dims=2, filters=2):
    torch.manual_seed(seed)
    common = {"spatial_dims": spatial_dims, "filters": filters}
    if backbone == "unit":
        translator, generator = UNITTranslator, partial(UNITGenerator, **common, residual_blocks=1)
    else:
        translator = MUNITTranslator
        generator = partial(MUNITGenerator, **common, residual_blocks=1, style_downsamplings=3, mlp_width=16)
    return translator(
        weights,
        generator=generator,
        discriminator=partial(MultiScaleDiscriminator, **common, layers=2),
        registration=partial(RegistrationNet, spatial_dims=spatial_dims, channels=(4, 4)),
    )


def weights_of(backbone, mode):
    return MODES[mode] | OWN[backbone]


def networks(translator):
    return {name.split(".")[0] for name, _ in translator.named_parameters()}


def train_a_step(translator, batch, weights, **arguments):
    """Networks that G's step moves, and those that D's does."""
    optimizers = [
        torch.optim.SGD(parameters, lr=1e-2)
        for parameters in (list(translator.generator_parameters()), list(translator.discriminator_parameters()))
    ]
    engine = TranslationTrainer("cpu", 1, [batch], translator, *optimizers, weights, **arguments)
    update, moved = engine._update, []

    def spy(optimizer, terms):
        before = {name: value.clone() for name, value in translator.named_parameters()}
        update(optimizer, terms)
        after = translator.named_parameters()
        moved.append({name.split(".")[0] for name, value in after if not torch.equal(before[name], value)})

    engine._update = spy
    engine.run()
    return moved


@backbones
@modes
def test_terms_are_those_with_a_weight(backbone, mode, batch):
    weights = weights_of(backbone, mode)
    translator = build(backbone, weights)
    outputs, terms = translator.generator_terms(batch)
    assert set(terms) == set(weights)
    corrected, cyclic = "correction" in weights, "cycle" in weights
    assert set(outputs) == {"pred", *(["warped", "ddf"] if corrected else []), *(["source_pred"] if cyclic else [])}
    assert set(translator.discriminator_terms(batch, outputs)) == {"adversarial"}


@backbones
@modes
def test_networks_of_each_mode(backbone, mode):
    judges = {"discriminator", *(["source_discriminator"] if "c" in mode.split("+")[0].replace("nc", "") else [])}
    registration = {"registration"} if "+r" in mode else set()
    assert networks(build(backbone, weights_of(backbone, mode))) == (
        IN_USE[backbone] | TRAINING[backbone] | judges | registration
    )


@pytest.mark.parametrize(
    ("backbone", "weights", "beside"),
    [
        ("unit", {}, set()),
        ("unit", {"adversarial": 1, "reconstruction": 0, "cycle": 0}, {"discriminator"}),
        ("unit", {"kl": 1}, {"target_encoder"}),
        ("unit", {"reconstruction": 1}, TRAINING["unit"]),
        ("unit", {"cycle": 1}, TRAINING["unit"]),
        ("munit", {}, set()),
        ("munit", R, {"registration"}),
        ("munit", {"style": 1}, set()),
        ("munit", {"content": 1}, {"target_encoder"}),
        ("munit", {"reconstruction": 1}, TRAINING["munit"]),
        ("munit", {"cycle": 1}, TRAINING["munit"]),
    ],
)
def test_networks_without_a_term_are_not_built(backbone, weights, beside, batch):
    translator = build(backbone, weights)
    assert networks(translator) == IN_USE[backbone] | beside
    if weights:
        outputs, terms = translator.generator_terms(batch)
        assert set(terms) == {name for name, weight in weights.items() if weight}
        assert bool(translator.discriminator_terms(batch, outputs)) == (translator.discriminator is not None)


@backbones
@modes
def test_each_step_moves_the_networks_of_its_own_optimiser(backbone, mode, batch):
    weights = weights_of(backbone, mode)
    translator = build(backbone, weights)
    generators, judges = train_a_step(translator, batch, weights)
    assert judges == {name for name in networks(translator) if name.endswith("discriminator")}
    assert generators == networks(translator) - judges


@backbones
@modes
def test_every_parameter_belongs_to_one_optimiser(backbone, mode):
    translator = build(backbone, weights_of(backbone, mode))
    generator = [id(parameter) for parameter in translator.generator_parameters()]
    discriminator = [id(parameter) for parameter in translator.discriminator_parameters()]
    assert len(set(generator + discriminator)) == len(generator) + len(discriminator)
    assert {*generator, *discriminator} == {id(parameter) for parameter in translator.parameters()}


@backbones
@modes
def test_gradients_reach_every_parameter(backbone, mode, batch):
    translator = build(backbone, weights_of(backbone, mode), filters=4)
    outputs, terms = translator.generator_terms(batch)
    sum(terms.values()).backward()
    dead = [name for name, value in translator.named_parameters() if value.grad is None or not value.grad.any()]
    assert not dead
    translator.zero_grad()
    sum(translator.discriminator_terms(batch, {k: v.detach() for k, v in outputs.items()}).values()).backward()
    assert all(value.grad is not None and value.grad.any() for value in translator.discriminator_parameters())


@backbones
@modes
def test_inference_state_loads_strictly_and_translates_the_same(backbone, mode, batch):
    trained = build(backbone, weights_of(backbone, mode))
    served = build(backbone, {}, seed=5)
    served.load_state_dict(trained.inference_state_dict())
    torch.testing.assert_close(served(batch["image"]), trained(batch["image"]))
    assert served.signature == trained.signature


@backbones
def test_translation_draws_nothing_at_random(backbone, batch):
    translator = build(backbone, weights_of(backbone, "c+r")).train()
    state = torch.get_rng_state()
    first = translator(batch["image"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, translator(batch["image"]))
    assert first.shape == batch["image"].shape
    assert first.abs().max() <= 1
    assert translator(batch["image"][:, :, :23, :31]).shape == (2, 1, 23, 31)


@backbones
def test_training_draws_anew_at_each_step_from_the_global_state(backbone, batch):
    translator = build(backbone, weights_of(backbone, "nc"))

    def predict(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return translator.generator_terms(batch)[0]["pred"]

    first, second = predict(3), predict()
    assert not torch.equal(first, second)
    assert torch.equal(predict(3), first)


@backbones
@modes
def test_discriminator_s_step_sees_fakes_and_reals_of_each_domain(backbone, mode, batch):
    translator = build(backbone, weights_of(backbone, mode))
    outputs, terms = translator.generator_terms(batch)

    def squares(judge, image, label):
        return sum(((scale - label) ** 2).mean() for scale in judge(image))

    target, source = translator.discriminator, translator.source_discriminator
    expected = squares(target, outputs["pred"], 0) + squares(target, batch["label"], 1)
    fooled = squares(target, outputs["pred"], 1)
    if "cycle" in translator.terms:
        expected = expected + squares(source, outputs["source_pred"], 0) + squares(source, batch["image"], 1)
        fooled = fooled + squares(source, outputs["source_pred"], 1)
    torch.testing.assert_close(translator.discriminator_terms(batch, outputs)["adversarial"], expected)
    torch.testing.assert_close(terms["adversarial"], fooled)


@backbones
def test_three_dimensional_step(backbone):
    cubes = {name: torch.rand(1, 1, 16, 17, 16) * 2 - 1 for name in ("image", "label")}
    weights = weights_of(backbone, "c+r")
    translator = build(backbone, weights, spatial_dims=3)
    generators, judges = train_a_step(translator, cubes, weights)
    assert generators | judges == networks(translator)
    assert translator(cubes["image"]).shape == (1, 1, 16, 17, 16)


@backbones
def test_step_in_bfloat16(backbone, batch):
    weights = weights_of(backbone, "c+r")
    translator = build(backbone, weights)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, terms = translator.generator_terms(batch)
        terms |= translator.discriminator_terms(batch, outputs)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    generators, judges = train_a_step(translator, batch, weights, amp=True)
    assert generators | judges == networks(translator)
    assert all(value.isfinite().all() for value in translator.parameters())


@backbones
def test_smallest_images_are_those_of_the_part_that_needs_most(backbone):
    weights = weights_of(backbone, "c")
    translator = build(backbone, weights)
    check_image_size((13, 13), translator)
    images = {name: torch.rand(1, 1, 13, 13) * 2 - 1 for name in ("image", "label")}
    outputs, _ = translator.generator_terms(images)
    translator.discriminator_terms(images, outputs)
    with pytest.raises(ValueError, match="at least 13 along every axis for MultiScaleDiscriminator"):
        check_image_size((12, 13), translator)


@backbones
def test_unknown_terms_and_missing_networks_are_refused(backbone):
    with pytest.raises(ValueError, match=r"\['pixel'\], which M?UNITTranslator does not know.*reconstruction"):
        build(backbone, {"pixel": 100})
    translator, generator = {
        "unit": (UNITTranslator, UNITGenerator),
        "munit": (MUNITTranslator, MUNITGenerator),
    }[backbone]
    with pytest.raises(ValueError, match="need the network 'discriminator'"):
        translator({"adversarial": 1}, generator=partial(generator, filters=2))


@backbones
@pytest.mark.parametrize(("size", "filters"), [("small", 16), ("paper", 64)])
def test_overlay_builds_the_networks_of_each_size(backbone, size, filters):
    files = [str(CONFIGS / name) for name in ("train.json", f"{backbone}.json", "cycle.json")]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["network_size"] = size
    weights = parser.get_parsed_content("weights")
    used = {name: weight for name, weight in weights.items() if weight}
    assert used == {"adversarial": 1, "correction": 20, "smoothness": 10, "cycle": 10} | OWN[backbone]
    with torch.device("meta"):
        factories = {name: parser.get_parsed_content(f"network_def#{name}") for name in ("generator", "discriminator")}
        translator = {"unit": UNITTranslator, "munit": MUNITTranslator}[backbone]({}, **factories)
        discriminator = factories["discriminator"]()
    assert translator.encoder.channels == 4 * filters
    assert discriminator.minimum_size == 61
    if size == "paper":
        counts = {"unit": 11_127_937, "munit": 15_007_369}
        assert sum(value.numel() for value in translator.parameters()) == counts[backbone]
