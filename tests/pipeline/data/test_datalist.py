"""Each layout is listed by patient; patients never cross lists; every fault is said at once."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import Cases, DataError, load_cases
from pipeline.data.folders import _pair
from pipeline.io import name_of

SHAPE = (8, 7, 5)


def save(path: Path, shape: tuple[int, ...] = SHAPE) -> Path:
    """Write noise that differs from file to file, as NIfTI or .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng([*str(path).encode()]).random(shape, dtype=np.float32)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


def write_json(root: Path, content: object, name: str = "datalist.json") -> Path:
    """Write a datalist."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(root: Path, folder: str, **more: object) -> dict[str, object]:
    """Write a pair in a folder of its own and return its entry for a datalist."""
    for contrast in ("T1", "T2"):
        save(root / folder / f"{contrast}.nii.gz")
    return {"image": f"{folder}/T1.nii.gz", "label": f"{folder}/T2.nii.gz", **more}


def volume_folders(root: Path, **patients: str) -> None:
    """Write folders of volumes: ``Tr="p1 p2"`` makes imagesTr and labelsTr."""
    for tag, names in patients.items():
        for name in names.split():
            save(root / f"images{tag}" / f"{name}.nii.gz")
            save(root / f"labels{tag}" / f"{name}.nii.gz")


def slice_folders(root: Path, **names: str) -> None:
    """Write folders of slices: ``train="p1_0 p1_1"`` makes train/A and train/B."""
    for folder, stems in names.items():
        for stem in stems.split():
            for side in "AB":
                save(root / folder / side / f"{stem}.npy", SHAPE[:2])


def patients_of(cases: Cases) -> dict[str, list[str]]:
    """The patients of each list, in order."""
    return {split: [item["case"] for item in items] for split, items in cases.items()}


def faults_of(*args: object, **kwargs: object) -> list[str]:
    """The faults that loading complains about."""
    with pytest.raises(DataError) as caught:
        load_cases(*args, **kwargs)
    return caught.value.faults


def test_json_with_all_lists(tmp_path):
    content = {
        "name": "T1 to T2",
        "training": [entry(tmp_path, "p1"), entry(tmp_path, "p2")],
        "validation": [entry(tmp_path, "p3")],
        "test": [entry(tmp_path, "p4")],
    }
    write_json(tmp_path, content)
    cases = load_cases(tmp_path)
    assert patients_of(cases) == {"training": ["p1/T1", "p2/T1"], "validation": ["p3/T1"], "test": ["p4/T1"]}
    assert cases["training"][0] == {
        "image": str(tmp_path / "p1" / "T1.nii.gz"),
        "label": str(tmp_path / "p1" / "T2.nii.gz"),
        "case": "p1/T1",
    }
    assert cases.digest is not None
    assert len(cases.digest) == 64


def test_a_data_set_is_described_without_paths_or_patients(tmp_path, monkeypatch):
    slices = [entry(tmp_path, f"p{n}", patient="Jane Doe") for n in range(3)]
    write_json(tmp_path, {"training": slices, "validation": [entry(tmp_path, "other")]})
    monkeypatch.chdir(tmp_path)
    for dataset_dir in (tmp_path, ".", f"../{tmp_path.name}/"):
        cases = load_cases(dataset_dir)
        assert cases.describe() == {
            "name": tmp_path.name,
            "digest": cases.digest,
            "pairs": {"training": 3, "validation": 1, "test": 0},
            "patients": {"training": 1, "validation": 1, "test": 0},
        }


@pytest.mark.parametrize("name", ["datalist.json", "dataset.json"])
def test_json_is_found_in_the_folder(tmp_path, name):
    write_json(tmp_path, {"training": [entry(tmp_path, "p1")], "validation": [entry(tmp_path, "p2")]}, name)
    cases = load_cases(str(tmp_path))
    assert len(cases["training"]) == 1
    assert cases["test"] == []


def test_datalist_is_looked_for_as_given_and_in_the_folder(tmp_path, monkeypatch):
    data = tmp_path / "data"
    content = {"training": [entry(data, "p1")], "validation": [entry(data, "p2")]}
    write_json(data, content, "mine.json")
    outside = write_json(tmp_path / "lists", content, "other.json")
    assert load_cases(data, "mine.json") == load_cases(data, outside)
    monkeypatch.chdir(tmp_path)
    assert len(load_cases("data", "lists/other.json")["training"]) == 1


def test_paths_may_be_relative_to_the_json(tmp_path):
    data, empty = tmp_path / "data", tmp_path / "empty"
    empty.mkdir()
    path = write_json(data, {"training": [entry(data, "p1")], "validation": [entry(data, "p2")]})
    assert load_cases(empty, path)["training"][0]["image"] == str(data / "p1" / "T1.nii.gz")


def test_patient_key_wins(tmp_path):
    training = [entry(tmp_path, "a", patient=7), entry(tmp_path, "b", patient="eight")]
    write_json(tmp_path, {"training": training, "validation": [entry(tmp_path, "c")]})
    cases = load_cases(tmp_path, patient_pattern="(T1)")
    assert patients_of(cases) == {"training": ["7", "eight"], "validation": ["T1"], "test": []}


def test_patient_named_like_a_folder_stays_a_name(tmp_path):
    write_json(tmp_path, {"training": [entry(tmp_path, "p1", patient="p1")], "validation": [entry(tmp_path, "p2")]})
    assert load_cases(tmp_path)["training"][0]["case"] == "p1"


def test_volume_folders(tmp_path):
    volume_folders(tmp_path, Tr="p2 p1", Val="p3", Ts="p4 p5")
    assert patients_of(load_cases(tmp_path)) == {"training": ["p1", "p2"], "validation": ["p3"], "test": ["p4", "p5"]}


def test_nnunet_names_and_description(tmp_path):
    for name in ("p1", "p2", "p3"):
        save(tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        save(tmp_path / "labelsTr" / f"{name}.nii.gz")
    write_json(tmp_path, {"channel_names": {"0": "T1"}, "numTraining": 3, "file_ending": ".nii.gz"}, "dataset.json")
    cases = load_cases(tmp_path)
    assert sorted(item["case"] for split in cases for item in cases[split]) == ["p1", "p2", "p3"]


def test_slice_folders_as_the_authors_name_them(tmp_path):
    slice_folders(tmp_path, train2D="p1_0 p1_1 p2_0", val2D="p3_0", test2D="p4_0")
    cases = load_cases(tmp_path, patient_pattern=r"^(p\d+)_")
    assert patients_of(cases) == {"training": ["p1", "p1", "p2"], "validation": ["p3"], "test": ["p4"]}
    assert cases["training"][0]["image"] == str(tmp_path / "train2D" / "A" / "p1_0.npy")
    assert cases["training"][0]["label"] == str(tmp_path / "train2D" / "B" / "p1_0.npy")


def test_slice_names_may_repeat_between_lists(tmp_path):
    slice_folders(tmp_path, train="0 1", val="0")
    assert patients_of(load_cases(tmp_path))["validation"] == ["val/0"]


def test_a_test_list_alone_will_do_where_no_other_is_needed(tmp_path):
    volume_folders(tmp_path / "folders", Ts="p1 p2")
    write_json(tmp_path / "json", {"test": [entry(tmp_path / "json", "p1")]})
    slice_folders(tmp_path / "slices", test="p1_0 p2_0")
    for name in ("folders", "json", "slices"):
        cases = load_cases(tmp_path / name, needed=("test",))
        assert cases["test"]
        assert not cases["training"]
        assert not cases["validation"]
        assert len(cases.digest) == 64
        with pytest.raises(DataError):
            load_cases(tmp_path / name)
        with pytest.raises(DataError, match="test"):
            load_cases(tmp_path / name, needed=("training", "test"))


def test_no_patient_moves_to_a_validation_list_that_is_not_needed(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2 p3", Ts="p4")
    cases = load_cases(tmp_path, needed=("test",))
    assert [len(cases[split]) for split in ("training", "validation", "test")] == [3, 0, 1]
    with pytest.raises(DataError, match="validation"):
        load_cases(tmp_path, needed=("training", "test")).require("validation")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (None, {}),
        ("MR", {}),
        ({"0": "T1"}, {"source": "T1"}),
        ({"image": "T1", "label": "T2"}, {"source": "T1", "target": "T2"}),
        ({"source": "MR", "target": "CT", "0": "x"}, {"source": "MR", "target": "CT"}),
        ({"0": "", "target": "CT"}, {"target": "CT"}),
    ],
)
def test_names_of_the_modalities(tmp_path, said, names):
    more = {} if said is None else {"modality": said}
    write_json(tmp_path, {"training": [entry(tmp_path, "p1"), entry(tmp_path, "p2")], **more})
    cases = load_cases(tmp_path)
    assert cases.modalities == names
    assert cases.modalities_or() == {"source": names.get("source"), "target": names.get("target")}
    assert cases.modalities_or("PD", None)["source"] == "PD"
    assert Cases({}).modalities_or(None, "CT") == {"source": None, "target": "CT"}


def test_validation_takes_whole_patients(tmp_path):
    stems = " ".join(f"p{patient}_{index}" for patient in range(5) for index in range(3))
    slice_folders(tmp_path, train=stems)
    patients = patients_of(load_cases(tmp_path, validation_fraction=0.4, patient_pattern=r"(p\d+)_"))
    assert len(patients["validation"]) == 6
    assert len(set(patients["validation"])) == 2
    assert not set(patients["validation"]) & set(patients["training"])


def test_validation_draw_is_seeded_and_logged(tmp_path, caplog):
    volume_folders(tmp_path, Tr="p0 p1 p2 p3 p4 p5 p6 p7 p8 p9")
    with caplog.at_level(logging.INFO):
        first = load_cases(tmp_path, seed=1, check=False)
    drawn = [item["case"] for item in first["validation"]]
    assert len(drawn) == 2
    assert f"2 of 10 patients taken from training: {drawn}" in caplog.text
    assert load_cases(tmp_path, seed=1, check=False) == first
    assert len({str(load_cases(tmp_path, seed=seed, check=False)["validation"]) for seed in range(5)}) > 1


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.99, 2)])
def test_at_least_one_patient_moves_and_one_stays(tmp_path, fraction, count):
    volume_folders(tmp_path, Tr="p1 p2 p3")
    assert len(load_cases(tmp_path, validation_fraction=fraction)["validation"]) == count


def test_digest_does_not_depend_on_the_draw(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2 p3 p4")
    assert len({load_cases(tmp_path, seed=seed).digest for seed in range(3)}) == 1


def test_slices_without_a_pattern_are_warned_of(tmp_path, caplog):
    slice_folders(tmp_path, train="0 1 2 3")
    load_cases(tmp_path)
    assert "set patient_pattern" in caplog.text


def test_one_patient_cannot_be_split(tmp_path):
    volume_folders(tmp_path, Tr="p1")
    (fault,) = faults_of(tmp_path)
    assert fault.startswith(
        'there is no validation list, and "p1" is the only training patient: add a list "validation"'
    )


def test_same_name_in_two_volume_folders(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2", Val="p1", Ts="p2")
    expected = [
        f'patient "{name}" is in training and {split}, expected in one list only'
        for name, split in (("p1", "validation"), ("p2", "test"))
    ]
    assert faults_of(tmp_path) == expected
    assert faults_of(tmp_path, check=False) == expected


def test_same_patient_key_in_two_lists(tmp_path):
    content = {"training": [entry(tmp_path, "a", patient="p1")], "validation": [entry(tmp_path, "b", patient="p1")]}
    write_json(tmp_path, content)
    assert faults_of(tmp_path) == ['patient "p1" is in training and validation, expected in one list only']


def test_same_patient_by_pattern_in_two_lists(tmp_path):
    slice_folders(tmp_path, train="p1_0 p2_0", val="p1_7")
    assert faults_of(tmp_path, patient_pattern=r"(p\d+)_") == [
        'patient "p1" is in training and validation, expected in one list only'
    ]


def test_same_bytes_in_two_lists(tmp_path):
    slice_folders(tmp_path, train="0 1", val="5")
    (tmp_path / "val" / "A" / "5.npy").write_bytes((tmp_path / "train" / "A" / "1.npy").read_bytes())
    (fault,) = faults_of(tmp_path)
    assert fault.startswith("byte for byte the same file is in training and validation: ")


def test_unequal_counts_and_names_without_partner(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3")
    save(tmp_path / "imagesTr" / "p8.nii.gz")
    save(tmp_path / "imagesTr" / "p9.nii.gz")
    save(tmp_path / "labelsVal" / "p7.nii.gz")
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    faults = faults_of(tmp_path)
    assert faults[0] == f"{images} holds 4 images and {labels} 2, expected as many"
    assert faults[1] == f"{images}: no partner in {labels} for p8.nii.gz, p9.nii.gz"
    assert faults[3] == f"{tmp_path / 'labelsVal'}: no partner in {tmp_path / 'imagesVal'} for p7.nii.gz"


def test_equal_counts_with_other_names(tmp_path):
    slice_folders(tmp_path, train="0 1", val="2")
    (tmp_path / "train" / "B" / "1.npy").rename(tmp_path / "train" / "B" / "one.npy")
    faults = faults_of(tmp_path)
    assert [fault.split(" for ")[-1] for fault in faults] == ["1.npy", "one.npy"]


def test_two_files_of_one_name(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3")
    save(tmp_path / "imagesTr" / "p1.nii")
    assert faults_of(tmp_path) == [
        f"{tmp_path / 'imagesTr'}: p1.nii and p1.nii.gz differ in the suffix only",
    ]


def test_labels_missing_altogether(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2")
    save(tmp_path / "imagesVal" / "p4.nii.gz")
    assert f"{tmp_path / 'imagesVal'} holds 1 images and {tmp_path / 'labelsVal'} 0, expected as many" in faults_of(
        tmp_path
    )


def test_test_images_may_have_no_label(tmp_path, caplog):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3", Ts="p4")
    save(tmp_path / "imagesTs" / "p5.nii.gz")
    assert patients_of(load_cases(tmp_path))["test"] == ["p4"]
    assert "1 images have no label" in caplog.text
    assert "p5.nii.gz" in caplog.text


def test_test_images_of_a_datalist_may_be_paths(tmp_path, caplog):
    content = {"training": [entry(tmp_path, "p1"), entry(tmp_path, "p2")], "test": ["x/T1.nii.gz", {"image": "y.nii"}]}
    write_json(tmp_path, content)
    assert load_cases(tmp_path)["test"] == []
    assert "2 test images have no label, so they can be translated and not evaluated: x/T1.nii.gz, y.nii" in caplog.text


def test_a_list_of_a_misspelt_name(tmp_path):
    path = write_json(tmp_path, {"training": [entry(tmp_path, "p1"), entry(tmp_path, "p2")], "validaton": []})
    expected = f'{path}: "validaton" is none of the lists training, validation, test; did you mean "validation"?'
    assert faults_of(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("first", "second"),
    [("_ses-1_T1w", "_ses-2_T1w"), ("_visit1", "_visit2"), ("-t0", "-t1"), ("_20200101", "_2021-01-01")],
)
def test_sessions_of_one_patient_stay_on_one_side(tmp_path, caplog, first, second):
    caplog.set_level("INFO")
    volume_folders(tmp_path, Tr=" ".join(f"sub-0{n}{session}" for n in (1, 2, 3) for session in (first, second)))
    patients = patients_of(load_cases(tmp_path))
    assert not set(patients["training"]) & set(patients["validation"])
    assert sorted(patients["training"] + patients["validation"]) == [f"sub-0{n}" for n in (1, 1, 2, 2, 3, 3)]
    assert "count as one patient" in caplog.text


def test_names_that_all_files_share_are_no_patients(tmp_path):
    volume_folders(tmp_path, Tr="brain_scan1 brain_scan2 brain_scan3")
    assert len({*patients_of(load_cases(tmp_path))["training"]}) == 2


def test_sessions_of_one_patient_in_two_lists(tmp_path):
    volume_folders(tmp_path, Tr="sub-01_ses-1 sub-02_ses-1", Val="sub-01_ses-2")
    assert 'patient "sub-01" is in training and validation, expected in one list only' in faults_of(tmp_path)


def test_bids_is_recognised(tmp_path):
    save(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    (fault,) = faults_of(tmp_path)
    assert "is laid out as BIDS (sub-01)" in fault
    assert "python scripts/prepare.py" in fault


@pytest.mark.parametrize("layout", ["studies", "imagesTr", "train", "loose"])
def test_dicom_is_refused_with_the_command_that_prepares_it(tmp_path, make_dicom, layout):
    folders = {
        "studies": ("p1/s1", "p1/s2"), "imagesTr": ("imagesTr/p1", "labelsTr/p1"), "train": ("train/A", "train/B"),
        "loose": ("", ""),
    }  # fmt: skip
    for number, folder in enumerate(folders[layout]):
        make_dicom(tmp_path / folder, np.ones((4, 4, 3), np.uint16), suffix=("", ".dcm")[number])
    (fault,) = faults_of(tmp_path)
    assert fault.startswith(f"{tmp_path} holds DICOM")
    assert f"python scripts/prepare.py {tmp_path} OUT --source NAME --target NAME" in fault


def test_further_channels_are_refused_by_name(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3")
    save(tmp_path / "imagesTr" / "p1_0001.nii.gz")
    (fault,) = faults_of(tmp_path)
    assert "p1_0001.nii.gz: nnU-Net's names for further channels" in fault


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_nothing_in_the_folders_vanishes(tmp_path, kind):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3")
    for side in ("imagesTr", "labelsTr"):
        path = tmp_path / side / "p4.nii.gz"
        path.symlink_to("/nowhere/x") if kind == "link" else path.mkdir()
    faults = faults_of(tmp_path)
    places = [tmp_path / side / "p4.nii.gz" for side in ("imagesTr", "labelsTr")]
    assert [fault.partition(": ")[0] for fault in faults] == [str(place) for place in places]


def test_other_files_in_the_folders_are_left_aside(tmp_path, caplog):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3")
    (tmp_path / "imagesTr" / "notes.txt").write_text("x")
    (tmp_path / "imagesTr" / "._p1.nii.gz").write_text("x")
    assert len(load_cases(tmp_path)["training"]) == 2
    assert "1 files are no images and are left aside: notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"training": [\n  {"image": "a" "label": "b"}]}', "line 2, column 17: Expecting ',' delimiter"),
        ([1, 2], 'expected an object with a list "training", got a list'),
        ({"train": []}, 'expected a list "training", found "train"'),
        ({"training": {"image": "a"}}, '"training" must be a list, got an object'),
        ({"training": []}, 'the list "training" is empty'),
    ],
)
def test_wrong_json(tmp_path, content, message):
    path = write_json(tmp_path, content)
    assert faults_of(tmp_path) == [f"{path}: {message}"]


def test_json_that_is_no_text(tmp_path):
    path = tmp_path / "datalist.json"
    path.write_bytes(b"\xff\xfe\x00")
    (fault,) = faults_of(tmp_path)
    assert fault.startswith(f"{path}: is not UTF-8 text")


def test_wrong_entries_are_all_named(tmp_path):
    good = entry(tmp_path, "p1")
    content = {
        "training": [good, {"image": "x.nii.gz"}, {"image": ["a", "b"], "label": "c"}, {"image": "a", "label": ""}],
        "validation": [{**entry(tmp_path, "p2"), "patient": [1]}],
    }
    path = write_json(tmp_path, content)
    expected = [
        f'{path}: training[1] has no "label"; it has image',
        f'{path}: training[2] "image" must be one path, got a list (["a", "b"])',
        f'{path}: training[3] "label" must be one path, got a string ("")',
        f'{path}: validation[0] "patient" must be a string, got a list',
    ]
    assert faults_of(tmp_path)[:4] == expected


def test_faults_of_list_and_files_come_together(tmp_path):
    content = {
        "training": [
            entry(tmp_path, "p1"),
            {"image": "p1/T1.nii.gz"},
            {"image": "gone.nii.gz", "label": "gone2.nii.gz"},
        ],
        "validation": [entry(tmp_path, "p2", patient="p1/T1")],
    }
    path = write_json(tmp_path, content)
    np_path = tmp_path / "p2" / "T2.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)), np_path)
    with pytest.raises(DataError) as caught:
        load_cases(tmp_path)
    message = str(caught.value)
    assert message.startswith("6 faults in the data:\n")
    for part in (
        f'{path}: training[1] has no "label"',
        'patient "p1/T1" is in training and validation',
        f"{tmp_path / 'gone.nii.gz'}: no such file",
        f"{tmp_path / 'gone2.nii.gz'}: no such file",
        f"{np_path}: is constant, every value is 0",
        "shapes disagree, (8, 7, 5) and (3, 3, 3)",
    ):
        assert part in message


def test_files_are_not_read_unless_checked(tmp_path):
    volume_folders(tmp_path, Tr="p1 p2", Val="p3")
    (tmp_path / "imagesTr" / "p1.nii.gz").write_bytes(b"")
    cases = load_cases(tmp_path, check=False)
    assert cases.digest is None
    assert len(cases["training"]) == 2
    assert "is empty" in faults_of(tmp_path)[0]


def test_missing_places(tmp_path):
    assert faults_of(tmp_path / "nowhere") == [f"dataset_dir {tmp_path / 'nowhere'} is no folder"]
    assert faults_of(tmp_path, "none.json") == [f"datalist none.json: no such file, neither as given nor in {tmp_path}"]
    (fault,) = faults_of(tmp_path)
    assert fault.startswith(f"{tmp_path} holds no data set: expected datalist.json or dataset.json, folders imagesTr")


def test_empty_folders(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (fault,) = faults_of(tmp_path)
    assert "hold no images (.nii.gz .nii .npy" in fault


def test_two_folders_for_one_list(tmp_path):
    slice_folders(tmp_path, train="0 1", train2D="0 1", val="5")
    assert f"{tmp_path}: more than one folder for training: train, train2D" in faults_of(tmp_path)


def test_pattern_that_finds_no_patient(tmp_path):
    slice_folders(tmp_path, train="p1_0 x", val="p2_0")
    path = tmp_path / "train" / "A" / "x.npy"
    assert faults_of(tmp_path, patient_pattern=r"(p\d)") == [
        f'{path}: patient_pattern "(p\\d)" finds no patient in the file name'
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_fraction": 0.0}, r"validation_fraction must lie in \(0, 1\), got 0.0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie in \(0, 1\), got 1.0"),
        ({"patient_pattern": "p1"}, r'patient_pattern "p1" must have one group \(...\), got 0'),
        ({"patient_pattern": "(p1"}, r'patient_pattern "\(p1" is no regular expression'),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_cases(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/p1.nii.gz", "p1"), ("p1.NII.GZ", "p1"), ("p1.v2.npy", "p1.v2"), ("p1.dcm", "p1"), ("p1", "p1")],
)
def test_name_of_a_file(path, name):
    assert name_of(path) == name


def test_a_stray_file_among_thousands_of_slices_costs_no_time(tmp_path):
    """Listing compared every file with every image: 15 s for 8,000 slices, 4 times as many for twice as many."""
    for folder in ("A", "B"):
        (tmp_path / folder).mkdir()
        for number in range(2000):
            (tmp_path / folder / f"{number:05}.npy").touch()
        (tmp_path / folder / "notes.txt").touch()
    start = time.process_time()
    pairs, faults = _pair(tmp_path / "A", tmp_path / "B")
    assert len(pairs) == 2000
    assert faults == []
    assert time.process_time() - start < 0.8  # of which most is for asking the system about each file
