"""DICOM out: a derived series lies where its source lies, says what it is, and keeps what it may and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess

import itk
import numpy as np
import pydicom
import pytest

from pipeline.io import Derivation, ImageError, Pseudonyms, WriteSeriesd, read_image, write_image, write_series
from pipeline.io.dicom import KEPT, derived

SHAPE = (14, 12, 8)
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
SHA = "0123456789abcdef" * 4
T2 = Derivation("reggan", "0.1.0", SHA, "T2", "MR", 1800.0)
CT = Derivation("reggan", "0.1.0", SHA, "CT", "CT", 2000.0)


def stored(dtype=np.uint16, low=0, high=1000, shape=SHAPE):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def slices(folder):
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def text_of(*folders):
    """Every byte below folders, and their names."""
    found = b""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            found += str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
    return found


def test_ct_goes_in_and_comes_out_voxel_for_voxel(tmp_path, make_dicom):
    """A body and a couch in HU, stored with intercept -1024: compared by pydicom and by ITK, not by our reader."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 36, 10)), indexing="ij")
    hu = np.where(x**2 + (y / 0.7) ** 2 < 0.6, np.random.default_rng(1).integers(-120, 1500, x.shape), -1000)
    hu = np.where((np.abs(y - 0.85) < 0.04) & (np.abs(x) < 0.8), 180, hu)
    hu[0, 0, :], hu[1, 0, :] = -1024, 3071
    for directions in ((1, 0, 0, 0, 1, 0), OBLIQUE):
        made, out = tmp_path / f"in{directions[0]}", tmp_path / f"out{directions[0]}"
        make_dicom(made, (hu + 1024).astype(np.uint16), modality="CT", directions=directions)
        source = read_image(made)
        assert write_series(out, source, source, CT) == out
        before, after = slices(made), slices(out)
        assert len(before) == len(after) == 10
        place = {tuple(one.ImagePositionPatient): one for one in after}
        for number, one in enumerate(before):
            other = place[tuple(one.ImagePositionPatient)]
            np.testing.assert_array_equal(one.pixel_array.astype(int) - 1024, hu[:, :, number].T)
            np.testing.assert_array_equal(other.pixel_array, hu[:, :, number].T)
            assert (other.RescaleSlope, other.RescaleIntercept, other.RescaleType) == (1, 0, "HU")
            assert (other.PixelRepresentation, other.BitsStored, other.pixel_array.dtype) == (1, 16, np.int16)
            for name in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness", "FrameOfReferenceUID"):
                assert one[name].value == other[name].value, name
        images = [
            itk.imread(list(itk.GDCMSeriesFileNames.New(Directory=str(folder)).GetInputFileNames()), itk.F)
            for folder in (made, out)
        ]
        np.testing.assert_array_equal(*(itk.array_from_image(image) for image in images))
        np.testing.assert_array_equal(itk.array_from_image(images[0]).min(), -1024)
        for of in ("GetOrigin", "GetSpacing"):
            np.testing.assert_array_equal(*(np.array(getattr(image, of)()) for image in images))
        np.testing.assert_array_equal(*(itk.array_from_matrix(image.GetDirection()) for image in images))


def test_a_derived_series_says_what_it_is(tmp_path, make_dicom, person):
    made = make_dicom(tmp_path / "in", stored())
    source = read_image(tmp_path / "in")
    values = source.as_tensor().numpy() * 1.5
    before, after = [pydicom.dcmread(file) for file in made], slices(write_series(tmp_path / "out", values, source, T2))
    assert {len({one.SOPInstanceUID for one in after}), len({one.SeriesInstanceUID for one in after})} == {8, 1}
    assert not {one.SOPInstanceUID for one in before} & {one.SOPInstanceUID for one in after}
    for one, other in zip(before, after, strict=True):
        for name in KEPT:
            if name in one:
                assert one[name].value == other[name].value, name
        assert list(other.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        assert (other.Modality, other.SOPClassUID, other.PixelRepresentation) == ("MR", pydicom.uid.MRImageStorage, 0)
        assert "RescaleSlope" not in other
        assert other.SeriesInstanceUID != one.SeriesInstanceUID
        assert other.SourceImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
        assert other.ReferencedSeriesSequence[0].SeriesInstanceUID == one.SeriesInstanceUID
        assert other.SeriesDescription == "SYNTHETIC T2, NOT FOR CLINICAL USE"
        for said in ("method reggan", "bundle 0.1.0", SHA, "not for clinical use"):
            assert said in other.DerivationDescription
        assert (other.Manufacturer, other.SoftwareVersions, other.InstanceNumber) == (
            derived.MAKER,
            "0.1.0",
            one.InstanceNumber,
        )
        assert len(other.ContentDate) == 8
        np.testing.assert_array_equal(other.pixel_array, np.rint(values[0, :, :, one.InstanceNumber - 1].T))
        for name in ("InstitutionName", "StationName", "DeviceSerialNumber", "OperatorsName", "PatientComments"):
            assert name not in other
            assert person[name].encode() not in text_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("scale", "top", "factor"), [(0.001, 1.0, 1000), (0.001, None, 10_000), (0.0031, 3.0, 1000), (1, 1800.0, 1)]
)
def test_small_values_are_multiplied_and_it_is_told(tmp_path, make_dicom, scale, top, factor):
    make_dicom(tmp_path / "in", stored())
    source = read_image(tmp_path / "in")
    values = source.as_tensor().numpy()[0] * scale
    after = slices(write_series(tmp_path / "out", values, source, Derivation("m", "1", SHA, "T2", "MR", top)))
    found = np.stack([one.pixel_array.T for one in after], -1) / factor
    assert np.abs(found - values).max() <= 0.5001 / factor
    assert (f"times {factor}." in after[0].DerivationDescription) == (factor != 1)


