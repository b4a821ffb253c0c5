"""Files that are odd, and names that are."""

from __future__ import annotations

import gzip
import os
import shutil
import struct

import itk
import nibabel as nib
import numpy as np

from faults.kinds import cause
from faults.trial import AFFINE, Trial, correlation, head, silent

KIND = "odd files"


def named(trial: Trial, name: str, folder: str = "") -> str:
    """A volume of an odd name is translated, or refused by its name."""
    image, label = head()
    trial.save("plain.nii.gz", image)
    place = trial.folder / folder / name
    place.parent.mkdir(exist_ok=True)
    shutil.copy(trial.folder / "plain.nii.gz", place)
    done = trial.translate(place)
    if done.code != 0:
        return trial.refused(done, "image", "name", anywhere=True)
    found = list((trial.folder / "out").rglob("*_translated.nii.gz"))
    if len(found) != 1 or correlation(np.squeeze(nib.load(found[0]).get_fdata()), label) < 0.85:
        silent(f"results: {[path.name for path in found]}", done)
    return "right"


def refused(trial: Trial, name: str, *patterns: str, seconds: float = 20, **how) -> str:
    """A file is refused in these words within seconds, and nothing is written."""
    done = trial.translate(name, timeout=seconds, **how)
    outcome = trial.refused(done, *patterns, anywhere=True)
    trial.nothing_written()
    return outcome


