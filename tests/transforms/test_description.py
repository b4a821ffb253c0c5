"""What a volume looks like in numbers, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from transforms import DESCRIPTION_KEY, DescribeVolumed, describe_volume
from transforms.description import MOST_VOXELS


def turn(degrees, axis):
    """Rotation about an axis of the patient, 4x4."""
    angle, (one, other) = np.radians(degrees), [n for n in range(3) if n != axis]
    matrix = np.eye(4)
    matrix[one, one] = matrix[other, other] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


def volume(affine, shape=(1, 10, 20, 5)):
    return MetaTensor(torch.arange(float(np.prod(shape))).reshape(shape), affine=torch.as_tensor(affine))


def test_axes_that_point_as_the_patient_s():
    said = describe_volume(volume(np.diag([2.0, 3, 4, 1])))
    assert said["channels"] == 1
    assert said["orientation"] == "RAS"
    assert said["tilt"] == 0
    assert said["spacing"] == [2, 3, 4]
    assert said["field_of_view"] == [20, 60, 20]


def test_flips_change_where_axes_point_and_no_length():
    said = describe_volume(volume(np.diag([-2.0, -3, 4, 1])))
    assert (said["orientation"], said["tilt"]) == ("LPS", 0)
    assert (said["spacing"], said["field_of_view"]) == ([2, 3, 4], [20, 60, 20])


def test_lengths_are_told_along_the_patient_s_axes_whatever_the_file_counts_along():
    """Axis 0 runs to S with 2 mm, axis 1 to L with 3 mm, axis 2 to A with 4 mm."""
    affine = np.array([[0.0, -3, 0, 7], [0, 0, 4, -5], [2, 0, 0, 1], [0, 0, 0, 1]])
    said = describe_volume(volume(affine))
    assert said["orientation"] == "SLA"
    assert said["spacing"] == [3, 4, 2]
    assert said["field_of_view"] == [60, 20, 20]
    assert said["tilt"] == 0


@pytest.mark.parametrize("degrees", [5, -12.5, 30, 44])
def test_tilt_about_one_axis(degrees):
    said = describe_volume(volume(turn(degrees, 2) @ np.diag([2.0, 3, 4, 1])))
    assert said["orientation"] == "RAS"
    assert said["tilt"] == pytest.approx(abs(degrees), abs=1e-4)
    np.testing.assert_allclose(said["spacing"], [2, 3, 4], atol=1e-6)
    np.testing.assert_allclose(said["field_of_view"], [20, 60, 20], atol=1e-5)


def test_tilt_of_more_than_half_a_quarter_turn_is_that_from_the_nearest_axis():
    said = describe_volume(volume(turn(80, 2) @ np.diag([2.0, 3, 4, 1])))
    assert said["orientation"] == "ALS"
    assert said["tilt"] == pytest.approx(10, abs=1e-4)
    np.testing.assert_allclose(said["spacing"], [3, 2, 4], atol=1e-6)


def test_tilt_about_two_axes_is_the_greatest_of_the_three_angles():
    """Turned about S by 20 degrees, then about R by 30: S leans by 30, A by acos(cos 20 cos 30), R by 20."""
    said = describe_volume(volume(turn(30, 0) @ turn(20, 2) @ np.diag([1.0, 1, 2, 1])))
    expected = np.degrees(np.arccos(np.cos(np.radians(20)) * np.cos(np.radians(30))))
    assert said["orientation"] == "RAS"
    assert said["tilt"] == pytest.approx(expected, abs=1e-4)


def test_oblique_and_counted_along_other_axes():
    swap = np.array([[0.0, 0, -4, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    said = describe_volume(volume(turn(15, 1) @ swap))
    assert said["orientation"] == "ASL"
    assert said["tilt"] == pytest.approx(15, abs=1e-4)
    np.testing.assert_allclose(said["spacing"], [4, 2, 3], atol=1e-6)
    np.testing.assert_allclose(said["field_of_view"], [20, 20, 60], atol=1e-5)


@pytest.mark.parametrize("affine", [np.eye(3), np.eye(4)])
def test_flat_images_are_one_voxel_thick(affine):
    affine = affine * np.diag([2.0, 3, 1, 1][: len(affine)]) if len(affine) == 4 else np.diag([2.0, 3, 1])
    said = describe_volume(MetaTensor(torch.rand(1, 10, 20), affine=torch.as_tensor(affine)))
    assert said["orientation"] == "RAS"
    assert said["tilt"] == 0
    assert said["spacing"] == [2, 3, 1]
    assert said["field_of_view"] == [20, 60, 1]


def test_without_a_position_voxels_are_a_millimetre():
    for image in (torch.rand(2, 4, 5, 6), np.random.default_rng(0).random((2, 4, 5, 6))):
        said = describe_volume(image)
        assert said["channels"] == 2
        assert said["orientation"] == "RAS"
        assert said["spacing"] == [1, 1, 1]
        assert said["field_of_view"] == [4, 5, 6]


def test_percentiles_are_of_all_voxels_and_of_those_above_the_minimum():
    """800 voxels of background; above it the values 1 to 200, whose 99.5th percentile lies at 1 + 0.995 * 199."""
    values = torch.cat([torch.zeros(800), torch.arange(1.0, 201)]).reshape(1, 10, 10, 10)
    said = describe_volume(values)
    assert said["low"] == 0
    assert said["high"] == pytest.approx(1 + 0.995 * 199)
    values = torch.arange(1001.0).reshape(1, 7, 11, 13) - 500
    said = describe_volume(values)
    assert said["low"] == pytest.approx(-495)  # of the 1001 values, the one behind 5
    assert said["high"] == pytest.approx(-499 + 0.995 * 999)


def test_a_constant_image_has_one_intensity():
    said = describe_volume(torch.full((1, 4, 4, 4), 7))
    assert (said["low"], said["high"]) == (7, 7)


def test_integers_and_large_volumes():
    said = describe_volume(torch.arange(64, dtype=torch.int16).reshape(1, 4, 4, 4))
    assert isinstance(said["low"], float)
    assert said["high"] == pytest.approx(1 + 0.995 * 62)
    count = 2 * MOST_VOXELS + 2
    said = describe_volume(torch.linspace(0, 1, count).reshape(1, 2, 1, count // 2))
    assert said["low"] == pytest.approx(0.005, abs=1e-4)
    assert said["high"] == pytest.approx(0.995, abs=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4), (1, 4, 4, 4, 4), (1, 0, 4), (0, 4, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected an image of shape \(C, H, W\) or \(C, H, W, D\), got \("):
        describe_volume(torch.zeros(shape))


def test_dictionary_form_writes_it_down_and_leaves_the_voxels():
    image, label = volume(np.diag([2.0, 2, 4, 1])), volume(np.diag([2.0, 2, 4, 1])) * 2
    before = image.clone()
    data = Compose([DescribeVolumed(["image", "label"])])(
        {"image": image, "label": label, "other": torch.zeros(1), "case": "p"}
    )
    assert torch.equal(data["image"], before)
    for key in ("image", "label"):
        assert data[key].meta[DESCRIPTION_KEY] == describe_volume(data[key])
    assert data["label"].meta[DESCRIPTION_KEY]["high"] == 2 * data["image"].meta[DESCRIPTION_KEY]["high"]
    assert torch.equal(data["other"], torch.zeros(1))
    plain = DescribeVolumed("image")({"image": torch.zeros(1, 4, 4)})  # nowhere to write it
    assert torch.equal(plain["image"], torch.zeros(1, 4, 4))
    with pytest.raises(KeyError):
        DescribeVolumed(["image", "label"])({"image": image})
    assert set(DescribeVolumed(["image", "label"], allow_missing_keys=True)({"image": image})) == {"image"}
