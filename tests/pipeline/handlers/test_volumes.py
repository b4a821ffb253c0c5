"""Whole volumes in an evaluation: translated as for use, scored in the patient's space, each patient once."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from skimage.metrics import structural_similarity
from torch import nn

from pipeline.handlers import VolumeScores
from pipeline.inference import Translation
from pipeline.models import Recipe

SHAPE = (20, 16, 4)
WINDOW = (0, 1000)


class Negative(nn.Module):
    """A network whose translation is easily worked out."""

    def forward(self, source):
        return -source


@pytest.fixture
def write(tmp_path):
    """Writes a pair with a foreground away from the edges."""

    def save(name, case, seed, shape=SHAPE, affine=None):
        random = np.random.default_rng(seed)
        item = {"case": case}
        for key, top in (("image", 300), ("label", 900)):
            voxels = np.zeros(shape, np.float32)
            inside = tuple(slice(3, -3) for _ in shape[:2])
            voxels[inside] = random.uniform(100, top, voxels[inside].shape)
            item[key] = str(tmp_path / f"{name}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1]) if affine is None else affine), item[key])
        return item

    return save


@pytest.fixture
def translation(make_recipe):
    """At a size that a slice is only padded to, so that nothing is interpolated."""
    return Translation(Recipe(make_recipe(grid={"spatial_size": [20, 20]}, target={"window": list(WINDOW)})))


def evaluate(data, translation, network=None, **settings):
    engine = Engine(lambda engine, batch: None)
    VolumeScores(data, translation, network or Negative(), **settings).attach(engine)
    engine.run([0])
    return engine.state


def expected(item):
    """Scores of the negative, by numpy and scikit-image, in the target's units."""
    image, label = (nib.load(item[key]).get_fdata(dtype=np.float32) for key in ("image", "label"))
    high = np.percentile(image[image > 0], 99.5)
    pred = (1 - image.clip(0, high) / high) * 1000
    pred[:, :, [not image[:, :, n].any() for n in range(image.shape[2])]] = 0  # background stays background
    error = np.abs(pred - label)[label > 0].astype(float)
    windows = [min(7, length - 1 + length % 2) for length in image.shape]
    ssim = None
    if min(windows) == max(windows):
        ssim = structural_similarity(pred.astype(float), label.astype(float), win_size=windows[0], data_range=1000)
    return {
        "mae": error.mean(),
        "nmae": error.mean() / 1000,
        "psnr": 10 * np.log10(1e6 / (error**2).mean()),
        "ssim": ssim,
    }


def test_scores_agree_with_a_recomputation(write, translation):
    items = [write("a", "p", 0, (20, 16, 8)), write("b", "q", 1, (16, 20, 9))]
    state = evaluate(items, translation)
    for row, item in zip(state.volumes, items, strict=True):
        assert row["case"] == item["case"]
        assert {name: row[name] for name in ("mae", "nmae", "psnr", "ssim")} == pytest.approx(expected(item), rel=1e-4)
    assert [row["volume"] for row in state.volumes] == ["a_image", "b_image"]


def test_orientation_of_the_file_makes_no_difference(write, translation):
    straight = write("a", "p", 0)
    turned = dict(straight)
    for key in ("image", "label"):
        volume = nib.load(straight[key]).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
        turned[key] = straight[key].replace("a_", "turned_")
        nib.save(volume, turned[key])
    first, second = evaluate([straight, turned], translation).volumes
    scores = [{name: row[name] for name in row if name not in ("case", "volume")} for row in (first, second)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_thin_volumes_have_a_window_that_fits(write, translation):
    [row] = evaluate([write("a", "p", 0, (20, 16, 2))], translation).volumes
    assert -1 < row["ssim"] < 1
    assert row["psnr"] == pytest.approx(expected(write("a", "p", 0, (20, 16, 2)))["psnr"], rel=1e-4)


def test_several_volumes_of_one_patient_count_once(write, translation):
    items = [write("a", "p", 0), write("b", "p", 1), write("c", "q", 2)]
    state = evaluate(items, translation)
    psnr = [row["psnr"] for row in state.volumes]
    assert state.metrics["volume_psnr"] == pytest.approx(((psnr[0] + psnr[1]) / 2 + psnr[2]) / 2)


def test_baselines_are_scored_beside(write, translation):
    state = evaluate([write("a", "p", 0)], translation, baselines={"source": lambda source: source, "same": Negative()})
    [row] = state.volumes
    assert {name for name in state.metrics if name.startswith("volume_")} == {
        f"volume_{prefix}{score}" for prefix in ("", "source_", "same_") for score in ("mae", "nmae", "psnr", "ssim")
    }
    assert row["same_psnr"] == row["psnr"] != row["source_psnr"]


def test_the_network_is_used_as_in_inference(write, translation):
    """In evaluation mode, without gradients, on slices in [-1, 1]."""
    seen = []

    class Watched(Negative):
        def forward(self, source):
            seen.append((self.training, torch.is_grad_enabled(), tuple(source.shape[1:]), source.abs().max().item()))
            return -source

    network = Watched().train()
    evaluate([write("a", "p", 0)], translation, network)
    assert {entry[:3] for entry in seen} == {(False, False, (1, 20, 20))}
    assert max(entry[3] for entry in seen) <= 1
