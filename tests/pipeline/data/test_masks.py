"""A mask of the user's is the foreground: in the scaling, the choice of slices, the store, the datalist's digest."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from pipeline.data import DataError, SliceDataset, load_cases
from pipeline.inference import find_volumes
from pipeline.io import ImageError, ReadImaged
from transforms import ABOVE_BACKGROUND, FOUND, MASK_KEY, ScaleCTIntensityd, ScaleMRIntensityd

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SHAPE = (12, 10, 6)


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return str(path)


@pytest.fixture
def mask():
    inside = np.zeros(SHAPE, np.uint8)
    inside[2:6, 3:8, 1:5] = 1
    return inside


@pytest.fixture
def item(tmp_path, mask):
    values = np.random.default_rng(0).uniform(100, 200, SHAPE).astype(np.float32)
    return {
        "image": save(tmp_path / "image.nii.gz", values),
        "label": save(tmp_path / "label.nii.gz", 300 - values),
        "mask": save(tmp_path / "mask.nii.gz", mask),
    }


@pytest.mark.parametrize("rule", [FOUND, ABOVE_BACKGROUND])
def test_what_lies_outside_becomes_the_background(item, mask, rule):
    read = Compose(
        [
            ReadImaged(["image", "label"]),
            ScaleMRIntensityd("image", foreground=rule),
            ScaleCTIntensityd("label", (0, 400), rule),
        ]
    )
    pair = read(item)
    for key in ("image", "label"):
        np.testing.assert_array_equal(pair[key].numpy()[0] > -1, mask > 0)
        assert MASK_KEY not in pair[key].meta
    assert "mask" not in pair


def test_the_order_in_which_a_mask_is_stored_makes_no_difference(tmp_path, item, mask):
    turned = mask[::-1].transpose(2, 0, 1)
    affine = np.array([[0, -1, 0, 11], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    item["mask"] = save(tmp_path / "turned.nii.gz", np.ascontiguousarray(turned), affine)
    np.testing.assert_array_equal(ReadImaged(["image", "label"])(item)["label"].meta[MASK_KEY], mask > 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mask: (mask[:-1], AFFINE), r"mask of shape \(11, 10, 6\).*expected the grid of image"),
        (lambda mask: (mask, AFFINE + np.eye(4, k=3) * 9), r"at \[9\.0, 0\.0, 0\.0\] mm"),
        (lambda mask: (mask * 0, AFFINE), "empty mask"),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path, item, mask, change, said):
    voxels, affine = change(mask)
    item["mask"] = save(tmp_path / "other.nii.gz", voxels, affine)
    with pytest.raises(ImageError, match=said) as told:
        ReadImaged(["image", "label"])(item)
    assert "other.nii.gz" in str(told.value)


def test_the_store_knows_the_mask(tmp_path, item, mask):
    transform = Compose([ReadImaged(["image", "label"]), ScaleMRIntensityd(["image", "label"], foreground=FOUND)])
    store = tmp_path / "store"
    first = SliceDataset([item], transform, min_foreground=0.01, store=store)
    assert first.masks == 1
    assert first.pairs[0].indices == [1, 2, 3, 4]
    save(tmp_path / "mask.nii.gz", np.roll(mask, 1, axis=2))
    second = SliceDataset([item], transform, min_foreground=0.01, store=store)
    assert second.pairs[0].indices == [2, 3, 4, 5]
    del item["mask"]
    assert len(SliceDataset([item], transform, min_foreground=0.01, store=store).pairs[0].indices) == 6


def data_set(root, mask, names=("a", "b", "c")):
    random = np.random.default_rng(1)
    for split, cases in (("Tr", names), ("Val", ("v",))):
        for case in cases:
            save(root / f"images{split}" / f"{case}.nii.gz", random.uniform(1, 9, SHAPE))
            save(root / f"labels{split}" / f"{case}.nii.gz", random.uniform(1, 9, SHAPE))
            save(root / f"masks{split}" / f"{case}.nii.gz", mask)
    return root


def test_folders_of_masks_beside_those_of_images(tmp_path, mask):
    root = data_set(tmp_path / "data", mask)
    cases = load_cases(root)
    assert [item["mask"] for item in cases["training"]] == [str(root / f"masksTr/{name}.nii.gz") for name in "abc"]
    digest, lists = cases.digest, cases.lists_digest
    save(root / "masksTr/b.nii.gz", np.ones(SHAPE, np.uint8))
    other = load_cases(root)
    assert other.digest != digest
    assert other.lists_digest != lists
    (root / "masksTr/b.nii.gz").unlink()
    with pytest.raises(DataError, match="masksTr: no mask of b"):
        load_cases(root)


def test_a_mask_in_a_datalist(tmp_path, mask):
    root = data_set(tmp_path / "data", mask)
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "mask": "masksTr/a.nii.gz"}
    content = {"training": [entry], "validation": [{"image": "imagesVal/v.nii.gz", "label": "labelsVal/v.nii.gz"}]}
    (root / "dataset.json").write_text(json.dumps(content))
    cases = load_cases(root)
    assert cases["training"][0]["mask"] == str(root / "masksTr/a.nii.gz")
    assert "mask" not in cases["validation"][0]
    entry["mask"] = 3
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match='"mask" must be one path, got a number'):
        load_cases(root)
    entry["mask"] = "masksTr/gone.nii.gz"
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"gone\.nii\.gz"):
        load_cases(root)


def test_a_mask_of_a_volume_to_translate(tmp_path, item):
    assert find_volumes(item["image"], mask=item["mask"]) == [{"image": item["image"], "mask": item["mask"]}]
    with pytest.raises(ValueError, match="3 volumes"):
        find_volumes(tmp_path, mask=item["mask"])
    with pytest.raises(FileNotFoundError, match=r"gone\.nii"):
        find_volumes(item["image"], mask=tmp_path / "gone.nii")
