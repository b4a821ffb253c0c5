"""A generator's drift is what was put into it, whatever it does to intensities, and nothing where it moves nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.engines import TranslationEvaluator
from pipeline.engines.drift import drift, mean_displacement, motions
from pipeline.metrics import DriftMetric, case_metrics, is_better
from pipeline.metrics.catalogue import names_in
from pipeline.networks import warp
from pipeline.networks.affine import affine_field

SIZE = (64, 64)
CONTRASTS = {
    "kept": lambda images: images,
    "inverted": lambda images: -images,
    "bent": lambda images: torch.where(images < -0.6, 4 * images + 3, 0.2 - 0.7 * (images + 0.6)),
}
# Shift in pixels, turn in degrees, size, shear: what the generator does to its output.
DRIFTS = {
    "shift": ((3.0, 0.0), 0.0, 1.0, 0.0),
    "shift back along the other axis": ((0.0, -1.5), 0.0, 1.0, 0.0),
    "turn": ((0.0, 0.0), 2.0, 1.0, 0.0),
    "larger": ((0.0, 0.0), 0.0, 1.04, 0.0),
    "smaller": ((0.0, 0.0), 0.0, 0.95, 0.0),
    "wider than high": ((0.0, 0.0), 0.0, 1.0, 0.04),
    "all": ((2.0, -1.0), 2.0, 1.04, 0.0),
    "none": ((0.0, 0.0), 0.0, 1.0, 0.0),
}


def heads(count=3, size=SIZE):
    """Smooth lumpy ellipsoids on a background of -1, of other shapes and places each."""
    generator = torch.Generator().manual_seed(0)
    axes = [torch.linspace(-1, 1, length) for length in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    images = []
    for _ in range(count):
        centre = 0.1 * (torch.rand(len(size), generator=generator) - 0.5)
        radii = 0.55 + 0.15 * torch.rand(len(size), generator=generator)
        away = ((grid - centre.view(-1, *[1] * len(size))) / radii.view(-1, *[1] * len(size))).square().sum(0).sqrt()
        texture = torch.rand(1, 1, *[max(2, length // 7) for length in size], generator=generator)
        mode = "bicubic" if len(size) == 2 else "trilinear"
        texture = F.interpolate(texture, size=size, mode=mode, align_corners=False)[0]
        images.append((2 * texture.clamp(0, 1) * torch.sigmoid((1 - away) * 20) - 1).clamp(-1, 1))
    return torch.stack(images)


def pulled(shift, turn, size, shear):
    """The pull-back map of a generator that sizes, turns and shifts its output by so much, (2, 3)."""
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    forward = size * torch.tensor([[cosine, -sine], [sine, cosine]]) @ torch.diag(torch.tensor([1 + shear, 1 - shear]))
    back = torch.linalg.inv(forward)
    return torch.cat([back - torch.eye(2), -back @ torch.tensor(shift)[:, None]], dim=1)


def generator_with(name, contrast="kept"):
    maps = pulled(*DRIFTS[name])

    def translate(images):
        still = images.new_zeros(len(images), 2, *images.shape[2:])
        return CONTRASTS[contrast](warp(images, affine_field(maps.expand(len(images), 2, 3), still)))

    return translate


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("name", DRIFTS)
def test_a_known_drift_is_measured_to_a_tenth_of_a_pixel(name, contrast):
    shift, turn, size, _ = DRIFTS[name]
    source = heads()
    found = drift(generator_with(name, contrast), source)
    assert found["drift_shift"].mean() == pytest.approx(math.hypot(*shift), abs=0.1)
    assert found["drift_turn"].mean() == pytest.approx(turn, abs=0.2)
    assert found["drift_size"].mean() == pytest.approx(size - 1, abs=0.004)
    assert found["drift_scaling"].abs().max() < 0.1
    # What it says in pixels is where shift, turn and shear take the foreground, size left aside.
    forward = pulled(*DRIFTS[name])[:, :2] + torch.eye(2)
    forward = torch.linalg.inv(forward)
    kept = torch.cat([forward / forward.det().sqrt() - torch.eye(2), torch.tensor(shift)[:, None]], dim=1)
    expected = mean_displacement(kept.expand(len(source), 2, 3), source)
    torch.testing.assert_close(found["drift"], expected, atol=0.1, rtol=0)


def test_a_generator_that_moves_nothing_has_no_drift():
    found = drift(lambda images: (images * 3).tanh(), heads())
    for name in ("drift", "drift_shift", "drift_turn", "drift_size", "equivariance"):
        assert found[name].abs().max() < 1e-3, name


def test_a_generator_that_pulls_everything_to_the_middle_is_told_by_its_size_and_not_by_pixels():
    """It has learned where heads lie and follows a moved one only in part: no displacement where they do lie."""
    source = heads(1)

    def translate(images):
        weight = (images + 1).flatten(1)
        grid = torch.stack(torch.meshgrid(*(torch.arange(64.0) - 31.5,) * 2, indexing="ij")).flatten(1)
        mass = (weight @ grid.T) / weight.sum(1, keepdim=True)
        here = ((source + 1).flatten(1) @ grid.T) / (source + 1).sum()
        step = 0.3 * (mass - here)
        return warp(images, step[:, :, None, None].expand(-1, 2, *SIZE))

    found = drift(translate, source)
    assert found["drift_size"].item() == pytest.approx(1 / 1.3 - 1, abs=0.1)
    assert found["drift"].item() < 0.6


def test_three_dimensions_and_unequal_sides():
    source = heads(1, (40, 32, 36))
    translate = lambda images: warp(images, torch.tensor([1.0, 0.0, -2.0]).view(1, 3, 1, 1, 1).expand(  # noqa: E731
        len(images), 3, *images.shape[2:]
    ))  # fmt: skip
    found = drift(translate, source)
    assert found["drift_shift"].item() == pytest.approx(math.sqrt(5), abs=0.1)
    assert found["drift_size"].abs().item() < 0.01
    flat = heads(2, (48, 40))
    assert drift(lambda images: images.flip(1), flat)["drift"].max() < 1e-3


@pytest.mark.parametrize("size", [(12, 10), (8, 9, 10)])
def test_motions_are_what_they_say(size):
    images = torch.rand(2, 1, *size)
    for motion in motions(size):
        moved = motion.apply(images)
        grid = torch.stack(
            torch.meshgrid(*(torch.arange(length) - (length - 1) / 2 for length in moved.shape[2:]), indexing="ij")
        )
        at = motion.linear @ grid.flatten(1) + motion.shift[:, None]
        at = at + (torch.tensor(size)[:, None] - 1) / 2
        inside = ((at >= 0) & (at <= torch.tensor(size)[:, None] - 1)).all(0)
        if motion.kind == "scale":
            assert moved.shape == images.shape
            continue
        places = tuple(at.round().long()[:, inside])
        assert torch.equal(images[0, 0][places], moved[0, 0].flatten()[inside]), motion


def test_an_evaluator_measures_drift_where_it_is_asked_for(make_translator):
    source = heads(2, (48, 48))
    batch = {"image": source, "label": -source, "case": ["a", "a"], "slice": [0, 1]}
    without = case_metrics(("psnr",), ("pred",))
    metrics = case_metrics(("psnr",), ("pred",), drift=True)
    assert set(metrics) - set(without) == set(names_in("drift"))
    assert all(isinstance(metrics[name], DriftMetric) for name in names_in("drift"))
    translator = make_translator()
    for chosen in (without, metrics):
        evaluator = TranslationEvaluator(
            "cpu", [batch], translator, key_val_metric={"psnr": chosen["psnr"]}, additional_metrics=chosen
        )
        evaluator.run()
        assert evaluator.measures_drift == (chosen is metrics) == ("drift" in evaluator.state.output)
    expected = drift(translator.eval(), source)
    for name in names_in("drift"):
        torch.testing.assert_close(evaluator.state.metric_details[name], expected[name].detach())


def test_images_without_foreground_do_not_count():
    source = torch.cat([heads(1), torch.full((1, 1, *SIZE), -1.0)])
    found = drift(generator_with("shift"), source)["drift"]
    assert found.isnan().tolist() == [False, True]
    metric = DriftMetric("drift")
    metric.update((found,))
    assert metric.compute() == pytest.approx(3, abs=0.1)


def test_less_drift_is_better_and_nan_never():
    assert is_better("drift")(0.5, 0.6)
    assert not is_better("drift")(0.6, 0.5)
    assert is_better("psnr")(21.0, 20.0)
    assert not is_better("psnr")(math.nan, 20.0)
    assert is_better("nmae")(0.5, math.nan)
    with pytest.raises(ValueError, match="told by nmae, psnr, ssim, drift, equivariance, got 'folded'"):
        is_better("folded")
    with pytest.raises(ValueError, match="drift is one of drift, drift_shift"):
        DriftMetric("psnr")
