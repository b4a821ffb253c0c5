"""Volumes in, volumes out: in the source's geometry and the target's physical scale."""

from __future__ import annotations

import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pipeline.errors import first_cause
from pipeline.io import formats
from pipeline.models import Model

from .conftest import run_chain

OBLIQUE = np.array([[1.9, 0.5, 0.2, -11.0], [-0.6, 1.85, -0.5, 23.0], [-0.2, 0.4, 3.9, 5.0], [0.0, 0.0, 0.0, 1.0]])
OBLIQUE[:, :3] *= np.array([2, 2, 4]) / np.linalg.norm(OBLIQUE[:3, :3], axis=0)  # voxels as large as in training
# A volume's axes, by where they point.
ORIENTATIONS = ["LPS", "LAS", "PIR", "SAL", "ASR", "IPL"]


@pytest.fixture
def source(dataset_dir):
    return dataset_dir / "images" / "d.nii.gz"


@pytest.fixture
def translate(run_config, trained_run, tmp_path):
    """Translates what ``image`` names and returns the results by file name."""

    def run(image, **settings):
        folder = tmp_path / f"translated{len(list(tmp_path.glob('translated*')))}"
        run_config(
            "inference.json",
            image=str(image),
            output_dir=str(folder),
            **{"checkpoint": str(trained_run / "model.pt"), **settings},
        )
        return {path.name: nib.load(path) for path in sorted(folder.iterdir())}

    return run


@pytest.fixture
def target_window(trained_run):
    return Model(trained_run / "model.pt").recipe.target_window


def reorient(volume, codes):
    """The same voxels at the same places, stored along other axes."""
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(tuple(codes)))
    return volume.as_reoriented(change)


def write(path, volume):
    nib.save(volume, path)
    return path


def test_result_has_the_geometry_of_the_source(translate, source):
    (result,) = translate(source).values()
    before = nib.load(source)
    assert result.shape == before.shape
    np.testing.assert_allclose(result.affine, before.affine, atol=1e-6)
    assert nib.aff2axcodes(result.affine) == nib.aff2axcodes(before.affine)
    assert result.get_data_dtype() == np.float32


