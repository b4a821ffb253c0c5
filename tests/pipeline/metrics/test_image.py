"""Image metrics, against scikit-image and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.metrics import foreground_mask, mae, nmae, psnr, ssim

SHAPES = [(3, 1, 32, 40), (2, 1, 12, 16, 14), (2, 2, 24, 24)]
ALL = [mae, nmae, psnr, ssim]


def make_pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator) * 2 - 1
    target[..., :5] = -1
    pred = (target + 0.3 * torch.randn(shape, generator=generator)).clamp(-1, 1)
    return pred, target


@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_agrees_with_scikit_image(shape):
    pred, target = make_pair(shape)
    expected = [peak_signal_noise_ratio(t.numpy(), p.numpy(), data_range=2) for p, t in zip(pred, target, strict=True)]
    np.testing.assert_allclose(psnr(pred, target, data_range=2), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_scores_agree_with_numpy(shape):
    pred, target = make_pair(shape)
    mask = foreground_mask(target)
    difference = [(p - t).numpy()[m.numpy()].astype(float) for p, t, m in zip(pred, target, mask, strict=True)]
    expected_mae = [abs(d).mean() for d in difference]
    expected_psnr = [10 * np.log10(1 / ((d / 2) ** 2).mean()) for d in difference]
    np.testing.assert_allclose(mae(pred, target, data_range=2, mask=mask), expected_mae, rtol=1e-5)
    np.testing.assert_allclose(nmae(pred, target, data_range=2, mask=mask), np.array(expected_mae) / 2, rtol=1e-5)
    np.testing.assert_allclose(psnr(pred, target, data_range=2, mask=mask), expected_psnr, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_agrees_with_scikit_image(shape):
    pred, target = make_pair(shape)
    expected = [
        structural_similarity(t.numpy(), p.numpy(), win_size=7, data_range=2, channel_axis=0)
        for p, t in zip(pred.double(), target.double(), strict=True)
    ]
    np.testing.assert_allclose(ssim(pred, target, data_range=2), expected, atol=1e-6)


def test_ssim_agrees_where_nothing_varies():
    """In flat regions the variances are differences of nearly equal numbers."""
    target = torch.full((1, 1, 32, 32), 0.7)
    pred = target + 1e-3 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = structural_similarity(target[0, 0].double().numpy(), pred[0, 0].double().numpy(), data_range=2)
    assert ssim(pred, target, data_range=2).item() == pytest.approx(expected, abs=1e-6)


def test_masked_ssim_averages_the_map():
    pred, target = make_pair((2, 1, 32, 40))
    mask = torch.zeros(target.shape, dtype=torch.bool)
    mask[..., 8:20, 0:25] = True
    value = ssim(pred, target, data_range=2, mask=mask)
    for index in range(2):
        _, full = structural_similarity(
            target[index, 0].double().numpy(), pred[index, 0].double().numpy(), data_range=2, full=True
        )
        assert value[index].item() == pytest.approx(full[8:20, 3:25].mean(), abs=1e-6)


@pytest.mark.parametrize("score", ALL)
def test_one_value_per_case_whatever_the_batch(score):
    pred, target = make_pair((3, 1, 20, 20))
    together = score(pred, target, data_range=2.0)
    assert together.shape == (3,)
    assert together.dtype == torch.float32
    one_by_one = [score(pred[i : i + 1], target[i : i + 1], data_range=2.0) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(one_by_one))


@pytest.mark.parametrize(("score", "best"), [(mae, 0), (nmae, 0), (psnr, math.inf), (ssim, 1)])
def test_perfect_prediction(score, best):
    _, target = make_pair((2, 1, 16, 16))
    assert score(target.clone(), target, data_range=2).tolist() == pytest.approx([best, best])


@pytest.mark.parametrize("score", ALL)
def test_empty_mask_is_nan_and_leaves_other_cases_alone(score):
    pred, target = make_pair((2, 1, 16, 16))
    mask = torch.ones(target.shape, dtype=torch.bool)
    mask[0] = False
    value = score(pred, target, data_range=2, mask=mask)
    assert value[0].isnan()
    torch.testing.assert_close(value[1:], score(pred[1:], target[1:], data_range=2))


@pytest.mark.parametrize("score", [mae, nmae, psnr])
def test_what_is_masked_out_has_no_say(score):
    pred, target = make_pair((1, 1, 16, 16))
    mask = foreground_mask(target)
    spoiled = torch.where(mask, pred, torch.nan)
    assert score(spoiled, target, data_range=2, mask=mask) == score(pred, target, data_range=2, mask=mask)


def test_nmae_is_one_at_worst():
    target = torch.ones(1, 1, 8, 8)
    assert nmae(-target, target, data_range=2).item() == 1
    assert psnr(-target, target, data_range=2).item() == 0


def test_mask_of_one_channel_counts_for_all():
    pred, target = make_pair((2, 3, 16, 16))
    mask = torch.rand(2, 1, 16, 16) > 0.5
    for score in ALL:
        torch.testing.assert_close(
            score(pred, target, data_range=2, mask=mask),
            score(pred, target, data_range=2, mask=mask.expand(2, 3, 16, 16)),
        )


def test_foreground_is_above_the_background():
    target = torch.tensor([-1.0, -1.0 + 1e-7, -0.99, 0.0, 1.0])
    assert foreground_mask(target).tolist() == [False, False, True, True, True]


def test_resampled_background_stays_background():
    image = torch.full((1, 1, 37, 41), -1.0)
    resized = torch.nn.functional.interpolate(image, size=(96, 96), mode="bilinear")
    assert not foreground_mask(resized).any()


@pytest.mark.parametrize("score", ALL)
def test_never_waits_for_the_device(score):
    image = torch.empty(2, 1, 16, 16, device="meta")
    assert score(image, image, data_range=2, mask=foreground_mask(image)).shape == (2,)


@pytest.mark.parametrize("score", ALL)
def test_refusals(score):
    image = torch.zeros(1, 1, 16, 16)
    with pytest.raises(TypeError, match="data_range"):
        score(image, image)
    with pytest.raises(ValueError, match="data_range must be above 0, got 0"):
        score(image, image, data_range=0)
    with pytest.raises(ValueError, match=r"got \(1, 1, 16, 16\) and \(2, 1, 16, 16\)"):
        score(image, torch.zeros(2, 1, 16, 16), data_range=2)
    with pytest.raises(ValueError, match="mask must be boolean"):
        score(image, image, data_range=2, mask=torch.ones(1, 1, 16, 16))
    with pytest.raises(ValueError, match="mask must be boolean"):
        score(image, image, data_range=2, mask=torch.ones(1, 1, 16, 8, dtype=torch.bool))


def test_ssim_window():
    image = torch.zeros(1, 1, 5, 16)
    with pytest.raises(ValueError, match=r"at least 7 voxels along every axis, got \(5, 16\)"):
        ssim(image, image, data_range=2)
    with pytest.raises(ValueError, match="window must be odd and at least 3, got 4"):
        ssim(image, image, data_range=2, window=4)
    pred, target = make_pair((1, 1, 20, 20))
    expected = structural_similarity(target[0, 0].numpy(), pred[0, 0].numpy(), win_size=11, data_range=2)
    assert ssim(pred, target, data_range=2, window=11).item() == pytest.approx(expected, abs=1e-5)


def by_hand(pred, target, windows, data_range=2.0):
    """The mean over all windows, each on its own, after equation 13 of Wang et al."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    x, y = (np.lib.stride_tricks.sliding_window_view(image, windows) for image in (pred, target))
    x, y = (views.reshape(-1, math.prod(windows)).astype(np.float64) for views in (x, y))
    values = []
    for one, other in zip(x, y, strict=True):
        covariance = np.cov(one, other)
        luminance = (2 * one.mean() * other.mean() + c1) / (one.mean() ** 2 + other.mean() ** 2 + c1)
        values.append(luminance * (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2))
    return np.mean(values)


