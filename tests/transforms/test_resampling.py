"""Resampling keeps every structure where it is in the patient, and its inverse gives the source's grid back."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
)

from transforms import (
    ResampleInPlane,
    ResampleInPlaned,
    RestoreIntensityd,
    ScaleMRIntensityd,
    ToVolume,
    ToVolumed,
    extract_slices,
    nonempty_slices,
    stack_slices,
)

OBLIQUE = np.array([[-1.9, 0.3, 0.2, 80.0], [0.35, 1.4, -0.3, -60.0], [0.15, 0.25, 3.1, -40.0], [0.0, 0.0, 0.0, 1.0]])
AFFINES = {
    "RAS": np.diag([2.0, 1.5, 3.0, 1.0]),
    "LPS": np.diag([-2.0, -1.5, 3.0, 1.0]) + np.array([[0, 0, 0, 90.0], [0, 0, 0, 70.0], [0, 0, 0, -30.0], [0] * 4]),
    "permuted": np.array([[0, 0, 2.0, -50.0], [-1.5, 0, 0, 40.0], [0, -3.0, 0, 20.0], [0, 0, 0, 1.0]]),
    "oblique": OBLIQUE,
}


def smooth_volume(shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth, lopsided blob in physical units, 0 at the borders."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = ((grid[0] - 0.15) / 0.6) ** 2 + ((grid[1] + 0.1) / 0.7) ** 2 + (grid[2] / 0.8) ** 2
    return (np.clip(1 - radius, 0, None) ** 2 * (700 + 300 * grid[0])).astype(np.float32)


def world_centre(volume: torch.Tensor, affine: torch.Tensor) -> np.ndarray:
    """Centre of mass above the background -1, in mm."""
    weights = volume[0].numpy().astype(np.float64) + 1
    index = [
        (weights * np.arange(n).reshape([-1 if i == a else 1 for i in range(3)])).sum()
        for a, n in enumerate(weights.shape)
    ]
    return (np.asarray(affine) @ np.append(np.array(index) / weights.sum(), 1.0))[:3]


def volume_tensor(shape=(31, 40, 17), affine=OBLIQUE) -> MetaTensor:
    """The smooth blob, scaled to [-1, 1], channel first."""
    values = torch.from_numpy(smooth_volume(shape))
    return MetaTensor((2 * values / values.max() - 1)[None], affine=torch.tensor(affine))


def test_slice_becomes_a_volume_and_back():
    image = MetaTensor(torch.rand(1, 6, 5), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)))
    to_volume = ToVolume()
    volume = to_volume(image)
    assert volume.shape == (1, 6, 5, 1)
    torch.testing.assert_close(volume.affine, torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64)))
    back = to_volume.inverse(volume)
    assert back.shape == image.shape
    torch.testing.assert_close(back.affine, image.affine)
    torch.testing.assert_close(back.as_tensor(), image.as_tensor(), rtol=0, atol=0)
    assert back.applied_operations == []


def test_volume_passes_to_volume():
    image = volume_tensor()
    to_volume = ToVolume()
    volume = to_volume(image)
    torch.testing.assert_close(volume.as_tensor(), image.as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(volume.affine, image.affine)
    assert to_volume.inverse(volume).shape == image.shape


def test_numpy_slice_becomes_a_volume_with_identity_affine():
    volume = ToVolume()(np.zeros((1, 4, 6), dtype=np.float32))
    assert volume.shape == (1, 4, 6, 1)
    torch.testing.assert_close(volume.affine, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4, 4, 2)])
def test_to_volume_refuses_other_dimensions(shape):
    with pytest.raises(ValueError, match=r"expected an image of shape \(C, H, W\) or \(C, H, W, D\), got"):
        ToVolume()(torch.zeros(shape))


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("size", [(24, 24), (25, 31), (64, 64)])
def test_in_plane_size_is_met_and_slices_stay(slice_axis, size):
    image = volume_tensor()
    resampled = ResampleInPlane(size, slice_axis)(image)
    expected = list(size)
    expected.insert(slice_axis, image.shape[slice_axis + 1])
    assert resampled.shape == (1, *expected)
    assert resampled.dtype == torch.float32


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize(("size", "tolerance"), [((24, 24), 0.15), ((40, 40), 0.05), ((64, 64), 0.05), ((30, 50), 0.1)])
@pytest.mark.parametrize("shape", [(31, 40, 33), (32, 25, 40)])
def test_round_trip_gives_shape_affine_and_close_values(slice_axis, size, tolerance, shape):
    image = volume_tensor(shape)
    resample = ResampleInPlane(size, slice_axis)
    back = resample.inverse(resample(image))
    assert back.shape == image.shape
    torch.testing.assert_close(back.affine, image.affine)
    assert back.applied_operations == []
    assert (back - image).abs().max() < tolerance


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_structures_stay_where_they_are(slice_axis):
    image = volume_tensor()
    resampled = ResampleInPlane((20, 26), slice_axis)(image)
    before, after = world_centre(image, image.affine), world_centre(resampled, resampled.affine)
    np.testing.assert_allclose(after, before, atol=0.15)


def test_proportions_are_kept():
    disc = torch.full((1, 40, 60, 1), -1.0)
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    disc[0, ..., 0][(rows - 20) ** 2 + (columns - 30) ** 2 <= 15**2] = 1.0
    for size in ((64, 64), (48, 64)):
        inside = ResampleInPlane(size)(disc)[0, ..., 0] > 0
        height, width = (int(inside.any(dim=axis).sum()) for axis in (1, 0))
        assert abs(height - width) <= 1


def test_background_stays_to_the_last_bit():
    image = volume_tensor((50, 37, 9))
    image[image < -0.9] = -1
    resampled = ResampleInPlane((21, 21))(image)
    corner = resampled[:, :2, :2]
    assert (corner == -1).all()
    assert resampled.min() == -1


def test_same_size_changes_nothing():
    image = volume_tensor((24, 24, 5))
    torch.testing.assert_close(ResampleInPlane((24, 24))(image).as_tensor(), image.as_tensor())


def test_shrinking_does_not_alias():
    stripes = (torch.arange(60) % 2 * 2.0 - 1).expand(1, 60, 60)[..., None]
    inner = ResampleInPlane((18, 18), padding_value=0.0)(stripes)[:, 2:-2, 2:-2]
    assert inner.abs().max() < 0.2


def test_plain_tensor_without_metadata_is_resampled_too():
    set_track_meta(False)
    try:
        resampled = ResampleInPlane((8, 8))(torch.zeros(1, 6, 5, 3))
    finally:
        set_track_meta(True)
    assert not isinstance(resampled, MetaTensor)
    assert resampled.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResampleInPlane((64,)), r"spatial_size must be two positive integers \(h, w\), got \(64,\)"),
        (lambda: ResampleInPlane(64), "spatial_size must be two positive integers"),
        (lambda: ResampleInPlane((64, 0)), r"got \(64, 0\)"),
        (lambda: ResampleInPlane((64, 64.5)), r"got \(64, 64\.5\)"),
        (lambda: ResampleInPlane((64, 64), slice_axis=3), "slice_axis must be 0, 1 or 2, got 3"),
        (lambda: ResampleInPlane((64, 64))(torch.zeros(1, 5, 5)), r"expected a volume of shape .*got \(1, 5, 5\)"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dictionary_forms_mind_missing_keys_and_leave_the_rest():
    data = {"image": volume_tensor(), "case": "p1"}
    for transform in (ToVolumed, lambda keys, **kwargs: ResampleInPlaned(keys, (8, 8), **kwargs)):
        result = transform(("image", "label"), allow_missing_keys=True)(data)
        assert set(result) == {"image", "case"}
        assert result["case"] == "p1"
        with pytest.raises(KeyError, match="label"):
            transform(("image", "label"))(data)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("nearest_interp", [True, False])
def test_full_chain_gives_back_the_source_in_its_own_geometry(tmp_path, name, nearest_interp):
    affine = AFFINES[name]
    source = smooth_volume((36, 44, 30))
    nib.save(nib.Nifti1Image(source, affine), tmp_path / "p1.nii.gz")
    spatial = Compose([Orientationd("image", axcodes="RAS", labels=None), ResampleInPlaned("image", (48, 48))])
    chain = Compose(
        [LoadImaged("image"), EnsureChannelFirstd("image"), ToVolumed("image"), ScaleMRIntensityd("image"), spatial]
    )
    data = chain({"image": str(tmp_path / "p1.nii.gz")})
    assert data["image"].shape[1:3] == (48, 48)
    assert nib.aff2axcodes(data["image"].affine.numpy()) == ("R", "A", "S")

    data["pred"] = MetaTensor(data["image"].as_tensor().clone())  # what an identity network returns
    window = data["image"].meta["intensity_window"]
    post = Compose(
        [Invertd("pred", spatial, "image", nearest_interp=nearest_interp), RestoreIntensityd("pred", window)]
    )
    pred = post(data)["pred"]
    assert pred.shape == (1, *source.shape)
    assert pred.dtype == torch.float32
    np.testing.assert_allclose(pred.affine.numpy(), affine, atol=1e-5)
    np.testing.assert_allclose(pred[0].numpy(), np.clip(source, *window), atol=0.03 * window[1])
    assert [operation["class"] for operation in pred.applied_operations] == ["ToVolume", "ScaleMRIntensity"]


def test_full_inverse_gives_back_the_slice_as_read(tmp_path):
    source = smooth_volume((36, 44, 3))[..., 1]
    np.save(tmp_path / "slice.npy", source)
    chain = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ToVolumed("image"),
            ScaleMRIntensityd("image"),
            ResampleInPlaned("image", (64, 64)),
        ]
    )
    data = chain({"image": str(tmp_path / "slice.npy")})
    assert data["image"].shape == (1, 64, 64, 1)
    _, high = data["image"].meta["intensity_window"]
    back = chain.inverse(data)["image"]
    assert back.shape == (1, *source.shape)
    np.testing.assert_allclose(back[0].numpy(), np.clip(source, 0, high), atol=0.02 * high)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_go_out_and_back(slice_axis):
    volume = torch.rand(2, 5, 6, 7)
    slices = extract_slices(volume, slice_axis)
    assert slices.shape[0] == volume.shape[slice_axis + 1]
    torch.testing.assert_close(slices[3], volume.select(slice_axis + 1, 3), rtol=0, atol=0)
    stacked = stack_slices(slices, slice_axis)
    assert stacked.is_contiguous()
    torch.testing.assert_close(stacked, volume, rtol=0, atol=0)


def test_slices_are_plain_tensors():
    assert type(extract_slices(volume_tensor())) is torch.Tensor
    assert type(stack_slices(MetaTensor(torch.rand(3, 1, 4, 4)))) is torch.Tensor


def test_nonempty_slices_counts_the_share_above_background():
    label = torch.full((1, 10, 10, 4), -1.0)
    label[0, 0, :4, 1] = 0.0  # 4 of 100 pixels
    label[0, 0, :5, 2] = -0.999  # 5 of 100 pixels
    label[0, :, :, 3] = 1.0
    assert nonempty_slices(label) == [2, 3]
    assert nonempty_slices(label, min_foreground=0.04) == [1, 2, 3]
    assert nonempty_slices(label, min_foreground=0) == [0, 1, 2, 3]
    assert nonempty_slices(label, min_foreground=0.05, background=-0.5) == [3]
    assert nonempty_slices(label.movedim(3, 1), slice_axis=0) == [2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extract_slices(torch.zeros(4, 4, 4)), r"expected a volume of shape .*got \(4, 4, 4\)"),
        (lambda: extract_slices(torch.zeros(1, 4, 4, 4), -1), "slice_axis must be 0, 1 or 2, got -1"),
        (lambda: stack_slices(torch.zeros(4, 4, 4)), r"expected slices of shape \(N, C, h, w\), got \(4, 4, 4\)"),
        (
            lambda: nonempty_slices(torch.zeros(1, 4, 4, 4), min_foreground=5),
            r"min_foreground must lie in \[0, 1\], got 5",
        ),
    ],
)
def test_slices_refuse_what_they_cannot_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
