"""Pairs are found in the layouts that data sets come in, and patients are persons."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.io import ImageError, read_image
from pipeline.preparation.studies import StudiesError, find_pairs, patient_of

LAYOUTS = {
    "BIDS": (
        ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
         "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz",
         "sub-02/anat/sub-02_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz"],
        ("T1W", "T2W"), ["sub-01", "sub-01", "sub-02"],
    ),
    "BraTS": (
        [f"{case}/{case}_{scan}.nii.gz" for case in ("BraTS21_001", "BraTS21_002")
         for scan in ("t1", "t1ce", "t2", "flair", "seg")],
        ("T1", "T2"), ["BraTS21_001", "BraTS21_002"],
    ),
    "IXI": (
        [f"IXI-{scan}/IXI{number}-Guys-0828-{scan}.nii.gz" for number in ("002", "012") for scan in ("T1", "T2")],
        ("T1", "T2"), ["IXI/IXI002-Guys-0828", "IXI/IXI012-Guys-0828"],
    ),
    "SynthRAD": (
        [f"{case}/{scan}.mha" for case in ("1BA001", "1BA005") for scan in ("mr", "ct", "mask")],
        ("mr", "ct"), ["1BA001", "1BA005"],
    ),
    "folders": (
        [f"patient12_study{number}/{scan}.nii.gz" for number in (1, 2) for scan in ("T1W", "T2W", "FLAIR")],
        ("T1W", "FLAIR"), ["patient12", "patient12"],
    ),
    "Decathlon": (
        [f"{folder}/{case}.nii.gz" for folder in ("imagesTr", "labelsTr") for case in ("a", "b")],
        ("MR", "CT"), ["a", "b"],
    ),
}  # fmt: skip


def touch(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    names, (source, target), patients = LAYOUTS[layout]
    touch(tmp_path, names)
    found = find_pairs(tmp_path, source, target)
    assert [pair.patient for pair in found.pairs] == patients
    assert not found.left_out
    for pair in found.pairs:
        assert pair.source != pair.target
        assert (pair.mask is not None) == (layout == "SynthRAD")


def test_nnunet_channels_go_by_their_names(tmp_path):
    touch(tmp_path, [f"imagesTr/case{number}_{channel}.nii.gz" for number in (1, 2) for channel in ("0000", "0001")])
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    pairs = find_pairs(tmp_path, "flair", "T1").pairs
    assert [(pair.patient, pair.source[-11:], pair.target[-11:]) for pair in pairs] == [
        (name, "0001.nii.gz", "0000.nii.gz") for name in ("case1", "case2")
    ]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("patient12_study1", "patient12"), ("P1_visit1", "P1"), ("001-t0", "001"), ("p1_20200101", "p1"),
        ("p1/study2", "p1"), ("p1/20200101", "p1"), ("sub-07_ses-2", "sub-07"),
        ("IXI002-Guys-0828", "IXI002-Guys-0828"),
        ("patient12", "patient12"), ("study1", "study1"),
    ],
)  # fmt: skip
def test_sessions_are_no_persons(name, patient):
    assert patient_of(name) == patient


def test_a_list_of_pairs_and_what_is_wrong_with_it(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("source,target,patient,mask\nx/a.nii,b.nii,anna,m.nii\nc.nii,,anna,\n")
    found = find_pairs(table, "T1", "T2")
    assert [(pair.patient, pair.source, pair.mask) for pair in found.pairs] == [
        ("anna", str(tmp_path / "x" / "a.nii"), str(tmp_path / "m.nii"))
    ]
    assert found.left_out == [("entry 2", "has no source or no target")]


def test_masks_of_other_programs_are_taken(tmp_path, caplog):
    touch(tmp_path, [
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T1w_bet_mask.nii.gz",
        "sub-01/anat/sub-01_T2w_brain_mask.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/anat/sub-02_brainmask.nii.gz", "sub-02/anat/sub-02_lesion_mask.nii.gz",
        "masks/sub-03_T1w.nii.gz", "images/sub-03_T1w.nii.gz", "images/sub-03_T2w.nii.gz",
    ])  # fmt: skip
    found = find_pairs(tmp_path, "T1w", "T2w")
    masks = {pair.patient: pair.mask and pair.mask.rpartition("/")[2] for pair in found.pairs}
    assert masks == {"sub-01": "sub-01_T1w_bet_mask.nii.gz", "sub-02": "sub-02_brainmask.nii.gz", "sub-03": None}
    assert "3 masks belong to no pair and are not used" in caplog.text


@pytest.fixture
def archive(tmp_path, make_dicom):
    """Two patients' studies of two series as DICOM, and one as NIfTI."""
    root = tmp_path / "archive"
    for number in (1, 2):
        for title in ("t1_se tra", "t2_tse tra", "localizer"):
            make_dicom(
                root / f"p{number}" / title.replace(" ", "_"), np.full((8, 8, 4), number, np.uint16), suffix="",
                study=f"1.2.3.{number}", description=title, PatientID=f"id{number}",
            )  # fmt: skip
    touch(root, ["q/q_t1_se.nii.gz", "q/q_t2_tse.nii.gz"])
    return root


