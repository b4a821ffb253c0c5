"""What is said of volumes that were taken in another plane than the one in which the model cuts them."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from pipeline.inference import differences_from_training
from pipeline.models import ModelError, Recipe
from transforms import describe_volume

SAGITTAL = torch.tensor([[0, 0, 8.0, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.fixture
def said(make_recipe):
    def compare(shape, affine=SAGITTAL, **grid):
        volume = MetaTensor(torch.rand(1, *shape), affine=affine)
        texts = differences_from_training(describe_volume(volume), Recipe(make_recipe(grid=grid)))
        return [text for text in texts if text.startswith("slices")]

    return compare


def test_thick_slices_of_another_plane(said):
    [text] = said((40, 34, 6))
    assert text.startswith("slices: they are sagittal, 8 mm thick, and the model cuts axial ones (slice_axis 2)")
    assert said((40, 34, 6), slice_axis=0) == []
    assert said((40, 34, 6), slice_axis=1, orientation="SRA") == []
    assert said((40, 34, 6), torch.eye(4, dtype=torch.float64)) == []


def test_a_single_slice_of_another_plane_is_refused(said):
    with pytest.raises(ModelError, match=r"is a single sagittal slice; .* translates axial slices \(slice_axis 2\)"):
        said((40, 34, 1))
    assert said((40, 34, 1), slice_axis=0) == []
    assert said((40, 34, 1), torch.eye(4, dtype=torch.float64)) == []