def test_negative_values_are_counted_and_told(tmp_path, make_dicom, caplog):
    make_dicom(tmp_path / "in", stored())
    source = read_image(tmp_path / "in")
    values = np.random.default_rng(0).normal(size=SHAPE)
    after = slices(write_series(tmp_path / "out", values, source, Derivation("m", "1", SHA, "T2", "MR", 3.0)))
    count = int((np.rint(values * 1000) < 0).sum())
    assert f"{count} of {values.size} values were negative and are 0" in after[0].DerivationDescription
    assert f"{count} of {values.size} voxels are negative" in caplog.text
    found = np.stack([one.pixel_array.T for one in after], -1)
    np.testing.assert_array_equal(found, np.rint(values.clip(0) * 1000))


def test_values_beyond_sixteen_bits(tmp_path, make_dicom):
    make_dicom(tmp_path / "in", stored())
    source = read_image(tmp_path / "in")
    values = source.as_tensor().numpy()[0] * 1000
    (one, *_) = slices(write_series(tmp_path / "mr", values, source, T2))
    assert "times 0.01." in one.DerivationDescription
    (one, *_) = slices(write_series(tmp_path / "ct", values, source, CT))
    assert "values beyond 16 bits were set to the nearest" in one.DerivationDescription
    for wrong, says in ((np.nan, "1 of 1344 voxels are NaN"), (np.inf, "1 of 1344 voxels are NaN or infinite")):
        broken = values.copy()
        broken[0, 0, 0] = wrong
        with pytest.raises(ValueError, match=says):
            write_series(tmp_path / "nan", broken, source, T2)
    assert not (tmp_path / "nan").exists()


def test_deidentified_series_know_nobody_and_agree_with_each_other(tmp_path, make_dicom, person):
    study = "1.2.3.4.5"
    sources = []
    for number in (1, 2):
        make_dicom(tmp_path / f"in{number}", stored(), study=study, StudyDescription="Frau Musterfrau")
        sources.append(read_image(tmp_path / f"in{number}"))
    key = tmp_path / "keys" / "pseudonyms.key"
    after = [
        slices(write_series(tmp_path / "out" / str(n), source, source, T2, Pseudonyms.of_file(key)))
        for n, source in enumerate(sources)
    ]
    assert oct(key.stat().st_mode & 0o777) == "0o600"
    content = text_of(tmp_path / "out")
    olds = {
        str(one[name].value)
        for folder in ("in1", "in2")
        for one in slices(tmp_path / folder)
        for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    }
    for value in (*person.values(), *olds, "Musterfrau", "20240229", "101500", "055Y"):
        assert value.encode() not in content, value
    for one in (one for series in after for one in series):
        assert one.StudyInstanceUID == after[0][0].StudyInstanceUID
        assert one.PatientID == one.PatientName == after[0][0].PatientID
        assert (one.PatientIdentityRemoved, one.DeidentificationMethodCodeSequence[0].CodeValue) == ("YES", "113100")
        assert one.SourceImageSequence[0].ReferencedSOPInstanceUID.startswith("2.25.")
        assert one.StudyDate == one.AccessionNumber == one.PatientBirthDate == ""
    frames = [series[0].FrameOfReferenceUID for series in after]
    assert frames[0] != frames[1]  # as their sources' are
    other = slices(write_series(tmp_path / "other", sources[0], sources[0], T2, Pseudonyms()))
    assert other[0].StudyInstanceUID != after[0][0].StudyInstanceUID
    key.write_text("x")
    with pytest.raises(ValueError, match="is no key of pseudonyms"):
        Pseudonyms.of_file(key)


