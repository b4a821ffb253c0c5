"""DICOM in: what is read lies where and means what its headers say, and what is no sound volume is refused by name."""

from __future__ import annotations

import re
import shutil
import subprocess

import itk
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.io import ImageError, choose_series, find_series, holds_dicom, read_image

SHAPE = (14, 12, 8)
SPACING = (1.5, 1.2, 3.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
FLIP = np.diag([-1.0, -1.0, 1.0])


def stored(dtype=np.uint16, low=0, high=1000, shape=SHAPE):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def read(path, series=None):
    image = read_image(path, series)
    assert (str(image.dtype), str(image.affine.dtype)) == ("torch.float32", "torch.float64")
    return image.as_tensor().numpy()[0], image.affine.numpy()


def refused(path, series=None):
    with pytest.raises(ImageError) as caught:
        read_image(path, series)
    return str(caught.value)


# ---- what is read


@pytest.mark.parametrize("directions", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_a_folder_is_a_volume_where_itk_has_it(tmp_path, make_dicom, directions, suffix):
    voxels = stored()
    files = make_dicom(tmp_path / "a", voxels, directions=directions, suffix=suffix)
    for number, file in enumerate(reversed(files)):  # the order of names says nothing
        file.rename(file.with_name(f"X{number}{suffix}"))
    found, affine = read(tmp_path / "a")
    np.testing.assert_array_equal(found, voxels)
    names = itk.GDCMSeriesFileNames.New(Directory=str(tmp_path / "a")).GetInputFileNames()
    image = itk.imread(list(names), itk.F)
    np.testing.assert_array_equal(found, itk.array_from_image(image).T)
    corner = affine[:3, :3] @ np.array(SHAPE) + affine[:3, 3]
    place = np.array(image.TransformIndexToPhysicalPoint(list(SHAPE)))
    np.testing.assert_allclose(corner, FLIP @ place, atol=1e-4)


def test_a_file_is_its_one_slice(tmp_path, make_dicom):
    voxels = stored()
    file = make_dicom(tmp_path / "a", voxels)[5]
    found, affine = read(file)
    np.testing.assert_array_equal(found, voxels[:, :, 5:6])
    np.testing.assert_allclose(affine, [[-1.5, 0, 0, 20], [0, -1.2, 0, 15], [0, 0, 3, 45], [0, 0, 0, 1]])


def test_the_series_of_a_study_are_listed_and_chosen(tmp_path, make_dicom, person, caplog):
    t1 = make_dicom(tmp_path / "study" / "1", stored(), description="T1W tra")
    make_dicom(tmp_path / "study" / "2", stored(shape=(14, 12, 5)), description="T2W tra", study=_uid(t1[0], "Study"))
    make_dicom(tmp_path / "study", stored(np.int16, shape=(14, 12, 3)), description="head", modality="CT")
    (tmp_path / "study" / "notes.txt").write_text("no slice")
    found = find_series(tmp_path / "study")
    assert [(one.description, one.modality, one.count) for one in found] == [
        (one.description, one.modality, one.count) for one in sorted(found, key=lambda one: one.study_uid)
    ]
    assert {(one.description, one.modality, one.count) for one in found} == {
        ("T1W tra", "MR", 8),
        ("T2W tra", "MR", 5),
        ("head", "CT", 3),
    }
    assert {one.patient for one in found} == {person["PatientID"]}
    uid = _uid(t1[0], "Series")
    for asked in (uid, "t1w*", "T1W TRA"):
        assert choose_series(tmp_path / "study", asked).uid == uid
        assert read(f"{tmp_path / 'study'}::{asked}")[0].shape == SHAPE
    assert choose_series(found, "ct").count == 3
    for asked, says in (
        (None, "holds 3 DICOM series"),
        ("MR", "2 DICOM series that fit 'MR'"),
        ("PD", "no series 'PD'"),
    ):
        message = refused(tmp_path / "study", asked)
        assert says in message
        assert uid in message
        assert '"T2W tra" (MR, 5 images,' in message
    shown = repr(found) + " ".join(map(str, found)) + message + caplog.text
    assert not [value for value in person.values() if value in shown]


def _uid(file, kind):
    return str(pydicom.dcmread(file)[f"{kind}InstanceUID"].value)


def test_reports_among_the_images_are_left_aside(tmp_path, make_dicom, write_slice):
    files = make_dicom(tmp_path, stored())
    report = pydicom.dcmread(files[0])
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.SOPClassUID, report.Modality, report.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "SR", "1.2.3"
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    write_slice(tmp_path / "SR.dcm", report)
    assert [(one.modality, one.image) for one in find_series(tmp_path)].count(("SR", False)) == 1
    assert read(tmp_path)[0].shape == SHAPE
    assert "holds no series of images, but" in refused(tmp_path / "SR.dcm")


def test_ct_is_read_in_hu(tmp_path, make_dicom):
    voxels = stored(np.int16, 0, 3000)
    make_dicom(tmp_path, voxels, modality="CT")
    np.testing.assert_array_equal(read(tmp_path)[0], voxels - 1024.0)


@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
def test_each_slice_has_its_own_rescale(tmp_path, make_dicom, modality):
    """GDCM applies none to MR and one to a file; the differing slopes of PET and of some MR are the slices' own."""
    voxels = stored()

    def change(index, data):
        data.RescaleSlope, data.RescaleIntercept = f"{0.5 + index / 7:.6g}", str(-10 * index)
        if modality == "PT":
            data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
            data.Units = "BQML"

    make_dicom(tmp_path, voxels, modality=modality, change=change)
    slopes = np.array([float(f"{0.5 + k / 7:.6g}") for k in range(SHAPE[2])])
    np.testing.assert_allclose(read(tmp_path)[0], voxels * slopes - 10 * np.arange(SHAPE[2]), rtol=1e-6, atol=1e-4)


def test_twelve_bits_with_sign(tmp_path, make_dicom):
    voxels = stored(np.int16, -2048, 2048)

    def change(_, data):
        data.BitsStored, data.HighBit = 12, 11
        data.PixelData = (np.frombuffer(data.PixelData, np.int16) & 0x0FFF).tobytes()  # as scanners pad them

    make_dicom(tmp_path, voxels, change=change)
    np.testing.assert_array_equal(read(tmp_path)[0], voxels)


@pytest.mark.parametrize("kind", ["rle", "jpeg lossless", "jpeg-ls", "deflated", "big endian", "implicit"])
def test_transfer_syntaxes(tmp_path, make_dicom, kind):
    voxels = stored(np.uint16, 0, 4000)
    files = make_dicom(tmp_path, voxels)
    tools = {
        "rle": ["dcmcrle"],
        "jpeg lossless": ["dcmcjpeg"],
        "jpeg-ls": ["dcmcjpls"],
        "deflated": ["dcmconv", "+td"],
        "big endian": ["dcmconv", "+tb"],
        "implicit": ["dcmconv", "+ti"],
    }
    if shutil.which(tools[kind][0]) is None:
        pytest.skip("needs Debian's package dcmtk")
    for file in files:
        subprocess.run([*tools[kind], file, file], check=True)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID != pydicom.uid.ExplicitVRLittleEndian
    np.testing.assert_array_equal(read(tmp_path)[0], voxels)


def test_files_without_preamble(tmp_path, make_dicom):
    voxels = stored()
    for file in make_dicom(tmp_path, voxels, suffix=""):
        if shutil.which("dcmconv") is None:
            pytest.skip("needs Debian's package dcmtk")
        subprocess.run(["dcmconv", "-F", "+ti", file, file], check=True)
        assert b"DICM" not in file.read_bytes()
    assert holds_dicom(tmp_path)
    np.testing.assert_array_equal(read(tmp_path)[0], voxels)


def enhanced(path, voxels, write_slice, template, *, order=None, slopes=None, change=None):
    """Make one object of many frames out of the first file of a series."""
    data = pydicom.dcmread(template)
    position = np.array([float(v) for v in data.ImagePositionPatient])
    frames = range(voxels.shape[2]) if order is None else order
    shared, own = Dataset(), []
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, data.SliceThickness
    plane.ImageOrientationPatient = data.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    for k in frames:
        group, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.9g}" for v in position + np.array([0, 0, 3.0 * k])]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = str((slopes or {}).get(k, 1)), "-5", "US"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([place]), Sequence([values])
        own.append(group)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, name)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(own)
    data.NumberOfFrames = len(own)
    data.PixelData = np.ascontiguousarray(voxels[:, :, list(frames)].transpose(2, 1, 0)).tobytes()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    if change:
        change(data)
    path.parent.mkdir(exist_ok=True)
    write_slice(path, data)
    return path