def test_series_and_files_of_one_folder_are_paired(archive):
    found = find_pairs(archive, "t1_se", "t2_tse")
    assert [pair.patient for pair in found.pairs] == ["id1", "id2", "q"]
    assert not found.left_out
    assert [read_image(pair.source).shape for pair in found.pairs[:2]] == [(1, 8, 8, 4)] * 2


def test_a_list_may_name_series(archive):
    rows = ['{patient: anna, source: "p1::t1_se tra", target: "p1::t2*"}', '{source: "p2::t1*", target: "p2::t2*"}']
    (archive / "pairs.yaml").write_text("pairs:\n" + "".join(f"- {row}\n" for row in rows))
    found = find_pairs(archive / "pairs.yaml", "T1", "T2")
    assert [pair.patient for pair in found.pairs] == ["anna", "entry0002"]
    assert {read_image(place).shape for pair in found.pairs for place in (pair.source, pair.target)} == {(1, 8, 8, 4)}


def test_a_broken_file_does_not_hide_the_other_studies(archive):
    (archive / "p1" / "t1_se_tra" / "IM0002").write_bytes(b"")
    cut = archive / "p1" / "t2_tse_tra" / "IM0001"
    cut.write_bytes(cut.read_bytes()[:900])
    found = find_pairs(archive, "t1_se", "t2_tse")
    assert [pair.patient for pair in found.pairs] == ["id1", "id2", "q"]
    assert sum("IM0002, which is empty" in reason for _, reason in found.left_out) == 1
    with pytest.raises(ImageError, match="IM0002, which is empty"):
        read_image(found.pairs[0].source)


def test_dicom_in_the_folders_of_the_decathlon(tmp_path, make_dicom):
    for folder in ("imagesTr", "labelsTr"):
        make_dicom(tmp_path / folder / "p1", np.ones((8, 8, 4), np.uint16), suffix="")
    assert [pair.patient for pair in find_pairs(tmp_path, "MR", "CT").pairs] == ["p1"]


def test_a_dicomdir_names_studies(archive):
    from pydicom.fileset import FileSet

    disk = FileSet()
    for path in sorted(archive.rglob("IM*")):
        disk.add(path)
    disk.write(archive.parent / "disk")
    for place in (archive.parent / "disk" / "DICOMDIR", archive.parent / "disk"):
        assert [pair.patient for pair in find_pairs(place, "t1_se", "t2_tse").pairs] == ["id1", "id2"]


def test_what_is_missing_or_unclear_is_named(tmp_path):
    touch(tmp_path, ["a/T1.nii.gz", "a/T2.nii.gz", "b/T1.nii.gz", "c/T1.nii.gz", "c/T2.nii.gz", "c/T2.mha"])
    found = find_pairs(tmp_path, "T1", "T2")
    assert [pair.name for pair in found.pairs] == ["a"]
    assert dict(found.left_out)["b"] == "has no 'T2'"
    assert "T2.mha, T2.nii.gz" in dict(found.left_out)["c"]
    with pytest.raises(StudiesError, match="no examination has both 'CT' and 'T2'"):
        find_pairs(tmp_path, "CT", "T2")
    with pytest.raises(StudiesError, match="no such folder"):
        find_pairs(tmp_path / "nowhere", "T1", "T2")
    with pytest.raises(ValueError, match="one group"):
        find_pairs(tmp_path, "T1", "T2", "x.*")
