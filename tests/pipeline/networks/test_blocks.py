"""Checks and parts that the networks share."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.networks.blocks import ResidualBlock, check_counts, check_images, check_spatial_dims, crop, instance_norm


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_residual_block_adds_to_its_input(spatial_dims):
    block = ResidualBlock(spatial_dims, 4)
    image = torch.randn(2, 4, *(3,) * spatial_dims)
    added = (block(image) - image).flatten(2)
    # Instance norm comes last in what is added.
    torch.testing.assert_close(added.mean(2), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(added.var(2, correction=0), torch.ones(2, 4), atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(5, 6), (5, 4), (3, 6), (2, 1)])
def test_crop_cuts_at_the_far_end(size):
    image = torch.rand(2, 3, 5, 6)
    assert torch.equal(crop(image, size), image[..., : size[0], : size[1]])


@pytest.mark.parametrize("bad", [1, 4, "2"])
def test_spatial_dims_outside_2_and_3_are_refused(bad):
    with pytest.raises(ValueError, match=r"spatial_dims must be 2 or 3, got"):
        check_spatial_dims(bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3", None])
def test_counts_name_the_value_that_is_wrong(bad):
    with pytest.raises(ValueError, match=r"filters must be an integer of at least 1, got"):
        check_counts(layers=3, filters=bad)


class Net:
    """What a network tells of the images that it takes."""

    spatial_dims, in_channels, minimum_size = 2, 1, 4


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 2, 8, 8), (1, 1, 8, 8, 8)])
def test_image_shapes_are_checked(shape):
    with pytest.raises(ValueError, match=r"Net expects images of shape \(batch, 1, height, width\), got \("):
        check_images(Net(), torch.zeros(shape), "less")


def test_small_images_are_refused_with_the_smallest_size_and_a_hint():
    with pytest.raises(ValueError, match=r"at least 4 along every spatial axis, got \(8, 3\); use .* or fewer levels"):
        check_images(Net(), torch.zeros(1, 1, 8, 3), "fewer levels")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(2, 3, 9, 7), (1, 5, 4, 6)])
def test_instance_norm_is_pytorch_s_but_for_rounding(size, layout):
    torch.manual_seed(0)
    x = (3 * torch.randn(size) + 5).contiguous(memory_format=layout).requires_grad_()
    ours, theirs = instance_norm(x), F.instance_norm(x)
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=layout)
    weight = torch.randn(size)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_instance_norm_of_one_value_is_exactly_zero():
    """PyTorch's own leaves rounding errors there, which further norms blow up to the full range."""
    assert not instance_norm(torch.full((1, 2, 64, 64), 0.3)).any()