def test_objects_of_many_frames(tmp_path, make_dicom, write_slice):
    voxels = stored()
    template = make_dicom(tmp_path / "a", voxels)[0]
    slopes = {k: 1 + k / 4 for k in range(SHAPE[2])}
    file = enhanced(
        tmp_path / "e" / "IM1", voxels, write_slice, template, order=[3, 0, 1, 2, 7, 6, 5, 4], slopes=slopes
    )
    for place in (file, file.parent):
        found, affine = read(place)
        np.testing.assert_allclose(found, voxels * np.array([slopes[k] for k in range(SHAPE[2])]) - 5, rtol=1e-6)
        np.testing.assert_allclose(affine, read(tmp_path / "a")[1])
    (one,) = find_series(file)
    assert one.count == 8

    file = enhanced(tmp_path / "f" / "IM1", voxels, write_slice, template, order=[0, 1, 2, 4, 5, 7])
    assert "6 slices where 8 at 3 mm belong, so 2 are missing, between frame" in refused(file)
    file = enhanced(tmp_path / "g" / "IM1", voxels, write_slice, template, order=[0, 1, 2, 2, 3])
    assert "more than one slice at 1 place, first frame" in refused(file)

    def lose(data):
        del data.PerFrameFunctionalGroupsSequence

    file = enhanced(tmp_path / "h" / "IM1", voxels, write_slice, template, change=lose)
    assert "8 frames and does not say where they lie" in refused(file)


