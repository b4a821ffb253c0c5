"""Properties of the generator with skip connections."""

import pytest
import torch

from pipeline.networks import UNetGenerator


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (47, 64), (32, 33, 40)])
def test_prediction_has_the_size_of_the_source_and_lies_in_range(size):
    network = UNetGenerator(len(size), in_channels=2, out_channels=3, filters=4)
    prediction = network(torch.rand(2, 2, *size) * 2 - 1)
    assert prediction.shape == (2, 3, *size)
    assert prediction.abs().max() <= 1


def test_voxels_stay_in_place_at_sizes_that_are_no_multiples():
    """What is added at the far end does not move the rest: the image begins where it began."""
    torch.manual_seed(0)
    network = UNetGenerator(filters=4).eval()
    image = torch.full((1, 1, 48, 48), -1.0)
    image[..., 8:24, 8:24] = torch.rand(16, 16)
    with torch.no_grad():
        whole, cut = network(image), network(image[..., :41, :41])
    torch.testing.assert_close(whole[..., :41, :41], cut)


def test_skips_hand_on_single_pixels():
    torch.manual_seed(0)
    network = UNetGenerator(filters=4)
    image = torch.rand(1, 1, 64, 64, requires_grad=True)
    network(image)[0, 0, 20, 30].backward()
    gradient = image.grad[0, 0].abs()
    assert gradient[18:23, 28:33].mean() > 5 * gradient.mean()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spatial_dims": 1}, "spatial_dims"),
        ({"filters": 0}, "filters"),
        ({"in_channels": 0}, "in_channels"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        UNetGenerator(**arguments)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 32 along every spatial axis"):
        UNetGenerator(filters=4)(torch.rand(1, 1, 31, 40))


def test_trace_takes_any_size():
    network = UNetGenerator(filters=4).eval()
    traced = torch.jit.trace(network, torch.zeros(2, 1, 128, 160))
    image = torch.rand(1, 1, 50, 77) * 2 - 1
    torch.testing.assert_close(traced(image), network(image))


def test_is_exported_for_all_sizes():
    """What is padded must be a multiple for the tracer, too, which knows sizes as symbols only."""
    network = UNetGenerator(filters=2).eval()
    height, width = torch.export.Dim("height", min=32), torch.export.Dim("width", min=32)
    exported = torch.export.export(network, (torch.zeros(1, 1, 40, 56),), dynamic_shapes=({2: height, 3: width},))
    for size in ((32, 32), (41, 67)):
        source = torch.rand(1, 1, *size)
        torch.testing.assert_close(exported.module()(source), network(source))
