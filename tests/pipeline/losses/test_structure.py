"""Structure loss: blind to contrast, and not to place."""

from __future__ import annotations

import pytest
import torch

from pipeline.losses import StructureLoss
from pipeline.losses.structure import mind


def brain(*size: int, seed: int = 0) -> torch.Tensor:
    """A smooth image in [-1, 1]."""
    torch.manual_seed(seed)
    coarse = torch.rand(2, 1, *(-(-length // 4) for length in size))
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return torch.nn.functional.interpolate(coarse, size, mode=mode) * 2 - 1


@pytest.mark.parametrize("size", [(24, 20), (12, 16, 8)])
def test_descriptors_are_those_of_the_definition(size: tuple[int, ...]) -> None:
    images = brain(*size).double()
    found = mind(images)
    assert found.shape == (2, 2 * len(size), *size)
    assert found.dtype == torch.float64
    place = tuple(length // 2 for length in size)
    steps = [(axis, step) for axis in range(len(size)) for step in (-1, 1)]

    def patch(centre: list[int]) -> torch.Tensor:
        return images[1, 0][tuple(slice(at - 1, at + 2) for at in centre)]

    def beside(axis: int, step: int) -> list[int]:
        return [at + step * (other == axis) for other, at in enumerate(place)]

    distances = torch.stack([(patch(beside(*step)) - patch(list(place))).square().mean() for step in steps])
    expected = torch.exp(-(distances - distances.min()) / distances.mean())
    torch.testing.assert_close(found[(1, slice(None), *place)], expected)


@pytest.mark.parametrize("size", [(24, 20), (12, 16, 8)])
def test_contrast_does_not_matter_and_place_does(size: tuple[int, ...]) -> None:
    images, loss = brain(*size), StructureLoss()
    assert loss(images, images) == 0
    assert loss(-images, images) == pytest.approx(0, abs=1e-6)
    assert loss(images * 0.3 + 0.5, images) < 1e-3
    assert loss(images.roll(2, -1), images) > 0.1
    assert loss(brain(*size, seed=1), images) > 0.1


def test_flat_images_have_no_structure_and_finite_gradients() -> None:
    flat = torch.full((1, 1, 8, 8), -1.0, requires_grad=True)
    loss = StructureLoss()(flat, brain(8, 8)[:1])
    loss.backward()
    assert (mind(flat) == 1).all()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_each_image_stands_for_itself() -> None:
    """So that the loss is the same however a batch is shared among processes."""
    images = brain(16, 16) * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(mind(images), torch.cat([mind(images[:1]), mind(images[1:])]))


def test_channels_may_differ() -> None:
    one = brain(16, 16)
    assert StructureLoss()(one, torch.cat([one, one], 1)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("pred", "source", "says"),
    [
        ((1, 1, 8, 8), (2, 1, 8, 8), "one batch and one size"),
        ((1, 1, 8, 8), (1, 1, 8, 9), "one batch and one size"),
        ((1, 1, 8), (1, 1, 8), "images must be"),
    ],
)
def test_what_does_not_fit_is_refused(pred: tuple[int, ...], source: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StructureLoss()(torch.zeros(pred), torch.zeros(source))