@pytest.mark.parametrize(
    ("shape", "windows"), [((12, 9), (7, 3)), ((9, 8, 3), (7, 7, 3)), ((9, 8, 2), (7, 5, 1)), ((8, 7, 6), (3, 5, 5))]
)
def test_ssim_windows_may_differ_between_the_axes(shape, windows):
    pred, target = make_pair((1, 1, *shape))
    expected = by_hand(pred[0, 0].numpy(), target[0, 0].numpy(), windows)
    assert ssim(pred, target, data_range=2, window=windows).item() == pytest.approx(expected, abs=1e-5)
    assert ssim(target, target, data_range=2, window=list(windows)).item() == pytest.approx(1)


def test_ssim_of_slices_is_that_of_the_volume_where_the_window_is_one_slice_thick():
    pred, target = make_pair((1, 1, 12, 11, 4))
    mask = torch.rand(pred.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    slices = [image.movedim(4, 0).flatten(1, 2) for image in (pred, target, mask)]
    whole = ssim(pred, target, data_range=2, window=(7, 7, 1))
    assert whole.item() == pytest.approx(ssim(*slices[:2], data_range=2).mean().item(), abs=1e-6)
    inner = slices[2][:, :, 3:-3, 3:-3].flatten(1).sum(1)
    each = ssim(*slices[:2], data_range=2, mask=slices[2])
    expected = ((each * inner).sum() / inner.sum()).item()
    assert ssim(pred, target, data_range=2, mask=mask, window=(7, 7, 1)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("window", [(7, 7, 7), (7,), (7, 4), (1, 1), (7, 0), (7, -1)])
def test_ssim_refuses_windows_that_fit_no_axis(window):
    image = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match="window must be odd and at least 3, got "):
        ssim(image, image, data_range=2, window=window)
    with pytest.raises(ValueError, match=r"at least \(7, 17\) voxels along every axis, got \(16, 16\)"):
        ssim(image, image, data_range=2, window=(7, 17))
