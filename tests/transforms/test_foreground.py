"""The owner of the foreground finds one and the same patient, whatever the units, the padding and the noise."""

from __future__ import annotations

import numpy as np
import pytest

from transforms import find_background, foreground_mask

SPACING = (2.0, 2.0, 5.0)
SHAPE = (96, 80, 12)


@pytest.fixture(scope="module")
def grid():
    axes = (np.linspace(-1, 1, length) for length in SHAPE)
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@pytest.fixture(scope="module")
def inside(grid):
    return ((grid / np.array([0.75, 0.8, 1.6]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1


@pytest.fixture(scope="module")
def head(grid, inside):
    """Skin, dark bone, brain, and a dark cavity, on a background of exactly 0."""
    radius = np.sqrt(((grid / np.array([0.75, 0.8, 1.6]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    values = np.select([radius < 0.8, radius < 0.85, radius < 1], [700.0, 60.0, 400.0], 0.0)
    values[(grid[0] - 0.2) ** 2 + grid[1] ** 2 < 0.03] = 100
    return np.where(inside, (values + np.random.default_rng(0).normal(0, 20, SHAPE)).clip(1), 0)


@pytest.fixture(scope="module")
def noisy(head):
    draws = np.random.default_rng(1).normal(0, 20, (2, *SHAPE))
    return np.hypot(head + draws[0], draws[1])


@pytest.fixture(scope="module")
def body(grid, inside):
    """Soft tissue and a lung in HU, in noisy air."""
    lung = (grid[0] - 0.2) ** 2 + grid[1] ** 2 < 0.03
    return np.select([lung, inside], [-800.0, 40.0], -1000.0) + np.random.default_rng(2).normal(0, 15, SHAPE)


def overlap(found, true):
    assert found.dtype == bool
    assert found.shape == true.shape
    return 2 * (found & true).sum() / (found.sum() + true.sum())


@pytest.mark.parametrize("value", [0, -1000, 32767, 1e6, -5.5])
def test_a_background_of_any_value_is_padding(head, inside, value):
    image = np.where(inside, head, value).astype(np.float32)
    assert overlap(foreground_mask(image, SPACING), inside) > 0.99
    assert find_background(image, SPACING).padding == value


def test_half_of_a_z_scored_brain_lies_below_its_background(head, inside):
    values = head[inside]
    image = np.where(inside, (head - values.mean()) / values.std(), 0).astype(np.float32)
    assert (image[inside] <= 0).mean() > 0.2
    assert overlap(foreground_mask(image, SPACING), inside) > 0.99


@pytest.mark.parametrize(
    ("scale", "offset"), [(1, 0), (1e-6, 0), (1e6, 0), (1, 2000), (1, -3000), (0.004, -0.7), (-1, 1000)]
)
def test_noisy_air_is_no_foreground_in_any_units(noisy, inside, scale, offset):
    image = (noisy * scale + offset).astype(np.float32)
    assert overlap(foreground_mask(image, SPACING), inside) > 0.99
    assert find_background(image, SPACING).bright == (scale < 0)


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.float64])
def test_types_of_files(noisy, inside, kind):
    assert overlap(foreground_mask(noisy.astype(kind), SPACING), inside) > 0.99


@pytest.mark.parametrize("noise", [40, 60])
def test_strong_noise(head, inside, noise):
    draws = np.random.default_rng(3).normal(0, noise, (2, *SHAPE))
    assert overlap(foreground_mask(np.hypot(head + draws[0], draws[1]), SPACING), inside) > 0.98


@pytest.mark.parametrize("offset", [0, 1000, 1024])
def test_ct_without_its_couch(body, inside, offset):
    image = body.copy()
    image[4:-4, 76:78] = 150
    assert overlap(foreground_mask(image + offset, SPACING), inside) > 0.99


def test_a_couch_that_the_patient_lies_on(body, inside):
    image = body.copy()
    image[4:-4, 71:73] = 150
    found = foreground_mask(image, SPACING)
    assert overlap(found, inside) > 0.95
    assert not found[:16, 71:73].any()
    assert not found[-16:, 71:73].any()


@pytest.mark.parametrize("padding", [-3024, -2000, 0, -1024])
def test_the_disc_of_a_ct(grid, body, inside, padding):
    image = np.where(grid[0] ** 2 + grid[1] ** 2 < 1, body, padding)
    assert overlap(foreground_mask(image, SPACING), inside) > 0.99


def test_ct_whose_air_is_clipped(body, inside):
    assert overlap(foreground_mask(body.clip(-1000), SPACING), inside) > 0.99


def test_a_frame_around_noisy_air(noisy, inside):
    image = np.zeros_like(noisy)
    image[8:-8, 4:-4] = noisy[8:-8, 4:-4]
    assert overlap(foreground_mask(image, SPACING), inside) > 0.99


def test_two_legs_are_both_the_patients(grid):
    legs = ((np.abs(grid[0]) - 0.5) ** 2 + grid[1] ** 2) < 0.12
    image = np.where(legs, 500, 0) + np.random.default_rng(4).normal(0, 5, SHAPE)
    assert overlap(foreground_mask(image, SPACING), legs) > 0.99


def test_one_slice_and_every_place_of_an_axis_of_length_one(noisy, inside):
    flat, true = noisy[..., 6], inside[..., 6]
    assert overlap(foreground_mask(flat, SPACING[:2]), true) > 0.98
    for axis in range(3):
        spacing = np.insert([2.0, 2.0], axis, 5.0)
        found = foreground_mask(np.expand_dims(flat, axis), spacing)
        assert overlap(found, np.expand_dims(true, axis)) > 0.98


def test_nothing_stands_out():
    assert not foreground_mask(np.full(SHAPE, 7.0)).any()
    noise = np.random.default_rng(5).normal(100, 10, SHAPE)
    assert foreground_mask(noise).all()


@pytest.mark.parametrize(
    ("image", "spacing", "message"),
    [
        (np.zeros((2, 2, 2, 2)), (1, 1, 1, 1), "shape"),
        (np.array([[0, np.nan]]), (1, 1), "NaN"),
        (np.zeros((2, 2)), (1, 0), "spacing"),
        (np.zeros((2, 2, 2)), (1, 1), "spacing"),
    ],
)
def test_refused(image, spacing, message):
    with pytest.raises(ValueError, match=message):
        foreground_mask(image, spacing)
