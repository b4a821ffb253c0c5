"""Leaked geometry and blur, on images made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import mutual_info_score

from pipeline.metrics import foreground_mask, high_frequency_ratio, linear_psnr, mutual_information, psnr

SHAPES = [(64, 56), (28, 24, 26)]
DRAW = torch.Generator().manual_seed(0)


def make_brain(shape, seed=0):
    """A textured ellipsoid with a hard edge to the background of -1, (2, 1, *shape)."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij"))
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 1, *shape)))
    texture = torch.sin(8 * grid[0]) * torch.cos(6 * grid[1]) + torch.from_numpy(blurred(noise, 1.0))
    inside = grid.square().sum(0) < 0.8
    return torch.where(inside, 0.1 + 0.25 * texture, -1.0).float()


def blurred(images, sigma):
    return gaussian_filter(np.asarray(images), (0, 0) + (sigma,) * (images.ndim - 2))


def digitise(image, bins):
    return np.clip(((image.double().numpy() / 2 + 0.5) * bins).astype(int), 0, bins - 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins", [8, 32])
def test_information_agrees_with_scikit_learn(shape, bins):
    pred, source = make_brain(shape), make_brain(shape, seed=1).square()
    mask = foreground_mask(pred)
    expected = [
        mutual_info_score(digitise(p[m], bins), digitise(s[m], bins))
        for p, s, m in zip(pred, source, mask, strict=True)
    ]
    value = mutual_information(pred, source, data_range=2, mask=mask, bins=bins)
    assert value.shape == (2,)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_information_of_an_image_with_itself_is_its_entropy(shape):
    image = make_brain(shape)
    counts = [np.bincount(digitise(i, 32).ravel()) / i.numel() for i in image]
    entropy = [-(share[share > 0] * np.log(share[share > 0])).sum() for share in counts]
    np.testing.assert_allclose(mutual_information(image, image, data_range=2), entropy, rtol=1e-5)
    torch.testing.assert_close(
        mutual_information(-image, image, data_range=2), mutual_information(image, image, data_range=2)
    )
    mapped = mutual_information(image, -image.square(), data_range=2)  # two to one: some information is lost
    assert (mapped < mutual_information(image, image, data_range=2)).all()


def test_independent_noise_shares_nothing():
    pred, source = (torch.rand(2, 1, 256, 256, generator=DRAW) * 2 - 1 for _ in range(2))
    value = mutual_information(pred, source, data_range=2)
    assert (value < 0.02).all()
    torch.testing.assert_close(value, torch.full((2,), 31**2 / (2 * 256**2)), rtol=0.1, atol=0)  # as documented
    assert (mutual_information(torch.zeros_like(source), source, data_range=2).abs() < 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_information_falls_with_the_geometry(shape):
    source = make_brain(shape)
    mask = foreground_mask(source)
    pred = torch.where(mask, -0.8 * source, -1.0)
    values = [mutual_information(pred.roll(by, 2), source, data_range=2, mask=mask) for by in (0, 1, 3)]
    assert (values[0] > values[1]).all()
    assert (values[1] > values[2]).all()


def test_information_outside_the_mask_has_no_say():
    pred, source = make_brain(SHAPES[0]), make_brain(SHAPES[0], seed=1)
    mask = foreground_mask(source)
    before = mutual_information(pred, source, data_range=2, mask=mask)
    pred[~mask] = math.nan
    torch.testing.assert_close(mutual_information(pred, source, data_range=2, mask=mask), before)
    pred[0, 0, 32, 28] = math.nan
    mask[1] = False
    assert mutual_information(pred, source, data_range=2, mask=mask).isnan().all()


def test_information_of_what_exceeds_the_range():
    image = make_brain(SHAPES[0])
    beyond = torch.where(image > 0.2, torch.inf, image)
    torch.testing.assert_close(
        mutual_information(beyond, image, data_range=2), mutual_information(beyond.clamp(-1, 1), image, data_range=2)
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_detail_is_one_where_ideal_less_in_blur_more_in_noise(shape, masked):
    target = make_brain(shape)
    mask = foreground_mask(target) if masked else None

    def ratio(pred):
        value = high_frequency_ratio(pred.float(), target, data_range=2, mask=mask)
        assert value.shape == (2,)
        return value

    torch.testing.assert_close(ratio(target), torch.ones(2))
    torch.testing.assert_close(ratio(0.5 * target + 0.2), torch.ones(2))  # another contrast is no blur
    blurs = [ratio(torch.from_numpy(blurred(target, sigma))) for sigma in (0.5, 1, 2)]
    assert (blurs[0] < 0.8).all()
    assert (blurs[1] < 0.5 * blurs[0]).all()
    assert (blurs[2] < 0.5).all()
    noises = [ratio(target + level * torch.randn(target.shape, generator=DRAW)) for level in (0.05, 0.2)]
    assert (noises[0] > (1.1 if masked else 1.02)).all()  # the edge has its share of the whole
    assert (noises[1] > noises[0]).all()


def test_share_above_the_cut_is_that_of_the_waves():
    """Two waves along an axis: a quarter of the power lies in the fast one, half in the other image."""
    x = torch.arange(64.0)
    slow, fast = (torch.sin(2 * math.pi * frequency * x).expand(1, 1, 64, 64) for frequency in (4 / 64, 20 / 64))
    pred, target = (slow * math.sqrt(3) + fast) / 4, (slow + fast) / 4
    assert high_frequency_ratio(pred, target, data_range=2).item() == pytest.approx(0.25 / 0.5, rel=1e-5)
    assert high_frequency_ratio(pred.mT, target.mT, data_range=2, cut=0.3).item() == pytest.approx(0.5, rel=1e-5)
    assert high_frequency_ratio(pred, target, data_range=2, cut=0.05).item() == pytest.approx(1, rel=1e-5)


def test_hard_edge_does_not_hide_what_is_inside():
    """Over the whole image the edge has most of the detail, which a noisy prediction shares."""
    target = make_brain(SHAPES[0])
    mask = foreground_mask(target)
    pred = torch.where(mask, target + 0.05 * torch.randn(target.shape, generator=DRAW), target)
    inside = high_frequency_ratio(pred, target, data_range=2, mask=mask)
    whole = high_frequency_ratio(pred, target, data_range=2)
    assert (inside - 1 > 3 * (whole - 1)).all()
    pred[~mask] = torch.inf
    torch.testing.assert_close(high_frequency_ratio(pred, target, data_range=2, mask=mask), inside)


@pytest.mark.parametrize("shape", SHAPES)
def test_detail_of_nothing_is_undefined(shape):
    target = make_brain(shape)
    mask = foreground_mask(target)
    constant = torch.full_like(target, 0.3)
    assert high_frequency_ratio(constant, target, data_range=2, mask=mask).isnan().all()
    assert high_frequency_ratio(target, constant, data_range=2, mask=mask).isnan().all()
    assert high_frequency_ratio(constant, target, data_range=2).isnan().all()
    thin = torch.zeros_like(mask)
    thin[:, :, 4:10] = True
    assert high_frequency_ratio(target, target, data_range=2, mask=thin).isnan().all()
    thin[:, :, 4:11] = True
    assert not high_frequency_ratio(target, target + thin, data_range=2, mask=thin).isnan().any()


@pytest.mark.parametrize("shape", SHAPES)
def test_score_after_the_best_linear_map_agrees_with_least_squares(shape):
    target, noise = make_brain(shape), make_brain(shape, seed=1)
    pred, mask = 0.6 * target + 0.1 * noise.clamp(-0.5, 0.5) - 0.2, foreground_mask(target)
    expected = []
    for one, other, inside in zip(pred.double(), target.double(), mask, strict=True):
        fitted = np.polyval(np.polyfit(one[inside], other[inside], 1), one[inside])
        expected.append(-10 * np.log10(np.mean((fitted - other[inside].numpy()) ** 2) / 4))
    found = linear_psnr(pred, target, data_range=2, mask=mask)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found > psnr(pred, target, data_range=2, mask=mask)).all()
    torch.testing.assert_close(found, linear_psnr(-3 * pred + 5, target, data_range=2, mask=mask))


def test_score_after_the_best_linear_map_of_a_flat_or_missing_image():
    target = make_brain((64, 56))
    mask = foreground_mask(target)
    flat = linear_psnr(torch.full_like(target, 0.3), target, data_range=2, mask=mask)
    mean = torch.stack([one[inside].mean() for one, inside in zip(target, mask, strict=True)]).view(-1, 1, 1, 1)
    torch.testing.assert_close(flat, psnr(mean.expand_as(target), target, data_range=2, mask=mask))
    assert linear_psnr(target, target, data_range=2, mask=torch.zeros_like(mask)).isnan().all()


def test_refusals():
    image = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="one shape"):
        mutual_information(image, image[..., :8], data_range=2)
    with pytest.raises(ValueError, match="mask must be boolean"):
        high_frequency_ratio(image, image, data_range=2, mask=image)
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        mutual_information(image, image, data_range=2, bins=1)
    with pytest.raises(ValueError, match=r"cut must lie between 0 and 0\.5 cycles per voxel, got 0\.5"):
        high_frequency_ratio(image, image, data_range=2, cut=0.5)
