"""The source's place in the header is the result's, for nibabel and for ITK."""

from __future__ import annotations

from collections.abc import Callable

import itk
import nibabel as nib
import numpy as np

from faults.kinds import cause
from faults.trial import Trial, head, silent

KIND = "header"
AFFINE = np.diag([2.0, 2, 4, 1])
MOVED = np.array([[2, 0, 0, 20], [0, 2, 0, -7], [0, 0, 4, 3], [0, 0, 0, 1.0]])


def turned(degrees: float, about: int = 2) -> np.ndarray:
    """The affine, turned about an axis."""
    a, b = (axis for axis in range(3) if axis != about)
    angle = np.deg2rad(degrees)
    rotation = np.eye(4)
    rotation[[a, a, b, b], [a, b, a, b]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
    return rotation @ MOVED


def by_itk(path) -> np.ndarray | str:
    """Origin, spacing and direction of a file, or that it is refused."""
    try:
        image = itk.imread(str(path))
    except Exception:
        return "refused"
    direction = np.asarray(itk.array_from_matrix(image.GetDirection())).ravel()
    return np.concatenate([np.array(image.GetOrigin()), np.array(image.GetSpacing()), direction])


def same_place(trial: Trial, make: Callable[[np.ndarray], nib.Nifti1Image], name: str = "s.nii.gz") -> str:
    """Both readers place the result where they place the source, and the codes are the source's."""
    source, result = trial.folder / name, trial.folder / "out/s_translated.nii.gz"
    nib.save(make(head()[0]), source)
    done = trial.translate(name)
    if done.code != 0:
        return trial.refused(done, "affine", "header", "sform", "qform", "spacing", "shear", "orient", anywhere=True)
    one, other = nib.load(source), nib.load(result)
    if np.abs(one.affine - other.affine).max() > 1e-3:
        silent(f"nibabel places the result {np.abs(one.affine - other.affine).max():.3g} off", done)
    here, there = by_itk(source), by_itk(result)
    if isinstance(there, str) and not isinstance(here, str):
        silent("ITK reads the source, and refuses the result", done)
    if not isinstance(here, str) and np.abs(here - there).max() > 1e-3:
        silent(f"ITK places the result {np.abs(here - there).max():.3g} off", done)
    for code in ("sform_code", "qform_code"):
        if code in one.header and int(one.header[code]) != int(other.header[code]):
            silent(f"{code} {int(one.header[code])} became {int(other.header[code])}", done)
    if "xyzt_units" in one.header and one.header.get_xyzt_units()[0] not in (
        "unknown",
        other.header.get_xyzt_units()[0],
    ):
        silent(f"units {one.header.get_xyzt_units()} became {other.header.get_xyzt_units()}", done)
    return "right"


def coded(
    voxels: np.ndarray, sform: np.ndarray | None, scode: int, qform: np.ndarray | None, qcode: int
) -> nib.Nifti1Image:
    """A file with these two places and codes."""
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_qform(qform, qcode)
    image.set_sform(sform, scode)
    return image


@cause(KIND, "sform and qform differ", reported=True)
def _(trial: Trial) -> str:
    return same_place(trial, lambda voxels: coded(voxels, MOVED, 2, AFFINE, 1))


@cause(KIND, "no code at all", reported=True)
def _(trial: Trial) -> str:
    def make(voxels: np.ndarray) -> nib.Nifti1Image:
        image = nib.Nifti1Image(voxels, None)
        image.header.set_zooms((2, 2, 4))
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        return image

    return same_place(trial, make)


@cause(KIND, "a sheared sform", reported=True)
def _(trial: Trial) -> str:
    sheared = MOVED.copy()
    sheared[0, 1] = 0.6
    return same_place(trial, lambda voxels: coded(voxels, sheared, 1, AFFINE, 1))


@cause(KIND, "a qform alone")
def _(trial: Trial) -> str:
    return same_place(trial, lambda voxels: coded(voxels, None, 0, turned(12), 1))


@cause(KIND, "an sform alone")
def _(trial: Trial) -> str:
    return same_place(trial, lambda voxels: coded(voxels, turned(-9), 1, None, 0))


@cause(KIND, "an sform in MNI's space and a qform in the scanner's")
def _(trial: Trial) -> str:
    return same_place(trial, lambda voxels: coded(voxels, turned(30), 4, MOVED, 1))


@cause(KIND, "a left-handed grid, as radiologists store it")
def _(trial: Trial) -> str:
    flipped = MOVED @ np.diag([-1.0, 1, 1, 1])
    return same_place(trial, lambda voxels: coded(voxels, flipped, 1, flipped, 1))


@cause(KIND, "an oblique grid about two axes, stored as P, I, R")
def _(trial: Trial) -> str:
    oblique = turned(17, 0) @ np.linalg.inv(MOVED) @ turned(8, 1)
    return same_place(trial, lambda voxels: coded(voxels, oblique, 1, oblique, 1))


@cause(KIND, "sform and qform on two sides: left and right swapped between them")
def _(trial: Trial) -> str:
    return same_place(trial, lambda voxels: coded(voxels, MOVED @ np.diag([-1.0, 1, 1, 1]), 1, MOVED, 1))


@cause(KIND, "a sheared sform alone, without a qform")
def _(trial: Trial) -> str:
    sheared = turned(10)
    sheared[1, 2] += 0.8
    return same_place(trial, lambda voxels: coded(voxels, sheared, 2, None, 0))


@cause(KIND, "units of micrometres")
def _(trial: Trial) -> str:
    def make(voxels: np.ndarray) -> nib.Nifti1Image:
        image = coded(voxels, AFFINE, 1, AFFINE, 1)
        image.header.set_xyzt_units("micron")
        return image

    return same_place(trial, make)


@cause(KIND, "NIfTI 2")
def _(trial: Trial) -> str:
    return same_place(trial, lambda voxels: nib.Nifti2Image(voxels, turned(5)))


@cause(KIND, "big-endian NIfTI")
def _(trial: Trial) -> str:
    def make(voxels: np.ndarray) -> nib.Nifti1Image:
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(">f4")
        return nib.Nifti1Image(voxels, turned(5), header)

    return same_place(trial, make)


@cause(KIND, "FreeSurfer's .mgz, oblique")
def _(trial: Trial) -> str:
    nib.save(nib.MGHImage(head()[0], turned(14)), trial.folder / "s.mgz")
    done = trial.translate("s.mgz")
    return trial.right_or_said(
        done,
        lambda: np.abs(nib.load(trial.folder / "out/s_translated.nii.gz").affine - turned(14)).max() < 1e-3,
        "affine",
    )


def itk_source(trial: Trial, suffix: str) -> str:
    """A source that ITK wrote is placed by ITK where its result is."""
    image = itk.image_from_array(head()[0].T.copy())
    image.SetSpacing([2, 2, 4])
    image.SetOrigin([11, -5, 3])
    image.SetDirection(turned(21)[:3, :3] @ np.diag([0.5, 0.5, 0.25]))
    itk.imwrite(image, str(trial.folder / f"s{suffix}"))
    done = trial.translate(f"s{suffix}", "--output_ext", suffix)
    if done.code != 0:
        return trial.refused(done, "output_ext")
    here, there = by_itk(trial.folder / f"s{suffix}"), by_itk(trial.folder / f"out/s_translated{suffix}")
    return "right" if np.abs(here - there).max() < 1e-3 else silent("ITK places the result elsewhere", done)


@cause(KIND, "an oblique MetaImage")
def _(trial: Trial) -> str:
    return itk_source(trial, ".mha")


@cause(KIND, "an oblique NRRD")
def _(trial: Trial) -> str:
    return itk_source(trial, ".nrrd")
