"""Intensity scaling maps the window onto [-1, 1], keeps the background at exactly -1, and can be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Compose, Invertd, InvertibleTransform, MapTransform

from transforms import (
    RestoreIntensity,
    RestoreIntensityd,
    ScaleCTIntensity,
    ScaleCTIntensityd,
    ScaleMRIntensity,
    ScaleMRIntensityd,
)


@pytest.fixture
def mr() -> MetaTensor:
    """A volume with a foreground, a background of zeros, and the negative values that cubic interpolation leaves."""
    values = torch.zeros(1, 12, 10, 8)
    values[:, 2:10, 2:8] = 50 + 400 * torch.rand(1, 8, 6, 8, generator=torch.Generator().manual_seed(0))
    values[:, 1, 1] = -3.5
    return MetaTensor(values, meta={"filename_or_obj": "p1_T1.nii.gz"})


def test_mr_lies_in_range_and_background_is_exactly_minus_one(mr):
    scaled = ScaleMRIntensity()(mr)
    assert scaled.dtype == torch.float32
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert (scaled[mr <= 0] == -1).all()
    assert (scaled[mr > 0] > -1).all()


@pytest.mark.parametrize("background", [0.0, 0.1, -1000.3, 37.0])
def test_mr_background_is_exact_for_any_value(mr, background):
    scaled = ScaleMRIntensity(background=background)(mr + background)
    assert (scaled[mr <= 0] == -1).all()


def test_mr_window_is_background_and_percentile_of_the_foreground(mr):
    scaled = ScaleMRIntensity(upper_percentile=90)(mr)
    expected = np.percentile(mr.numpy()[mr.numpy() > 0], 90)
    low, high = scaled.meta["intensity_window"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert (low, high) == (0.0, pytest.approx(expected))
    middle = (mr > 0) & (mr < expected)
    torch.testing.assert_close(scaled[middle].as_tensor(), 2 * mr[middle].as_tensor() / high - 1)


def test_mr_scale_does_not_depend_on_units(mr):
    scale = ScaleMRIntensity()
    torch.testing.assert_close(scale(mr).as_tensor(), scale(mr * 17.0).as_tensor())


def test_ct_window_is_the_same_for_every_image():
    hounsfield = torch.tensor([[-3024.0, -1000.0, 0.0, 500.0, 2000.0, 3071.0]])
    scaled = ScaleCTIntensity()(hounsfield)
    torch.testing.assert_close(scaled.as_tensor(), torch.tensor([[-1.0, -1.0, -1 / 3, 0.0, 1.0, 1.0]]))
    assert scaled.meta["intensity_window"] == (-1000.0, 2000.0)


@pytest.mark.parametrize("scale", [ScaleMRIntensity(), ScaleCTIntensity((-10.0, 300.0))])
def test_inverse_gives_back_the_values_within_the_window(mr, scale):
    scaled = scale(mr)
    low, high = scaled.meta["intensity_window"]
    restored = scale.inverse(scaled)
    torch.testing.assert_close(restored.as_tensor(), mr.as_tensor().clamp(low, high), atol=1e-3, rtol=0)
    assert restored.applied_operations == []
    assert "intensity_window" not in restored.meta


@pytest.mark.parametrize("scale", [ScaleMRIntensity(), ScaleCTIntensity()])
def test_input_stays_as_it_was(mr, scale):
    before = mr.clone()
    scale(mr)
    torch.testing.assert_close(mr.as_tensor(), before.as_tensor(), rtol=0, atol=0)
    assert mr.applied_operations == []
    assert "intensity_window" not in mr.meta


def test_affine_and_metadata_pass(mr):
    mr.affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    scaled = ScaleMRIntensity()(mr)
    torch.testing.assert_close(scaled.affine, mr.affine)
    assert scaled.meta["filename_or_obj"] == "p1_T1.nii.gz"


def test_arrays_and_plain_tensors_are_taken_too(mr):
    expected = ScaleMRIntensity()(mr).as_tensor()
    torch.testing.assert_close(ScaleMRIntensity()(mr.numpy()).as_tensor(), expected)
    torch.testing.assert_close(ScaleMRIntensity()(mr.as_tensor()).as_tensor(), expected)
    set_track_meta(False)
    try:
        untracked = ScaleMRIntensity()(mr.as_tensor())
    finally:
        set_track_meta(True)
    assert not isinstance(untracked, MetaTensor)
    torch.testing.assert_close(untracked, expected)


def test_no_foreground_is_refused_by_name():
    image = MetaTensor(torch.full((1, 4, 4, 4), -2.0), meta={"filename_or_obj": "empty.nii.gz"})
    with pytest.raises(
        ValueError, match=r"empty\.nii\.gz has no voxel above the background value 0 .*greatest value -2"
    ):
        ScaleMRIntensity()(image)


def test_constant_foreground_is_refused():
    image = torch.zeros(1, 4, 4, 4)
    image[:, 1:3] = 7
    with pytest.raises(ValueError, match=r"constant foreground \(all 32 voxels above the background value 0 are 7\)"):
        ScaleMRIntensity()(image)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scale", [ScaleMRIntensity(), ScaleCTIntensity()])
def test_values_that_are_not_finite_are_refused(mr, bad, scale):
    mr[0, 5, 5, 5] = bad
    with pytest.raises(ValueError, match=r"p1_T1\.nii\.gz contains NaN or infinite values"):
        scale(mr)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleMRIntensity(upper_percentile=0), r"upper_percentile must lie in \(0, 100\], got 0"),
        (lambda: ScaleMRIntensity(upper_percentile=101), r"upper_percentile must lie in \(0, 100\], got 101"),
        (lambda: ScaleMRIntensity(background=float("nan")), "background must be finite, got nan"),
        (lambda: ScaleCTIntensity((200, -200)), r"low < high, got \(200, -200\)"),
        (lambda: ScaleCTIntensity((0, 1, 2)), r"window must be a pair \(low, high\), got 3 values"),
        (lambda: RestoreIntensity((0.0, float("inf"))), r"window must be finite"),
        (lambda: RestoreIntensity(torch.zeros(3)), r"window must hold two values \(low, high\), got shape \(3,\)"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_restore_maps_onto_the_window_and_clips():
    restored = RestoreIntensity((100.0, 300.0))(torch.tensor([[-5.0, -1.0, 0.0, 0.5, 1.0, 2.0]], dtype=torch.float64))
    assert restored.dtype == torch.float32
    torch.testing.assert_close(restored.as_tensor(), torch.tensor([[100.0, 100.0, 200.0, 250.0, 300.0, 300.0]]))


def test_restore_reads_a_tensor_at_each_call():
    window = torch.zeros(2)
    restore = RestoreIntensity(window)
    with pytest.raises(ValueError, match=r"low < high, got \(0, 0\)"):
        restore(torch.zeros(1, 2, 2))
    window.copy_(torch.tensor([0.0, 80.0]))
    assert (restore(torch.zeros(1, 2, 2)) == 40).all()


def test_restore_drops_the_source_window(mr):
    scaled = ScaleMRIntensity()(mr)
    restored = RestoreIntensity((0.0, 10.0))(scaled)
    assert "intensity_window" not in restored.meta
    assert "intensity_window" in scaled.meta


@pytest.mark.parametrize("scaler", [ScaleMRIntensityd(("image", "label")), ScaleCTIntensityd(("image", "label"))])
def test_dictionary_form_scales_each_key_and_leaves_the_rest(mr, scaler):
    data = {"image": mr, "label": mr * 3, "case": "p1"}
    scaled = scaler(data)
    assert isinstance(scaler, MapTransform)
    assert isinstance(scaler, InvertibleTransform)
    assert scaled["case"] == "p1"
    assert data["image"] is mr
    for key in ("image", "label"):
        torch.testing.assert_close(scaled[key].as_tensor(), scaler.scaler(data[key]).as_tensor())
    restored = scaler.inverse(scaled)
    low, high = scaled["label"].meta["intensity_window"]
    torch.testing.assert_close(
        restored["label"].as_tensor(), data["label"].clamp(low, high).as_tensor(), atol=1e-2, rtol=0
    )


def test_dictionary_form_minds_missing_keys(mr):
    with pytest.raises(KeyError, match="label"):
        ScaleMRIntensityd(("image", "label"))({"image": mr})
    for transform in (ScaleMRIntensityd, ScaleCTIntensityd):
        assert set(transform(("image", "label"), allow_missing_keys=True)({"image": mr})) == {"image"}
    restore = RestoreIntensityd(("pred", "other"), (0.0, 1.0), allow_missing_keys=True)
    assert set(restore({"pred": mr})) == {"pred"}


def test_invertd_restores_another_key(mr):
    chain = Compose([ScaleMRIntensityd("image")])
    data = chain({"image": mr})
    data["pred"] = MetaTensor(data["image"].as_tensor().clone())
    inverted = Invertd("pred", chain, "image")(data)["pred"]
    _, high = data["image"].meta["intensity_window"]
    torch.testing.assert_close(inverted.as_tensor(), mr.clamp(0, high).as_tensor(), atol=1e-3, rtol=0)


def z_scored():
    """A ball with contrast, z-scored, on a background of 0."""
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, 24),) * 3, indexing="ij"))
    inside = (at**2).sum(0) < 0.6
    values = np.where(at[0] > 0, 700.0, 300.0) + np.random.default_rng(0).normal(0, 20, inside.shape)
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)[None].astype(np.float32), inside


def test_the_found_foreground_is_what_lies_above_minus_one():
    image, inside = z_scored()
    scaled = ScaleMRIntensity(foreground="found")(MetaTensor(image))
    np.testing.assert_array_equal(scaled[0].numpy() > -1, inside)
    assert any("50% of its foreground lies at or below" in remark for remark in scaled.meta["intensity_remarks"])
    by_value = ScaleMRIntensity()(MetaTensor(image))
    assert (by_value[0].numpy() > -1).sum() < 0.6 * inside.sum()


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda image, inside: np.where(inside, image + 5, 0), None),
        (lambda image, inside: np.where(inside, image + 5, -10), "its background is about -10, expected 0"),
    ],
)
def test_another_background_is_told(change, remark):
    image, inside = z_scored()
    scaled = ScaleMRIntensity(foreground="found")(MetaTensor(change(image, inside).astype(np.float32)))
    assert scaled.meta["intensity_remarks"] == ([] if remark is None else [remark])


@pytest.mark.parametrize(("offset", "is_told"), [(0, False), (1000, True), (1024, True)])
def test_ct_that_is_not_in_hounsfield_units_is_told(offset, is_told):
    _, inside = z_scored()
    image = np.where(inside, 40, -1000) + np.random.default_rng(0).normal(0, 10, inside.shape) + offset
    remarks = ScaleCTIntensity()(MetaTensor(image[None].astype(np.float32))).meta["intensity_remarks"]
    assert [remark.startswith("it does not look like Hounsfield units") for remark in remarks] == [True] * is_told
