"""The pool of earlier fakes: what it returns, and that its state can be put back."""

from __future__ import annotations

import io

import pytest
import torch

from pipeline.translators import ImagePool


def numbered(*values):
    """Images that are told apart by their intensity."""
    return torch.stack([torch.full((1, 2, 2), float(value)) for value in values])


def test_a_pool_that_is_not_full_returns_what_comes():
    pool = ImagePool(size=4)
    for first in (0, 2):
        images = numbered(first, first + 1)
        assert torch.equal(pool(images), images)
    assert len(pool) == 4


def test_a_full_pool_returns_new_and_earlier_images_about_equally_often():
    pool = ImagePool(size=50)
    pool(numbered(*range(50)))
    given = list(range(50, 1050))
    returned = [int(pool(numbered(value)).max()) for value in given]
    new = sum(value == image for value, image in zip(given, returned, strict=True))
    assert 430 < new < 570  # 4.4 standard deviations
    assert len(pool) == 50
    earlier = [image for value, image in zip(given, returned, strict=True) if value != image]
    assert len(earlier) == len(set(earlier))  # each image leaves once


def test_the_pool_keeps_copies():
    pool, images = ImagePool(size=1), numbered(1)
    pool(images)
    images.zero_()
    while int((image := pool(numbered(2))).max()) == 2:
        pass
    assert int(image.max()) == 1


def test_the_global_random_state_is_left_alone():
    pool = ImagePool(size=1)
    before = torch.get_rng_state()
    for value in range(5):
        pool(numbered(value))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seen", [0, 3, 9])
def test_saved_and_loaded_it_goes_on_as_before(seen):
    first = ImagePool(size=4)
    for value in range(seen):
        first(numbered(value))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = ImagePool(size=4)
    second.load_state_dict(torch.load(file, weights_only=True))
    for value in range(20, 40):
        assert torch.equal(first(numbered(value)), second(numbered(value)))


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ImagePool(0)