def test_dicomdir(tmp_path, make_dicom):
    from pydicom.fileset import FileSet

    voxels = stored()
    files = FileSet()
    for file in make_dicom(tmp_path / "a", voxels):
        files.add(file)
    files.write(tmp_path / "disk")
    directory = tmp_path / "disk" / "DICOMDIR"
    np.testing.assert_array_equal(read(directory)[0], voxels)
    np.testing.assert_array_equal(read(tmp_path / "disk")[0], voxels)  # the DICOMDIR in it is no slice
    slices = sorted(path for path in (tmp_path / "disk").rglob("*") if path.is_file() and path != directory)
    slices[2].unlink()
    slices[3].unlink()
    message = refused(directory)
    assert message.startswith("is a DICOMDIR of 8 files, of which 2 are missing: ")
    assert slices[2].name in message
    content = directory.read_bytes()
    assert b"PT000000\\" in content
    directory.write_bytes(content.replace(b"PT000000\\", b"../../..\\"))
    assert "names a file outside of its folder" in refused(directory)


# ---- what is refused


def two_series(folder, make_dicom, _):
    make_dicom(folder, stored())
    make_dicom(folder, stored(), suffix=".ima", description="T2W tra")


def gap(folder, make_dicom, _):
    make_dicom(folder, stored(shape=(14, 12, 39)), change=lambda index, _: index not in (12, 30))


def duplicate(folder, make_dicom, _):
    shutil.copy(make_dicom(folder, stored())[3], folder / "copy.dcm")


def same_place(folder, make_dicom, _):
    def change(index, data):
        data.EchoTime = "12" if index < 4 else "90"
        data.ImagePositionPatient = [0, 0, 3 * (index % 4)]

    make_dicom(folder, stored(), change=change)


def mixed(folder, make_dicom, _):
    def change(index, data):
        if index > 5:
            data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    make_dicom(folder, stored(), change=change)


