"""Affine registration in closed form, alone and in front of the registration network."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.metrics import points_inside
from pipeline.networks import (
    AffineRegistrationNet,
    RegistrationNet,
    affine_field,
    random_symmetries,
    register_affine,
    warp,
)
from transforms import RandDeformationNoised


def heads(batch, *size, seed=0):
    """Smooth random images in [-1, 1] within an ellipsoid, -1 outside."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, 1, *(count // 4 for count in size), generator=generator)
    texture = F.interpolate(noise, size, mode="bicubic" if len(size) == 2 else "trilinear", align_corners=False)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, count) for count in size), indexing="ij")
    radius = sum((axis / 0.6) ** 2 for axis in axes).sqrt()
    return (0.3 + texture.clamp(0, 1)) / 1.3 * torch.sigmoid((1 - radius) * 20) * 2 - 1


def misaligned(level, *size, batch=16, kind="affine", seed=0):
    """Images, moved twice by the noise: moving, fixed, and the field that carries one onto the other."""
    images = heads(batch, *size)
    noise = RandDeformationNoised(level=level, kind=kind, spatial_dims=len(size), return_displacement=True)
    noise.set_random_state(seed)
    batch = noise({"image": images.clone(), "label": images.clone()})
    return batch["image"], batch["label"], batch["true_ddf"]


def errors(field, true, fixed):
    """Endpoint error of each image over its foreground, in voxels."""
    distance, inside = torch.linalg.vector_norm(field - true, dim=1), fixed[:, 0] > -0.9
    return torch.stack([one[mask].mean() for one, mask in zip(distance, inside, strict=True)])


@pytest.mark.parametrize(("level", "size", "median"), [(1, (64, 64), 0.05), (5, (64, 64), 0.05), (5, (48, 80), 0.05)])
def test_affine_fields_are_found_to_a_fraction_of_a_pixel(level, size, median):
    moving, fixed, true = misaligned(level, *size)
    maps, facts = register_affine(moving, fixed)
    found = errors(affine_field(maps, torch.zeros_like(true)), true, fixed)
    assert torch.linalg.vector_norm(true, dim=1).mean() > 20 * median
    assert found.median() < median
    assert found.max() < 0.5
    assert not facts["rejected"].any()
    assert (facts["cost"] < 0.1 * facts["identity_cost"]).all()


def test_affine_fields_are_found_in_volumes():
    moving, fixed, true = misaligned(3, 32, 40, 36, batch=2)
    maps, _ = register_affine(moving, fixed)
    assert maps.shape == (2, 3, 4)
    assert errors(affine_field(maps, torch.zeros_like(true)), true, fixed).max() < 0.1


