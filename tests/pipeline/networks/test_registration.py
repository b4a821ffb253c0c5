"""Properties of the registration network."""

import pytest
import torch
from monai.networks.blocks import Warp
from torch.nn import functional as F

from pipeline.networks import RegistrationNet


def small(**arguments):
    return RegistrationNet(**{"channels": (4, 8, 8), "bottom_blocks": 1} | arguments)


def pair(*size, channels=1, batch=1):
    return torch.rand(2, batch, channels, *size) * 2 - 1


def test_defaults_have_the_paper_s_size():
    with torch.device("meta"):
        network = RegistrationNet()
        field = network(torch.empty(1, 1, 256, 256), torch.empty(1, 1, 256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_058_018
    assert network.minimum_size == 256
    assert field.shape == (1, 2, 256, 256)


@pytest.mark.parametrize("seed", range(3))
def test_registration_starts_at_the_identity(seed):
    torch.manual_seed(seed)
    moving, fixed = pair(256, 256)
    with torch.no_grad():
        field = RegistrationNet()(moving, fixed)
        warped = Warp()(moving, field)
    assert 0 < field.abs().max() < 1e-2
    torch.testing.assert_close(warped, moving, atol=2e-2, rtol=0)


@pytest.mark.parametrize("size", [64, 72, 96])
def test_fewer_levels_serve_smaller_images(size):
    moving, fixed = pair(size, size)
    field = RegistrationNet(channels=(16, 32, 32, 32))(moving, fixed)
    assert field.shape == (1, 2, size, size)
    assert field.abs().max() < 1e-2


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (23, 16), (16, 17, 19)])
def test_field_has_the_size_of_the_images_and_a_channel_per_axis(size):
    moving, fixed = pair(*size, channels=2, batch=2)
    field = small(spatial_dims=len(size), in_channels=2)(moving, fixed)
    assert field.shape == (2, len(size), *size)
    assert field.isfinite().all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_minimum_size_is_the_smallest_that_works(levels, spatial_dims, monkeypatch):
    network = small(channels=(2,) * levels, spatial_dims=spatial_dims)
    smallest = network.minimum_size
    assert network(*pair(*(smallest,) * spatial_dims)).isfinite().all()
    moving, fixed = pair(smallest - 1, *(smallest,) * (spatial_dims - 1))
    with pytest.raises(ValueError, match=f"at least {smallest} along every spatial axis.*fewer levels"):
        network(moving, fixed)
    monkeypatch.setattr("pipeline.networks.registration.check_images", lambda *_: None)
    with pytest.raises((RuntimeError, ValueError)):
        network(moving, fixed)


def test_images_of_a_batch_do_not_influence_each_other():
    network = small()
    torch.nn.init.normal_(network.output.conv.weight)
    moving, fixed = pair(16, 16, batch=3)
    alone = torch.cat([network(moving[i : i + 1], fixed[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(moving, fixed), alone, atol=1e-4, rtol=1e-4)


def test_every_weight_learns():
    network = small()
    moving, fixed = pair(16, 16)
    F.l1_loss(Warp()(moving, network(moving, fixed)), fixed).backward()
    weights = {name: weight for name, weight in network.named_parameters() if name.endswith("weight")}
    assert all(weight.grad.abs().max() > 0 for weight in weights.values())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_is_recovered_along_its_axis(axis):
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    moving = torch.exp(-((rows - 16) ** 2 + (columns - 16) ** 2) / 40)[None, None] * 2 - 1
    fixed = torch.roll(moving, 3, dims=2 + axis)
    network, warp = small(), Warp()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        field = network(moving, fixed)
        F.l1_loss(warp(moving, field), fixed).backward()
        optimizer.step()
    assert F.l1_loss(warp(moving, field), fixed) < 0.2 * F.l1_loss(moving, fixed)
    # Pull-back: the warped image takes its values three voxels before.
    flank = fixed[0, 0] > 0
    assert -4 < field[0, axis][flank].mean() < -2
    assert field[0, 1 - axis][flank].mean().abs() < 1


def test_field_is_single_precision_under_autocast():
    moving, fixed = pair(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        field = small()(moving, fixed)
        warped = Warp()(moving, field)
    assert field.dtype == torch.float32
    torch.testing.assert_close(warped, moving, atol=2e-2, rtol=0)


def test_exported_network_gives_the_same_field():
    network = small().eval()
    torch.nn.init.normal_(network.output.conv.weight)
    moving, fixed = pair(18, 21)
    exported = torch.export.export(network, (moving, fixed)).module()
    with torch.no_grad():  # as networks are used: training has another norm, equal but for rounding
        torch.testing.assert_close(exported(moving, fixed), network(moving, fixed))


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 1, 16, 16\) and \(1, 1, 16, 18\)"):
        small()(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 18))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ()}, "channels must name the channels of at least one level, got none"),
        ({"channels": (8, 0)}, r"channels\[1\] must be an integer of at least 1, got 0"),
        ({"bottom_blocks": 0}, "bottom_blocks must be an integer of at least 1, got 0"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