def test_result_is_in_the_units_of_the_target(translate, source, dataset_dir, target_window):
    """The blobs' inner part is bright in the source (700 against 400) and dark in the target (200 against 900)."""
    result = translate(source)["d_translated.nii.gz"].get_fdata()
    image = nib.load(source).get_fdata()
    label = nib.load(dataset_dir / "labels" / "d.nii.gz").get_fdata()
    low, high = target_window
    assert (low, high) == pytest.approx((0, 925), abs=10)
    assert result.min() >= low
    assert result.max() <= high
    assert np.median(result[image == 0]) < low + 0.02 * (high - low)
    assert np.corrcoef(result.ravel(), label.ravel())[0, 1] > 0.85
    assert result[image > 600].mean() < 0.7 * result[(image > 0) & (image < 500)].mean()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_result_lies_where_the_source_lies(translate, source, tmp_path, codes):
    """However the axes are flipped and permuted: translated and put back, it is the translation of the original."""
    turned = reorient(nib.load(source), codes)
    (expected,) = translate(source).values()
    (result,) = translate(write(tmp_path / "turned.nii.gz", turned)).values()
    assert result.shape == turned.shape
    assert nib.aff2axcodes(result.affine) == tuple(codes)
    np.testing.assert_allclose(result.affine, turned.affine, atol=1e-5)
    back = reorient(result, "RAS")
    np.testing.assert_allclose(back.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(back.get_fdata(), expected.get_fdata(), atol=0.5)  # of about 900


@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_oblique_source(translate, source, tmp_path, codes):
    voxels = np.asarray(nib.load(source).dataobj)
    tilted = reorient(nib.Nifti1Image(voxels, OBLIQUE), codes)
    (expected,) = translate(source).values()
    (result,) = translate(write(tmp_path / "tilted.nii.gz", tilted)).values()
    np.testing.assert_allclose(result.affine, tilted.affine, atol=1e-5)
    np.testing.assert_allclose(reorient(result, "RAS").get_fdata(), expected.get_fdata(), atol=0.5)


@pytest.mark.parametrize("slice_axis", [0, 1])
def test_slices_along_another_axis(translate, source, dataset_dir, tmp_path, slice_axis):
    """That of the training; the file knows."""
    run_chain(
        ["train.json"],
        dataset_dir=str(dataset_dir),
        output_dir=str(tmp_path / "run"),
        slice_axis=slice_axis,
        min_foreground=0.01,
    )
    model = tmp_path / "run" / "model.pt"
    target_window = Model(model).recipe.target_window
    before = nib.load(source)
    (result,) = translate(source, checkpoint=str(model)).values()
    assert result.shape == before.shape
    np.testing.assert_allclose(result.affine, before.affine, atol=1e-6)
    assert target_window[0] <= result.get_fdata().min() < result.get_fdata().max() <= target_window[1]


def test_slices_at_once_make_no_difference(translate, source):
    one, many = (translate(source, slices_at_once=count)["d_translated.nii.gz"] for count in (1, 16))
    np.testing.assert_allclose(one.get_fdata(), many.get_fdata(), atol=1e-2)


def test_mirror_images_are_averaged(translate, source, tmp_path):
    """A volume and its mirror image then have translations that are mirror images."""
    volume = nib.load(source)
    mirrored = nib.Nifti1Image(np.asarray(volume.dataobj)[::-1], volume.affine)
    path = write(tmp_path / "mirrored.nii.gz", mirrored)

    def asymmetry(**settings):
        one, other = (next(iter(translate(image, **settings).values())).get_fdata() for image in (source, path))
        return np.abs(one - other[::-1]).mean()

    assert asymmetry(test_time_flips=[0]) < 0.01 * asymmetry()


def test_numpy_slice(translate, source, tmp_path):
    """The authors' layout; a slice alone is translated as it is within its volume."""
    middle = np.asarray(nib.load(source).dataobj)[:, :, 3]
    np.save(tmp_path / "slice.npy", middle)
    (result,) = translate(tmp_path / "slice.npy").values()
    assert result.shape == middle.shape
    assert result.get_data_dtype() == np.float32
    np.testing.assert_allclose(result.affine, np.eye(4), atol=1e-6)
    (volume,) = translate(source).values()
    within = volume.get_fdata()[:, :, 3]
    assert np.abs(result.get_fdata() - within).mean() < 30  # of about 900; the window is the slice's own


def test_flat_nifti_stays_flat(translate, source, tmp_path):
    volume = nib.load(source)
    flat = nib.Nifti1Image(np.asarray(volume.dataobj)[:, :, 3], volume.affine)
    (result,) = translate(write(tmp_path / "flat.nii.gz", flat)).values()
    assert result.shape == flat.shape == (40, 34)
    np.testing.assert_allclose(result.affine, flat.affine, atol=1e-6)


def test_folder_of_volumes_of_different_shapes(translate, dataset_dir, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    for number, name in enumerate("cd"):
        volume = nib.load(dataset_dir / "images" / f"{name}.nii.gz")
        write(folder / f"patient {name}.nii.gz", volume.slicer[: 40 - 4 * number, :, : 6 - number])
    (folder / "notes.txt").write_text("no image")
    (folder / "._patient c.nii.gz").write_text("what macOS leaves behind")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    results = translate(folder)
    assert {name: result.shape for name, result in results.items()} == {
        "patient c_translated.nii.gz": (40, 34, 6),
        "patient d_translated.nii.gz": (36, 34, 5),
    }
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_data_set_means_its_test_images(translate, dataset_dir, tmp_path):
    for letter, folder in (("a", "imagesTr"), ("d", "imagesTs")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        shutil.copy(dataset_dir / "images" / f"{letter}.nii.gz", tmp_path / "set" / folder)
    assert list(translate(tmp_path / "set")) == ["d_translated.nii.gz"]


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_other_formats(run_config, translate, trained_run, source, tmp_path, suffix):
    """They count along other axes than NIfTI; the voxels lie at the same places."""
    (expected,) = translate(source).values()
    settings = {"image": str(source), "checkpoint": str(trained_run / "model.pt"), "output_ext": suffix}
    run_config("inference.json", output_dir=str(tmp_path / "out"), **settings)
    result = LoadImage()(tmp_path / "out" / f"d_translated{suffix}")
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(result.numpy(), expected.get_fdata(), atol=1e-2)


def test_from_a_checkpoint_with_everything_in_it(translate, trained_run, source):
    """best.pt holds registration net, discriminator and optimisers too; only the generator is taken."""
    (expected,) = translate(source).values()
    (result,) = translate(source, checkpoint=str(trained_run / "checkpoints" / "best.pt")).values()
    np.testing.assert_array_equal(result.get_fdata(), expected.get_fdata())


def test_overlay_of_the_paper_stacks(run_config, source, tmp_path):
    """A network of the paper's kind is trained with it, and may be used with it; its size is that of the training."""
    run_config("train.json", "paper.json", noise_level=0)
    run_config(
        "inference.json",
        "paper.json",
        image=str(source),
        checkpoint=str(tmp_path / "run" / "model.pt"),
        output_dir=str(tmp_path / "out"),
        spatial_size=32,
    )
    assert nib.load(tmp_path / "out" / "d_translated.nii.gz").shape == nib.load(source).shape


def test_axes_of_length_one_make_no_difference(translate, source, tmp_path):
    """(X, Y, Z, 1), (X, Y, Z, 1, 1) and .mgz as (X, Y, Z); a slice as (1, H, W) as (H, W)."""
    volume = nib.load(source)
    voxels = np.asarray(volume.dataobj)
    (expected,) = translate(source).values()
    write(tmp_path / "four.nii.gz", nib.Nifti1Image(voxels[..., None], volume.affine))
    write(tmp_path / "five.nii.gz", nib.Nifti1Image(voxels[..., None, None], volume.affine))
    write(tmp_path / "v.mgz", nib.MGHImage(voxels, volume.affine))
    for name in ("four.nii.gz", "five.nii.gz", "v.mgz"):
        (result,) = translate(tmp_path / name).values()
        np.testing.assert_array_equal(result.get_fdata().squeeze(), expected.get_fdata())
    np.save(tmp_path / "flat.npy", voxels[:, :, 3])
    np.save(tmp_path / "channel.npy", voxels[None, :, :, 3])
    flat, channel = (next(iter(translate(tmp_path / f"{name}.npy").values())) for name in ("flat", "channel"))
    np.testing.assert_array_equal(flat.get_fdata(), channel.get_fdata())


def test_sform_and_qform_are_those_of_the_source(translate, source, tmp_path):
    """Coregistration moves one of them; ITK would place the result elsewhere than its source."""
    volume = nib.load(source)
    moved = volume.affine.copy()
    moved[:3, 3] += [20, -7, 3]
    volume.set_sform(moved, 2)
    volume.set_qform(nib.load(source).affine, 1)
    (result,) = translate(write(tmp_path / "coreg.nii.gz", volume)).values()
    for form in ("get_sform", "get_qform"):
        for before, after in zip(getattr(volume, form)(coded=True), getattr(result, form)(coded=True), strict=True):
            np.testing.assert_allclose(after, before, atol=1e-6)


def test_a_full_disk_reaches_the_caller(translate, source, tmp_path, monkeypatch):
    def full(place, *_):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.WRITERS, ".nii.gz", full)
    with pytest.raises((OSError, RuntimeError)) as caught:
        translate(source)
    assert re.search(r"d_translated.nii.gz could not be written: .*full: make room", str(first_cause(caught.value)))
    assert list((tmp_path / "translated0").iterdir()) == []


def test_sagittal_volumes(run_config, translate, dataset_dir, source, tmp_path):
    """A training finds their axis, and the model keeps it; one of axial slices says what it is, or refuses."""
    sagittal = np.array([[0, 0, 4.0, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    shutil.copytree(dataset_dir, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.nii.gz"):
        write(path, nib.Nifti1Image(np.asarray(nib.load(path).dataobj).copy(), sagittal))
    run_config("train.json", dataset_dir=str(tmp_path / "data"), noise_level=0)
    model = tmp_path / "run" / "model.pt"
    assert Model(model).recipe.slice_axis == 0
    volume = tmp_path / "data" / "images" / "d.nii.gz"
    (result,) = translate(volume, checkpoint=str(model)).values()
    np.testing.assert_allclose(result.affine, sagittal, atol=1e-6)
    middle = nib.load(volume).slicer[:, :, 3:4]
    (one,) = translate(write(tmp_path / "one.nii.gz", middle), checkpoint=str(model)).values()
    assert one.shape == (40, 34, 1)
    with pytest.raises(RuntimeError) as caught:
        translate(tmp_path / "one.nii.gz")
    assert "is a single sagittal slice" in str(first_cause(caught.value))


def test_pair_stored_in_two_orders(run_config, dataset_dir, tmp_path):
    """Training and the scores of volumes are those of a pair in one order."""
    scores = []
    for name in ("one", "two"):
        data = tmp_path / name
        shutil.copytree(dataset_dir, data)
        if name == "two":
            for letter in "abcd":
                path = data / "labels" / f"{letter}.nii.gz"
                write(path, reorient(nib.load(path), "LSA"))
        run_config("train.json", dataset_dir=str(data), output_dir=str(tmp_path / f"run-{name}"), noise_level=0)
        model, folder = tmp_path / f"run-{name}" / "model.pt", tmp_path / f"scored-{name}"
        run_config("evaluate.json", dataset_dir=str(data), checkpoint=str(model), output_dir=str(folder))
        (table,) = folder.rglob("volumes.csv")
        scores.append(table.read_text())
    assert scores[0] == scores[1]