def fan(folder, make_dicom, _):
    def change(index, data):
        angle = np.radians(2 * index)
        data.ImageOrientationPatient = [1, 0, 0, 0, f"{np.cos(angle):.9g}"[:16], f"{np.sin(angle):.9g}"[:16]]

    make_dicom(folder, stored(), change=change)


def truncated(folder, make_dicom, _):
    file = make_dicom(folder, stored())[4]
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_header(folder, make_dicom, _):
    file = make_dicom(folder, stored())[4]
    file.write_bytes(file.read_bytes()[:700])


def cut_to_nothing(folder, make_dicom, _):
    file = make_dicom(folder, stored())[4]
    file.write_bytes(file.read_bytes()[:60])


def empty(folder, make_dicom, _):
    make_dicom(folder, stored())[-1].write_bytes(b"")


def no_pixels(folder, make_dicom, _):
    def change(index, data):
        if index == 4:
            del data.PixelData

    make_dicom(folder, stored(), change=change)


def with_syntax(folder, make_dicom, uid):
    for file in make_dicom(folder, stored()):
        file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", uid, 1))


def unknown_syntax(folder, make_dicom, _):
    with_syntax(folder, make_dicom, b"1.2.826.0.1.9999.77\0")


def unread_syntax(folder, make_dicom, _):
    with_syntax(folder, make_dicom, b"1.2.840.10008.1.2.9\0")


def localiser(folder, make_dicom, _):
    def change(index, data):
        if index == 6:
            data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    make_dicom(folder, stored(), change=change)


def other_patient(folder, make_dicom, _):
    def change(index, data):
        if index == 2:
            data.PatientName, data.PatientID = "Andere^Person", "OTHER-1"

    make_dicom(folder, stored(), change=change)


def other_study(folder, make_dicom, _):
    make_dicom(folder, stored(), change=lambda k, data: setattr(data, "StudyInstanceUID", f"1.2.{k // 7 + 1}"))


def tilt(folder, make_dicom, _):
    def change(index, data):
        data.ImagePositionPatient = [0, f"{index * 3 * np.tan(np.radians(12)):.8g}", 3 * index]

    make_dicom(folder, stored(), change=change)


def shifted(folder, make_dicom, _):
    make_dicom(folder, stored(), change=lambda k, data: setattr(data, "ImagePositionPatient", [k % 3, 0, 3 * k]))


def unequal(folder, make_dicom, _):
    def change(index, data):
        data.ImagePositionPatient = [0, 0, 3 * index + (0.4 if index == 5 else 0)]

    make_dicom(folder, stored(), change=change)


def thinned(folder, make_dicom, _):
    make_dicom(folder, stored(), change=lambda k, data: k % 2 == 0, SpacingBetweenSlices="3")


def nowhere(folder, make_dicom, _):
    make_dicom(folder, stored(), change=lambda k, data: delattr(data, "ImagePositionPatient") if k == 3 else None)


def inverted(folder, make_dicom, _):
    make_dicom(folder, stored(), PhotometricInterpretation="MONOCHROME1")


def colour(folder, make_dicom, _):
    def change(_, data):
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.PixelData = data.PixelData * 3

    make_dicom(folder, stored(np.uint8, 0, 255), change=change)


def two_sizes(folder, make_dicom, _):
    def change(index, data):
        if index == 7:
            data.PixelSpacing = [2.4, 3.0]

    make_dicom(folder, stored(), change=change)


def no_hu(folder, make_dicom, _):
    make_dicom(folder, stored(np.int16), modality="CT", change=lambda k, data: delattr(data, "RescaleIntercept"))


def not_hu(folder, make_dicom, _):
    make_dicom(folder, stored(np.int16), modality="CT", RescaleType="ED")


