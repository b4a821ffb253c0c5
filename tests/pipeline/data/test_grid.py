"""The axis that counts slices, found over all training volumes unless it is given."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import DataError, training_slice_axis

AXIAL, SAGITTAL = np.diag([2.0, 2, 4, 1]), np.array([[0, 0, 4.0, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)


@pytest.fixture
def item(tmp_path):
    def write(name, affine=AXIAL, shape=SHAPE):
        voxels = np.random.default_rng(0).random(shape)
        if affine is None:
            np.save(tmp_path / f"{name}.npy", voxels)
            return {"image": str(tmp_path / f"{name}.npy")}
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        return {"image": str(tmp_path / f"{name}.nii.gz")}

    return write


@pytest.mark.parametrize(
    ("affine", "shape", "axis"),
    [
        (AXIAL, SHAPE, 2),
        (SAGITTAL, SHAPE, 0),
        (SAGITTAL, (6, 5, 1), 0),
        (SAGITTAL, (6, 5), 0),
        (np.diag([-2.0, 5, 2, 1]), SHAPE, 1),
        (np.diag([2.0, 2, 2.3, 1]), SHAPE, 2),
        (np.diag([2.3, 2, 2, 1]), SHAPE, 2),
        (np.eye(4), (1, 6, 5), 0),
        (None, (6, 5), 2),
        (None, (1, 6, 5), 2),
        (None, SHAPE, 2),
    ],
)
def test_found(item, affine, shape, axis):
    assert training_slice_axis([item("a", affine, shape)]) == axis


def test_follows_the_orientation_that_volumes_are_turned_to(item):
    assert training_slice_axis([item("a", SAGITTAL)], "SAR") == 2
    assert training_slice_axis([item("a", SAGITTAL)], "ALS") == 1


def test_equally_long_voxels_agree_with_any_axis_and_it_is_said(item, caplog):
    caplog.set_level(logging.INFO)
    assert training_slice_axis([item("a", np.eye(4)), item("b", SAGITTAL)]) == 0
    assert "slices are counted along axis 0 of RAS: the thickest voxels" in caplog.text


def test_volumes_that_do_not_agree_are_named_with_the_cure(item):
    items = [item(name, SAGITTAL) for name in "abcde"] + [item("f")]
    with pytest.raises(DataError) as caught:
        training_slice_axis(items)
    text = str(caught.value)
    for part in ("axis 0 in ", "a.nii.gz", "and 2 more; axis 2 in ", "f.nii.gz;", "--slice_axis 0, 1 or 2"):
        assert part in text
    assert training_slice_axis(items, given=1) == 1


@pytest.mark.parametrize("given", [3, -1, True, "2", 1.5])
def test_what_is_no_axis_is_refused(given):
    with pytest.raises(ValueError, match=rf"slice_axis must be 0, 1 or 2, got {given}"):
        training_slice_axis([], given=given)
