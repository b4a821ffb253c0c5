"""The CycleGAN translator: which terms, what they are worth, which networks exist."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from monai.networks.blocks import Warp

from pipeline.engines import TranslationTrainer
from pipeline.losses import StructureLoss
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator, decode_recipe, decode_signature, find_translator

REGGAN = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


def test_terms_are_those_with_a_weight(make_translator, batch, reggan_weights):
    translator = make_translator()
    outputs, terms = translator.generator_terms(batch)
    assert set(terms) == set(reggan_weights)
    assert set(outputs) == {"pred", "warped", "ddf"}
    assert set(translator.discriminator_terms(batch, outputs)) == {"adversarial"}


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
    with pytest.raises(ValueError, match=r"\['corection'\].*expected among \[.*'correction', .*'smoothness', .*\]"):
        make_translator({"corection": 20})


def test_missing_network_is_refused(make_translator, reggan_weights):
    with pytest.raises(ValueError, match="need the network 'registration'"):
        CycleGANTranslator(reggan_weights, generator=lambda: ResNetGenerator(filters=4, residual_blocks=1))


def test_every_parameter_belongs_to_one_optimiser(make_translator):
    translator = make_translator()
    generator = {id(p) for p in translator.generator_parameters()}
    discriminator = {id(p) for p in translator.discriminator_parameters()}
    assert not generator & discriminator
    assert generator | discriminator == {id(p) for p in translator.parameters()}


def test_inference_state_loads_into_a_translator_without_weights(make_translator, batch):
    """And brings along what is known of how it was made, unless that translator knows for itself."""
    trained = make_translator()
    trained.recipe = {"target": {"window": [0.0, 900.0]}, "method": "é"}
    served = make_translator({}, seed=5)
    served.load_state_dict(trained.inference_state_dict())
    torch.testing.assert_close(served(batch["image"]), trained(batch["image"]))
    assert served.recipe == trained.recipe
    knowing = make_translator({}, seed=5)
    knowing.recipe = {"method": "own"}
    knowing.load_state_dict(trained.inference_state_dict())
    assert knowing.recipe == {"method": "own"}


def test_what_the_weights_belong_to_is_told_with_a_recipe_and_without(make_translator, make_recipe):
    trained = make_translator()
    signature = "CycleGANTranslator(adversarial, correction, smoothness)"
    assert decode_signature(trained.get_extra_state()) == trained.signature == signature
    assert decode_recipe(trained.get_extra_state()) is None
    trained.recipe = make_recipe()
    assert decode_signature(trained.get_extra_state()) == signature
    assert decode_recipe(trained.get_extra_state()) == make_recipe()
    served = make_translator({})
    served.load_state_dict(trained.inference_state_dict())
    assert served.signature == signature
    bare = make_recipe(training={"origin": "imported"})
    bare["weights"] = {}
    trained.recipe = bare
    assert decode_signature(trained.get_extra_state()) == "CycleGANTranslator(imported)"


def test_arguments_are_kept_by_name(make_translator):
    translator = make_translator()
    assert set(translator.arguments) == {"weights", "generator", "discriminator", "registration"}
    assert translator.arguments["weights"] == REGGAN
    assert copy.deepcopy(translator).arguments.keys() == translator.arguments.keys()
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        CycleGANTranslator({}, depth=3)


@pytest.mark.parametrize("name", ["cyclegan", "pipeline.translators.CycleGANTranslator"])
def test_a_translator_is_found_by_name_or_path(name):
    assert find_translator(name) is CycleGANTranslator


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "cyclegen",
            "backbone must be one of cyclegan, unit, munit, nicegan, or the path of a class .*, got 'cyclegen'",
        ),
        ("nowhere.Translator", "backbone: 'nowhere.Translator' cannot be imported"),
        ("pipeline.translators.Nothing", "backbone: 'pipeline.translators.Nothing' cannot be imported"),
        ("torch.nn.Linear", "the path of a class derived from Translator, got 'torch.nn.Linear'"),
    ],
)
def test_other_names_are_refused(name, says):
    with pytest.raises(ValueError, match=says):
        find_translator(name)


def test_registration_is_refused_without_a_network(make_translator, batch):
    with pytest.raises(RuntimeError, match="no registration network"):
        make_translator({"adversarial": 1}).register(batch["image"], batch["label"])


@pytest.mark.parametrize("weights", [{}, {"adversarial": 1, "correction": 20, "cycle": 10}])
def test_scripting_keeps_what_inference_uses(make_translator, weights):
    """As MONAI's ckpt_export does it; losses and the other networks cannot be scripted, and need not be."""
    translator = make_translator(weights).eval()
    scripted = torch.jit.script(translator)
    images = torch.rand(3, 1, 33, 46)
    torch.testing.assert_close(scripted(images), translator(images))


