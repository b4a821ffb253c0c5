"""Pairs that are misaligned once stay as they are, and registering them undoes it, whatever the contrast."""

from __future__ import annotations

import copy

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

from pipeline.data import SliceDataset, misalign
from pipeline.data.aligning import align
from pipeline.io import ReadImaged
from transforms import RandDeformationNoised, ScaleMRIntensityd

KEYS = ("image", "label")
SIZE = 64


def head(seed=0, size=SIZE):
    """A lumpy ellipse in two contrasts, background 0."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij"))
    away = np.sqrt((grid[0] / 0.75) ** 2 + (grid[1] / 0.6) ** 2)
    lumps = ndimage.gaussian_filter(generator.standard_normal((size, size)), size / 20)
    tissue = np.clip(0.5 + 0.25 * lumps / lumps.std(), 0.05, 1) * ndimage.gaussian_filter((away < 1) * 1.0, 0.7)
    other = np.where(away < 1, 0.2 + (1 - tissue) ** 2, 0) * ndimage.gaussian_filter((away < 1) * 1.0, 0.7)
    return tissue.astype(np.float32), other.astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    slices = [head(seed) for seed in range(3)]
    item = {}
    for place, key in enumerate(KEYS):
        item[key] = str(folder / f"{key}.nii.gz")
        volume = np.stack([pair[place] for pair in slices], axis=2) * 500
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), item[key])
    return [item]


def make(data, pairs="anew", level=5, kind="affine", seed=0, **settings):
    transform = Compose([ReadImaged(KEYS), ScaleMRIntensityd(KEYS)])
    dataset = SliceDataset(data, transform, num_workers=0, progress=False, **settings)
    misalign(dataset, pairs, level, kind, seed)
    return dataset


@pytest.mark.parametrize("kind", ["affine", "nonaffine"])
def test_each_pair_has_one_misalignment(data, kind):
    dataset, plain = make(data, "fixed", kind=kind, seed=4), make(data)
    first = [copy.deepcopy(dataset[index]) for index in range(len(dataset))]
    for index in (2, 0, 1, 0):  # in whatever order, and again
        for key in KEYS:
            assert torch.equal(dataset[index][key], first[index][key])
            assert not torch.equal(dataset[index][key], plain[index][key])
    other = make(data, "fixed", kind=kind, seed=5)
    assert not torch.equal(other[0]["label"], first[0]["label"])
    # It is what the noise draws for a sample of this seed.
    [seed] = np.random.SeedSequence([4, 1]).generate_state(1)
    noise = RandDeformationNoised(level=5, kind=kind).set_random_state(seed=int(seed))
    assert torch.equal(noise(plain[1])["label"], first[1]["label"])
    assert {key: first[1][key] for key in ("case", "slice")} == {key: plain[1][key] for key in ("case", "slice")}


def test_level_0_and_the_clean_view_are_the_pairs_as_they_are(data):
    plain = make(data)
    for dataset in (make(data, "fixed", level=0), make(data, "fixed").clean, make(data, "registered").clean):
        assert all(torch.equal(dataset[index][key], plain[index][key]) for index in range(3) for key in KEYS)


def test_augmentation_comes_on_top(data):
    def doubled(item):
        return item | {"image": item["image"] * 2}

    dataset, augmented = make(data, "fixed"), make(data, "fixed", slice_transform=doubled)
    assert torch.equal(augmented[1]["image"], 2 * dataset[1]["image"])
    assert torch.equal(augmented[1]["label"], dataset[1]["label"])


def test_registered_pairs_line_up(data, caplog):
    caplog.set_level("INFO")
    registered, fixed = make(data, "registered"), make(data, "fixed")
    # Where the label would lie had it moved as the image did.
    for index in range(3):
        [seed] = np.random.SeedSequence([0, index]).generate_state(1)
        noise = RandDeformationNoised(level=5).set_random_state(seed=int(seed))
        item = make(data)[index]
        noise(item)
        aligned = noise.noise.apply(item["label"], noise.deformations["image"])
        error = (registered[index]["label"] - aligned).abs().mean()
        assert error < 0.25 * (fixed[index]["label"] - aligned).abs().mean()
        assert torch.equal(registered[index]["image"], fixed[index]["image"])
    assert "of a displacement of" in caplog.text
    again = make(data, "registered")
    assert (again.misalignment.maps == registered.misalignment.maps).all()


def test_what_cannot_be_is_refused(data):
    with pytest.raises(ValueError, match="true_field is for noise that is drawn anew"):
        misalign(make(data), "registered", 3, true_field=True)
    with pytest.raises(ValueError, match="pairs must be one of anew, fixed, registered, got 'twice'"):
        make(data, "twice")
    with pytest.raises(ValueError, match="derives from PairDataset, got list"):
        misalign([], "fixed", 3)


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        (np.eye(2), (4.0, -3.0)),
        (np.array([[1.06, 0.0], [0.0, 1.06]]), (0.0, 2.0)),
        (np.array([[0.9962, -0.0872], [0.0872, 0.9962]]), (-2.0, 1.0)),
    ],
)
def test_a_known_map_between_two_contrasts_is_found(matrix, shift):
    fixed, other = head(1)
    centre = (SIZE - 1) / 2
    # other(p) shows what lies at matrix p + shift: carried back by the inverse.
    moving = ndimage.affine_transform(other, matrix, centre + np.array(shift) - matrix @ np.full(2, centre), order=1)
    found = align(fixed, moving)
    back = np.linalg.inv(matrix)
    expected = np.concatenate([back - np.eye(2), -back @ np.array(shift)[:, None]], axis=1)
    points = np.array([[-20, -15], [20, 15], [-20, 15], [20, -15], [0, 0]]).T
    error = np.linalg.norm((found - expected)[:, :2] @ points + (found - expected)[:, 2:], axis=0)
    assert error.mean() < 0.3, error
    assert (align(fixed, moving) == found).all()


def test_slices_that_show_nothing_stay_where_they_are():
    fixed, _ = head()
    assert (align(fixed, np.zeros_like(fixed)) == 0).all()
    assert (align(np.zeros_like(fixed), fixed) == 0).all()


@pytest.mark.parametrize("pairs", ["anew", "fixed"])
def test_an_amplitude_without_effect_is_said(data, caplog, pairs):
    for kind, amplitude, said in (("affine", 0.1, True), ("affine", 0.03, False), ("nonaffine", 0.1, False)):
        caplog.clear()
        misalign(make(data), pairs, 1, kind, amplitude=amplitude)
        assert ("noise_amplitude 0.1 has no effect on affine noise" in caplog.text) == said
