"""Theorem 1 of the paper as an executable statement: when the corrected loss has the minimiser of the clean loss.

Kong et al., NeurIPS 2021 (arXiv 2110.06465), supplement B: with noisy pairs (x, y o T), T smooth and invertible,
E[L(G(x) o T, y o T)] has the minimiser of E[L(G(x), y)]. Here minimisers are computed, on a slice of the phantom, and
compared. `pytest -s` prints the numbers; docs/theorem.md discusses them. Drift is the NMAE between two minimisers over
the foreground.

Two generators: one that can draw any image (every pixel is a parameter), so that the clean loss has the minimiser y and
a residual of zero; and a curve from intensity to intensity, too weak for that, whose clean minimiser is the best curve.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from monai.transforms import GaussianSmooth, ResizeWithPadOrCrop
from monai.utils import convert_to_tensor
from torch.nn import functional as F

from pipeline.data.phantom import PhantomParameters, simulate_subject
from pipeline.losses import CorrectionLoss, SmoothnessLoss
from pipeline.metrics import folded_fraction, foreground_mask, jacobian_determinant, nmae
from transforms import Deformation, DeformationNoise, RandDeformationNoised, ScaleMRIntensity, deform, true_displacement

pytestmark = pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")

DRAWS = 33  # odd, so that every pixel has one median
SIZE = 48  # level 5 then displaces by 3.9 pixels on average
KNOTS = torch.linspace(-1, 1, 9).view(1, -1, 1, 1)
SOLVED = 0.001  # an Adam that decays to 0 ends below; the drifts that are told apart from it are 20 times as large
STILL = Deformation.identity(DRAWS)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """An aligned T1 and T2 slice of the phantom, (1, 1, 48, 48) in [-1, 1], with background all around."""
    subject = simulate_subject(1, PhantomParameters(resolution=5.0))
    frame = ResizeWithPadOrCrop((SIZE, SIZE), value=-1.0)
    slices = (ScaleMRIntensity()(volume[None])[..., 20] for volume in (subject.t1, subject.t2))
    return tuple(convert_to_tensor(frame(image))[None] for image in slices)


@pytest.fixture(scope="module")
def smooth_pair(pair) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on 96x96 and blurred (SD 2 pixels): linear interpolation is then next to exact."""
    blur = GaussianSmooth(2.0)
    fine = (F.interpolate(image, scale_factor=2, mode="bilinear") for image in pair)
    return tuple(convert_to_tensor(blur(image[0] + 1))[None] - 1 for image in fine)  # it pads with 0


def draw(kind="nonaffine"):
    return DeformationNoise(5, kind).set_random_state(0).sample(DRAWS)


def spline(strength):
    """Random displacements on a fine control grid: invertible for sure below 1/4, folded at several times that."""
    control = np.random.RandomState(0).uniform(-strength, strength, (DRAWS, 2, 15, 15))
    return replace(STILL, control=control)


def repeat(image):
    return image.expand(DRAWS, -1, -1, -1)


def warp(image, field):
    return Warp(mode="bilinear", padding_mode="border")(image, field)  # as the translators do


def drift(pred, clean, y):
    return nmae(pred, clean, data_range=2.0, mask=foreground_mask(y)).item()


def report(case, **values):
    print(f"\n{case}: " + ", ".join(f"{name} {value:.5f}" for name, value in values.items()), end="")


def best_image(field, noisy):
    """Minimise the correction loss over all images, from grey; returns the image and the loss there."""
    image = torch.zeros(1, 1, *noisy.shape[2:], requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=250)
    for _ in range(250):
        optimizer.zero_grad()
        CorrectionLoss()(warp(image.expand(len(noisy), -1, -1, -1), field), noisy).backward()
        optimizer.step()
        schedule.step()
    image = image.detach()
    return image, CorrectionLoss()(warp(image.expand(len(noisy), -1, -1, -1), field), noisy).item()


