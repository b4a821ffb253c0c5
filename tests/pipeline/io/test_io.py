"""Images in and out: axes, geometry and headers of every format; never a broken file under a final name."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd, SpatialPadd

from pipeline.io import (
    READABLE,
    WRITABLE,
    ImageError,
    ReadImaged,
    WriteImaged,
    formats,
    name_of,
    read_image,
    write_image,
)

SHAPE = (7, 5, 3)
OBLIQUE = np.array([[0, -1.2, 0.1, 10], [1.5, 0, 0.2, -20], [0.1, -0.1, 4, 30], [0, 0, 0, 1]])
TURNED = np.array([[0, -1.2, 0, 10], [1.5, 0, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])  # what ITK can hold: no shear


def voxels(shape=SHAPE):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def save(path, array, affine=TURNED):
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        nib.save((nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image)(array, affine), path)
    return path


@pytest.mark.parametrize("suffix", WRITABLE)
def test_what_is_written_is_read_where_it_was(tmp_path, suffix):
    source = read_image(save(tmp_path / "a.nii.gz", voxels()))
    path = write_image(tmp_path / "new" / f"b{suffix}", source, source)
    again = read_image(path)
    np.testing.assert_array_equal(again.as_tensor().numpy()[0], voxels())
    np.testing.assert_allclose(again.affine.numpy(), TURNED, atol=1e-5)
    expected = {suffix, ".raw", ".zraw"} if suffix == ".mhd" else {suffix}
    assert {file.name.removeprefix("b") for file in path.parent.iterdir()} <= expected


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mgz", ".npy"])
def test_formats_read_alike(tmp_path, suffix):
    image = read_image(save(tmp_path / f"a{suffix}", voxels()))
    assert (image.dtype, tuple(image.shape), image.affine.dtype) == (torch.float32, (1, *SHAPE), torch.float64)
    np.testing.assert_array_equal(image.as_tensor().numpy()[0], voxels())
    np.testing.assert_allclose(image.affine.numpy(), np.eye(4) if suffix == ".npy" else TURNED, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "read"),
    [
        ("a.nii.gz", (7, 5, 3, 1), (7, 5, 3)),
        ("a.nii.gz", (7, 5, 3, 1, 1), (7, 5, 3)),
        ("a.nii.gz", (7, 5, 1), (7, 5, 1)),
        ("a.nii.gz", (1, 7, 5), (1, 7, 5)),
        ("a.nii.gz", (7, 5), (7, 5, 1)),
        ("a.npy", (7, 5), (7, 5, 1)),
        ("a.npy", (1, 7, 5), (7, 5, 1)),
        ("a.npy", (7, 5, 1), (7, 5, 1)),
    ],
)
def test_axes_of_length_one(tmp_path, name, shape, read):
    array = voxels(shape)
    if name.endswith(".npy"):
        np.save(tmp_path / name, array)
    else:  # nibabel drops axes of length one at the end where they come with the array
        save(tmp_path / name, array)
        assert nib.load(tmp_path / name).shape == shape
    image = read_image(tmp_path / name)
    assert tuple(image.shape) == (1, *read)
    np.testing.assert_array_equal(image.numpy().ravel(), array.ravel())
    result = nib.load(write_image(tmp_path / "result.nii.gz", image, image))
    assert result.shape == ((7, 5) if name.endswith(".npy") and shape == (1, 7, 5) else shape)


@pytest.mark.parametrize("shape", [(7, 5, 3, 2), (7, 5, 3, 1, 2), (9,)])
def test_other_axes_are_refused_with_the_shape_of_the_file(tmp_path, shape):
    path = save(tmp_path / "a.npy", voxels(shape))
    with pytest.raises(ImageError) as caught:
        ReadImaged("image")({"image": str(path)})
    assert str(caught.value) == f"{path} has shape {shape}, expected a 2D or 3D image of one channel"


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_what_is_no_real_number_is_refused(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros(SHAPE, dtype))
    with pytest.raises(ImageError, match=r"holds (values of type complex64|colours \(R, G, B\)), expected an image of"):
        read_image(tmp_path / "a.npy")


def test_unknown_formats_name_the_known_ones(tmp_path):
    for name in ("IM0001.dcm", "IM0001"):
        with pytest.raises(ImageError, match=r"ends in \.nii\.gz, .*\.mgh, or DICOM"):
            read_image(tmp_path / name)


def test_pickles_are_not_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects, expected numbers"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("sform", "qform"), [(2, 1), (0, 1), (1, 0), (0, 0)])
def test_forms_and_codes_are_those_of_the_source(tmp_path, kind, sform, qform):
    """Coregistration moves the sform and leaves the qform; ITK and nibabel each place the result as the source."""
    moved = np.diag([2.0, 2, 4, 1])
    moved[:3, 3] = 20, -7, 3
    image = kind(voxels(), None)
    image.header.set_zooms((2, 2, 4))
    image.header.set_xyzt_units("mm")
    image.set_sform(moved, sform)
    image.set_qform(np.diag([2.0, 2, 4, 1]), qform)
    nib.save(image, tmp_path / "a.nii.gz")
    source = read_image(tmp_path / "a.nii.gz")
    result = nib.load(write_image(tmp_path / "b.nii.gz", source, source))
    before = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(result.affine, before.affine)
    np.testing.assert_allclose(result.header.get_zooms(), before.header.get_zooms())
    np.testing.assert_array_equal(result.header.get_sform(), before.header.get_sform())
    np.testing.assert_array_equal(result.header.get_qform(), before.header.get_qform())
    assert [int(result.header[f"{name}form_code"]) for name in "sq"] == [sform, qform]


def test_scaled_integers_are_read_in_their_units(tmp_path):
    image = nib.Nifti1Image(np.arange(105, dtype=np.int16).reshape(SHAPE), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz")[0], nib.load(tmp_path / "a.nii.gz").get_fdata())


def test_geometry_survives_transforms(tmp_path):
    """What a transform did to the affine on the way does not reach the file."""
    save(tmp_path / "a.nii.gz", voxels(), OBLIQUE)
    chain = Compose([ReadImaged("image"), Orientationd("image", "RAS", labels=None), SpatialPadd("image", (9, 9, 9))])
    data = {**chain({"image": tmp_path / "a.nii.gz"}), "pred": voxels()}
    write = WriteImaged("pred", "image", tmp_path / "out")
    assert write(data)["pred"] is data["pred"]
    result = nib.load(tmp_path / "out" / "a_translated.nii.gz")
    np.testing.assert_allclose(result.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_array_equal(result.get_fdata(dtype=np.float32), voxels())


def test_voxels_that_are_not_finite_are_never_written(tmp_path):
    source = read_image(save(tmp_path / "a.nii.gz", voxels()))
    spoilt = voxels().astype(np.float32)
    spoilt[0, 0, 0], spoilt[1, 1, 1] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"b\.nii\.gz was not written: 2 of \d+ voxels are NaN or infinite"):
        write_image(tmp_path / "b.nii.gz", spoilt, source)
    assert not (tmp_path / "b.nii.gz").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    source = read_image(save(tmp_path / "a.nii.gz", voxels()))
    path = tmp_path / "out" / "b.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"before")
    write = formats.WRITERS[".nii.gz"]

    def cut_short(place, *rest):
        write(place, *rest)
        place.write_bytes(place.read_bytes()[:100])

    def other_voxels(place, array, *rest):
        write(place, array + 1, *rest)

    def full(place, *_):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for broken, says in ((cut_short, "."), (other_voxels, "read back is not what was written"), (full, "disk is full")):
        monkeypatch.setitem(formats.WRITERS, ".nii.gz", broken)
        with pytest.raises(OSError, match=rf"b\.nii\.gz could not be written: .*{says}"):
            write_image(path, source, source)
        assert path.read_bytes() == b"before"
        assert list(path.parent.iterdir()) == [path]


def test_voxels_of_another_grid_are_refused(tmp_path):
    source = read_image(save(tmp_path / "a.nii.gz", voxels()))
    with pytest.raises(ValueError, match=r"b\.nii: expected the voxels of an image of shape \(7, 5, 3\), got \(7, 5"):
        write_image(tmp_path / "b.nii", voxels((7, 5, 2)), source)
    with pytest.raises(ValueError, match=r"output_ext must be one of \.nii\.gz, .*, got 'nii'"):
        WriteImaged("pred", "image", tmp_path, "nii")


def test_a_format_is_a_function_and_a_line_for_each_way(tmp_path, monkeypatch):
    """What CONTRIBUTING.md says of adding one."""
    monkeypatch.setitem(formats.READERS, ".txt", lambda path: formats.Raw(np.loadtxt(path), np.eye(4), {}))
    monkeypatch.setitem(formats.WRITERS, ".txt", lambda path, values, affine, meta, level: np.savetxt(path, values))
    monkeypatch.setattr("pipeline.io.reading.READABLE", (*READABLE, ".txt"))
    monkeypatch.setattr("pipeline.io.writing.WRITABLE", (*WRITABLE, ".txt"))
    np.savetxt(tmp_path / "a.txt", voxels()[0])
    image = read_image(tmp_path / "a.txt")
    np.testing.assert_allclose(image.numpy()[0, ..., 0], voxels()[0], atol=1e-6)
    write_image(tmp_path / "b.txt", image + 1, image)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "b.txt"), image.numpy()[0, ..., 0] + 1)


@pytest.mark.parametrize(
    ("path", "name"), [("x/a.nii.gz", "a"), ("a.b.NII.GZ", "a.b"), ("a.mgz", "a"), ("a", "a"), ("a.txt", "a")]
)
def test_names(path, name):
    assert name_of(path) == name


def test_sizes_come_from_the_header_before_anything_is_unpacked(tmp_path, monkeypatch):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 3))
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock))
    with pytest.raises(ImageError, match=r"shape \(30000, 30000, 3\) in its header, 10.8 GB of voxels; at most 8 GB"):
        read_image(tmp_path / "bomb.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((10, 10, 10), np.float32), np.eye(4)), tmp_path / "small.nii.gz")
    assert read_image(tmp_path / "small.nii.gz").shape == (1, 10, 10, 10)
    monkeypatch.setenv("REGGAN_MAX_IMAGE_GB", "1e-6")
    with pytest.raises(ImageError, match="REGGAN_MAX_IMAGE_GB"):
        read_image(tmp_path / "small.nii.gz")


def test_a_damaged_byte_is_not_read_over(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-8] ^= 1  # of the sum that gzip keeps
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        read_image(tmp_path / "a.nii.gz")
