"""A known displacement is found, and what cannot be found is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.preparation.cases import Thresholds, resample
from pipeline.preparation.registration import (
    RegistrationError,
    Scan,
    about,
    distance,
    matrix_of,
    points_of,
    register,
    rotation,
    transform_of,
)
from transforms import foreground_mask


def masks(*scans):
    return [foreground_mask(scan.voxels, scan.spacing) for scan in scans]


def moved(scan, matrix):
    """A scan whose header puts it elsewhere."""
    return Scan(scan.voxels, matrix @ scan.affine)


def test_matrices_pass_through_itk_unchanged():
    matrix = about(rotation(0, 0.2) @ rotation(2, -0.3), np.array([5.0, -7, 20]), np.array([3.0, 4, -9]))
    np.testing.assert_allclose(matrix_of(transform_of(matrix, np.array([1.0, 2, 3]))), matrix, atol=1e-9)


def test_a_large_displacement_is_found_where_one_start_is_not_enough(people):
    source, target = people[1]
    matrix = about(rotation(0, 0.2) @ rotation(2, 0.15), np.zeros(3), np.array([-6.0, 14, 18]))
    displaced = moved(target, matrix)
    mask, other = masks(source, displaced)
    found = register(source, displaced, mask, other)
    assert distance(found.matrix, matrix, points_of(Scan(mask, source.affine))) < 0.5
    assert found.after > found.before
    assert Thresholds().judge(found) == ("good", [])
    assert found.mean == pytest.approx(distance(matrix, np.eye(4), points_of(Scan(mask, source.affine))), abs=0.5)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_another_patient_is_flagged(people, first, second):
    """Outlines agree, and halves and starts with them; what lies inside does not."""
    source, target = people[first][0], people[second][1]
    found = register(source, target, *masks(source, target))
    verdict, reasons = Thresholds().judge(found)
    assert found.blocks < 0.1
    assert verdict == "failed"
    assert any("blocks inside the head agree: another patient?" in reason for reason in reasons)
    assert Thresholds(blocks=(-1, -1)).judge(found) == ("good", [])


def test_too_little_to_compare_is_doubtful():
    rng = np.random.default_rng(0)
    voxels = ndimage.gaussian_filter(rng.normal(size=(6, 6, 6)), 1.0)
    scan = Scan((voxels * 100 + 500).astype(np.float32), np.diag([4.0, 4, 4, 1]))
    everywhere = np.ones(voxels.shape, bool)
    found = register(scan, scan, everywhere, everywhere)
    assert np.isnan(found.blocks)
    verdict, reasons = Thresholds(halves=(1e9, 1e9), spread=(99, 99)).judge(found)
    assert (verdict, reasons) == ("doubtful", ["there is too little inside the head to compare block by block"])


def test_nothing_in_common_is_an_error(people):
    source, target = people[1]
    with pytest.raises(RegistrationError, match="no foreground"):
        register(source, target, np.zeros(source.voxels.shape, bool), masks(target)[0])


def test_resampling_takes_values_where_the_matrix_says():
    ramp = Scan(np.arange(20.0)[:, None, None] * np.ones((1, 6, 6)), np.diag([2.0, 2, 2, 1]))
    values, inside = resample(ramp, about(np.eye(3), np.zeros(3), np.array([3.0, 0, 0])), (20, 6, 6), ramp.affine)
    # At the ends the spline follows the values repeated beyond the edge, not the ramp.
    np.testing.assert_allclose(values[1:16, 3, 3], np.arange(1, 16) + 1.5, atol=0.02)
    assert inside[:18].all()
    assert not inside[19:].any()
    assert values[19, 0, 0] == 0
