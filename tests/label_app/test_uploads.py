"""Which files are taken as volumes, looked at without any library that reads images."""

from __future__ import annotations

import ast
import gzip
import io
import os
import struct
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.label_app.uploads import Uploads, VolumeFileError, check_volume, suffix_of

ROOT = Path(__file__).resolve().parents[2]
VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
RAW = VOXELS.tobytes(order="F")
NRRD = "NRRD0004\n# made here\ntype: short\ndimension: 3\nsizes: 5 6 7\nencoding: {}\nendian: little\nkey:=value\n\n"
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {}\n"
    "DimSize = 5 6 7\nElementType = MET_SHORT\nElementDataFile = {}\n"
)


def nifti(kind=nib.Nifti1Image, voxels=VOXELS):
    return kind(voxels, np.eye(4)).to_bytes()


def changed(content, at, layout, *values):
    return content[:at] + struct.pack(layout, *values) + content[at + struct.calcsize(layout) :]


GOOD = {
    "a.nii": nifti(),
    "b.nii": nifti(nib.Nifti2Image),
    "A.NII.GZ": gzip.compress(nifti()),
    "two_members.nii.gz": gzip.compress(nifti()[:400]) + gzip.compress(nifti()[400:]),
    "big_endian.nii": nib.Nifti1Image(VOXELS, np.eye(4), nib.Nifti1Header(endianness=">")).to_bytes(),
    "raw.nrrd": NRRD.format("raw").encode() + RAW,
    "packed.nrrd": NRRD.format("gzip").encode() + gzip.compress(RAW),
    "raw.mha": META.format("False", "LOCAL").encode() + RAW,
    "packed.mha": META.format("True", "LOCAL").encode() + zlib.compress(RAW),
}


@pytest.mark.parametrize("name", GOOD)
def test_whole_files_of_one_part_are_taken(tmp_path, name):
    (tmp_path / name.lower()).write_bytes(GOOD[name])
    assert name.lower().endswith(suffix_of(name))
    check_volume(tmp_path / name.lower(), limit=1, inside=tmp_path)


def test_what_itk_and_nibabel_write_is_taken(tmp_path):
    itk = pytest.importorskip("itk")
    for name in ("a.nrrd", "a.mha", "a.nii", "a.nii.gz"):
        for compression in (False, True):
            image = itk.image_from_array(VOXELS.astype(np.float32))
            itk.imwrite(image, str(tmp_path / name), compression=compression)
            check_volume(tmp_path / name, limit=1)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.mhd", META.format("False", "/etc/passwd").encode(), "formats"),
        ("a.nhdr", NRRD.format("raw").encode(), "formats"),
        ("a.hdr", nifti(nib.Nifti1Image)[:348], "formats"),
        ("a.npy", b"\x93NUMPY", "formats"),
        ("a.dcm", b"", "formats"),
        ("a", b"", "no suffix"),
        ("a.mha", META.format("False", "/etc/passwd").encode(), "data file"),
        ("a.mha", META.format("False", "LIST").encode(), "data file"),
        ("a.mha", META.format("False", "local/x.raw").encode(), "data file"),
        ("a.mha", b"ElementDataFile = LOCAL\n", "type ''"),
        (
            "a.mha",
            META.format("False", "LOCAL").replace("NDims", "HeaderSize = -1\nNDims").encode() + RAW,
            "HeaderSize",
        ),
        ("a.mha", META.format("False", "LOCAL").replace("NDims = 3", "NDims = 3\nNDims = 2").encode(), "twice"),
        ("a.mha", META.format("False", "LOCAL").replace("\n", "\r\n").encode() + RAW, "printable"),
        ("a.nrrd", NRRD.format("raw").replace("type", "data file: /etc/passwd\ntype").encode() + RAW, "data file"),
        ("a.nrrd", NRRD.format("raw").replace("type", "DATAFILE:LIST\ntype").encode() + RAW, "datafile"),
        ("a.nrrd", NRRD.format("raw").replace("type", "data file := x\ntype").encode() + RAW, "data file"),
        ("a.nrrd", NRRD.format("raw").replace("type", "byte skip: -1\ntype").encode() + RAW, "byte skip"),
        ("a.nrrd", NRRD.format("bzip2").encode() + RAW, "encoding"),
        ("a.nrrd", NRRD.format("raw").replace("short", "block").encode() + RAW, "type"),
        ("a.nrrd", GOOD["a.nii"], "header"),
        ("a.nrrd", b"NRRD0004\n" + b"a" * 100_000, "does not end"),
        ("a.nii", GOOD["A.NII.GZ"], "no NIfTI"),
        ("a.nii", changed(nifti(), 344, "4s", b"ni1\0"), "one part"),
        ("a.nii", nifti()[:-1], "cut short"),
        ("a.nii", nifti() + bytes(1 << 17), "more than"),
        ("a.nii", changed(nifti(), 108, "<f", float("nan")), "begin at byte nan"),
        ("a.nii", changed(nifti(), 108, "<f", 8.0), "begin at byte 8"),
        ("a.nii", changed(nifti(), 42, "<h", -5), "positive"),
        ("a.nii", changed(nifti(), 40, "<h", 0), "0 dimensions"),
        ("a.nii", changed(nifti(), 70, "<h", 128), "type 128"),
        ("a.nii", b"", "no NIfTI"),
        ("a.nii.gz", GOOD["a.nii"], "gzip"),
        ("a.nii.gz", GOOD["A.NII.GZ"][:-20], "cut short"),
        ("a.nii.gz", GOOD["A.NII.GZ"][:30] + b"\0" * 99 + GOOD["A.NII.GZ"][99:], "damaged"),
        ("a.nii.gz", gzip.compress(nifti()[:-1]), "cut short"),
        ("a.nii.gz", gzip.compress(b"", mtime=0), "no NIfTI"),
        ("a.nii.gz", b"", "gzip"),
    ],
)
def test_others_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeFileError, match=says) as caught:
        check_volume(tmp_path / name, limit=1)
    assert str(tmp_path) not in str(caught.value)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    declared = changed(nifti(), 42, "<3h", 900, 900, 900)
    zeros = gzip.compress(bytes(1 << 27))
    members = gzip.compress(nifti()) + gzip.compress(b"", mtime=0) * 200_000
    contents = {
        "a.nii.gz": gzip.compress(declared),
        "b.nii.gz": gzip.compress(nifti()) + zeros * 100,  # 13 GB
        "c.nrrd": NRRD.format("gzip").encode() + zeros * 100,
    }
    start = time.monotonic()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VolumeFileError, match=r"MB|more than"):
            check_volume(tmp_path / name, limit=16)
    (tmp_path / "d.nii.gz").write_bytes(members)
    with pytest.raises(VolumeFileError, match="parts"):
        check_volume(tmp_path / "d.nii.gz", limit=16)
    assert time.monotonic() - start < 5