def curve_basis(source):
    """Piecewise linear curves of intensity, (B, 9, *spatial): G(x) is a weighted sum of these channels."""
    return F.relu(1 - (source - KNOTS).abs() * 4)


def best_curve(basis, target, weight=None):
    """Minimise the mean squared error over curves, exactly; each pixel counts `weight` times."""
    root = torch.ones_like(target) if weight is None else weight.sqrt()
    columns = (basis * root).movedim(1, -1).reshape(-1, basis.shape[1]).double()
    solution = torch.linalg.lstsq(columns, (target * root).reshape(-1, 1).double(), driver="gelsd").solution
    return solution.float().view(1, -1, 1, 1)


def translate(curve, source):
    return (curve_basis(source) * curve).sum(1, keepdim=True)


# The statement


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
def test_right_field_finds_the_clean_minimiser(pair, kind):
    _, y = pair
    noise = draw(kind)
    field = true_displacement(STILL, noise, y.shape[2:])
    assert folded_fraction(field).max() == 0
    image, loss = best_image(field, deform(repeat(y), noise))
    report(f"T, {kind}", drift=drift(image, y, y), loss=loss)
    assert drift(image, y, y) < SOLVED
    assert (image - y).abs().max() < 0.01  # in every pixel
    assert loss < SOLVED