MODES = {
    "NC": ({"adversarial": 1.0}, {"discriminator"}),
    "NC+R": (REGGAN, {"discriminator", "registration"}),
    "C": ({"adversarial": 1.0, "cycle": 10.0}, {"discriminator", "source_generator", "source_discriminator"}),
    "C+R": (
        {**REGGAN, "cycle": 10.0},
        {"discriminator", "registration", "source_generator", "source_discriminator"},
    ),
    "Pix2Pix": ({"conditional_adversarial": 1.0, "pixel": 100.0}, {"discriminator"}),
}
OPTIONAL = ("discriminator", "registration", "source_generator", "source_discriminator")
every_mode = pytest.mark.parametrize(("weights", "built"), MODES.values(), ids=MODES)


def trainer_of(translator, weights, batch):
    """A trainer on one batch; a step is ``trainer._iteration(trainer, batch)``."""
    g = torch.optim.Adam(translator.generator_parameters(), lr=1e-3)
    d = torch.optim.Adam(translator.discriminator_parameters(), lr=1e-3)
    return TranslationTrainer("cpu", 1, [batch], translator, g, d, weights)


@every_mode
def test_a_mode_has_its_terms_and_networks(make_translator, batch, weights, built):
    translator = make_translator(weights)
    outputs, terms = translator.generator_terms(batch)
    assert set(terms) == set(weights)
    assert {name for name in OPTIONAL if getattr(translator, name) is not None} == built
    adversarial = {name for name in weights if name.endswith("adversarial")}
    detached = {name: output.detach() for name, output in outputs.items()}
    assert set(translator.discriminator_terms(batch, detached)) == adversarial


@pytest.mark.parametrize("mode", ["NC", "NC+R", "C", "C+R"])
def test_terms_equal_an_independent_calculation(make_translator, batch, mode):
    weights, _ = MODES[mode]
    translator = make_translator(weights)
    x, y = batch["image"], batch["label"]
    forth, judge_y = translator.generator, translator.discriminator
    if "+R" in mode:
        torch.nn.init.normal_(next(translator.registration.parameters()), std=0.5)
    outputs, terms = translator.generator_terms(batch)
    fake_y = forth(x)
    expected = {"adversarial": ((judge_y(fake_y) - 1) ** 2).mean()}
    judged = (judge_y(fake_y) ** 2).mean() + ((judge_y(y) - 1) ** 2).mean()
    if "+R" in mode:
        ddf = translator.registration(fake_y, y)
        warped = Warp(mode="bilinear", padding_mode="border")(fake_y, ddf)
        expected["correction"] = (warped - y).abs().mean()
        expected["smoothness"] = sum((ddf.diff(dim=axis) ** 2).mean() for axis in (2, 3))
    if mode.startswith("C"):
        back, judge_x = translator.source_generator, translator.source_discriminator
        fake_x = back(y)
        expected["cycle"] = (back(fake_y) - x).abs().mean() + (forth(fake_x) - y).abs().mean()
        expected["adversarial"] = expected["adversarial"] + ((judge_x(fake_x) - 1) ** 2).mean()
        # The pools are not full yet: they return what they are given.
        judged = judged + (judge_x(fake_x) ** 2).mean() + ((judge_x(x) - 1) ** 2).mean()
    torch.testing.assert_close(terms, expected)
    detached = {name: output.detach() for name, output in outputs.items()}
    shown = translator.shown(detached)
    torch.testing.assert_close(translator.discriminator_terms(batch, shown), {"adversarial": judged})
    if mode.startswith("C"):
        assert len(translator.pool) == len(translator.source_pool) == len(x)