BROKEN = {
    two_series: r'holds 2 DICOM series, and it is not clear which is meant; .*"T.W tra" \(MR, 8 images, .*"T.W tra"',
    gap: r"37 slices where 39 at 3 mm belong, so 2 are missing, between IM0011\.dcm and IM0013\.dcm, IM0029\.dcm and",
    duplicate: r"holds one image twice, as IM0003\.dcm and copy\.dcm",
    same_place: r"more than one slice at 4 places, first .*; they differ in EchoTime: several volumes in one series",
    mixed: r"holds several orientations: 6 axial, 2 coronal; IM0006\.dcm is not like most",
    fan: r"holds slices that are not parallel, but up to 14 degrees apart",
    truncated: r"holds IM0004\.dcm, which is cut short: 236 bytes of pixel data, expected 336",
    cut_in_header: r"holds IM0004\.dcm, which has (a DICOM header that is cut short|no pixel data)",
    cut_to_nothing: r"holds IM0004\.dcm, which is no DICOM file, or a damaged one",
    empty: r"holds IM0007\.dcm, which is empty",
    no_pixels: r"holds IM0004\.dcm, which has no pixel data",
    unknown_syntax: r"IM0000\.dcm, which has the transfer syntax 1\.2\.826\.0\.1\.9999\.77, which cannot be read",
    unread_syntax: r"IM0000\.dcm, which has the transfer syntax 1\.2\.840\.10008\.1\.2\.9, which cannot be read",
    localiser: r"holds 1 localiser\(s\) among 8 files \(ImageType\), first IM0006\.dcm",
    other_patient: r"holds IM0002\.dcm, which is of another patient than 7 others of its series \(PatientID differs\)",
    other_study: r"holds IM0007\.dcm, which is of another study than 7 others",
    tilt: r"slices that lean by 12 degrees \(gantry tilt\), by up to 4\.46 mm in their plane",
    shifted: r"slices that are shifted against each other, by up to 2 mm",
    unequal: r"unequal distances, 2\.6 to 3\.4 mm; IM0005\.dcm lies 0\.4 mm from its place",
    thinned: r"slices lie 6 mm apart where the headers say 3 mm .*, so that 1 of every 2 are missing",
    nowhere: r"IM0003\.dcm, which does not say where it lies \(no ImagePositionPatient\)",
    inverted: r"PhotometricInterpretation MONOCHROME1, expected MONOCHROME2: its greys are inverted",
    colour: r"PhotometricInterpretation RGB, expected MONOCHROME2: it has 3 channel",
    two_sizes: r"slices of different size \(mm between columns and rows\): 7 of .* and 1 of .*; IM0007\.dcm",
    no_hu: r"IM0000\.dcm, which is CT and does not say how its values become HU",
    not_hu: r"IM0000\.dcm, which is CT with values in ED \(RescaleType\), expected HU",
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_what_is_no_sound_volume_is_refused(tmp_path, make_dicom, write_slice, person, breaking):
    breaking(tmp_path / "a", make_dicom, write_slice)
    message = refused(tmp_path / "a")
    assert re.search(BROKEN[breaking], message), message
    assert "\n" not in message
    assert not [value for value in (*person.values(), "Andere^Person", "OTHER-1") if value in message]


@pytest.mark.parametrize("tool", ["dcmcrle", "dcmcjpeg", "dcmcjpls"])
@pytest.mark.parametrize("lost", [8, 60, 150])
def test_cut_compressed_files_are_refused(tmp_path, make_dicom, tool, lost):
    if shutil.which(tool) is None:
        pytest.skip("needs Debian's package dcmtk")
    file = make_dicom(tmp_path, stored(np.uint16, 0, 4000))[2]
    subprocess.run([tool, file, file], check=True)
    file.write_bytes(file.read_bytes()[:-lost])
    assert "IM0002.dcm" in refused(tmp_path)


def test_places_round_within_the_tolerance(tmp_path, make_dicom):
    """Scanners write positions with few digits."""
    voxels = stored()

    def change(index, data):
        data.ImagePositionPatient = [0.02 * (index % 2), 0, round(2.4 * index + 0.05 * (index == 3), 2)]

    make_dicom(tmp_path, voxels, change=change)
    found, affine = read(tmp_path)
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [1.5, 1.2, 2.4])


def test_what_is_no_dicom_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes").write_text("no slice")
    assert not holds_dicom(tmp_path)
    for place in (tmp_path / "a", tmp_path / "a" / "notes"):
        assert "is of no known format" in refused(place)
        with pytest.raises(ImageError, match="no DICOM file"):
            find_series(place)
