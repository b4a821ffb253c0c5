"""The axis that counts slices and the size of a pixel, found over all training volumes unless they are given."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import DataError, training_pixel_size, training_slice_axis

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


def test_a_pixel_is_as_fine_as_the_largest_field_of_view_allows(item):
    items = [item("a", np.diag([1.0, 2, 5, 1]), (120, 50, 3)), item("b", np.diag([1.5, 1.5, 5, 1]), (60, 80, 3))]
    assert training_pixel_size(items, "RAS", 2, (60, 60)) == 2  # 120 mm in both
    assert training_pixel_size(items, "RAS", 2, (30, 60)) == 4
    assert training_pixel_size(items, "RAS", 0, (60, 60)) == 2
    assert training_pixel_size(items, "ARS", 2, (60, 30)) == 4
    assert training_pixel_size(items[1:], "RAS", 0, (60, 5)) == 3  # 15 mm along the third axis


def test_a_size_that_is_given_counts(item):
    assert training_pixel_size([item("a")], "RAS", 2, (8, 8), given=3) == 3
    assert training_pixel_size([item("a")], "RAS", 0, (8, 8), given=[-1, 1.5, 1.5]) == 1.5


def test_without_millimetres_there_is_no_size(item):
    """A .npy does not say how large its voxels are."""
    assert training_pixel_size([item("a", None, (6, 5))], "RAS", 2, (8, 8)) is None
    assert training_pixel_size([item("a", None, (6, 5)), item("b", shape=(8, 8, 2))], "RAS", 2, (8, 8)) == 2


@pytest.mark.parametrize("given", [None, [1.0, 1.0, 2.0]])
def test_resizing_has_no_size_of_a_pixel(item, given):
    assert training_pixel_size([item("a")], "RAS", 2, (8, 8), "resize", given) is None


@pytest.mark.parametrize(
    ("fit", "given", "says"),
    [
        ("crop", None, "fit must be one of pad, resize, got 'crop'"),
        ("resize", 2, "spacing 2 goes with fit pad"),
        ("pad", 0, "spacing must be the size of a pixel, a positive number of mm, got 0"),
        ("pad", [1, 2, -1], "spacing must be the size of a pixel"),
    ],
)
def test_what_is_no_size_is_refused(item, fit, given, says):
    with pytest.raises(ValueError, match=says):
        training_pixel_size([item("a")], "RAS", 2, (8, 8), fit, given)