def test_pix2pix_terms_equal_an_independent_calculation(make_translator, batch):
    translator = make_translator(MODES["Pix2Pix"][0])
    x, y = batch["image"], batch["label"]
    outputs, terms = translator.generator_terms(batch)
    pred = translator.generator(x)
    torch.testing.assert_close(terms["pixel"], (pred - y).abs().mean())
    judge = translator.discriminator
    assert judge.in_channels == 2
    fake, real = judge(torch.cat([x, pred], 1)), judge(torch.cat([x, y], 1))
    torch.testing.assert_close(terms["conditional_adversarial"], ((fake - 1) ** 2).mean())
    d_terms = translator.discriminator_terms(batch, {"pred": outputs["pred"].detach()})
    torch.testing.assert_close(d_terms["conditional_adversarial"], (fake**2).mean() + ((real - 1) ** 2).mean())


def test_discriminators_see_earlier_fakes_in_the_cycle_modes(make_translator, batch):
    translator = make_translator(MODES["C"][0])
    for pool in (translator.pool, translator.source_pool):
        pool(torch.full((50, 1, 32, 32), 0.5))  # full of images that no generator made
    seen = []
    translator.discriminator.register_forward_hook(lambda module, images, scores: seen.append(images[0].detach()))
    outputs = {name: output.detach() for name, output in translator.generator_terms(batch)[0].items()}
    seen.clear()
    for _ in range(8):
        translator.discriminator_terms(batch, translator.shown(outputs))
    fakes = torch.cat([images[:2] for images in seen])
    assert any(torch.all(image == 0.5) for image in fakes)
    assert any(torch.equal(image, outputs["pred"][0]) for image in fakes)


@every_mode
def test_each_optimiser_moves_its_own_networks_only(make_translator, batch, weights, built):
    translator = make_translator(weights)
    trainer = trainer_of(translator, weights, batch)
    ours = {id(p) for p in translator.discriminator_parameters()}

    def snapshot():
        return {name: parameter.detach().clone() for name, parameter in translator.named_parameters()}

    states, update = [snapshot()], trainer._update

    def watched(optimizer, terms):
        update(optimizer, terms)
        states.append(snapshot())

    trainer._update = watched
    trainer._iteration(trainer, batch)
    owner = {name: id(parameter) in ours for name, parameter in translator.named_parameters()}
    for before, after, discriminators in zip(states, states[1:], (False, True), strict=False):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(owner[name] == discriminators for name in moved)


@every_mode
def test_every_parameter_of_the_generators_learns(make_translator, batch, weights, built):
    translator = make_translator(weights)
    if translator.registration is not None:  # its last layer starts near zero: nothing flows through it yet
        torch.nn.init.normal_(translator.registration.output.conv.weight, std=0.1)
    sum(translator.generator_terms(batch)[1].values()).backward()
    assert [name for name, p in translator.named_parameters() if p.grad is None] == []


@every_mode
def test_every_mode_is_used_alike(make_translator, batch, weights, built):
    trained = make_translator(weights)
    state = trained.inference_state_dict()
    assert {name.split(".")[0] for name in state} == {"generator", "_extra_state"}
    served = make_translator({}, seed=7)
    served.load_state_dict(state)
    torch.testing.assert_close(served(batch["image"]), trained(batch["image"]))
    assert served.signature == trained.signature