def header(shape: tuple[int, ...], datatype: int = 16, bits: int = 32) -> bytes:
    """The header of a NIfTI file that promises voxels of this shape."""
    made = nib.Nifti1Header()
    made.set_data_shape((1, 1, 1))
    raw = bytearray(made.binaryblock)
    struct.pack_into("<8h", raw, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", raw, 70, datatype, bits)
    struct.pack_into("<8f", raw, 76, 1, 2, 2, 4, 1, 1, 1, 1)
    struct.pack_into("<f", raw, 108, 352)
    raw[344:348] = b"n+1\0"
    return bytes(raw) + bytes(4)


def limited() -> None:
    """As much memory as a small machine has, so that a bomb does no harm where it is not refused."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))


@cause(KIND, "a complex image", reported=True)
def _(trial: Trial) -> str:
    trial.save("c.nii.gz", (head()[0] * (1 + 1j)).astype(np.complex64))
    return refused(trial, "c.nii.gz", "complex")


@cause(KIND, "a complex image as .npy")
def _(trial: Trial) -> str:
    trial.save("c.npy", (head()[0][:, :, 3] * (1 + 1j)).astype(np.complex128))
    return refused(trial, "c.npy", "complex")


@cause(KIND, "a complex image among those of training")
def _(trial: Trial) -> str:
    data = trial.dataset()
    nib.save(nib.Nifti1Image((head()[0] * (1 + 1j)).astype(np.complex64), AFFINE), data / "imagesTr/b.nii.gz")
    return trial.refused(trial.train(data=data), "complex", anywhere=True)


@cause(KIND, "an image in colours")
def _(trial: Trial) -> str:
    colours = np.zeros((40, 34, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = head()[0] / 4
    nib.save(nib.Nifti1Image(colours, AFFINE), trial.folder / "c.nii.gz")
    return refused(trial, "c.nii.gz", "colour", "RGB", "channel", r"\bR\b.*\bG\b")


@cause(KIND, "X.NII.GZ in capitals", reported=True)
def _(trial: Trial) -> str:
    return named(trial, "X.NII.GZ")


@cause(KIND, "X.Nii in both cases")
def _(trial: Trial) -> str:
    image, label = head()
    nib.save(nib.Nifti1Image(image, AFFINE), trial.folder / "x.nii")
    (trial.folder / "x.nii").rename(trial.folder / "X.Nii")
    done = trial.translate("X.Nii")
    return trial.right_or_said(
        done, lambda: correlation(nib.load(next((trial.folder / "out").glob("*.gz"))).get_fdata(), label) > 0.85, "Nii"
    )


@cause(KIND, "a folder with volumes in capitals")
def _(trial: Trial) -> str:
    trial.save("plain.nii.gz", head()[0])
    (trial.folder / "in").mkdir()
    shutil.copy(trial.folder / "plain.nii.gz", trial.folder / "in/X.NII.GZ")
    done = trial.translate("in")
    return trial.right_or_said(done, lambda: any((trial.folder / "out").glob("*_translated.nii.gz")), r"X\.NII")


@cause(KIND, "a path with #", reported=True)
def _(trial: Trial) -> str:
    return named(trial, "case#1.nii.gz", "in #2")


@cause(KIND, "a path with spaces, accents and %")
def _(trial: Trial) -> str:
    return named(trial, "Müller, 50 % größer.nii.gz", "äußere Köpfe")


@cause(KIND, "a path with brackets and stars")
def _(trial: Trial) -> str:
    return named(trial, "a[1]*?.nii.gz", "[in]")


@cause(KIND, "a path with quotes and commas")
def _(trial: Trial) -> str:
    return named(trial, 'it\'s,"one".nii.gz')


@cause(KIND, "a path with a line break")
def _(trial: Trial) -> str:
    return named(trial, "a\nb.nii.gz")


@cause(KIND, "a path with ~ and {}")
def _(trial: Trial) -> str:
    return named(trial, "{x}~.nii.gz", "~in")


@cause(KIND, "a name with dots: a.b.c.nii.gz")
def _(trial: Trial) -> str:
    return named(trial, "a.b.c.nii.gz")


@cause(KIND, "a name of 240 letters")
def _(trial: Trial) -> str:
    return named(trial, "a" * 240 + ".nii.gz")


@cause(KIND, "a name that is no UTF-8")
def _(trial: Trial) -> str:
    return named(trial, os.fsdecode(b"caf\xe9.nii.gz"))


@cause(KIND, "a gzip bomb: 8 GB of zeros in 8 MB", reported=True)
def _(trial: Trial) -> str:
    zeros = gzip.compress(bytes(1 << 20))
    with open(trial.folder / "bomb.nii.gz", "wb") as file:
        file.write(gzip.compress(header((32000, 32000, 2))))
        for _ in range(8192):
            file.write(zeros)
    return refused(trial, "bomb.nii.gz", r"\bGB\b", r"\bMB\b", "large", "bytes", "voxels", prepare=limited)


@cause(KIND, "a header that promises 30000 x 30000 x 30000 voxels")
def _(trial: Trial) -> str:
    (trial.folder / "h.nii").write_bytes(header((30000, 30000, 30000)) + bytes(1000))
    return refused(
        trial, "h.nii", r"\bGB\b", "large", "bytes", "voxels", "cut short", "cannot be read", prepare=limited
    )


@cause(KIND, "an .npy header that promises a terabyte")
def _(trial: Trial) -> str:
    with open(trial.folder / "h.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (700000, 700000)})
        file.write(bytes(100))
    return refused(
        trial, "h.npy", r"\bGB\b", "large", "bytes", "voxels", "cut short", "cannot be read", prepare=limited
    )


@cause(KIND, "a gzip bomb among the volumes of training")
def _(trial: Trial) -> str:
    data = trial.dataset()
    zeros = gzip.compress(bytes(1 << 20))
    with open(data / "imagesTr/b.nii.gz", "wb") as file:
        file.write(gzip.compress(header((32000, 32000, 2))))
        for _ in range(8192):
            file.write(zeros)
    done = trial.train(data=data, timeout=30, prepare=limited)
    return trial.refused(done, r"\bb\.nii\.gz.*(\bGB\b|\bMB\b|large|bytes|voxels)", anywhere=True)


@cause(KIND, "a header with an axis of no length")
def _(trial: Trial) -> str:
    (trial.folder / "h.nii").write_bytes(header((40, 0, 6)))
    return refused(trial, "h.nii", "shape", "empty", "cannot be read", "voxel")


@cause(KIND, "a header with a negative axis")
def _(trial: Trial) -> str:
    (trial.folder / "h.nii").write_bytes(header((40, -34, 6)) + bytes(40 * 34 * 6 * 4))
    return refused(trial, "h.nii", "shape", "empty", "cannot be read", "voxel", "negative")


@cause(KIND, "voxels of no size in the header")
def _(trial: Trial) -> str:
    raw = bytearray(header((40, 34, 6)))
    struct.pack_into("<8f", raw, 76, 1, 0, 0, 0, 0, 0, 0, 0)
    (trial.folder / "h.nii").write_bytes(bytes(raw) + head()[0].tobytes("F"))
    done = trial.translate("h.nii")
    return trial.right_or_said(done, lambda: False, "affine", "spacing", "size", "singular", "mm")


@cause(KIND, "a place that is not a number")
def _(trial: Trial) -> str:
    image = nib.Nifti1Image(head()[0], AFFINE)
    image.header["srow_x"] = [np.nan] * 4
    image.header["sform_code"] = 1
    raw = image.to_bytes()
    broken = bytearray(raw)
    struct.pack_into("<4f", broken, 280, *[np.nan] * 4)
    (trial.folder / "h.nii").write_bytes(broken)
    return refused(trial, "h.nii", "affine", "finite", "nan")


@cause(KIND, "a device file", reported=True)
def _(trial: Trial) -> str:
    (trial.folder / "d.nii").symlink_to("/dev/zero")
    return refused(trial, "d.nii", "device", "regular", "no such file", "pipe", prepare=limited)


@cause(KIND, "a device file itself as image")
def _(trial: Trial) -> str:
    return refused(trial, "/dev/random", "device", "regular", "no such file", "format", prepare=limited)


@cause(KIND, "a pipe that nobody writes to", reported=True)
def _(trial: Trial) -> str:
    os.mkfifo(trial.folder / "p.nii.gz")
    return refused(trial, "p.nii.gz", "pipe", "regular", "no such file")


@cause(KIND, "a pipe in a folder of volumes")
def _(trial: Trial) -> str:
    trial.save("in/a.nii.gz", head()[0])
    os.mkfifo(trial.folder / "in/p.nii.gz")
    done = trial.translate("in", timeout=20)
    return trial.right_or_said(done, lambda: False, r"\bp\.nii\.gz")


@cause(KIND, "a pipe among the images of training")
def _(trial: Trial) -> str:
    data = trial.dataset()
    (data / "imagesTr/b.nii.gz").unlink()
    os.mkfifo(data / "imagesTr/b.nii.gz")
    return trial.right_or_said(trial.train(data=data, timeout=20), lambda: False, r"\bb\.nii\.gz")


@cause(KIND, "a socket as image")
def _(trial: Trial) -> str:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(trial.folder / "s.nii.gz"))
        return refused(trial, "s.nii.gz", "socket", "regular", "no such file", "pipe")


@cause(KIND, "gzip under the name .nii")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("plain.nii.gz", image)
    (trial.folder / "plain.nii.gz").rename(trial.folder / "g.nii")
    done = trial.translate("g.nii")
    return trial.right_or_said(done, lambda: correlation(trial.translated("g.nii"), label) > 0.85, "gzip", r"g\.nii")


@cause(KIND, "no gzip under the name .nii.gz")
def _(trial: Trial) -> str:
    image, label = head()
    nib.save(nib.Nifti1Image(image, AFFINE), trial.folder / "p.nii")
    (trial.folder / "p.nii").rename(trial.folder / "p.nii.gz")
    done = trial.translate("p.nii.gz")
    return trial.right_or_said(done, lambda: correlation(trial.translated("p.nii.gz"), label) > 0.85, "gzip", r"p\.nii")


@cause(KIND, "a MetaImage whose voxels are another file's")
def _(trial: Trial) -> str:
    itk.imwrite(itk.image_from_array(head()[0].T.copy()), str(trial.folder / "s.mhd"))
    text = (trial.folder / "s.mhd").read_text()
    (trial.folder / "s.mhd").write_text(text.replace("s.raw", "gone.raw"))
    return refused(trial, "s.mhd", "s.mhd")


@cause(KIND, "an .npz under the name .npy")
def _(trial: Trial) -> str:
    np.savez(trial.folder / "a.npz", image=head()[0])
    (trial.folder / "a.npz").rename(trial.folder / "a.npy")
    return refused(trial, "a.npy", r"a\.npy")


@cause(KIND, "an .npy of words")
def _(trial: Trial) -> str:
    np.save(trial.folder / "a.npy", np.array([["a", "b"], ["c", "d"]]))
    return refused(trial, "a.npy", r"a\.npy")


@cause(KIND, "a last block of gzip that was damaged on the way")
def _(trial: Trial) -> str:
    path = trial.save("a.nii.gz", head()[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return refused(trial, "a.nii.gz", r"a\.nii\.gz")
