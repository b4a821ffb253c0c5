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
    CROPPED_KEY,
    UNMEASURED_KEY,
    ResampleInPlane,
    ResampleInPlaned,
    RestoreIntensityd,
    ScaleMRIntensityd,
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
    result = ResampleInPlaned(("image", "label"), (8, 8), allow_missing_keys=True)(data)
    assert set(result) == {"image", "case"}
    assert result["case"] == "p1"
    with pytest.raises(KeyError, match="label"):
        ResampleInPlaned(("image", "label"), (8, 8))(data)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("nearest_interp", [True, False])
def test_full_chain_gives_back_the_source_in_its_own_geometry(tmp_path, name, nearest_interp):
    affine = AFFINES[name]
    source = smooth_volume((36, 44, 30))
    nib.save(nib.Nifti1Image(source, affine), tmp_path / "p1.nii.gz")
    spatial = Compose([Orientationd("image", axcodes="RAS", labels=None), ResampleInPlaned("image", (48, 48))])
    chain = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), ScaleMRIntensityd("image"), spatial])
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
    assert [operation["class"] for operation in pred.applied_operations] == ["ScaleMRIntensity"]


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


SQUARES = [  # shape and voxel size of the patients, each with a square of 40 mm in the middle of a field of its own
    ((120, 60, 3), (1.0, 2.0, 4.0)),
    ((60, 80, 3), (1.5, 1.5, 4.0)),
    ((101, 90, 3), (1.0, 1.2, 4.0)),
]


def square(shape, voxel):
    """A square of 40 x 40 mm in the middle of each slice, at 1, on background at -1."""
    centres = [(np.arange(n) + 0.5 - n / 2) * size for n, size in zip(shape, voxel, strict=True)]
    inside = (np.abs(centres[0]) < 20)[:, None] & (np.abs(centres[1]) < 20)[None]
    volume = np.where(inside, 1.0, -1.0).astype(np.float32)[..., None].repeat(shape[2], 2)
    return MetaTensor(torch.from_numpy(volume)[None], affine=torch.diag(torch.tensor([*voxel, 1.0], dtype=float)))


@pytest.mark.parametrize(("shape", "voxel"), SQUARES)
def test_a_pixel_has_one_size_in_every_volume(shape, voxel):
    """Whatever the voxels and the field of view, the square is 20 pixels of 2 mm wide and high, and comes back."""
    volume = square(shape, voxel)
    resample = ResampleInPlane((60, 60), spacing=2.0)
    result = resample(volume)
    assert tuple(result.shape) == (1, 60, 60, 3)
    filled = (result[0, :, :, 1].as_tensor() + 1) / 2
    inside = volume[0, :, :, 1].as_tensor() > 0
    lengths = [inside.any(1 - axis).sum().item() * voxel[axis] / 2 for axis in range(2)]  # in whole voxels of the file
    assert lengths == pytest.approx([20, 20], abs=0.5)
    assert [filled[:, 30].sum().item(), filled[30].sum().item()] == pytest.approx(lengths, abs=0.1)
    assert result.affine[:3, :3].norm(dim=0).tolist() == pytest.approx([2, 2, 4], rel=0.005)
    centre = result.affine @ torch.tensor([29.5, 29.5, 1, 1], dtype=float)
    expected = volume.affine @ torch.tensor([(shape[0] - 1) / 2, (shape[1] - 1) / 2, 1, 1], dtype=float)
    assert (centre - expected).abs().max() <= max(voxel[:2])  # padding comes in whole voxels
    back = resample.inverse(result)
    assert back.shape == volume.shape
    torch.testing.assert_close(back.affine, volume.affine)
    assert ((back > 0) == (volume > 0)).float().mean() > 0.98


def test_what_is_cut_off_is_told_and_comes_back_as_background():
    volume = square((60, 60, 3), (1.0, 1.0, 1.0))
    resample = ResampleInPlane((20, 60), spacing=1.0)
    result = resample(volume)
    assert tuple(result.shape) == (1, 20, 60, 3)
    assert result.meta[CROPPED_KEY] == pytest.approx(0.5)
    back = resample.inverse(result)
    assert back.shape == volume.shape
    assert (back[:, 20:40].as_tensor() == volume[:, 20:40].as_tensor()).all()
    assert (back[:, :20].as_tensor() == -1).all()
    assert CROPPED_KEY not in ResampleInPlane((60, 60), spacing=1.0)(volume).meta


def test_without_cropping_slices_are_larger_and_nothing_is_lost():
    volume = square((60, 50, 3), (1.0, 1.0, 1.0))
    resample = ResampleInPlane((20, 60), spacing=1.0, crop=False)
    result = resample(volume)
    assert tuple(result.shape) == (1, 60, 60, 3)
    torch.testing.assert_close(resample.inverse(result).as_tensor(), volume.as_tensor())


def test_one_field_of_view_of_square_voxels_is_as_it_was():
    """Where nothing is to be decided, both ways of fitting give the same to the last bit."""
    volume = MetaTensor(torch.rand(1, 50, 44, 3) * 2 - 1, affine=torch.diag(torch.tensor([1.3, 1.3, 4, 1.0])))
    filled, padded = (ResampleInPlane((32, 32), spacing=spacing)(volume) for spacing in (None, 1.3 * 50 / 32))
    assert torch.equal(filled.as_tensor(), padded.as_tensor())


def test_what_has_no_millimetres_fills_the_image():
    volume = torch.rand(1, 50, 44, 3) * 2 - 1
    unmeasured = MetaTensor(volume, affine=torch.eye(4), meta={UNMEASURED_KEY: True})
    filled = ResampleInPlane((32, 32))(volume)
    assert torch.equal(ResampleInPlane((32, 32), spacing=5.0)(unmeasured).as_tensor(), filled.as_tensor())


@pytest.mark.parametrize("spacing", [0, -1.0, float("nan"), float("inf")])
def test_what_is_no_size_of_a_pixel_is_refused(spacing):
    with pytest.raises(ValueError, match=r"spacing must be a positive number of mm, got"):
        ResampleInPlane((4, 4), spacing=spacing)
