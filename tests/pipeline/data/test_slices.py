"""Slices come out of the volumes whole, filled, in order, and the same for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, RandFlipd, RandScaleIntensityd

from pipeline.data import SliceDataset
from pipeline.io import ReadImaged
from transforms import (
    DescribeVolumed,
    ResampleInPlaned,
    ScaleCTIntensityd,
    ScaleMRIntensityd,
    extract_slices,
)

KEYS = ("image", "label")
Item = dict[str, str]


def preprocessing(size: tuple[int, int] | None = (16, 16), slice_axis: int = 2) -> Compose:
    """The chain from files to volumes on the grid of the networks."""
    steps = [ReadImaged(KEYS), ScaleMRIntensityd(KEYS)]
    if size is not None:
        steps += [Orientationd(KEYS, axcodes="RAS", labels=None), ResampleInPlaned(KEYS, size, slice_axis)]
    return Compose(steps)


@pytest.fixture
def make_pair(tmp_path) -> Callable[..., Item]:
    """Writes a pair of volumes whose slices 2, 3 and 4 (along the last axis) are filled."""

    def make(name: str, shape: tuple[int, ...] = (20, 16, 6), scale: float = 100.0, suffix: str = ".nii.gz") -> Item:
        generator = np.random.default_rng([*name.encode()])
        item = {}
        for key in KEYS:
            values = np.zeros(shape, dtype=np.float32)
            filled = (slice(4, -4), slice(4, -4), slice(2, 5))[: len(shape)]
            values[filled] = scale * generator.uniform(0.2, 1.0, values[filled].shape)
            item[key] = str(tmp_path / f"{name}_{key}{suffix}")
            if suffix == ".npy":
                np.save(item[key], values)
            else:
                nib.save(nib.Nifti1Image(values, np.eye(4)), item[key])
        return item

    return make


def test_items_are_filled_slices_as_plain_tensors(make_pair):
    dataset = SliceDataset([{**make_pair("a"), "case": "p1"}, {**make_pair("b"), "case": "p2"}], preprocessing())
    assert len(dataset) == 6
    assert dataset.spatial_size == (16, 16)
    assert [(item["case"], item["slice"]) for item in dataset] == [(p, n) for p in ("p1", "p2") for n in (2, 3, 4)]
    for item in dataset:
        assert set(item) == {"image", "label", "case", "slice"}
        for key in KEYS:
            assert type(item[key]) is torch.Tensor
            assert item[key].shape == (1, 16, 16)
            assert item[key].dtype == torch.float32
            assert item[key].is_contiguous()
            assert item[key].min() == -1
            assert item[key].max() <= 1


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_slices_are_those_of_the_transformed_volumes(make_pair, num_workers):
    data = [make_pair(name) for name in "abcde"]
    transform = preprocessing()
    dataset = SliceDataset(data, transform, num_workers=num_workers)
    items = iter(dataset)
    for source in data:
        volumes = transform(source)
        for index in (2, 3, 4):
            item = next(items)
            for key in KEYS:
                torch.testing.assert_close(item[key], extract_slices(volumes[key])[index], rtol=0, atol=0)


@pytest.mark.parametrize("slice_axis", [0, 1])
def test_other_slice_axes(make_pair, slice_axis):
    dataset = SliceDataset([make_pair("a")], preprocessing((12, 10), slice_axis), slice_axis=slice_axis)
    assert dataset.spatial_size == (12, 10)
    assert [item["slice"] for item in dataset] == list(range(4, (20, 16)[slice_axis] - 4))


def test_min_foreground_decides_which_slices_stay(make_pair):
    data = [make_pair("a")]
    assert len(SliceDataset(data, preprocessing(), min_foreground=0.0)) == 6
    share = 12 * 8 / (20 * 16)
    assert len(SliceDataset(data, preprocessing(None), min_foreground=share - 0.01)) == 3
    with pytest.raises(ValueError, match=r"no slice has at least 31% of its pixels above -1 in .*a_image\.nii\.gz"):
        SliceDataset(data, preprocessing(None), min_foreground=share + 0.01)


def test_case_falls_back_to_the_file_name(make_pair):
    assert SliceDataset([make_pair("p7")], preprocessing())[0]["case"] == "p7_image"


def test_numpy_slices_are_volumes_of_one_slice(make_pair):
    data = [make_pair(name, shape=(20, 16), suffix=".npy") for name in "ab"]
    dataset = SliceDataset(data, preprocessing())
    assert len(dataset) == 2
    assert dataset[1]["slice"] == 0
    assert dataset[1]["image"].shape == (1, 16, 16)


def test_volumes_are_described_where_the_transform_does_so(make_pair):
    items = [{**make_pair("a"), "case": "p1"}, {**make_pair("b", scale=50), "case": "p1"}, make_pair("c")]
    plain = SliceDataset(items, preprocessing())
    assert plain.descriptions == [None, None, None]
    assert (plain.patients, plain.channels) == (2, 1)
    chain = preprocessing().transforms
    described = SliceDataset(items, Compose([*chain[:1], DescribeVolumed(KEYS), *chain[1:]]))
    assert [pair["image"]["field_of_view"] for pair in described.descriptions] == [[20, 16, 6]] * 3
    highs = [pair["label"]["high"] for pair in described.descriptions]
    assert 90 < highs[0] <= 100
    assert 45 < highs[1] <= 50
    half = SliceDataset(items[:1], Compose([*chain[:2], DescribeVolumed("image"), *chain[2:]]))
    assert half.descriptions == [None]


def test_target_window_is_the_median_of_the_labels(make_pair):
    data = [make_pair(name, scale=scale) for name, scale in (("a", 100.0), ("b", 5000.0), ("c", 200.0))]
    transform = preprocessing()
    highs = [transform(item)["label"].meta["intensity_window"][1] for item in data]
    low, high = SliceDataset(data, transform).target_window
    assert low == 0.0
    assert high == pytest.approx(sorted(highs)[1])


def test_target_window_of_ct_is_the_fixed_one(make_pair):
    transform = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleCTIntensityd(KEYS, (0.0, 500.0))])
    assert SliceDataset([make_pair("a")], transform).target_window == (0.0, 500.0)


def test_target_window_needs_scaled_labels(make_pair):
    transform = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS)])
    dataset = SliceDataset([make_pair("a")], transform)
    with pytest.raises(
        ValueError, match='1 of 1 labels carry no intensity_window: the transform must scale the key "label"'
    ):
        _ = dataset.target_window


def test_slices_of_two_sizes_are_refused(make_pair):
    data = [make_pair("a"), make_pair("b", shape=(18, 16, 6))]
    with pytest.raises(ValueError, match=r"slices must agree in size, found \(20, 16\) in .*a_.*; \(18, 16\) in .*b_"):
        SliceDataset(data, preprocessing(None))
    assert SliceDataset(data, preprocessing()).spatial_size == (16, 16)


def test_pair_of_two_shapes_is_refused(make_pair):
    item = {"image": make_pair("a")["image"], "label": make_pair("b", shape=(18, 16, 6))["label"]}
    with pytest.raises(ValueError, match=r"a_image.*of one shape .*got \(1, 20, 16, 6\) and \(1, 18, 16, 6\)"):
        SliceDataset([item], preprocessing(None))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_failing_transform_names_the_pair_and_the_cause(make_pair, num_workers):
    data = [make_pair("a"), make_pair("b", scale=0.0)]
    with pytest.raises(
        RuntimeError, match=r"preprocessing .*b_image.* failed: .*has no voxel above the background value 0"
    ):
        SliceDataset(data, preprocessing(), num_workers=num_workers)


def test_missing_file_is_named(make_pair):
    item = make_pair("a")
    Path(item["label"]).unlink()
    with pytest.raises(RuntimeError, match=r"preprocessing .*a_label\.nii\.gz failed: "):
        SliceDataset([item], preprocessing())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        ({"training": []}, 'data must be one list .* such as cases\\["training"\\]'),
        (["a.nii.gz"], "data must be one list"),
        ([{"image": "a.nii.gz"}], r'data\[0\] has no "label"'),
    ],
)
def test_malformed_data_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        SliceDataset(data, preprocessing())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": -1}, "num_workers must not be negative, got -1"),
        ({"min_foreground": 1.5}, r"min_foreground must lie in \[0, 1\], got 1\.5"),
        ({"slice_axis": 3}, "slice_axis must be 0, 1 or 2, got 3"),
    ],
)
def test_arguments_out_of_range_are_refused(make_pair, arguments, message):
    with pytest.raises(ValueError, match=message):
        SliceDataset([make_pair("a")], preprocessing(), **arguments)


def augmentation() -> Compose:
    """Random transforms of a slice."""
    return Compose([RandFlipd(KEYS, prob=0.5), RandScaleIntensityd("image", 0.5, prob=0.9)])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_what_is_drawn_follows_from_the_seed_and_the_item(make_pair, num_workers):
    """In whatever order items are asked for, and in how many processes."""
    dataset = SliceDataset([make_pair("a"), make_pair("b")], preprocessing(), slice_transform=augmentation())

    def epoch(seed: int, order: Sequence[int], num_workers: int = 0) -> torch.Tensor:
        dataset.seed_draws(seed)
        loader = DataLoader(dataset, sampler=order, num_workers=num_workers, generator=torch.Generator())
        found = {index: item["image"] for index, item in zip(order, loader, strict=True)}
        return torch.cat([found[index] for index in sorted(found)])

    first = epoch(1, range(6))
    assert not torch.equal(first, epoch(2, range(6)))
    assert torch.equal(epoch(1, [5, 0, 3, 1, 4, 2], num_workers), first)
    assert torch.equal(epoch(1, [4, 2]), first[[2, 4]])


def test_slice_transform_leaves_plain_tensors(make_pair):
    flip = RandFlipd(("image", "label"), prob=1.0, spatial_axis=0)
    item = SliceDataset([make_pair("a")], preprocessing(), slice_transform=flip)[0]
    assert type(item["image"]) is type(item["label"]) is torch.Tensor


def test_slice_transform_cannot_spoil_the_data(make_pair):
    def zero(item):
        for key in KEYS:
            item[key].zero_()
        return item

    data = [make_pair("a")]
    dataset = SliceDataset(data, preprocessing(), slice_transform=zero)
    assert dataset[0]["image"].abs().max() == 0
    dataset.slice_transform = None
    torch.testing.assert_close(dataset[0]["image"], SliceDataset(data, preprocessing())[0]["image"], rtol=0, atol=0)


def test_clean_shows_the_slices_as_they_are(make_pair):
    data = [make_pair("a"), make_pair("b")]
    plain = SliceDataset(data, preprocessing())
    dataset = SliceDataset(data, preprocessing(), slice_transform=augmentation())
    clean = dataset.clean
    assert len(clean) == len(plain) == 6
    assert (clean.spatial_size, clean.target_window) == (plain.spatial_size, plain.target_window)
    for seen, expected in zip(clean, plain, strict=True):
        assert (seen["case"], seen["slice"]) == (expected["case"], expected["slice"])
        assert all(torch.equal(seen[key], expected[key]) for key in KEYS)
    assert clean[0]["image"].data_ptr() == dataset.clean[0]["image"].data_ptr()  # no second copy in memory


def test_looking_at_the_clean_slices_changes_no_draw(make_pair):
    dataset = SliceDataset([make_pair("a")], preprocessing(), slice_transform=augmentation())

    def draw(look: bool) -> torch.Tensor:
        dataset.seed_draws(1)
        if look:
            assert len(list(dataset.clean)) == 3
        return torch.stack([item["image"] for item in dataset])

    drawn = draw(look=False)
    assert torch.equal(draw(look=True), drawn)
    assert not torch.equal(drawn, torch.stack([item["image"] for item in dataset.clean]))  # still augmented


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_collates_batches(make_pair, num_workers):
    dataset = SliceDataset([make_pair("a"), make_pair("b")], preprocessing(), slice_transform=augmentation())
    batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=num_workers)))
    assert batch["image"].shape == (4, 1, 16, 16)
    assert batch["case"] == ["a_image"] * 3 + ["b_image"]
    assert batch["slice"].tolist() == [2, 3, 4, 2]


def test_progress_is_said_where_it_takes_long(make_pair, capsys, monkeypatch):
    SliceDataset([make_pair("a")], preprocessing())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("pipeline.data.pairs.SILENCE", 0.0)
    SliceDataset([make_pair("a")], preprocessing(), progress=False)
    assert capsys.readouterr().err == ""
    SliceDataset([make_pair("a")], preprocessing())
    assert "preprocessing volumes" in capsys.readouterr().err
