"""The mathematics of deformations, against scipy and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms.utils import create_rotate
from scipy import ndimage

from transforms import Deformation, DeformationNoise, deform, true_displacement


def smooth_image(*shape, sigma=5.0, seed=0):
    """A band-limited random image in [-1, 1] that fades to the background -1 at the border."""
    noise = ndimage.gaussian_filter(np.random.RandomState(seed).randn(*shape), sigma)
    fade = np.ones(shape)
    for axis, size in enumerate(shape):
        window = np.sin(np.linspace(0, np.pi, size)) ** 2
        fade *= window.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    image = (noise / abs(noise).max() + 1) * fade - 1
    return torch.from_numpy(image).float()[None, None]


def affine(rotation=0.0, shift=(0.0, 0.0), scale=1.0):
    return Deformation(np.atleast_2d(np.array(rotation, dtype=float)), np.array([shift]), np.array([scale]))


def grid(*shape):
    return np.stack(np.meshgrid(*[np.arange(size, dtype=float) for size in shape], indexing="ij"))


def draw(seed, shape):
    return DeformationNoise(5, "nonaffine", len(shape)).set_random_state(seed).sample(1)


def phi(drawn, voxels):
    """The pull-back map of one deformation at any voxels (d, ...), computed anew; the image must be a square or a cube.

    scipy evaluates the spline: it takes coefficients with order 3 and no prefilter.
    """
    dims, size = voxels.shape[:2]
    cell = size / 4
    smooth = [
        ndimage.map_coordinates(control * cell, (voxels + 0.5) / cell + 1, order=3, prefilter=False)
        for control in drawn.control[0]
    ]
    forward = create_rotate(dims, tuple(np.deg2rad(drawn.rotation[0])))[:dims, :dims] * drawn.scale[0]
    shift = (size * drawn.shift[0]).reshape(-1, *[1] * dims)
    centre = (size - 1) / 2
    return np.einsum("ij,j...->i...", np.linalg.inv(forward), voxels + np.stack(smooth) - centre - shift) + centre


@pytest.mark.parametrize("shape", [(64, 64), (50, 75), (16, 20, 24), (20, 24, 1)])
def test_identity_changes_nothing(shape):
    image = torch.rand(2, 3, *shape) * 2 - 1
    still = Deformation.identity(2, len(shape))
    points = (2, len(shape), *(7,) * len(shape))
    assert torch.equal(deform(image, still), image)
    assert torch.equal(deform(image, replace(still, control=np.zeros(points))), image)
    assert deform(image, still).data_ptr() != image.data_ptr()


@pytest.mark.parametrize("shape", [(64, 64), (50, 75), (16, 20, 24), (20, 24, 1)])
def test_tiny_deformation_changes_next_to_nothing(shape):
    image = torch.rand(1, 1, *shape) * 2 - 1
    tiny = replace(Deformation.identity(1, len(shape)), scale=np.array([1 + 1e-9]))
    torch.testing.assert_close(deform(image, tiny), image, atol=5e-5, rtol=0)


def test_shift_by_whole_voxels_moves_the_content():
    image = torch.rand(1, 1, 10, 20)
    moved = deform(image, affine(shift=(2 / 10, -3 / 20)))
    torch.testing.assert_close(moved[..., 2:, :-3], image[..., :-2, 3:], atol=1e-5, rtol=0)
    assert (moved[..., :2, :] == -1).all()
    assert (moved[..., -3:] == -1).all()


@pytest.mark.parametrize("shift", [(2.5, -3.25), (0.0, 7.5)])
def test_shift_agrees_with_scipy(shift):
    image = smooth_image(40, 60)
    expected = ndimage.shift(image[0, 0].numpy(), shift, order=1, mode="grid-constant", cval=-1)
    moved = deform(image, affine(shift=(shift[0] / 40, shift[1] / 60)))
    np.testing.assert_allclose(moved[0, 0], expected, atol=2e-5)


@pytest.mark.parametrize("angle", [90, -90, 30, 3.7])
def test_rotation_agrees_with_scipy(angle):
    image = smooth_image(48, 64)
    expected = ndimage.rotate(image[0, 0].numpy(), angle, reshape=False, order=1, mode="grid-constant", cval=-1)
    np.testing.assert_allclose(deform(image, affine(rotation=angle))[0, 0], expected, atol=2e-5)


def test_quarter_turn_by_hand():
    image = torch.rand(1, 1, 5, 5)
    torch.testing.assert_close(deform(image, affine(rotation=90)), torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_rotation_in_3d_turns_about_its_axis(axis, plane):
    image = torch.rand(1, 1, 6, 6, 6)
    angles = np.zeros((1, 3))
    angles[0, axis] = 90
    moved = deform(image, replace(Deformation.identity(1, 3), rotation=angles))
    expected = torch.rot90(image, 1, tuple(2 + i for i in plane))
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_scale_above_one_enlarges():
    image = smooth_image(65, 65)
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), np.eye(2) / 1.1, offset=32 - 32 / 1.1, order=1, mode="grid-constant", cval=-1
    )
    np.testing.assert_allclose(deform(image, affine(scale=1.1))[0, 0], expected, atol=2e-5)
    square = torch.full((1, 1, 33, 33), -1.0)
    square[..., 8:25, 8:25] = 1
    assert (deform(square, affine(scale=1.2)) > 0).sum() > (square > 0).sum() * 1.3


def test_smooth_displacement_is_the_cubic_b_spline():
    control = np.random.RandomState(0).uniform(-0.1, 0.1, (1, 2, 7, 8))
    only_smooth = replace(Deformation.identity(1), control=control)
    field = true_displacement(Deformation.identity(1), only_smooth, (32, 40))[0]
    for axis in range(2):  # cells of 8 voxels
        expected = ndimage.map_coordinates(control[0, axis] * 8, (grid(32, 40) + 0.5) / 8 + 1, order=3, prefilter=False)
        np.testing.assert_allclose(field[axis], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (20, 20, 20)])
def test_everything_is_one_linear_resampling(shape):
    image, drawn = smooth_image(*shape), draw(3, shape)
    expected = ndimage.map_coordinates(
        image[0, 0].numpy(), phi(drawn, grid(*shape)), order=1, mode="grid-constant", cval=-1
    )
    np.testing.assert_allclose(deform(image, drawn)[0, 0], expected, atol=2e-5)


def test_true_displacement_of_shifts_by_hand():
    source, target = affine(shift=(3 / 20, 0.0)), affine(shift=(1 / 20, 4 / 40))
    ddf = true_displacement(source, target, (20, 40))
    # the target's content lies 2 voxels up and 4 to the right of the source's: look 2 down and 4 left
    torch.testing.assert_close(ddf[0, 0], torch.full((20, 40), 2.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(ddf[0, 1], torch.full((20, 40), -4.0), atol=1e-5, rtol=0)


def test_true_displacement_of_a_rotation_by_hand():
    ddf = true_displacement(Deformation.identity(1), affine(rotation=90), (5, 5))[0]
    # a voxel at offset (i, j) from the centre shows what was at (j, -i)
    assert ddf[:, 2, 2].tolist() == pytest.approx([0, 0], abs=1e-5)
    assert ddf[:, 4, 2].tolist() == pytest.approx([-2, -2], abs=1e-5)
    assert ddf[:, 2, 4].tolist() == pytest.approx([2, -2], abs=1e-5)


@pytest.mark.parametrize(("shape", "tolerance"), [((128, 128), 0.005), ((40, 40, 40), 0.02)])
def test_true_displacement_is_accurate_at_level_5(shape, tolerance):
    """`phi_source(x + d(x)) = phi_target(x)`, as far as x + d(x) lies inside the image."""
    source, target = draw(1, shape), draw(2, shape)
    voxels = grid(*shape)
    moved = voxels + true_displacement(source, target, shape)[0].double().numpy()
    inside = ((moved >= 0) & (moved <= shape[0] - 1)).all(0)
    error = np.linalg.norm(phi(source, moved) - phi(target, voxels), axis=0)[inside]
    assert inside.mean() > 0.5
    assert error.max() < tolerance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": np.zeros((2, 1))}, r"rotation must have the shape \(1, 1\)"),
        ({"shift": np.zeros((1, 4))}, "shift must have the shape"),
        ({"scale": np.zeros(1)}, "scale must lie above 0"),
        ({"control": np.zeros((1, 2, 3, 7))}, "control must have the shape"),
    ],
)
def test_deformation_checks_itself(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Deformation.identity(1), **change)


def test_true_displacement_wants_matching_draws():
    with pytest.raises(ValueError, match="1 deformations in 2D, 2 in 2D"):
        true_displacement(Deformation.identity(1), Deformation.identity(2), (8, 8))