def test_a_series_is_there_as_a_whole_or_not_at_all(tmp_path, make_dicom, monkeypatch):
    make_dicom(tmp_path / "in", stored())
    source = read_image(tmp_path / "in")
    out = write_series(tmp_path / "out", source, source, T2)
    before = text_of(out)
    save = derived._save

    def full(path, data):
        if path.name == "IM0005.dcm":
            raise OSError(28, "No space left on device")
        save(path, data)

    def cut(path, data):
        save(path, data)
        path.write_bytes(path.read_bytes()[:-10])

    def other(path, data):
        data.PixelData = b"\1\0" + data.PixelData[2:]
        save(path, data)

    for broken, says in ((full, "No space"), (cut, "cut short"), (other, "what was read back is not")):
        monkeypatch.setattr(derived, "_save", broken)
        for place in (out, tmp_path / "new"):
            with pytest.raises(OSError, match=says):
                write_series(place, source, source, T2)
        assert text_of(out) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    monkeypatch.setattr(derived, "_save", save)
    write_series(out, source, source, CT)  # ours is replaced as a whole
    assert {one.Modality for one in slices(out)} == {"CT"}
    for place in (tmp_path / "in", tmp_path / "in" / "IM0000.dcm"):
        with pytest.raises(FileExistsError, match="holds something else than a derived series"):
            write_series(place, source, source, T2)


def test_only_dicom_has_derived_series(tmp_path, make_dicom):
    make_dicom(tmp_path / "in", stored())
    source = read_image(tmp_path / "in")
    volume = read_image(write_image(tmp_path / "a.nii.gz", source, source))
    with pytest.raises(ImageError, match="is no DICOM"):
        write_series(tmp_path / "out", volume, volume, T2)
    write = WriteSeriesd("pred", "image", tmp_path / "out", T2)
    write({"image": volume, "pred": volume})
    assert not (tmp_path / "out").exists()
    write({"image": source, "pred": source})
    assert len(list((tmp_path / "out" / "in_derived").iterdir())) == 8
    with pytest.raises(ValueError, match=r"expected the voxels of an image of shape \(14, 12, 8\)"):
        write_series(tmp_path / "b", np.zeros((14, 12, 7)), source, T2)


def test_names_of_results_tell_no_names(tmp_path, make_dicom, person):
    for name, tells in (("Musterfrau_Erika", True), ("x4711", True), ("19640812", True), ("study7", False)):
        make_dicom(tmp_path / name, stored())
        source = read_image(tmp_path / name)
        WriteSeriesd("image", "image", tmp_path / "out", T2)({"image": source})
        (made,) = (tmp_path / "out").iterdir()
        assert (re.fullmatch(r"series3-[0-9a-f]{8}_derived", made.name) is not None) == tells
        assert tells or made.name == "study7_derived"
        shutil.rmtree(tmp_path / "out")


def test_what_the_source_has_wrong_is_not_quoted(tmp_path, make_dicom, recwarn, caplog):
    make_dicom(tmp_path / "in", stored(), PatientBirthDate="12.08.1964", PatientWeight="61")
    for file in (tmp_path / "in").iterdir():
        file.write_bytes(file.read_bytes().replace(b"DS\x02\x0061", b"DS\x02\x00x1"))
    recwarn.clear()
    caplog.clear()
    source = read_image(tmp_path / "in")
    write_series(tmp_path / "out", source, source, T2)
    assert "12.08" not in caplog.text + " ".join(str(one.message) for one in recwarn)


def errors_of(tool, folder):
    """What dicom3tools find wrong, without the places that it is at."""
    files = sorted(folder.iterdir())
    runs = [[tool, *files]] if tool == "dcentvfy" else [[tool, "-new", file] for file in files[:1]]
    found = set()
    for command in runs:
        result = subprocess.run(command, capture_output=True, text=True)
        found |= {line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")}
    return found


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs Debian's package dicom3tools")
@pytest.mark.parametrize("modality", ["MR", "CT"])
@pytest.mark.parametrize("target", [T2, CT])
@pytest.mark.parametrize("pseudonyms", [None, Pseudonyms(b"x" * 32)])
def test_the_standard_is_kept(tmp_path, make_dicom, modality, target, pseudonyms):
    make_dicom(tmp_path / "in", stored(), modality=modality)
    source = read_image(tmp_path / "in")
    write_series(tmp_path / "out", source, source, target, pseudonyms)
    for tool in ("dciodvfy", "dcentvfy"):
        new = errors_of(tool, tmp_path / "out") - errors_of(tool, tmp_path / "in")
        assert not new, "\n".join(new)
