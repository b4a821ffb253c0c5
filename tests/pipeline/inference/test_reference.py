"""Slices of a reference volume, through the preprocessing that the recipe of the model asks for."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.data import DataError
from pipeline.inference.reference import load_reference
from pipeline.models import Recipe
from pipeline.models.describing import describe_scaling
from transforms import ScaleCTIntensityd, ScaleMRIntensityd


@pytest.fixture
def volume():
    """40 slices along the last axis, the outer ten empty; each filled slice has a value of its own."""
    voxels = np.zeros((20, 24, 40), dtype=np.float32)
    voxels[4:16, 4:20, 10:30] = np.arange(100, 300, 10)
    return voxels


@pytest.fixture
def write(tmp_path):
    def save(voxels, name="reference.nii.gz", affine=None):
        nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def recipe(make_recipe):
    """Builds the recipe of a model that was trained with these settings of the target and the grid."""

    def build(size=24, slice_axis=2, scaling=None):
        content = make_recipe(grid={"spatial_size": [size, size], "slice_axis": slice_axis})
        content["target"]["scaling"] = describe_scaling(scaling or ScaleMRIntensityd("label"))
        return Recipe(content)

    return build


def test_slices_are_in_range_and_spread_over_those_that_are_not_empty(write, volume, recipe):
    slices = load_reference(write(volume), recipe())
    assert type(slices) is torch.Tensor
    assert slices.shape == (8, 1, 24, 24)
    assert slices.dtype == torch.float32
    assert slices.min() == -1
    values = (slices.amax(dim=(1, 2, 3)) + 1) / 2
    index = values * np.percentile(volume[volume > 0], 99.5) / 10 - 10  # of the filled slices, 0 to 19
    torch.testing.assert_close(index, torch.tensor([1.0, 3, 6, 8, 11, 13, 16, 18]), atol=1e-3, rtol=0)


def test_few_slices_are_all_taken(write, volume, recipe):
    assert len(load_reference(write(volume[:, :, :13]), recipe())) == 3
    assert len(load_reference(write(volume), recipe(), max_slices=1)) == 1


def test_slices_are_those_that_training_sees(write, volume, recipe):
    """Oriented and scaled as the target in training: where axes are flipped on disk, the same comes out."""
    turned = nib.Nifti1Image(volume, np.eye(4)).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    path = write(np.asarray(turned.dataobj), "turned.nii.gz", turned.affine)
    expected = load_reference(write(volume), recipe())
    torch.testing.assert_close(load_reference(path, recipe()), expected)
    along_first = load_reference(write(volume), recipe(slice_axis=0))
    assert along_first.shape == (8, 1, 24, 24)


def test_ct_is_scaled_by_its_window(write, volume, recipe):
    ct = np.where(volume > 0, np.float32(500), np.float32(-1000))
    ct[0, 0, 0] = 400
    slices = load_reference(write(ct), recipe(scaling=ScaleCTIntensityd("label")))
    assert slices.min() == -1
    torch.testing.assert_close(slices.max(), torch.tensor(0.0))  # 500 HU lies in the middle of -1000 to 2000


def test_a_single_slice_will_do(tmp_path, volume, recipe):
    np.save(tmp_path / "slice.npy", volume[:, :, 20] + np.eye(20, 24, dtype=np.float32))
    assert load_reference(tmp_path / "slice.npy", recipe()).shape == (1, 1, 24, 24)


def test_bad_files_are_refused_by_name(write, volume, tmp_path, recipe):
    with pytest.raises(FileNotFoundError, match=r"reference image: .*nowhere.nii.gz does not exist"):
        load_reference(tmp_path / "nowhere.nii.gz", recipe())
    with pytest.raises(DataError, match="is a folder, expected a file"):
        load_reference(tmp_path, recipe())
    (tmp_path / "junk.nii.gz").write_text("no image")
    with pytest.raises(DataError, match=r"junk.nii.gz: cannot be read"):
        load_reference(tmp_path / "junk.nii.gz", recipe())
    with pytest.raises(DataError, match="expected a 2D or 3D image of one channel"):
        load_reference(write(np.stack([volume, volume], axis=-1), "two.nii.gz"), recipe())
    dots = np.zeros((40, 40, 4), dtype=np.float32)
    dots[20, 20] = [100, 200, 300, 400]
    with pytest.raises(DataError, match=r"dots.nii.gz: no slice along axis 2 has 5% of it above background"):
        load_reference(write(dots, "dots.nii.gz"), recipe(size=40))
    with pytest.raises(ValueError, match="max_slices must be at least 1, got 0"):
        load_reference(write(volume), recipe(), max_slices=0)