@pytest.mark.parametrize("weights", [mode[0] for mode in MODES.values()], ids=MODES)
def test_volumes(weights):
    translator = CycleGANTranslator(
        weights,
        generator=partial(ResNetGenerator, spatial_dims=3, filters=2, residual_blocks=1),
        discriminator=partial(PatchDiscriminator, spatial_dims=3, filters=2, layers=1),
        registration=partial(RegistrationNet, spatial_dims=3, channels=(2, 2)),
    )
    batch = {name: torch.rand(1, 1, 12, 13, 14) * 2 - 1 for name in ("image", "label")}
    trainer = trainer_of(translator, weights, batch)
    losses = trainer._iteration(trainer, batch)["losses"]
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert translator(batch["image"]).shape == (1, 1, 12, 13, 14)


@every_mode
def test_bfloat16(make_translator, batch, weights, built):
    translator = make_translator(weights)
    trainer = TranslationTrainer(
        "cpu",
        1,
        [batch],
        translator,
        torch.optim.Adam(translator.generator_parameters()),
        torch.optim.Adam(translator.discriminator_parameters()),
        weights,
        amp=True,
    )
    losses = trainer._iteration(trainer, batch)["losses"]
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())


def test_two_kinds_of_adversarial_term_are_refused(make_translator):
    with pytest.raises(ValueError, match="there is one discriminator"):
        make_translator({"adversarial": 1, "conditional_adversarial": 1})


def test_the_cycle_alone_needs_no_discriminator(make_translator):
    translator = make_translator({"cycle": 10.0})
    assert translator.discriminator_networks() == ()
    assert not hasattr(translator, "pool")


def test_equivariance_is_the_difference_of_moved_translation_and_translation_of_the_moved(make_translator, batch):
    translator = make_translator({"equivariance": 5.0})
    maps = torch.tensor([[[-2.0, 0, 0], [0, 0, 0]]]).expand(len(batch["image"]), -1, -1)  # a flip of the first axis
    outputs, terms = translator.generator_terms({**batch, "symmetry": maps})
    expected = (translator(batch["image"].flip(2)) - translator(batch["image"]).flip(2)).abs().mean()
    torch.testing.assert_close(terms["equivariance"], expected, atol=1e-5, rtol=1e-4)
    assert set(terms) == {"equivariance"}
    assert set(outputs) == {"pred"}
    assert translator.registration is None


def test_equivariance_of_a_map_that_knows_no_place_is_zero(make_translator, batch):
    translator = make_translator({"equivariance": 5.0})
    translator.generator = torch.nn.Identity()
    assert translator.generator_terms(batch)[1]["equivariance"] == 0


def test_structure_compares_the_prediction_with_its_source(make_translator, batch):
    translator = make_translator({"structure": 2.0})
    outputs, terms = translator.generator_terms(batch)
    assert set(terms) == {"structure"}
    assert terms["structure"] == StructureLoss()(outputs["pred"], batch["image"])
    translator.generator = torch.nn.Identity()
    assert translator.generator_terms(batch)[1]["structure"] == 0


def test_symmetries_are_drawn_only_for_equivariance(make_translator, batch):
    assert make_translator().draw(batch) == {}
    assert make_translator({"equivariance": 1.0}).draw(batch)["symmetry"].shape == (len(batch["image"]), 2, 3)


def test_only_the_overlap_counts_where_the_registration_asks_for_it(make_translator, batch):
    translator = make_translator({"correction": 1.0})
    pred, field = torch.rand_like(batch["image"]), torch.zeros(len(batch["image"]), 2, *batch["image"].shape[2:])
    field[:, 1] = 4.0
    translator.registration.forward = lambda moving, fixed: field
    whole = translator.correct(pred, batch)[1]["correction"]
    translator.registration.overlap_only = True
    shown = translator.correct(pred, batch)[1]["correction"]
    torch.testing.assert_close(shown, (pred[..., 4:] - batch["label"][..., :-4]).abs().mean())
    assert shown != whole
