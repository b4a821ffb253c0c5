"""The NICE-GAN translator: its terms and networks by mode, and above all whose the source's encoder is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from pipeline.engines import TranslationTrainer
from pipeline.losses import WeightedSum
from pipeline.networks import NICEDiscriminator, NICEEncoder, NICEGenerator, RegistrationNet
from pipeline.translators import NICETranslator

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "reggan" / "configs"
R = {"correction": 20.0, "smoothness": 10.0}
C = {"cycle": 10.0, "identity": 10.0}
NC = {"adversarial": 1.0}
MODES = {"nc": NC, "nc+r": NC | R, "c": NC | C, "c+r": NC | C | R}
CYCLIC = ("c", "c+r")
JUDGES = {"target_encoder", "discriminator"}


def build(weights, seed=0, filters=2, spatial_dims=2, **generator):
    torch.manual_seed(seed)
    common = {"spatial_dims": spatial_dims, "filters": filters}
    translator = NICETranslator(
        weights,
        encoder=partial(NICEEncoder, **common),
        generator=partial(NICEGenerator, **common, residual_blocks=1, **generator),
        discriminator=partial(NICEDiscriminator, **common, global_downsamplings=0),
        registration=partial(RegistrationNet, spatial_dims=spatial_dims, channels=(4, 4)),
    )
    with torch.no_grad():
        for encoder in (translator.encoder, translator.target_encoder):
            if encoder is not None:
                encoder.proportion.fill_(0.5)  # at 0, where it starts, the attention has no say yet
    return translator


def cubes(size=17):
    return {name: torch.rand(1, 1, size, size, size) * 2 - 1 for name in ("image", "label")}


def trainer(translator, batches, weights, **arguments):
    optimizers = (
        torch.optim.SGD(parameters, lr=1e-2) if (parameters := list(owned)) else None
        for owned in (translator.generator_parameters(), translator.discriminator_parameters())
    )
    return TranslationTrainer("cpu", 1, batches, translator, *optimizers, weights, **arguments)


def moved_by_each_half(translator, batch, weights, **arguments):
    """Networks with a parameter that G's step changes, and those that D's step does."""
    engine = trainer(translator, [batch], weights, **arguments)
    original, moved = engine._update, []

    def spy(optimizer, terms):
        before = {name: value.clone() for name, value in translator.named_parameters()}
        original(optimizer, terms)
        after = dict(translator.named_parameters())
        moved.append({name.split(".")[0] for name in before if not torch.equal(before[name], after[name])})

    engine._update = spy
    engine.run()
    return moved


def present(translator):
    return {name for name, _ in translator.named_children()} - {
        "warp",
        "correction_loss",
        "smoothness_loss",
        "adversarial_loss",
    }


def squares(logits, label):
    return sum(((logit - label) ** 2).mean() for logit in logits)


def assert_corrected(translator, terms, pred, target):
    warped, ddf = translator.register(pred, target)
    torch.testing.assert_close(terms["correction"], F.l1_loss(warped, target))
    torch.testing.assert_close(terms["smoothness"], sum((ddf.diff(dim=axis) ** 2).mean() for axis in (2, 3)))


@pytest.mark.parametrize("mode", MODES)
def test_terms_are_those_with_a_weight(batch, mode):
    translator = build(MODES[mode])
    outputs, terms = translator.generator_terms(batch)
    assert set(terms) == set(MODES[mode])
    expected = (
        {"pred"} | ({"warped", "ddf"} if "+r" in mode else set()) | ({"source_pred"} if mode in CYCLIC else set())
    )
    assert set(outputs) == expected
    assert set(translator.discriminator_terms(batch, outputs)) == {"adversarial"}


@pytest.mark.parametrize(
    ("weights", "built"),
    [
        ({}, set()),
        (R, {"registration"}),
        (MODES["nc"], JUDGES),
        (MODES["nc+r"] | {"cycle": 0, "identity": 0}, JUDGES | {"registration"}),
        (MODES["c"], JUDGES | {"source_generator", "source_discriminator"}),
        (MODES["c+r"], JUDGES | {"source_generator", "source_discriminator", "registration"}),
        ({"cycle": 10}, {"target_encoder", "source_generator"}),
    ],
)
def test_networks_without_a_term_are_not_built(weights, built):
    assert present(build(weights)) == {"encoder", "generator"} | built


@pytest.mark.parametrize("mode", CYCLIC)
def test_terms_of_the_cyclic_modes_equal_an_independent_calculation(batch, mode):
    translator = build(MODES[mode]).eval()  # in training, the power iteration moves on with every pass
    x, y = batch["image"], batch["label"]
    outputs, terms = translator.generator_terms(batch)
    into_target, into_source = translator.generator, translator.source_generator

    def read_source(image):
        return translator.encoder(image)[0]

    def read_target(image):
        return translator.target_encoder(image)[0]

    def judged(image, encoder, heads):
        features, logit = encoder(image)
        local, whole = heads(features)
        return local, whole, logit

    target_judge = partial(judged, encoder=translator.target_encoder, heads=translator.discriminator)
    source_judge = partial(judged, encoder=translator.encoder, heads=translator.source_discriminator)
    pred, source_pred = into_target(read_source(x)), into_source(read_target(y))
    torch.testing.assert_close(outputs["pred"], pred)
    torch.testing.assert_close(outputs["source_pred"], source_pred)
    there_and_back = into_source(read_target(pred)), into_target(read_source(source_pred))
    torch.testing.assert_close(terms["cycle"], F.l1_loss(there_and_back[0], x) + F.l1_loss(there_and_back[1], y))
    same = into_source(read_source(x)), into_target(read_target(y))
    torch.testing.assert_close(terms["identity"], F.l1_loss(same[0], x) + F.l1_loss(same[1], y))
    torch.testing.assert_close(
        terms["adversarial"], squares(target_judge(pred), 1) + squares(source_judge(source_pred), 1)
    )
    if "+r" in mode:
        assert_corrected(translator, terms, pred, y)
    expected = squares(target_judge(pred), 0) + squares(target_judge(y), 1)
    expected = expected + squares(source_judge(source_pred), 0) + squares(source_judge(x), 1)
    detached = {name: output.detach() for name, output in outputs.items()}
    torch.testing.assert_close(translator.discriminator_terms(batch, detached)["adversarial"], expected)


@pytest.mark.parametrize("mode", ["nc", "nc+r"])
def test_terms_of_the_other_modes_equal_an_independent_calculation(batch, mode):
    translator = build(MODES[mode]).eval()
    y = batch["label"]
    outputs, terms = translator.generator_terms(batch)
    pred = translator.generator(translator.encoder(batch["image"])[0])
    torch.testing.assert_close(outputs["pred"], pred)

    def judged(image):
        features, logit = translator.target_encoder(image)
        return [*translator.discriminator(features), logit]

    torch.testing.assert_close(terms["adversarial"], squares(judged(pred), 1))
    if "+r" in mode:
        assert_corrected(translator, terms, pred, y)
    d_terms = translator.discriminator_terms(batch, {"pred": pred.detach()})
    torch.testing.assert_close(d_terms["adversarial"], squares(judged(pred), 0) + squares(judged(y), 1))


@pytest.mark.parametrize("mode", MODES)
def test_discriminators_own_the_source_s_encoder_in_the_cyclic_modes_and_the_generator_in_the_others(batch, mode):
    generators, judges = {"generator"}, set(JUDGES)
    if mode in CYCLIC:
        generators |= {"source_generator"}
        judges |= {"source_discriminator", "encoder"}
    else:
        generators |= {"encoder"}
    if "+r" in mode:
        generators |= {"registration"}
    assert moved_by_each_half(build(MODES[mode]), batch, MODES[mode]) == [generators, judges]


@pytest.mark.parametrize("weights", [*MODES.values(), {"cycle": 10.0}, R])
def test_every_parameter_belongs_to_one_optimiser(weights):
    translator = build(weights)
    generator = [id(parameter) for parameter in translator.generator_parameters()]
    discriminator = [id(parameter) for parameter in translator.discriminator_parameters()]
    assert sorted(generator + discriminator) == sorted(id(parameter) for parameter in translator.parameters())
    assert len(set(generator + discriminator)) == len(generator) + len(discriminator)


@pytest.mark.parametrize("weights", [*MODES.values(), {"cycle": 10.0}])
def test_no_network_is_registered_twice(weights):
    translator = build(weights)
    names = [name for name, _ in translator.named_modules(remove_duplicate=False)]
    assert len(names) == len(list(translator.named_modules()))


@pytest.mark.parametrize("mode", MODES)
def test_generators_learn_everywhere_through_discriminators_that_are_frozen(batch, mode):
    translator = build(MODES[mode], filters=4)
    if translator.registration is not None:  # nearly zero at first, which leaves little to the layers before it
        torch.nn.init.normal_(next(translator.registration.parameters()), std=0.5)
    owned = {id(parameter) for parameter in translator.discriminator_parameters()}
    for parameter in translator.discriminator_parameters():
        parameter.requires_grad_(False)
    _, terms = translator.generator_terms(batch)
    WeightedSum(MODES[mode])(terms).backward()
    for name, parameter in translator.named_parameters():
        if id(parameter) in owned:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("mode", MODES)
def test_discriminators_learn_everywhere(batch, mode):
    translator = build(MODES[mode], filters=4)
    outputs = {name: output.detach() for name, output in translator.generator_terms(batch)[0].items()}
    translator.discriminator_terms(batch, outputs)["adversarial"].backward()
    for parameter in translator.discriminator_parameters():
        assert parameter.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in translator.generator_parameters())


def test_frozen_discriminators_pass_the_same_gradient(batch):
    gradients = []
    for frozen in (False, True):
        translator = build(MODES["c"])
        for parameter in translator.discriminator_parameters():
            parameter.requires_grad_(not frozen)
        WeightedSum(MODES["c"])(translator.generator_terms(batch)[1]).backward()
        gradients.append([parameter.grad for parameter in translator.generator_parameters()])
    torch.testing.assert_close(*gradients)


def test_cycle_alone_trains_generators_through_encoders_of_their_own(batch):
    weights = {"cycle": 10.0, "identity": 10.0}
    translator = build(weights)
    assert list(translator.discriminator_parameters()) == []
    assert translator.discriminator_terms(batch, {}) == {}
    assert moved_by_each_half(translator, batch, weights) == [
        {"encoder", "target_encoder", "generator", "source_generator"}
    ]


def test_each_image_is_encoded_once_per_half(batch):
    translator = build(MODES["c"])
    runs = []
    for name in ("encoder", "target_encoder", "generator", "source_generator"):
        getattr(translator, name).register_forward_hook(lambda *_, name=name: runs.append(name))
    outputs, _ = translator.generator_terms(batch)
    # Both domains: the image, and the prediction in it; translation, the way back, identity.
    assert {name: runs.count(name) for name in runs} == {
        "encoder": 2,
        "target_encoder": 2,
        "generator": 3,
        "source_generator": 3,
    }
    runs.clear()
    translator.discriminator_terms(batch, outputs)
    assert sorted(runs) == ["encoder", "target_encoder"]


@pytest.mark.parametrize("mode", MODES)
def test_inference_state_loads_strictly_and_translates_identically(batch, mode):
    trained = build(MODES[mode])
    trainer(trained, [batch], MODES[mode]).run()
    served = build({}, seed=5)
    state = trained.inference_state_dict()
    assert {name.split(".")[0] for name in state} == {"encoder", "generator", "_extra_state"}
    served.load_state_dict(state)
    torch.testing.assert_close(served.eval()(batch["image"]), trained.eval()(batch["image"]), rtol=0, atol=0)


def test_all_modes_name_the_inference_state_alike():
    names = [list(build(weights).inference_state_dict()) for weights in ({}, *MODES.values())]
    assert all(found == names[0] for found in names)


def test_forward_is_the_prediction_and_repeats_itself(batch):
    translator = build(MODES["c+r"]).eval()
    state = {name: value.clone() for name, value in translator.state_dict().items()}
    first = translator(batch["image"])
    assert torch.equal(translator(batch["image"]), first)
    assert torch.equal(translator.generator_terms(batch)[0]["pred"], first)
    assert all(torch.equal(state[name], value) for name, value in translator.state_dict().items())


@pytest.mark.parametrize("size", [(33, 30), (17, 41)])
def test_odd_sizes_train(size):
    pair = {name: torch.rand(1, 1, *size) * 2 - 1 for name in ("image", "label")}
    translator = build(MODES["c+r"])
    outputs, terms = translator.generator_terms(pair)
    assert outputs["pred"].shape == outputs["source_pred"].shape == (1, 1, *size)
    assert all(term.isfinite() for term in (*terms.values(), *translator.discriminator_terms(pair, outputs).values()))


@pytest.mark.parametrize("mode", ["nc+r", "c+r"])
def test_volumes_train(mode):
    translator = build(MODES[mode], spatial_dims=3)
    generators, judges = moved_by_each_half(translator, cubes(), MODES[mode])
    assert "generator" in generators
    assert "discriminator" in judges


@pytest.mark.parametrize("mode", ["nc+r", "c+r"])
def test_mixed_precision_trains(batch, mode):
    translator = build(MODES[mode])
    generators, judges = moved_by_each_half(translator, batch, MODES[mode], amp=True)
    assert ("encoder" in judges) == (mode in CYCLIC)
    assert ("encoder" in generators) == (mode not in CYCLIC)
    assert all(value.isfinite().all() for value in translator.state_dict().values())


def test_one_image_trains_to_finite_values():
    pair = {name: torch.full((1, 1, 17, 17), -1.0) for name in ("image", "label")}  # flat: no variance anywhere
    translator = build(MODES["c+r"])
    trainer(translator, [pair] * 3, MODES["c+r"]).run()
    assert all(value.isfinite().all() for value in translator.state_dict().values())


def test_the_full_variant_trains_at_its_size_and_refuses_others(batch):
    translator = build(MODES["c+r"], image_size=(32, 32))
    assert moved_by_each_half(translator, batch, MODES["c+r"])[0] == {"generator", "source_generator", "registration"}
    with pytest.raises(ValueError, match=r"size \(32, 32\), got \(36, 32\)"):
        translator(torch.zeros(1, 1, 36, 32))


def test_identity_without_the_cycle_is_refused():
    with pytest.raises(ValueError, match=r"'identity' needs both directions.*got \['adversarial', 'identity'\]"):
        build({"adversarial": 1, "identity": 10})


def test_missing_networks_are_refused():
    with pytest.raises(ValueError, match="need the network 'discriminator'"):
        NICETranslator(NC, partial(NICEEncoder, filters=2), partial(NICEGenerator, filters=2))


def test_networks_of_different_widths_are_refused():
    with pytest.raises(ValueError, match="features of 4 channels, but generator takes 6; give all three"):
        NICETranslator({}, partial(NICEEncoder, filters=2), partial(NICEGenerator, filters=3))


@pytest.mark.parametrize(
    "overlays", [("nicegan.json",), ("nicegan.json", "cycle.json"), ("cycle.json", "nicegan.json")]
)
def test_identity_weighs_as_much_as_the_cycle(overlays):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", *overlays)])
    weights = parser.get_parsed_content("weights")
    assert weights["identity"] == weights["cycle"] == (10 if "cycle.json" in overlays else 0)
