"""The way of a volume through a model whose pixels have one size in millimetres."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.inference import Translation
from pipeline.inference.scoring import translate
from pipeline.models import Recipe


@pytest.fixture
def recipe(make_recipe):
    grid = {"spatial_size": [60, 60], "fit": "pad", "spacing": [2.0, 2.0, -1.0]}
    return Recipe(make_recipe(grid=grid, target={"window": [0, 1000]}))


def write(path, shape, voxel):
    """A disc of tissue with a square of 40 mm in it, in the middle of the field of view."""
    axes = [(np.arange(n) + 0.5 - n / 2) * size for n, size in zip(shape, voxel, strict=True)]
    x, y, _ = np.meshgrid(*axes, indexing="ij")
    voxels = np.where(np.maximum(abs(x), abs(y)) < 20, 1000, np.where(np.hypot(x, y) < 45, 500, 0))
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-voxel[0], *voxel[1:], 1])), path)
    return voxels


@pytest.mark.parametrize(
    ("shape", "voxel", "size"),
    [
        ((120, 60, 3), (1.0, 2.0, 4.0), (60, 60)),
        ((60, 80, 3), (1.5, 1.5, 4.0), (60, 60)),
        ((200, 60, 3), (1.0, 2.0, 4.0), (100, 60)),  # larger than any field of view in training: nothing is cut off
    ],
)
def test_a_square_is_square_for_the_network_and_comes_back_in_place(recipe, tmp_path, shape, voxel, size):
    voxels = write(tmp_path / "a.nii.gz", shape, voxel)
    seen = []

    def network(slices):
        seen.append(slices)
        return slices

    translation = Translation(recipe)
    source = translation.preprocessing({"image": tmp_path / "a.nii.gz"})["image"]
    result = translate(source, translation, network)
    assert tuple(torch.cat(seen).shape) == (3, 1, *size)
    middle = seen[0][0, 0, size[0] // 2, :], seen[0][0, 0, :, size[1] // 2]
    assert [(line > 0.5).sum().item() for line in middle] == [20, 20]
    assert tuple(result.shape) == (1, *shape)
    assert np.abs(result[0].numpy() - voxels).mean() < 25  # of 1000, all at the edges
    for level in (250, 750):
        before, after = (np.argwhere(image > level).mean(0) for image in (voxels, result[0].numpy()))
        np.testing.assert_allclose(before, after, atol=0.1)


def test_a_recipe_knows_its_pixels(recipe, make_recipe):
    assert recipe.agree({"spacing": 2, "fit": "pad"}).content == recipe.content
    with pytest.raises(ValueError, match=r"spacing: given \[3.0, 3.0, -1.0\], the model has \[2.0, 2.0, -1.0\]"):
        recipe.agree({"spacing": 3})
    for spacing in (None, [2.0, 2.0, 2.0], [1.0, 2.0, -1.0], [0.0, 0.0, -1.0]):
        with pytest.raises(ValueError, match="with fit pad, grid#spacing must be one size along both axes"):
            Recipe(make_recipe(grid={"fit": "pad", "spacing": spacing}))