def test_each_image_is_registered_for_itself():
    moving, fixed, _ = misaligned(5, 64, 64, batch=3)
    together, _ = register_affine(moving, fixed)
    alone = torch.cat([register_affine(moving[i : i + 1], fixed[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_channels_are_registered_as_one_image():
    moving, fixed, true = misaligned(4, 64, 64, batch=4)
    two = register_affine(torch.cat([moving, torch.full_like(moving, -1)], 1), torch.cat([fixed, -fixed * 0 - 1], 1))[0]
    assert errors(affine_field(two, torch.zeros_like(true)), true, fixed).median() < 0.05


def _nan(images):
    return torch.where(torch.arange(64) == 5, torch.nan, images)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda moving, fixed: (moving, moving.clone()),  # nothing can be lower than a cost of zero
        lambda moving, fixed: (torch.full_like(moving, -1), fixed),  # flat: no gradient
        lambda moving, fixed: (moving, _nan(fixed)),
        lambda moving, fixed: (_nan(moving), fixed),
        lambda moving, fixed: (moving * torch.inf, fixed),
        lambda moving, fixed: (moving, moving.roll(40, 2)),  # further than any plausible shift
    ],
)
def test_what_is_no_solution_becomes_the_identity(spoil):
    moving, fixed, _ = misaligned(5, 64, 64, batch=4)
    images = heads(4, 64, 64)
    bad_moving, bad_fixed = spoil(images, fixed)
    # The first image is spoiled, the others are not: they must not notice.
    moving, fixed = (torch.cat([bad[:1], good[1:]]) for bad, good in ((bad_moving, moving), (bad_fixed, fixed)))
    maps, facts = register_affine(moving, fixed)
    assert facts["rejected"].tolist() == [1, 0, 0, 0]
    assert (maps[0] == 0).all()
    assert (maps[1:] != 0).all()


def test_cost_is_never_above_that_of_the_identity():
    moving, fixed = torch.rand(2, 8, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, facts = register_affine(moving, fixed)
    assert (facts["cost"] <= facts["identity_cost"]).all()


class Unread(TorchDispatchMode):
    """Refuses what brings a tensor's value to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_on_the_host():
    moving, fixed, _ = misaligned(2, 64, 64, batch=2)
    with Unread(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        moving.sum().item()
    with Unread():
        _, _, scalars = net().in_parts(moving, fixed)
    assert all(scalar.shape == () for scalar in scalars.values())


@pytest.mark.parametrize("shapes", [((1, 1, 32, 32), (1, 1, 32, 31)), ((1, 1, 32), (1, 1, 32))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    moving, fixed = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="moving and fixed must have one shape"):
        register_affine(moving, fixed)


def net():
    torch.manual_seed(0)
    return AffineRegistrationNet(channels=(4, 8, 8), bottom_blocks=1)


def test_composed_field_warps_as_one_after_the_other():
    moving, fixed, _ = misaligned(3, 64, 64, batch=4)
    network = net()
    torch.nn.init.normal_(network.output.conv.weight, std=0.3)  # a field of its own that is not small
    with torch.no_grad():
        field, own, _ = network.in_parts(moving, fixed)
        maps, _ = register_affine(moving, fixed)
    assert own.abs().mean() > 0.05
    # Sampling a linear field between voxels is exact, but for where it leaves the image.
    there = warp(affine_field(maps, torch.zeros_like(own)), own)
    difference = torch.where(points_inside(own), own + there - field, 0)
    assert difference.abs().max() < 1e-3


def test_it_starts_at_the_affine_map_alone():
    moving, fixed, true = misaligned(5, 64, 64)
    with torch.no_grad():
        field = net()(moving, fixed)
    assert errors(field, true, fixed).median() < 0.05


def test_gradients_reach_network_and_image_but_not_through_the_affine_part():
    moving, fixed, _ = misaligned(2, 64, 64, batch=2)
    network, moving = net(), moving.requires_grad_()
    field, _, scalars = network.in_parts(moving, fixed)
    assert not any(scalar.requires_grad for scalar in scalars.values())
    F.l1_loss(warp(moving, field), fixed).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert moving.grad.abs().sum() > 0


def test_it_has_the_weights_of_a_registration_network():
    plain = RegistrationNet(channels=(4, 8, 8), bottom_blocks=1)
    assert plain.load_state_dict(net().state_dict())


def test_bfloat16_registers_in_single_precision():
    moving, fixed, true = misaligned(5, 64, 64, batch=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field, *_ = net().in_parts(moving, fixed)
    assert field.dtype == torch.float32
    assert errors(field, true, fixed).median() < 0.1


@pytest.mark.parametrize("size", [(64, 64), (24, 24, 24)])
def test_symmetries_are_all_flips_and_turns_with_a_small_scaling(size):
    torch.manual_seed(0)
    dims = len(size)
    maps = random_symmetries(torch.zeros(600, 1, *(1,) * dims).expand(-1, -1, *size))
    matrix = maps[:, :, :-1] + torch.eye(dims)
    scales = matrix.abs().amax((1, 2))
    assert (scales.min(), scales.max()) == (pytest.approx(1 / 1.1, abs=0.01), pytest.approx(1.1, abs=0.01))
    assert not maps[:, :, -1].any()
    kinds = {tuple(one.round().int().flatten().tolist()) for one in matrix / scales[:, None, None]}
    assert len(kinds) == {2: 8, 3: 48}[dims]  # the symmetries of a square and of a cube


def test_symmetries_exchange_no_axes_of_different_length():
    torch.manual_seed(0)
    maps = random_symmetries(torch.zeros(100, 1, 8, 12, 8))
    matrix = maps[:, :, :-1] + torch.eye(3)
    assert (matrix[:, 1, 1].abs() > 0.5).all()
    assert (matrix[:, 0, 2].abs() > 0.5).any()


def test_a_symmetry_without_scaling_moves_voxels_onto_voxels():
    torch.manual_seed(0)
    images = torch.rand(8, 1, 9, 9)
    maps = random_symmetries(images, scaling=0)
    moved = warp(images, affine_field(maps, torch.zeros(8, 2, 9, 9)))
    for before, after in zip(images, moved, strict=True):
        turned = [torch.rot90(side, turns, (1, 2)) for side in (before, before.flip(2)) for turns in range(4)]
        assert min((after - one).abs().max() for one in turned) < 1e-5
