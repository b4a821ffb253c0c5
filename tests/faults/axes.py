"""Which axis is the slice axis, and axes of length one."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np

from faults.kinds import cause
from faults.trial import Trial, as_json, correlation, head, save, seed_of

KIND = "slice axis"
WORDS = ("slice_axis", "axial", "sagittal", "coronal", "thick", "in-plane", "shape", r"\bslices?\b.*axis")
AXIAL = np.diag([2.0, 2, 4, 1])
# The stored axes are A, S, R with the thick voxels along R; and R, S, A with the thick ones along A.
SAGITTAL = np.array([[0, 0, 4, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])
CORONAL = np.array([[2, 0, 0, 0], [0, 0, 4, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])
GOOD = 0.85


def translated_or_said(trial: Trial, name: str, truth: np.ndarray, *more: str) -> str:
    """A file is translated as well as an axial one, or something is said."""
    done = trial.translate(name, *more)
    return trial.right_or_said(done, lambda: correlation(trial.translated(name), np.squeeze(truth)) > GOOD, *WORDS)


@cause(KIND, "one sagittal slice as (H, W, 1)", reported=True)
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.nii.gz", image[:, :, 3:4], SAGITTAL)
    return translated_or_said(trial, "s.nii.gz", label[:, :, 3])


@cause(KIND, "one sagittal slice as (H, W)", reported=True)
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.nii.gz", image[:, :, 3], SAGITTAL)
    return translated_or_said(trial, "s.nii.gz", label[:, :, 3])


@cause(KIND, "one coronal slice as (X, 1, Z)")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("c.nii.gz", image[:, :, 3:4].transpose(0, 2, 1), np.diag([2.0, 4, 2, 1]))
    return translated_or_said(trial, "c.nii.gz", label[:, :, 3])


@cause(KIND, "one slice as (1, Y, Z) of a volume")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.nii.gz", image[:, :, 3:4].transpose(2, 0, 1), np.diag([4.0, 2, 2, 1]))
    return translated_or_said(trial, "s.nii.gz", label[:, :, 3])


@cause(KIND, "a sagittal stack for a model of axial slices", reported=True)
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.nii.gz", image, SAGITTAL)
    return translated_or_said(trial, "s.nii.gz", label)


@cause(KIND, "a coronal stack for a model of axial slices")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("c.nii.gz", image, CORONAL)
    return translated_or_said(trial, "c.nii.gz", label)


@cause(KIND, "a stack that is tilted by 50 degrees out of the axial plane")
def _(trial: Trial) -> str:
    image, label = head()
    angle = np.deg2rad(50)
    turned = np.eye(4)
    turned[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    trial.save("t.nii.gz", image, turned @ AXIAL)
    return translated_or_said(trial, "t.nii.gz", label)


@cause(KIND, "a sagittal stack as NRRD")
def _(trial: Trial) -> str:
    image, label = head()
    picture = itk.image_from_array(image.T.copy())
    picture.SetSpacing([2, 2, 4])
    picture.SetDirection(np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]))
    itk.imwrite(picture, str(trial.folder / "s.nrrd"))
    return translated_or_said(trial, "s.nrrd", label)


@cause(KIND, "a slice as (1, H, W) of .npy", reported=True)
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.npy", image[None, :, :, 3])
    return translated_or_said(trial, "s.npy", label[:, :, 3])


@cause(KIND, "a slice as (H, W, 1) of .npy")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.npy", image[:, :, 3:4])
    return translated_or_said(trial, "s.npy", label[:, :, 3])


@cause(KIND, "a stack as (slices, H, W) of .npy, which has no header")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.npy", image.transpose(2, 0, 1).copy())
    return translated_or_said(trial, "s.npy", label.transpose(2, 0, 1))


@cause(KIND, "a slice of one row as (1, H, 1) of .npy")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.npy", image[None, :, 17:18, 3])
    return translated_or_said(trial, "s.npy", np.full_like(label[:, 17, 3], np.nan))


@cause(KIND, "two trailing axes of length one", reported=True)
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.nii.gz", image[..., None, None])
    return translated_or_said(trial, "s.nii.gz", label)


@cause(KIND, "three trailing axes of length one")
def _(trial: Trial) -> str:
    image, label = head()
    trial.save("s.nii.gz", image[..., None, None, None])
    return translated_or_said(trial, "s.nii.gz", label)


@cause(KIND, "one axial slice (X, Y, 1) keeps its shape", reported=True)
def _(trial: Trial) -> str:
    image, _ = head()
    trial.save("s.nii.gz", image[:, :, 3:4])
    done = trial.translate("s.nii.gz")
    return trial.right_or_said(
        done, lambda: nib.load(trial.folder / "out/s_translated.nii.gz").shape == (40, 34, 1), "shape"
    )


@cause(KIND, "FreeSurfer's .mgz of one coronal slice")
def _(trial: Trial) -> str:
    image, label = head()
    nib.save(nib.MGHImage(image[:, :, 3:4].transpose(0, 2, 1).copy(), np.diag([2.0, 4, 2, 1])), trial.folder / "c.mgz")
    return translated_or_said(trial, "c.mgz", label[:, :, 3])


@cause(KIND, "another slice axis than the model's is asked for")
def _(trial: Trial) -> str:
    trial.save("s.nii.gz", head()[0])
    return trial.refused(trial.translate("s.nii.gz", "--slice_axis", "0"), "slice_axis", anywhere=True)


@cause(KIND, "a sagittal data set: the model remembers its axis")
def _(trial: Trial) -> str:
    data = trial.dataset(affine=SAGITTAL)
    done = trial.train(data=data)
    if done.code != 0:
        return trial.refused(done, *WORDS)
    recipe = trial.script("describe_model.py", "out/model.pt", "--json")
    return trial.right_or_said(done, lambda: '"slice_axis": 0' in recipe.text, *WORDS)


@cause(KIND, "a data set of axial and of sagittal stacks")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for kind in ("images", "labels"):
        volume = nib.load(data / f"{kind}Tr" / "b.nii.gz").get_fdata(dtype=np.float32)
        save(data / f"{kind}Tr" / "b.nii.gz", volume, SAGITTAL)
    return trial.right_or_said(trial.train(data=data), lambda: False, *WORDS)


@cause(KIND, "training slices as (1, H, W) of .npy")
def _(trial: Trial) -> str:
    for split in ("train", "val"):
        for number in range(3):
            image, label = head(seed_of(f"{split}{number}"))
            trial.save(f"data/{split}/A/{number}.npy", image[None, :, :, 3])
            trial.save(f"data/{split}/B/{number}.npy", label[None, :, :, 3])
    done = trial.train(data="data")

    def right() -> bool:
        network = as_json(trial.folder / "out/config.json")["spatial_size"]
        return network == 32 and bool(done.says()) is False and "3 training" in done.text

    return trial.right_or_said(done, right, *WORDS)
