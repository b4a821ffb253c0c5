"""The digital brain phantom: what its images must look like, and that a data set is whole or not there."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import phantom
from pipeline.data.phantom import PhantomParameters, ensure_phantom, make_phantom, simulate_subject
from pipeline.data.phantom_anatomy import TISSUES, BrainTemplate, Grid, subject_rng
from pipeline.data.phantom_signal import inversion_recovery_signal, spin_echo_signal

SMALL = {"subjects": (2, 1, 1), "resolution": 8.0}
FOLDERS = ("imagesTr", "labelsTr", "imagesVal", "labelsVal", "imagesTs", "labelsTs")


@pytest.fixture(scope="module")
def template() -> BrainTemplate:
    return BrainTemplate()


@pytest.fixture(scope="module")
def subject(template: BrainTemplate) -> phantom.Subject:
    return simulate_subject(1, PhantomParameters(lesions=(20, 20)), template)


@pytest.fixture
def light_template(template: BrainTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the MNI152 maps once for all tests that write."""
    monkeypatch.setattr(phantom, "BrainTemplate", lambda: template)


@pytest.fixture(scope="module")
def master(template: BrainTemplate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("master") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "BrainTemplate", lambda: template)
        make_phantom(folder, **SMALL)
    return folder


@pytest.fixture
def small(master: Path, light_template: None, tmp_path: Path) -> Path:
    """A small phantom of the test's own, which it may break."""
    return Path(shutil.copytree(master, tmp_path / "small"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def medians(subject: phantom.Subject, volume: np.ndarray) -> dict[str, float]:
    """Median intensity of the voxels that hold nearly one tissue only."""
    values = volume[subject.anatomy.mask]
    return {
        name: float(np.median(values[fraction > 0.9]))
        for name, fraction in zip(TISSUES, subject.anatomy.fractions, strict=True)
    }


class TestImages:
    """What a radiologist would check."""

    def test_contrast_is_that_of_mr(self, subject: phantom.Subject) -> None:
        t1, t2 = medians(subject, subject.t1), medians(subject, subject.t2)
        assert t1["fluid"] < 0.25 * t1["white"]
        assert 0.5 < t1["grey"] / t1["white"] < 0.8
        assert 1.2 < t2["grey"] / t2["white"] < 1.8
        assert 2.5 < t2["fluid"] / t2["white"] < 4.5

    def test_lesions_look_like_grey_matter_in_t1_but_not_in_t2(self, subject: phantom.Subject) -> None:
        t1, t2 = medians(subject, subject.t1), medians(subject, subject.t2)
        assert abs(t1["lesion"] - t1["grey"]) < 0.2 * t1["white"]
        assert t2["lesion"] > 1.15 * t2["grey"]

    def test_lesions_vary_in_number_and_size(self, template: BrainTemplate) -> None:
        parameters = PhantomParameters(resolution=6.0)
        volumes = [simulate_subject(k, parameters, template).anatomy.fractions[3].sum() for k in range(1, 6)]
        assert min(volumes) > 0
        assert max(volumes) > 1.5 * min(volumes)
        none = simulate_subject(1, PhantomParameters(resolution=6.0, lesions=(0, 0)), template)
        assert not none.anatomy.fractions[3].any()

    def test_magnitudes_are_those_of_a_scanner(self, subject: phantom.Subject) -> None:
        for volume in (subject.t1, subject.t2):
            assert 200 < np.percentile(volume[volume > 0], 99.5) < 4000

    def test_background_is_exactly_zero_and_the_brain_positive(self, subject: phantom.Subject) -> None:
        for volume in (subject.t1, subject.t2):
            assert volume.dtype == np.float32
            np.testing.assert_array_equal(volume > 0, subject.anatomy.mask)
            assert np.isfinite(volume).all()
            assert volume.min() == 0

    def test_brain_has_the_size_of_a_brain(self, template: BrainTemplate) -> None:
        parameters = PhantomParameters(resolution=6.0)
        for number in range(1, 5):
            millilitres = simulate_subject(number, parameters, template).anatomy.mask.sum() * 6.0**3 / 1000
            assert 1100 < millilitres < 1900

    def test_fractions_add_up(self, subject: phantom.Subject) -> None:
        fractions = subject.anatomy.fractions
        assert fractions.min() >= -1e-6
        np.testing.assert_allclose(fractions.sum(axis=0), 1, atol=1e-5)
        shares = fractions.mean(axis=1)
        assert 0.3 < shares[0] < 0.5  # white
        assert 0.35 < shares[1] < 0.55  # grey
        assert 0.05 < shares[2] < 0.25  # fluid

    def test_intensity_alone_does_not_tell_t2_from_t1(self, subject: phantom.Subject) -> None:
        # the best look-up table fitted on this very subject leaves more than the noise
        t1, t2 = subject.t1[subject.anatomy.mask], subject.t2[subject.anatomy.mask]
        edges = np.quantile(t1, np.linspace(0, 1, 101)[1:-1])
        bins = np.digitize(t1, edges)
        look_up = np.array([t2[bins == k].mean() for k in range(100)])
        white = np.median(t2[subject.anatomy.fractions[0] > 0.9])
        assert np.std(t2 - look_up[bins]) > 3 * PhantomParameters.noise * white

    def test_noise_is_rician_and_white(self, template: BrainTemplate) -> None:
        clean, noisy = (
            simulate_subject(1, PhantomParameters(resolution=3.0, noise=noise), template) for noise in (0.0, 0.05)
        )
        core = clean.anatomy.fractions[0] > 0.95
        difference = (noisy.t1 - clean.t1)[clean.anatomy.mask][core] / clean.t1[clean.anatomy.mask][core].mean()
        assert abs(difference.std() - 0.05) < 0.003
        fluid = clean.anatomy.fractions[2] > 0.9
        assert noisy.t1[clean.anatomy.mask][fluid].mean() > clean.t1[clean.anatomy.mask][fluid].mean()  # noise floor

    def test_bias_differs_between_the_contrasts(self, template: BrainTemplate) -> None:
        shaded, flat = (
            simulate_subject(1, PhantomParameters(resolution=4.0, noise=0.0, bias=bias), template) for bias in (0.1, 0)
        )
        inside = flat.anatomy.mask
        ratios = [shaded.t1[inside] / flat.t1[inside], shaded.t2[inside] / flat.t2[inside]]
        for ratio in ratios:
            assert 0.03 < ratio.std() < 0.3
        assert np.abs(ratios[0] / ratios[1] - 1).max() > 0.02


class TestDeterminism:
    """A subject depends on the seed and its number, and on nothing else."""

    def test_same_seed_same_arrays_and_another_seed_others(self, template: BrainTemplate) -> None:
        first, again, other = (
            simulate_subject(2, PhantomParameters(seed=seed, resolution=6.0), template) for seed in (3, 3, 4)
        )
        np.testing.assert_array_equal(first.t1, again.t1)
        np.testing.assert_array_equal(first.t2, again.t2)
        assert not np.array_equal(first.t1, other.t1)

    def test_subjects_differ(self, template: BrainTemplate) -> None:
        one, two = (simulate_subject(k, PhantomParameters(resolution=6.0), template) for k in (1, 2))
        assert not np.array_equal(one.anatomy.mask, two.anatomy.mask)

    def test_subject_does_not_depend_on_how_many_are_made(self, small: Path, tmp_path: Path) -> None:
        make_phantom(tmp_path / "more", subjects=(3, 0, 0), resolution=8.0)
        ours = [
            nib.load(small / name).get_fdata()
            for name in ("imagesTr/phantom_001.nii.gz", "imagesVal/phantom_003.nii.gz")
        ]
        for number, expected in zip((1, 3), ours, strict=True):
            found = nib.load(tmp_path / "more" / f"imagesTr/phantom_{number:03d}.nii.gz").get_fdata()
            np.testing.assert_array_equal(found, expected)

    def test_noise_does_not_change_the_anatomy(self, template: BrainTemplate) -> None:
        calm, loud = (
            simulate_subject(1, PhantomParameters(resolution=6.0, noise=noise), template).anatomy for noise in (0, 0.1)
        )
        np.testing.assert_array_equal(calm.fractions, loud.fractions)

    def test_resolution_does_not_change_the_anatomy(self, template: BrainTemplate) -> None:
        fine, coarse = (
            simulate_subject(1, PhantomParameters(resolution=size), template).anatomy for size in (2.0, 6.0)
        )
        np.testing.assert_allclose(fine.mask.sum() * 2.0**3, coarse.mask.sum() * 6.0**3, rtol=0.05)
        np.testing.assert_allclose(fine.fractions.mean(axis=1), coarse.fractions.mean(axis=1), atol=0.03)


class TestWarp:
    """Smooth fields and the warp made of them."""

    def test_smooth_field_is_the_same_at_any_resolution(self) -> None:
        fine = Grid(2.0).smooth_field(subject_rng(0, 1, "shape"), 20.0)
        coarse = Grid(4.0).smooth_field(subject_rng(0, 1, "shape"), 20.0)
        np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-5)

    def test_smooth_field_has_about_unit_spread_and_is_smooth(self) -> None:
        field = Grid(4.0).smooth_field(subject_rng(0, 1, "tissue"), 16.0)
        assert abs(field.mean()) < 0.15
        assert 0.75 < field.std() < 1.15
        assert np.abs(np.diff(field, axis=0)).max() < 1.5

    def test_warp_never_folds(self) -> None:
        from pipeline.data.phantom_anatomy import _warped_points

        grid = Grid(3.0)
        for number in range(6):
            points = _warped_points(grid, subject_rng(0, number, "shape"))
            jacobian = np.stack([np.stack(np.gradient(part, 3.0)) for part in points])
            assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


class TestSignal:
    """The signal equations, by hand."""

    def test_spin_echo_by_hand(self) -> None:
        # TR = T1 ln 2 recovers half; TE = T2 ln 4 leaves a quarter
        signal = spin_echo_signal(1000.0, 100.0, 0.8, repetition_time=1000 * np.log(2), echo_time=100 * np.log(4))
        np.testing.assert_allclose(signal, 0.8 / 2 / 4)

    def test_inversion_recovery_is_null_at_t1_ln_2(self) -> None:
        signal = inversion_recovery_signal(500.0, 80.0, 1.0, 1e6, inversion_time=500 * np.log(2), echo_time=0.0)
        np.testing.assert_allclose(signal, 0, atol=1e-12)

    def test_inversion_recovery_is_negative_early_and_full_late(self) -> None:
        early, late = (inversion_recovery_signal(500.0, 80.0, 1.0, 1e6, time, 0.0) for time in (0.0, 1e5))
        np.testing.assert_allclose([early, late], [-1, 1])


class TestDataSet:
    """The folder on disk: complete, reused, refused, or not there."""

    def test_datalist_names_every_file(self, small: Path) -> None:
        datalist = json.loads((small / "datalist.json").read_text())
        assert {"name", "description", "modality", "training", "validation", "test"} <= set(datalist)
        assert datalist["training"][0] == {
            "image": "imagesTr/phantom_001.nii.gz",
            "label": "labelsTr/phantom_001.nii.gz",
        }
        assert [len(datalist[split]) for split in ("training", "validation", "test")] == [2, 1, 1]
        named = {
            name for split in ("training", "validation", "test") for pair in datalist[split] for name in pair.values()
        }
        assert named == {name for name in contents(small) if name.endswith(".nii.gz")}
        assert {folder.name for folder in small.iterdir() if folder.is_dir()} == set(FOLDERS)

    def test_volumes_are_float32_in_mni_space(self, small: Path) -> None:
        image, label = (nib.load(small / folder / "phantom_001.nii.gz") for folder in ("imagesTr", "labelsTr"))
        assert image.get_data_dtype() == np.float32
        assert image.shape == label.shape == (23, 28, 23)
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_array_equal(np.diag(image.affine), [8, 8, 8, 1])
        np.testing.assert_array_equal(image.affine[:3, 3], [-90, -126, -72])
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert int(image.header["sform_code"]) == 4
        assert image.header.get_xyzt_units()[0] == "mm"

    def test_default_grid_is_the_mni_one(self) -> None:
        assert Grid(2.0).shape == (91, 109, 91)

    def test_same_parameters_give_the_same_bytes(self, small: Path, tmp_path: Path) -> None:
        make_phantom(tmp_path / "again", **SMALL)
        assert contents(small) == contents(tmp_path / "again")

    def test_complete_one_is_reused(self, small: Path) -> None:
        before = {file: file.stat().st_mtime_ns for file in small.rglob("*")}
        assert make_phantom(small, **SMALL) == small / "datalist.json"
        assert {file: file.stat().st_mtime_ns for file in small.rglob("*")} == before

    def test_other_parameters_are_refused_by_name(self, small: Path) -> None:
        with pytest.raises(FileExistsError, match=r"seed is 0, expected 5"):
            make_phantom(small, **SMALL, seed=5)
        with pytest.raises(FileExistsError, match=r"resolution is 8.0, expected 6.0"):
            ensure_phantom(small, resolution=6)

    def test_folder_with_other_content_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="no brain phantom"):
            make_phantom(tmp_path, **SMALL)
        assert contents(tmp_path) == {"notes.txt": b"mine"}

    def test_file_in_place_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="it is a file"):
            make_phantom(tmp_path / "file", **SMALL)

    def test_lost_volume_is_noticed(self, small: Path) -> None:
        (small / "labelsTs/phantom_004.nii.gz").unlink()
        with pytest.raises(FileExistsError, match=r"lost 1 files .* labelsTs/phantom_004.nii.gz"):
            make_phantom(small, **SMALL)

    def test_broken_record_is_no_phantom(self, small: Path) -> None:
        (small / "phantom.json").write_text('{"version": 1')
        with pytest.raises(FileExistsError, match="no brain phantom"):
            make_phantom(small, **SMALL)

    def test_empty_folder_is_filled(self, light_template: None, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert make_phantom(tmp_path / "empty", **SMALL).is_file()

    def test_interrupted_one_leaves_nothing(
        self, light_template: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []

        def interrupted(*arguments: object) -> phantom.Subject:
            if made:
                raise KeyboardInterrupt
            made.append(simulate_subject(*arguments))
            return made[0]

        monkeypatch.setattr(phantom, "simulate_subject", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_phantom(tmp_path / "phantom", **SMALL)
        assert list(tmp_path.iterdir()) == []

    def test_slower_process_takes_what_the_faster_one_made(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = phantom._write

        def overtaken(folder: Path, parameters: PhantomParameters) -> None:
            write(folder, parameters)
            small.rename(tmp_path / "race")

        monkeypatch.setattr(phantom, "_write", overtaken)
        assert make_phantom(tmp_path / "race", **SMALL).is_file()
        assert [folder.name for folder in tmp_path.iterdir()] == ["race"]

    def test_two_at_once_do_not_break_each_other(self, light_template: None, tmp_path: Path) -> None:
        start = threading.Barrier(2)

        def make() -> Path:
            start.wait()
            return make_phantom(tmp_path / "both", **SMALL)

        with ThreadPoolExecutor(2) as pool:
            results = [job.result() for job in [pool.submit(make) for _ in range(2)]]
        assert results == [tmp_path / "both" / "datalist.json"] * 2
        assert [folder.name for folder in tmp_path.iterdir()] == ["both"]
        assert make_phantom(tmp_path / "both", **SMALL).is_file()


class TestEnsure:
    """The phantom as the default of a config."""

    def test_makes_it_once_and_says_so_in_one_line(
        self, light_template: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        folder = str(tmp_path / "deep" / "phantom")
        assert ensure_phantom(folder, **SMALL) == folder
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "4 subjects" in caplog.text
        assert ensure_phantom(folder, **SMALL) == folder
        assert ensure_phantom(folder) == folder  # parameters left out may be anything
        assert len(caplog.records) == 1

    def test_leaves_other_data_alone(self, tmp_path: Path) -> None:
        (tmp_path / "imagesTr").mkdir()
        assert ensure_phantom(tmp_path) == str(tmp_path)
        assert contents(tmp_path) == {}

    def test_unknown_parameter_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="unknown phantom parameter colour; expected some of bias, lesions"):
            ensure_phantom(tmp_path / "phantom", colour=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"subjects": (0, 1, 1)}, "subjects must hold at least one training subject"),
        ({"subjects": (1, 1)}, "subjects must be 3 whole"),
        ({"subjects": 6}, "subjects must be 3 whole"),
        ({"subjects": (6, -1, 2)}, "each >= 0, got"),
        ({"subjects": (6.5, 2, 2)}, r"got \(6.5, 2, 2\)"),
        ({"seed": -1}, "seed must be 1 whole number, each >= 0, got -1"),
        ({"seed": 0.5}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"resolution": 0}, r"resolution must lie in \[0.5, 10\] mm, got 0"),
        ({"resolution": float("nan")}, "resolution must lie in"),
        ({"resolution": "2"}, "resolution must lie in .* got '2'"),
        ({"noise": -0.1}, r"noise must lie in \[0, 0.5\], got -0.1"),
        ({"bias": 7}, r"bias must lie in \[0, 0.5\], got 7"),
        ({"lesions": (5, 3)}, "lesions must be .* got"),
        ({"lesions": (0, 1000)}, "most <= 200"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_phantom(tmp_path / "phantom", **parameters)
    assert list(tmp_path.iterdir()) == []
