"""A folder of studies becomes a data set: whole cases, patients without names, and nothing done twice."""

from __future__ import annotations

import csv
import json
import logging

import itk
import nibabel as nib
import numpy as np
import pytest

from pipeline.data import load_cases
from pipeline.preparation import Outcome, Settings, Thresholds, check_registration, find_pairs, prepare
from pipeline.preparation import cases as cases_module
from pipeline.preparation import preparing as preparing_module
from pipeline.preparation.registration import Registration, Scan, about, matrix_of, rotation
from transforms import foreground_mask

NAME = "MUELLER_ANNA"
SHIFT = np.array([1.0, -2.0, 5.0])


def write(path, scan, matrix=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = scan.affine if matrix is None else matrix @ scan.affine
    nib.save(nib.Nifti1Image(np.round(scan.voxels).astype(np.int16), affine), path)


@pytest.fixture(scope="module")
def prepared(people, tmp_path_factory):
    """Two examinations of one person, one of another, and one with a damaged file."""
    root = tmp_path_factory.mktemp("prepare")
    studies, out = root / "studies", root / "out"
    matrix = about(rotation(2, 0.05), np.zeros(3), SHIFT)
    for person, folder in ((1, f"{NAME}_study1"), (1, f"{NAME}_study2"), (2, "p2"), (1, "p3")):
        write(studies / folder / "T1.nii.gz", people[person][0])
        write(studies / folder / "T2.nii.gz", people[person][1], matrix)
    (studies / "p3" / "T2.nii.gz").write_bytes(b"damaged")
    found = find_pairs(studies, "T1", "T2")
    calls = []

    def again():
        calls.clear()
        progress = lambda outcome, done, total: calls.append(outcome.case)  # noqa: E731
        return prepare(found, out, Settings(crop=True), ("T1", "T2"), folds=2, progress=progress), list(calls)

    outcomes, done = again()
    return studies, out, outcomes, done, matrix, again


def test_cases_are_written_and_judged(prepared):
    _, out, outcomes, done, matrix, _ = prepared
    assert len(done) == 4
    assert [(outcome.case, outcome.verdict) for outcome in outcomes] == [
        ("patient001_1", "good"), ("patient001_2", "good"), ("patient002_1", "good"), ("patient003_1", "failed"),
    ]  # fmt: skip
    assert outcomes[3].reasons.startswith("the target cannot be read")
    for outcome in outcomes[:3]:
        images = [nib.load(out / folder / f"{outcome.case}.nii.gz") for folder in ("images", "labels", "masks")]
        assert len({image.shape for image in images}) == 1
        assert set(np.unique(images[2].get_fdata())) == {0, 1}
        [transform] = itk.transformread(str(out / "transforms" / f"{outcome.case}.tfm"))
        rigid = itk.Euler3DTransform[itk.D].New()
        rigid.SetFixedParameters(transform.GetFixedParameters())
        rigid.SetParameters(transform.GetParameters())
        np.testing.assert_allclose(matrix_of(rigid), matrix, atol=0.3)


def test_a_second_start_does_nothing_again_but_what_failed(prepared):
    *_, again = prepared
    outcomes, done = again()
    assert done == ["patient003_1"]
    assert len(outcomes) == 4


def test_training_takes_the_datalist_and_parts_persons(prepared, caplog):
    _, out, *_ = prepared
    cases = load_cases(out)
    assert cases.registered
    assert {item["case"] for split in cases.values() for item in split} == {"patient001", "patient002"}
    assert len(cases["training"]) + len(cases["validation"]) == 3
    other = json.loads((out / "datalist_fold1.json").read_text())
    assert {item["patient"] for item in other["validation"]} == {item["case"] for item in cases["training"]}
    with caplog.at_level(logging.WARNING):
        assert check_registration(cases["training"], registered=cases.registered) == {}
        looked = check_registration(cases["training"] + cases["validation"])
    assert len(looked) == 2
    assert "do not line up" not in caplog.text


def test_pairs_that_were_not_prepared_are_warned_of(people, tmp_path, caplog, monkeypatch):
    source, target = people[1]
    cases = []
    for name, shift in (("p1", 5.0), ("p2", 0.0)):
        matrix = about(np.eye(3), np.zeros(3), np.array([0, 0, shift]))
        write(tmp_path / name / "image.nii.gz", source)
        write(tmp_path / name / "label.nii.gz", target, matrix)
        cases.append(
            {"image": f"{tmp_path}/{name}/image.nii.gz", "label": f"{tmp_path}/{name}/label.nii.gz", "case": name}
        )
    with caplog.at_level(logging.WARNING):
        found = check_registration(cases)
    assert found["p1"] == pytest.approx((5, 5), abs=0.5)
    assert found["p2"][0] < 0.7
    assert "1 of 2 patients" in caplog.text
    assert f"p1: {found['p1'][0]:.1f} mm apart, {found['p1'][1]:.1f} mm of it through the plane" in caplog.text
    assert check_registration(cases, wanted=False) == {}
    kept = check_registration(cases, store=tmp_path / "store")  # ITK's threads do not add up in one order
    assert kept == {name: pytest.approx(values, abs=0.05) for name, values in found.items()}
    monkeypatch.setattr("pipeline.preparation.check._look", None)  # a second start reads no image
    caplog.clear()
    assert check_registration(cases, store=tmp_path / "store") == kept
    assert "1 of 2 patients" in caplog.text


def test_no_name_leaves_the_key(prepared):
    studies, out, *_ = prepared
    for path in out.rglob("*"):
        assert NAME not in str(path.relative_to(out))
        if path.is_file():
            assert NAME.encode() not in path.read_bytes()
            assert str(studies).encode() not in path.read_bytes()
    key = out.with_name("out-key.csv").read_text()
    assert key.startswith("# Key to the numbers")
    assert f"{NAME},{NAME}_study2,patient001,patient001_2" in key


def test_the_report_has_each_case_and_its_pictures(prepared):
    _, out, outcomes, *_ = prepared
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "3 good" in page
    rows = list(csv.DictReader((out / "report.csv").read_text().splitlines()))
    assert [row["case"] for row in rows] == [outcome.case for outcome in outcomes]
    assert float(rows[0]["through_plane_mm"]) == pytest.approx(5, abs=0.3)
    assert rows[3]["mean_mm"] == ""


def test_the_key_does_not_lie_among_the_results(prepared, tmp_path):
    studies, out, *_ = prepared
    found = find_pairs(studies, "T1", "T2")
    with pytest.raises(ValueError, match="must not lie among the results"):
        prepare(found, out, Settings(), ("T1", "T2"), key_file=out / "key.csv")
    (tmp_path / "other.csv").write_text("precious")
    with pytest.raises(ValueError, match="no key to prepared patients"):
        prepare(found, tmp_path / "out", Settings(), ("T1", "T2"), key_file=tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "precious"


def test_verdicts_follow_the_thresholds(tmp_path):
    numbers = {
        "before": 0.2,
        "after": 0.8,
        "spread": 0.1,
        "agreeing": 1.0,
        "halves": 0.3,
        "blocks": 0.9,
        "overlap": 1.0,
    }
    sound = {"matrix": np.eye(4), **numbers, "mean": 2.0, "largest": 3.0, "through_plane": 1.0}
    assert Thresholds().judge(Registration(**sound)) == ("good", [])
    verdict, reasons = Thresholds().judge(Registration(**sound | {"halves": 2.0, "overlap": 0.2}))
    assert verdict == "failed"
    assert reasons == [
        "halves of the head disagree by 2.00 mm (halves 1.5)",
        "the fields of view share 0.20 of the mask (overlap 0.35)",
    ]
    assert Thresholds().judge(Registration(**sound), registered=False) == (
        "doubtful", ["the target lies 2.00 mm off (residual 1.5)"],
    )  # fmt: skip
    assert Thresholds(halves=(2.5, 3)).judge(Registration(**sound | {"halves": 2.0}))[0] == "good"
    outcomes = [Outcome(f"patient00{n}_1", f"patient00{n}", "doubtful", "", mean_mm=1.0) for n in (1, 2)]
    for accept, count in ((["good"], 0), (["good", "doubtful"], 1)):
        preparing_module._write_datalists(tmp_path, outcomes, ("a", "b"), 2, accept, 0, True)
        assert len(json.loads((tmp_path / "datalist.json").read_text())["training"]) == count


@pytest.mark.slow  # ITK loads for half a minute
def test_n4_takes_a_bias_field_out(make_head):
    scan = make_head(1, (26, 28, 20), (7.0, 7.0, 7.5))[0]
    inside = foreground_mask(scan.voxels, scan.spacing)
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, length) for length in scan.voxels.shape), indexing="ij")
    field = 0.4 * x - 0.3 * y
    biased = Scan((scan.voxels * np.exp(field)).astype(np.float32), scan.affine)
    left = np.log(np.maximum(cases_module._n4(biased, inside), 1) / np.maximum(scan.voxels, 1))[inside]
    assert left.std() < 0.5 * field[inside].std()


@pytest.mark.parametrize("crop", [False, True])
def test_a_grid_of_another_spacing_lies_where_the_scan_does(people, crop):
    scan = people[1][0]
    inside = foreground_mask(scan.voxels, scan.spacing)
    shape, affine = cases_module._grid(scan, inside, Settings(spacing=(3.0,), crop=crop))
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 3)
    moved = cases_module.resample(Scan(inside.astype(np.float32), scan.affine), np.eye(4), shape, affine, order=1)[0]
    here, there = np.argwhere(inside) @ scan.affine[:3, :3] + scan.affine[:3, 3], np.argwhere(moved > 0.5)
    centre = (there @ affine[:3, :3] + affine[:3, 3]).mean(0)
    np.testing.assert_allclose(centre, here.mean(0), atol=0.3)
    assert len(there) * 27 == pytest.approx(len(here) * scan.spacing.prod(), rel=0.05)
    assert (np.prod(shape) * 27 < scan.voxels.size * scan.spacing.prod() * 0.95) == crop
