"""Synthetic deformation noise: what may be drawn, what it does to an image, and the field that undoes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks import Warp
from monai.transforms import Compose
from scipy import ndimage

from pipeline.metrics import folded_fraction, jacobian_determinant
from transforms import Deformation, DeformationNoise, RandDeformationNoised, deform, true_displacement

pytestmark = pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")


def smooth_image(*shape, sigma=5.0, seed=0):
    """A band-limited random image in [-1, 1] that fades to the background -1 at the border."""
    noise = ndimage.gaussian_filter(np.random.RandomState(seed).randn(*shape), sigma)
    fade = np.ones(shape)
    for axis, size in enumerate(shape):
        window = np.sin(np.linspace(0, np.pi, size)) ** 2
        fade *= window.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    image = (noise / abs(noise).max() + 1) * fade - 1
    return torch.from_numpy(image).float()[None, None]


def draw(level, kind="affine", batch=1, spatial_dims=2, seed=0, **kwargs):
    return DeformationNoise(level, kind, spatial_dims, **kwargs).set_random_state(seed).sample(batch)


def pick(deformation, index):
    chosen = {name: value if value is None else value[index : index + 1] for name, value in vars(deformation).items()}
    return replace(deformation, **chosen)


# What is drawn


@pytest.mark.parametrize("level", [0.5, 1, 3, 5])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_draws_fill_the_bounds_of_the_level(level, spatial_dims):
    drawn = draw(level, batch=2000, spatial_dims=spatial_dims)
    for values, bound in ((drawn.rotation, level), (drawn.shift, 0.02 * level), (drawn.scale - 1, 0.02 * level)):
        assert abs(values).max() <= bound
        assert abs(values).max() > 0.97 * bound
        assert values.mean() == pytest.approx(0, abs=0.05 * bound)
    assert drawn.rotation.shape == (2000, 1 if spatial_dims == 2 else 3)
    assert drawn.control is None


def test_level_0_draws_at_level_1():
    np.testing.assert_array_equal(draw(0).rotation, draw(1).rotation)
    np.testing.assert_array_equal(draw(0).shift, draw(1).shift)


def test_smooth_displacement_grows_with_level_and_amplitude():
    control = draw(1, "nonaffine", amplitude=0.02).control
    np.testing.assert_allclose(draw(4, "nonaffine", amplitude=0.02).control, 4 * control)
    np.testing.assert_allclose(draw(1, "nonaffine", amplitude=0.01).control, control / 2)
    assert draw(1, "nonaffine", control_cells=(3, 6)).control.shape == (1, 2, 6, 9)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_nothing_folds_at_level_5(spatial_dims):
    drawn = draw(5, "nonaffine", batch=20, spatial_dims=spatial_dims)
    still = Deformation.identity(20, spatial_dims)
    extreme = replace(still, control=np.sign(drawn.control) * 0.15)  # every coefficient at its bound
    field = true_displacement(still, extreme, (48,) * spatial_dims)
    assert jacobian_determinant(field).min() > 0.4
    assert folded_fraction(field).max() == 0


def test_same_seed_same_draws():
    first, second, other = (
        RandDeformationNoised(level=3, kind="nonaffine").set_random_state(seed) for seed in (5, 5, 6)
    )
    pair = {"image": smooth_image(32, 32), "label": smooth_image(32, 32)}
    for _ in range(3):
        a, b, c = first(pair), second(pair), other(pair)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])
        assert not torch.equal(a["image"], c["image"])


def test_state_can_be_saved_and_restored():
    noise = RandDeformationNoised(level=2).set_random_state(1)
    pair = {"image": smooth_image(32, 32), "label": smooth_image(32, 32)}
    noise(pair)
    state = noise.R.get_state()
    expected = noise(pair)["label"]
    again = RandDeformationNoised(level=2).set_random_state(7)
    again.R.set_state(state)
    assert torch.equal(again(pair)["label"], expected)


def test_compose_seeds_it():
    pair = {"image": smooth_image(32, 32), "label": smooth_image(32, 32)}
    runs = [Compose([RandDeformationNoised(level=3)]).set_random_state(3)(pair)["image"] for _ in range(2)]
    assert torch.equal(*runs)


# What it does to an image


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
def test_background_stays_exact_and_values_in_range(kind):
    image = smooth_image(64, 64)
    image[image < -0.8] = -1
    moved = deform(image, draw(5, kind))
    assert moved.min() == -1
    assert (moved == -1).float().mean() > 0.1
    assert moved.max() <= 1


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
@pytest.mark.parametrize("shape", [(40, 56), (12, 16, 20)])
def test_batch_equals_one_by_one(kind, shape):
    images = torch.cat([smooth_image(*shape, sigma=2, seed=seed) for seed in range(3)]).repeat(1, 2, *[1] * len(shape))
    noise = DeformationNoise(3, kind, len(shape)).set_random_state(0)
    drawn = noise.sample(3)
    whole = noise.apply(images, drawn)
    for index in range(3):
        torch.testing.assert_close(noise.apply(images[index], pick(drawn, index)), whole[index], atol=1e-6, rtol=0)


def test_array_form_draws_applies_and_replays():
    noise = DeformationNoise(3).set_random_state(0)
    image = smooth_image(32, 32)
    moved = noise(image)
    assert not torch.equal(moved, image)
    assert torch.equal(noise.apply(image, noise.deformation), moved)
    assert noise(image[0]).shape == (1, 32, 32)


def test_type_dtype_and_meta_are_kept():
    noise = DeformationNoise(3).set_random_state(0)
    image = smooth_image(32, 32)[0]
    meta = noise(MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), meta={"name": "x"}))
    assert isinstance(meta, MetaTensor)
    assert meta.meta["name"] == "x"
    assert meta.affine[0, 0] == 2
    assert isinstance(noise(image.numpy()), np.ndarray)
    assert noise(image.half()).dtype == torch.float16


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
def test_never_waits_for_the_device(kind):
    """Tensors on the meta device have no values, so whatever looked at one would fail."""
    noise = RandDeformationNoised(level=3, kind=kind, return_displacement=True)
    batch = {key: torch.empty(2, 1, 32, 32, device="meta") for key in ("image", "label")}
    out = noise(batch)
    assert {key: (value.device.type, tuple(value.shape)) for key, value in out.items()} == {
        "image": ("meta", (2, 1, 32, 32)),
        "label": ("meta", (2, 1, 32, 32)),
        "true_ddf": ("meta", (2, 2, 32, 32)),
    }


# Pairs


def test_level_0_moves_source_and_target_alike():
    image = smooth_image(48, 48).expand(4, -1, -1, -1)
    out = RandDeformationNoised(level=0, return_displacement=True).set_random_state(0)(
        {"image": image, "label": image.clone()}
    )
    assert torch.equal(out["image"], out["label"])
    assert not torch.equal(out["image"], image)
    assert not torch.equal(out["image"][0], out["image"][1])
    assert (out["true_ddf"] == 0).all()


def test_source_and_target_move_independently():
    image = smooth_image(48, 48).expand(4, -1, -1, -1)
    noise = RandDeformationNoised(level=2).set_random_state(0)
    out = noise({"image": image, "label": image})
    assert not torch.equal(out["image"], out["label"])
    drawn = np.stack([noise.deformations[key].rotation for key in ("image", "label")]).ravel()
    assert len(np.unique(drawn)) == 8


def test_other_keys_and_the_input_are_untouched():
    batch = {"image": smooth_image(32, 32), "label": smooth_image(32, 32), "case": ["a"], "slice": torch.tensor([4])}
    before = {key: batch[key].clone() for key in ("image", "label")}
    out = RandDeformationNoised(level=5)(batch)
    assert out["case"] is batch["case"]
    assert out["slice"] is batch["slice"]
    assert out.keys() == batch.keys()
    assert all(torch.equal(batch[key], before[key]) for key in before)


def test_replay_gives_the_same_pair():
    noise = RandDeformationNoised(level=3, kind="nonaffine")
    pair = {"image": smooth_image(32, 32)[0], "label": smooth_image(32, 32)[0]}
    out = noise(pair)
    for key in pair:
        assert torch.equal(noise.noise.apply(pair[key], noise.deformations[key]), out[key])


def test_missing_keys():
    pair = {"image": smooth_image(32, 32)}
    with pytest.raises(KeyError, match="label"):
        RandDeformationNoised(level=1)(pair)
    assert set(RandDeformationNoised(level=1, allow_missing_keys=True)(pair)) == {"image"}


# The true displacement


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
@pytest.mark.parametrize("shape", [(128, 128), (96, 128), (32, 40, 48)])
def test_true_displacement_lines_the_source_up_with_the_target(kind, shape):
    dims = len(shape)
    clean = torch.cat([smooth_image(*shape, sigma=min(shape) / 12, seed=seed) for seed in range(3)])
    noise = RandDeformationNoised(level=3, kind=kind, spatial_dims=dims, return_displacement=True).set_random_state(1)
    out = noise({"image": clean, "label": clean})
    ddf = out["true_ddf"]
    assert ddf.shape == (3, dims, *shape)
    assert ddf.dtype == torch.float32
    lined_up = Warp()(out["image"], ddf)
    middle = (..., *[slice(size // 6, -(size // 6)) for size in shape])
    before = (out["image"] - out["label"])[middle].abs().mean()
    after = (lined_up - out["label"])[middle].abs().mean()
    assert before > 0.05
    assert after < before / 15  # two linear interpolations are what is left


def test_single_sample_gets_a_single_field():
    noise = RandDeformationNoised(level=3, return_displacement=True, displacement_key="field")
    out = noise({"image": smooth_image(32, 48)[0], "label": smooth_image(32, 48)[0]})
    assert out["field"].shape == (2, 32, 48)


# What is refused


@pytest.mark.parametrize("level", [-0.1, 5.01, float("nan"), "3", None, True])
def test_level_out_of_range(level):
    with pytest.raises(ValueError, match=r"noise_level must lie in \[0, 5\], got"):
        RandDeformationNoised(level=level)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "elastic"}, "noise_kind must be one of affine, nonaffine, got 'elastic'"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"control_cells": 0}, "control_cells must be whole numbers of at least 1, got 0"),
        ({"amplitude": -1}, "amplitude must be a number of at least 0, got -1"),
        ({"kind": "nonaffine", "amplitude": 0.1}, r"amplitude \* level must stay below 0.25 in 2D"),
        ({"keys": ("image",), "return_displacement": True}, "return_displacement takes two keys"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandDeformationNoised(**{"level": 3, **arguments})


def test_bad_images():
    noise = DeformationNoise(3)
    with pytest.raises(ValueError, match=r"\(C, \*spatial\) or \(B, C, \*spatial\) in 2D, got the shape \(32, 32\)"):
        noise(torch.zeros(32, 32))
    with pytest.raises(TypeError, match="floating point"):
        noise(torch.zeros(1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one deformation per image, got 1 for 2 images"):
        noise.apply(torch.zeros(2, 1, 8, 8), noise.sample(1))
    with pytest.raises(ValueError, match="image must have the shape"):
        deform(torch.zeros(1, 1, 8, 8), Deformation.identity(1, 3))
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        noise.sample(0)
    with pytest.raises(ValueError, match="batches of one size"):
        RandDeformationNoised(level=1)({"image": torch.zeros(2, 1, 8, 8), "label": torch.zeros(1, 8, 8)})
    with pytest.raises(ValueError, match="source and target of one size"):
        RandDeformationNoised(level=1, return_displacement=True)(
            {"image": torch.zeros(1, 8, 8), "label": torch.zeros(1, 8, 9)}
        )
