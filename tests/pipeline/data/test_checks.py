"""Every fault of the data is found, with its numbers, and all of them are said at once."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import DataError, check_cases
from pipeline.io import read_image

SHAPE = (12, 10, 6)


def save(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None, seed: int = 0) -> str:
    """Write a NIfTI or .npy file; without values, noise of a fixed shape."""
    if values is None:
        values = np.random.default_rng([seed, *path.name.encode()]).random(SHAPE, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return str(path)


def pair(folder: Path, patient: str, suffix: str = ".nii.gz") -> dict[str, str]:
    """Write one good pair."""
    image, label = (save(folder / f"{patient}_{key}{suffix}") for key in ("T1", "T2"))
    return {"image": image, "label": label, "case": patient}


@pytest.fixture
def cases(tmp_path) -> dict[str, list[dict[str, str]]]:
    """Three good pairs of three patients in two lists."""
    return {"training": [pair(tmp_path, "p1"), pair(tmp_path, "p2")], "validation": [pair(tmp_path, "p3")], "test": []}


def faults_of(cases) -> list[str]:
    """The faults that the check complains about."""
    with pytest.raises(DataError) as caught:
        check_cases(cases)
    return caught.value.faults


def test_good_data_pass_and_give_a_digest(cases):
    digest = check_cases(cases)
    assert len(digest) == 64
    assert digest == check_cases(cases)


@pytest.mark.parametrize("suffix", [".nii", ".npy", ".nrrd", ".mha"])
def test_other_formats_pass(tmp_path, suffix):
    if suffix in (".nrrd", ".mha"):
        itk = pytest.importorskip("itk")
        names = {}
        for seed, name in enumerate(("a", "b", "c", "d")):
            names[name] = str(tmp_path / f"{name}{suffix}")
            values = np.random.default_rng(seed).random(SHAPE, dtype=np.float32)
            itk.imwrite(itk.image_from_array(values), names[name])
        cases = {
            "training": [{"image": names["a"], "label": names["b"]}],
            "validation": [{"image": names["c"], "label": names["d"]}],
        }
    else:
        cases = {"training": [pair(tmp_path, "p1", suffix)], "validation": [pair(tmp_path, "p2", suffix)]}
    assert check_cases(cases)


def test_slices_pass(tmp_path):
    def slices(name: str) -> dict[str, str]:
        generator = np.random.default_rng(len(name))
        return {key: save(tmp_path / key / f"{name}.npy", generator.random((8, 9))) for key in ("image", "label")}

    assert check_cases({"training": [slices("1")], "validation": [slices("22")]})


def test_missing_file(cases, tmp_path):
    Path(cases["training"][0]["label"]).unlink()
    assert faults_of(cases) == [f"{tmp_path / 'p1_T2.nii.gz'}: no such file"]


def test_folder_in_place_of_a_file(cases, tmp_path):
    cases["training"][0]["image"] = str(tmp_path)
    assert faults_of(cases) == [f"{tmp_path}: is a folder, expected a file or a folder of DICOM"]


@pytest.mark.parametrize("kept", [0, 20, 0.5, -12])
def test_truncated_gzip(cases, kept):
    path = Path(cases["training"][0]["image"])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    (fault,) = faults_of(cases)
    assert fault.startswith(f"{path}: {'is empty' if kept == 0 else 'cannot be read ('}")


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.npy", "x.nrrd", "x.mgz", "x.txt"])
def test_file_of_another_kind(cases, tmp_path, name):
    path = tmp_path / name
    path.write_text("this is no image\n")
    cases["training"][0]["image"] = str(path)
    (fault,) = faults_of(cases)
    assert fault.startswith(f"{path}: {'is of no known format' if name == 'x.txt' else 'cannot be read ('}")
    assert "\n" not in fault


def test_pickled_array_is_not_run(cases, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    cases["training"][0]["image"] = str(path)
    (fault,) = faults_of(cases)
    assert "cannot be read (ValueError: holds Python objects, expected numbers)" in fault


def test_shapes_disagree_with_numbers(cases, tmp_path):
    save(tmp_path / "p1_T2.nii.gz", np.random.default_rng(0).random((12, 11, 7)))
    (fault,) = faults_of(cases)
    assert fault.startswith(
        f"{tmp_path / 'p1_T1.nii.gz'} and {tmp_path / 'p1_T2.nii.gz'}: shapes disagree, (12, 10, 6) and (12, 11, 7); "
    )
    assert "resample the target onto the source's grid: python scripts/prepare.py" in fault


def test_affines_disagree_with_numbers(cases, tmp_path):
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    affine[0, 3] = 2.0
    save(tmp_path / "p1_T2.nii.gz", affine=affine)
    (fault,) = faults_of(cases)
    distance = np.hypot(2.0, 0.5 * (SHAPE[2] - 1))
    assert f"affines disagree by up to {distance:.3g} mm (allowed: 0.05 of a voxel, 0.05 mm)" in fault
    assert "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]] and [[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1.5, 0]]" in fault


def test_rounding_of_an_affine_is_no_fault(cases, tmp_path):
    affine = np.eye(4)
    affine[:3] += np.random.default_rng(0).uniform(-1e-4, 1e-4, (3, 4))
    save(tmp_path / "p1_T2.nii.gz", affine=affine)
    assert check_cases(cases)


def test_affine_that_cannot_be_inverted(cases, tmp_path):
    header = nib.Nifti1Header()
    image = nib.Nifti1Image(np.random.default_rng(0).random(SHAPE), None, header)
    image.header.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), code=1)
    nib.save(image, tmp_path / "p1_T2.nii.gz")
    (fault,) = faults_of(cases)
    assert "p1_T2.nii.gz: has an affine that cannot be inverted: [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]" in fault


def test_constant_image(cases, tmp_path):
    save(tmp_path / "p2_T1.nii.gz", np.full(SHAPE, 7.0))
    assert faults_of(cases) == [f"{tmp_path / 'p2_T1.nii.gz'}: is constant, every value is 7"]


def test_nan_and_infinite_values_are_counted(cases, tmp_path):
    values = np.random.default_rng(0).random(SHAPE)
    values[0, 0, :3], values[1, 1, :2] = np.nan, -np.inf
    save(tmp_path / "p2_T1.nii.gz", values)
    assert faults_of(cases) == [f"{tmp_path / 'p2_T1.nii.gz'}: holds 3 NaN and 2 infinite values among 720"]


@pytest.mark.parametrize("shape", [(5, 6, 7, 2), (9,)])
def test_neither_two_nor_three_dimensions(cases, tmp_path, shape):
    path = save(tmp_path / ("x.nii.gz" if len(shape) == 4 else "x.npy"), np.random.default_rng(0).random(shape))
    cases["training"][0]["image"] = path
    (fault,) = faults_of(cases)
    assert fault == f"{path}: has shape {shape}, expected a 2D or 3D image of one channel"


@pytest.mark.parametrize("split", ["training", "validation"])
def test_empty_list(cases, split):
    cases[split] = []
    assert faults_of(cases) == [f'the list "{split}" is empty']
    del cases[split]
    assert faults_of(cases) == [f'the list "{split}" is empty']


def test_entry_without_a_label(cases):
    del cases["training"][1]["label"]
    (fault,) = faults_of(cases)
    assert fault.startswith('training[1] has no path "label": {')


def test_patient_in_two_lists(cases):
    cases["validation"][0]["case"] = "p1"
    assert faults_of(cases) == ['patient "p1" is in training and validation, expected in one list only']


def test_path_in_two_lists(cases):
    cases["test"] = [{"image": cases["training"][0]["image"], "label": cases["training"][0]["label"]}]
    faults = faults_of(cases)
    assert len(faults) == 2
    assert all("is in training and test, expected in one list only" in fault for fault in faults)


def test_copied_file_in_two_lists(cases, tmp_path):
    shutil.copy(tmp_path / "p1_T1.nii.gz", tmp_path / "p3_T1.nii.gz")
    assert faults_of(cases) == [
        "byte for byte the same file is in training and validation: "
        f"{tmp_path / 'p1_T1.nii.gz'} (training), {tmp_path / 'p3_T1.nii.gz'} (validation)"
    ]


def test_all_faults_are_said_in_one_message(cases, tmp_path):
    (tmp_path / "p1_T1.nii.gz").unlink()
    save(tmp_path / "p2_T1.nii.gz", np.zeros(SHAPE))
    save(tmp_path / "p2_T2.nii.gz", np.random.default_rng(0).random((3, 3, 3)))
    (tmp_path / "p3_T1.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^4 faults in the data:\n- ") as caught:
        check_cases(cases)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for name, word in (("p1_T1", "no such"), ("p2_T1", "constant"), ("p3_T1", "is empty"), ("p2_T2", "shapes")):
        assert any(name in line and word in line for line in lines[1:])


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_what_is_no_file_is_named_and_not_waited_for(cases, kind):
    path = Path(cases["training"][0]["image"])
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "../annex/gone")
    (fault,) = faults_of(cases)
    expected = "is a link to ../annex/gone, which is not there" if kind == "link" else f"is a {kind}, expected"
    assert fault.startswith(f"{path}: {expected}")


def test_a_pair_that_is_listed_twice(cases):
    cases["training"].append(dict(cases["training"][0]))
    assert faults_of(cases) == [f"{cases['training'][0]['image']}: is in training more than once (2 times)"]


def test_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(DataError(["one"])))
    assert error.faults == ["one"]
    assert str(error) == "1 fault in the data:\n- one"


def test_digest_does_not_depend_on_the_place_or_the_split(cases, tmp_path):
    copy = tmp_path.parent / f"{tmp_path.name}_copy"
    shutil.copytree(tmp_path, copy)
    moved = {
        split: [
            {**item, **{key: item[key].replace(str(tmp_path), str(copy)) for key in ("image", "label")}}
            for item in items
        ]
        for split, items in cases.items()
    }
    moved["training"], moved["validation"] = moved["training"][:1], moved["training"][1:] + moved["validation"]
    assert check_cases(moved) == check_cases(cases)


def test_digest_depends_on_names_and_contents(cases, tmp_path):
    digest = check_cases(cases)
    new_name = tmp_path / "p9_T1.nii.gz"
    Path(cases["training"][0]["image"]).rename(new_name)
    cases["training"][0]["image"] = str(new_name)
    renamed = check_cases(cases)
    save(new_name, seed=1)
    assert len({digest, renamed, check_cases(cases)}) == 3


def store_along(path: str, codes: str) -> None:
    """The same voxels at the same places, stored along other axes."""
    image = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(turn)
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj).copy(), turned.affine), path)


@pytest.mark.parametrize("codes", ["LAS", "SPL"])
def test_pair_stored_in_two_orders_is_no_fault(cases, codes):
    store_along(cases["training"][0]["label"], codes)
    assert check_cases(cases)


def test_grids_that_differ_beside_their_order_are_told_apart(cases):
    save(Path(cases["training"][0]["label"]), np.random.default_rng(0).random((12, 11, 6)))
    store_along(cases["training"][0]["label"], "SAR")
    (fault,) = faults_of(cases)
    assert "shapes disagree, (12, 10, 6) and (12, 11, 6), both turned to R, A and S; resample" in fault


def test_a_file_is_read_once_until_it_changes(cases, monkeypatch):
    read = []
    monkeypatch.setattr("pipeline.data.inspection.read_image", lambda path: read.append(path) or read_image(path))
    digest = check_cases(cases)
    assert len(read) == 6
    assert check_cases(cases) == digest
    assert len(read) == 6
    save(Path(cases["training"][0]["image"]), seed=5)
    assert check_cases(cases) != digest
    assert len(read) == 7