def test_links_pipes_and_devices_are_refused(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "a.nii").write_bytes(nifti())
    (tmp_path / "outside.nii").write_bytes(nifti())
    os.symlink(studies / "a.nii", studies / "within.nii")
    os.symlink(tmp_path / "outside.nii", studies / "out.nii")
    os.symlink("/dev/zero", studies / "device.nii")
    os.symlink(studies / "round.nii", studies / "round.nii")
    os.mkfifo(studies / "pipe.nii")
    (studies / "folder.nii").mkdir()
    check_volume(studies / "within.nii", inside=studies)
    for name, says in (
        ("out.nii", "leads out"),
        ("device.nii", "leads out"),
        ("pipe.nii", "no regular file"),
        ("folder.nii", "no regular file"),
        ("round.nii", r"cannot be read|leads out|no such"),
        ("nothing.nii", "no such file"),
    ):
        with pytest.raises(VolumeFileError, match=says):
            check_volume(studies / name, inside=studies)
    with pytest.raises(VolumeFileError, match="no regular file"):
        check_volume(studies / "device.nii")


def test_an_upload_is_under_a_name_of_ours_and_gone_afterwards(tmp_path):
    uploads = Uploads(tmp_path, limit=1)
    with uploads.volume(io.BytesIO(GOOD["raw.nrrd"]), "../../x/raw.NRRD") as path:
        assert path.parent == tmp_path
        assert path.suffix == ".nrrd"
    with (
        pytest.raises(VolumeFileError, match="the uploaded file: is no NIfTI"),
        uploads.volume(io.BytesIO(b"x"), "x.nii"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["access", "limits", "uploads", "proxy", "tokens", "worker", "health", "journal", "listening"]
)
def test_what_is_usable_without_monai_label_does_not_import_it(name):
    """As SECURITY.md says."""
    seen, left = set(), [f"pipeline.label_app.{name}"]
    while left:
        module = left.pop()
        seen.add(module)
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        imports = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imports += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert not [found for found in imports if found.startswith("monailabel")]
        left += [found for found in imports if found.startswith("pipeline.label_app.") and found not in seen]