def test_without_a_field_it_is_the_median_or_the_mean_of_the_displaced_targets(pair):
    _, y = pair
    noise = draw()
    noisy, still = deform(repeat(y), noise), torch.zeros(DRAWS, 2, SIZE, SIZE)
    median, mean = noisy.median(0, keepdim=True).values, noisy.mean(0, keepdim=True)
    image, loss = best_image(still, noisy)
    squares = torch.zeros_like(y, requires_grad=True)
    optimizer = torch.optim.LBFGS([squares], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        error = SIZE**2 * F.mse_loss(repeat(squares), noisy)
        error.backward()
        return error

    optimizer.step(closure)
    squares = squares.detach()
    report("no field, L1", drift=drift(image, y, y), loss=loss, from_median=drift(image, median, y))
    report("no field, L2", drift=drift(squares, y, y), from_mean=drift(squares, mean, y))
    assert drift(image, median, y) < SOLVED
    assert drift(squares, mean, y) < 1e-5
    assert drift(image, y, y) > 0.1
    assert drift(squares, y, y) > 0.1
    for blurred in (image, squares):  # less contrast between neighbours than in y
        assert SmoothnessLoss()(blurred.repeat(1, 2, 1, 1)) < 0.5 * SmoothnessLoss()(y.repeat(1, 2, 1, 1))


# R is wrong


def test_wrong_field_drifts(pair):
    _, y = pair
    noise = draw()
    noisy, field = deform(repeat(y), noise), true_displacement(STILL, noise, y.shape[2:])
    error = torch.from_numpy(np.random.RandomState(1).uniform(-1, 1, (DRAWS, 2, 1, 1))).float()
    wrong = {
        "0.9 T": 0.9 * field,
        "T / 2": field / 2,
        "T + up to 1 px": field + error,
        "T + up to 2 px": field + 2 * error,
    }
    drifts = {}
    for name, ddf in wrong.items():
        image, loss = best_image(ddf, noisy)
        drifts[name] = drift(image, y, y)
        report(name, drift=drifts[name], loss=loss)
        assert loss > 10 * SOLVED  # the loss shows errors that differ from pair to pair
    assert SOLVED * 10 < drifts["0.9 T"] < drifts["T / 2"]
    assert SOLVED * 10 < drifts["T + up to 1 px"] < drifts["T + up to 2 px"]
    assert min(drifts["T / 2"], drifts["T + up to 2 px"]) > 0.05


def test_error_common_to_all_fields_displaces_the_minimiser_and_no_loss_shows_it(pair):
    _, y = pair
    noise = draw()
    field = true_displacement(STILL, noise, y.shape[2:])
    moved = field + torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    image, loss = best_image(moved, deform(repeat(y), noise))
    shifted = torch.roll(y, (2, 1), (2, 3))
    report("T + (2, 1) px", drift=drift(image, y, y), loss=loss, from_shifted=drift(image, shifted, shifted))
    assert drift(image, shifted, shifted) < SOLVED
    assert drift(image, y, y) > 0.1
    assert loss < SOLVED
    torch.testing.assert_close(SmoothnessLoss()(moved), SmoothnessLoss()(field))


# T is not invertible


def test_folded_target_is_harmless_where_the_field_is_known(pair):
    """The right-hand side asks only that every pixel of y is seen, not that it is seen once."""
    _, y = pair
    noise = spline(2.0)
    field = true_displacement(STILL, noise, y.shape[2:])
    folded = folded_fraction(field).mean().item()
    image, loss = best_image(field, deform(repeat(y), noise))
    report("T folds", drift=drift(image, y, y), loss=loss, folded=folded)
    assert folded > 0.05
    assert drift(image, y, y) < SOLVED


def test_part_that_is_never_seen_stays_as_it_was(pair):
    _, y = pair
    noise = replace(Deformation.identity(1), shift=np.array([[-0.375, 0.0]]))  # 18 pixels: cuts the anatomy
    field = true_displacement(Deformation.identity(1), noise, y.shape[2:])
    image, loss = best_image(field, deform(y, noise))
    error = (image - y).abs()[0, 0]
    report("18 rows unseen", seen=error[18:].mean(), unseen=error[:18].mean(), loss=loss)
    assert (y[0, 0, :18] > -1).any()
    assert loss < SOLVED
    assert error[18:].max() < 0.01
    assert torch.equal(image[0, 0, :18], torch.zeros(18, SIZE))  # the grey it started from


def test_anatomy_cut_at_the_border_drifts_there_alone(pair):
    """Outside the image the noise puts background and `Warp` repeats the border: T maps to where y is not known."""
    y = pair[1][:, :, 11:35, 12:36]
    noise = draw()
    image, loss = best_image(true_displacement(STILL, noise, y.shape[2:]), deform(repeat(y), noise))
    error = (image - y).abs()[0, 0]
    ring = torch.ones_like(error, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    report("cut at border", ring=error[ring].mean() / 2, inside=error[2:-2, 2:-2].mean() / 2, loss=loss)
    assert error[ring].mean() / 2 > 0.05
    assert error[2:-2, 2:-2].mean() / 2 < SOLVED
    assert loss > 10 * SOLVED


# G is too weak for a residual of zero; source and target are both displaced, as in training


@pytest.mark.parametrize(("images", "bound"), [("pair", 0.03), ("smooth_pair", 0.003)])
def test_weak_generator_drifts_by_what_interpolation_takes(images, bound, request):
    """Interpolation blurs the residual, and so weighs its parts anew: much at sharp edges, hardly in smooth images."""
    x, y = request.getfixturevalue(images)
    noise = RandDeformationNoised(level=5, kind="nonaffine", return_displacement=True).set_random_state(0)
    noisy = noise({"image": repeat(x), "label": repeat(y)})
    basis = curve_basis(noisy["image"])
    clean = translate(best_curve(curve_basis(x), y), x)
    corrected = translate(best_curve(warp(basis, noisy["true_ddf"]), noisy["label"]), x)
    uncorrected = translate(best_curve(basis, noisy["label"]), x)
    drifts = {"corrected": drift(corrected, clean, y), "uncorrected": drift(uncorrected, clean, y)}
    report(f"curve, {images}", clean_error=drift(clean, y, y), **drifts)
    assert drift(clean, y, y) > 0.02  # there is a residual
    assert drifts["corrected"] < bound
    assert drifts["uncorrected"] > 3 * drifts["corrected"]
    assert drifts["uncorrected"] > 0.05


def test_one_field_weighs_the_residual_by_its_jacobian_and_many_do_so_evenly(smooth_pair):
    x, y = smooth_pair
    shape, still = y.shape[2:], Deformation.identity(1)
    clean = translate(best_curve(curve_basis(x), y), x)
    control = np.sign(draw().control[1:2]) * 0.24  # as strong as is invertible for sure
    one = replace(still, control=control)
    basis = warp(curve_basis(x), true_displacement(still, one, shape))
    corrected = translate(best_curve(basis, deform(y, one)), x)
    magnification = jacobian_determinant(true_displacement(one, still, shape))  # of the inverse: how often y is seen
    weighted = translate(best_curve(curve_basis(x), y, magnification), x)
    many = draw()
    basis = warp(repeat(curve_basis(x)), true_displacement(STILL, many, shape))
    averaged = translate(best_curve(basis, deform(repeat(y), many)), x)
    drifts = {
        "one": drift(corrected, clean, y),
        "one_from_weighted": drift(corrected, weighted, y),
        "many": drift(averaged, clean, y),
    }
    report("Jacobian", least=magnification.min(), most=magnification.max(), **drifts)
    assert drifts["one"] > 0.002
    assert drifts["one_from_weighted"] < 0.5 * drifts["one"]
    assert drifts["many"] < 0.5 * drifts["one"]


def test_folded_source_has_no_right_field(smooth_pair):
    """What the source shows twice or not at all, no field brings back: its deformation has no inverse."""
    x, y = smooth_pair
    clean = translate(best_curve(curve_basis(x), y), x)
    drifts = {}
    for strength in (0.2, 1.2, 4.0):
        noise = spline(strength)
        displacement = true_displacement(STILL, noise, y.shape[2:])
        folded, pixels = folded_fraction(displacement).mean(), torch.linalg.vector_norm(displacement, dim=1).mean()
        field = true_displacement(noise, STILL, y.shape[2:])
        left = (warp(deform(repeat(y), noise), field) - y)[:, :, 12:-12, 12:-12].abs().mean() / 2
        curve = best_curve(warp(curve_basis(deform(repeat(x), noise)), field), repeat(y))
        drifts[strength] = drift(translate(curve, x), clean, y)
        report(f"source, {strength}", drift=drifts[strength], pixels=pixels, folded=folded, misaligned=left)
        assert (folded > 0) == (strength > 1)
    assert max(drifts[0.2], drifts[1.2]) < 0.005  # at 1.2 one pixel in a hundred folds: little is lost
    assert drifts[4.0] > 5 * drifts[0.2]


def test_skewed_noise_moves_the_l1_minimiser_towards_the_mean():
    """Interpolation averages noise of the target: means stay, medians do not. The best constant shows it."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.empty(DRAWS, 1, SIZE, SIZE).exponential_(1 / 0.2, generator=generator) - 1  # median -0.861, mean -0.8
    noisy = deform(clean, draw())[:, :, 12:-12, 12:-12]
    levels = torch.linspace(-0.9, -0.7, 401)
    found = {}
    for name, loss in (("L1", CorrectionLoss()), ("L2", torch.nn.MSELoss())):
        for kind, target in (("clean", clean), ("noisy", noisy)):
            losses = torch.stack([loss(level.expand_as(target), target) for level in levels])
            found[name, kind] = levels[losses.argmin()].item()
    report("best constant", **{" ".join(key): value for key, value in found.items()})
    assert found["L1", "clean"] == pytest.approx(0.2 * np.log(2) - 1, abs=0.003)
    assert found["L1", "noisy"] > found["L1", "clean"] + 0.02
    assert found["L2", "clean"] == pytest.approx(-0.8, abs=0.003)
    assert found["L2", "noisy"] == pytest.approx(-0.8, abs=0.003)
