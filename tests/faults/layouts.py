"""Layouts of others."""

from __future__ import annotations

import json
import re
import shutil

import itk
import nibabel as nib
import numpy as np

from faults.kinds import cause
from faults.trial import AFFINE, Trial, correlation, head, save, silent

KIND = "layouts"
PAIRS = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in "abc"]
CHANNELS = ("channel", "one image")


def trains(trial: Trial, data, *patterns: str, pairs: int | None = None) -> str:
    """A layout is taken with all its pairs, or refused in these words."""
    done = trial.train(data=data)
    if done.code != 0:
        return trial.refused(done, *patterns, anywhere=True)
    found = re.search(r"(\d+) training pairs", done.text)
    used = pairs is None or (found is not None and int(found.group(1)) == pairs)
    return trial.right_or_said(done, lambda: used and (trial.folder / "out/model.pt").is_file(), *patterns)


@cause(KIND, "test images without labels", reported=True)
def _(trial: Trial) -> str:
    data = trial.dataset(test="t")
    shutil.rmtree(data / "labelsTs")
    return trains(trial, data, "no such words")


@cause(KIND, "test images without labels, evaluated")
def _(trial: Trial) -> str:
    data = trial.dataset(test="t")
    shutil.rmtree(data / "labelsTs")
    return trial.refused(trial.evaluate("--dataset_dir", data), "label", anywhere=True)


@cause(KIND, "some test images without labels")
def _(trial: Trial) -> str:
    data = trial.dataset(test="tu")
    (data / "labelsTs/u.nii.gz").unlink()
    return trains(trial, data, r"\bu\.nii\.gz")


@cause(KIND, "validation images without labels")
def _(trial: Trial) -> str:
    data = trial.dataset()
    shutil.rmtree(data / "labelsVal")
    return trains(trial, data, "labelsVal")


@cause(KIND, "a datalist whose test list is plain paths", reported=True)
def _(trial: Trial) -> str:
    data = trial.dataset(test="t")
    (data / "datalist.json").write_text(json.dumps({"training": PAIRS, "test": ["./imagesTs/t.nii.gz"]}))
    return trains(trial, data, r"test\[0\].*label")


@cause(KIND, "a datalist whose training list is plain paths")
def _(trial: Trial) -> str:
    data = trial.dataset()
    (data / "datalist.json").write_text(json.dumps({"training": [pair["image"] for pair in PAIRS]}))
    return trains(trial, data, r"training\[0\].*(path|label|\"image\")")


@cause(KIND, "a datalist that is a list itself")
def _(trial: Trial) -> str:
    data = trial.dataset()
    (data / "datalist.json").write_text(json.dumps(PAIRS))
    return trains(trial, data, "training")


@cause(KIND, "a datalist with absolute paths")
def _(trial: Trial) -> str:
    data = trial.dataset()
    pairs = [{key: str(data / value) for key, value in pair.items()} for pair in PAIRS]
    (data / "datalist.json").write_text(json.dumps({"training": pairs}))
    return trains(trial, data, "no such words")


@cause(KIND, "a datalist from Windows: backslashes, a byte order mark, CRLF")
def _(trial: Trial) -> str:
    data = trial.dataset()
    text = json.dumps({"training": PAIRS}, indent=1).replace("/", "\\\\").replace("\n", "\r\n")
    (data / "datalist.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return trains(trial, data, r"\\", "backslash", "byte order mark", "BOM")


@cause(KIND, "a datalist with a comma too many")
def _(trial: Trial) -> str:
    data = trial.dataset()
    (data / "datalist.json").write_text(json.dumps({"training": PAIRS}).replace("]", ",]"))
    return trains(trial, data, r"datalist\.json: line 1")


@cause(KIND, "a datalist whose image is a list", reported=True)
def _(trial: Trial) -> str:
    data = trial.dataset()
    pairs = [{"image": [pair["image"], pair["label"]], "label": pair["label"]} for pair in PAIRS]
    (data / "datalist.json").write_text(json.dumps({"training": pairs}))
    return trains(trial, data, "one path", *CHANNELS)


@cause(KIND, "BIDS: sub-01/anat/sub-01_T1w.nii.gz and T2w", reported=True)
def _(trial: Trial) -> str:
    for number in range(1, 4):
        for name, voxels in zip(("T1w", "T2w"), head(number), strict=True):
            trial.save(f"data/sub-0{number}/anat/sub-0{number}_{name}.nii.gz", voxels)
    trial.folder.joinpath("data/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    return trains(trial, "data", "BIDS")


@cause(KIND, "BIDS with sessions and a participants' table")
def _(trial: Trial) -> str:
    for number in range(1, 4):
        for session in (1, 2):
            stem = f"sub-0{number}/ses-{session}/anat/sub-0{number}_ses-{session}"
            for name, voxels in zip(("T1w", "FLAIR"), head(number * session), strict=True):
                trial.save(f"data/{stem}_{name}.nii.gz", voxels)
    trial.folder.joinpath("data/participants.tsv").write_text("participant_id\nsub-01\nsub-02\nsub-03\n")
    return trains(trial, "data", "BIDS")


@cause(KIND, "nnU-Net: names with a channel, one channel")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for case in "abc":
        (data / f"imagesTr/{case}.nii.gz").rename(data / f"imagesTr/{case}_0000.nii.gz")
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0}, "numTraining": 3, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(about))
    return trains(trial, data, "nnU-Net", "_0000", pairs=3)


@cause(KIND, "nnU-Net: two channels", reported=True)
def _(trial: Trial) -> str:
    data = trial.dataset()
    for case in "abc":
        (data / f"imagesTr/{case}.nii.gz").rename(data / f"imagesTr/{case}_0000.nii.gz")
        save(data / f"imagesTr/{case}_0001.nii.gz", head(77)[1])
    done = trial.train(data=data)
    return trial.refused(done, *CHANNELS, anywhere=True)


@cause(KIND, "a volume of two channels in the last axis")
def _(trial: Trial) -> str:
    data = trial.dataset()
    volume = nib.load(data / "imagesTr/b.nii.gz").get_fdata(dtype=np.float32)
    save(data / "imagesTr/b.nii.gz", np.stack([volume, volume], -1))
    return trial.refused(trial.train(data=data), "channel", r"\(40, 34, 6, 2\)", anywhere=True)


@cause(KIND, "sessions of one patient, no validation folder", reported=True)
def _(trial: Trial) -> str:
    return sessions(trial, [f"sub-0{i}_ses-{j}_T1w" for i in (1, 2, 3) for j in (1, 2)], r"(sub-\d+)")


def sessions(trial: Trial, names: list[str], patient: str) -> str:
    """Files of one patient are on one side of the split that is drawn, or a warning says how to tell them apart."""
    data = trial.dataset(training=names, validation="")
    done = trial.train(data=data)
    if done.code != 0 or done.says("patient_pattern", "session"):
        return trial.right_or_said(done, lambda: False, "patient_pattern", "session")
    drawn = next((line for line in done.lines if "taken from training" in line), "")
    people = re.findall(patient, drawn)
    inside = {person for person in people if people.count(person) == 2}
    return "right" if people and len(people) == 2 * len(inside) else silent("a patient is on both sides", done)


@cause(KIND, "visits of one patient: P1_visit1 and P1_visit2")
def _(trial: Trial) -> str:
    return sessions(trial, [f"P{i}_visit{j}" for i in (1, 2, 3) for j in (1, 2)], r"(P\d+)_visit")


@cause(KIND, "time points of one patient: 001-t0 and 001-t1")
def _(trial: Trial) -> str:
    return sessions(trial, [f"00{i}-t{j}" for i in (1, 2, 3) for j in (0, 1)], r"(00\d)-t")


@cause(KIND, "dates of one patient: p1_20200101 and p1_20210101")
def _(trial: Trial) -> str:
    return sessions(trial, [f"p{i}_20{j}0101" for i in (1, 2, 3) for j in (20, 21)], r"(p\d)_20")


@cause(KIND, "one patient's sessions in imagesTr and in imagesVal")
def _(trial: Trial) -> str:
    data = trial.dataset(training=["sub-01_ses-1", "sub-02_ses-1"], validation=["sub-01_ses-2"])
    done = trial.train(data=data)
    return trial.right_or_said(done, lambda: False, "patient", "session", "sub-01")


@cause(KIND, "names of images and labels that differ: a_T1 and a_T2")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for case in "abc":
        (data / f"imagesTr/{case}.nii.gz").rename(data / f"imagesTr/{case}_T1.nii.gz")
        (data / f"labelsTr/{case}.nii.gz").rename(data / f"labelsTr/{case}_T2.nii.gz")
    return trains(trial, data, "partner", "_T1", "names", pairs=3)


@cause(KIND, "images as .nii.gz and labels as .nrrd")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for case in "abc":
        path = data / f"labelsTr/{case}.nii.gz"
        itk.imwrite(itk.imread(str(path)), str(data / f"labelsTr/{case}.nrrd"))
        path.unlink()
    return trains(trial, data, "partner", "suffix", pairs=3)


@cause(KIND, "FreeSurfer's .mgz to translate", reported=True)
def _(trial: Trial) -> str:
    image, label = head()
    nib.save(nib.MGHImage(image, AFFINE), trial.folder / "orig.mgz")
    done = trial.translate("orig.mgz")
    return trial.right_or_said(done, lambda: correlation(trial.translated("orig.mgz"), label) > 0.85, r"\.nii")


@cause(KIND, "a data set of .mgz")
def _(trial: Trial) -> str:
    data = trial.dataset()
    for path in list(data.rglob("*.nii.gz")):
        nib.save(nib.MGHImage(nib.load(path).get_fdata(dtype=np.float32), AFFINE), str(path).replace(".nii.gz", ".mgz"))
        path.unlink()
    return trains(trial, data, r"\.nii", pairs=3)


def series(folder, voxels: np.ndarray) -> None:
    """Write a volume as a DICOM series, files without a suffix as scanners name them."""
    folder.mkdir(parents=True)
    writer = itk.GDCMImageIO.New()
    writer.KeepOriginalUIDOn()
    for k in range(voxels.shape[2]):
        image = itk.image_from_array(voxels[:, :, k].T.astype(np.int16)[None].copy())
        image.SetSpacing([2, 2, 4])
        image.SetOrigin([5, -8, 4 * k])
        about = image.GetMetaDataDictionary()
        tags = {"0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0008|0060": "MR", "0018|0050": "4"}
        tags |= {"0020|0032": f"5\\-8\\{4 * k}", "0020|0037": "1\\0\\0\\0\\1\\0", "0028|0030": "2\\2"}
        for tag, value in tags.items():
            about[tag] = value
        name = str(folder / f"IM{k:04d}.dcm")
        itk.ImageFileWriter[itk.Image[itk.SS, 3]].New(Input=image, FileName=name, ImageIO=writer).Update()


@cause(KIND, "a DICOM folder to translate", reported=True)
def _(trial: Trial) -> str:
    series(trial.folder / "series", head()[0])
    done = trial.translate("series")
    return trial.right_or_said(done, lambda: any((trial.folder / "out").rglob("*.nii.gz")), "DICOM")


@cause(KIND, "a DICOM folder whose files have no suffix")
def _(trial: Trial) -> str:
    series(trial.folder / "series", head()[0])
    for path in list((trial.folder / "series").iterdir()):
        path.rename(path.with_suffix(""))
    done = trial.translate("series")
    return trial.right_or_said(done, lambda: any((trial.folder / "out").rglob("*.nii.gz")), "DICOM")


@cause(KIND, "a DICOM folder as data set")
def _(trial: Trial) -> str:
    image, label = head()
    for case in "abc":
        series(trial.folder / f"data/imagesTr/{case}", image)
        series(trial.folder / f"data/labelsTr/{case}", label)
    return trains(trial, "data", "DICOM", pairs=3)


@cause(KIND, "a file of a DICOM series", reported=True)
def _(trial: Trial) -> str:
    series(trial.folder / "series", head()[0])
    done = trial.translate("series/IM0003.dcm")

    def right() -> bool:
        [path] = (trial.folder / "out").glob("*.nii.gz")
        return bool(np.abs(nib.load(path).affine[:3, 3] - [-5, 8, 12]).max() < 0.1)

    return trial.right_or_said(done, right, "DICOM")


@cause(KIND, "a pair in two orientations of one grid", reported=True)
def _(trial: Trial) -> str:
    return reoriented(trial, "LAS")


def reoriented(trial: Trial, axes: str) -> str:
    """A label that is stored in another order of voxels is the same label."""
    data = trial.dataset()
    path = data / "labelsTr/b.nii.gz"
    stored = nib.load(path)
    turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt(axes))
    turned = stored.as_reoriented(turn)
    save(path, np.asarray(turned.dataobj).copy(), turned.affine)
    return trains(trial, data, "orientation", "reorient", axes)


@cause(KIND, "a pair in two orientations, axes swapped: PIR")
def _(trial: Trial) -> str:
    return reoriented(trial, "PIR")


CURE = (r"resampl",)


def two_grids(trial: Trial, affine: np.ndarray, change=lambda voxels: voxels) -> str:
    """A pair on two grids is refused with the numbers and the cure."""
    data = trial.dataset()
    path = data / "labelsTr/b.nii.gz"
    save(path, change(nib.load(path).get_fdata(dtype=np.float32)), affine)
    done = trial.train(data=data)
    trial.refused(done, r"\bb\.nii\.gz.*\d", anywhere=True)
    return trial.refused(done, *CURE, anywhere=True)


@cause(KIND, "a pair on two grids", reported=True)
def _(trial: Trial) -> str:
    return two_grids(trial, np.diag([1.5, 1.5, 4, 1]))


@cause(KIND, "a pair half a voxel apart")
def _(trial: Trial) -> str:
    moved = AFFINE.copy()
    moved[:3, 3] = 1
    return two_grids(trial, moved)


@cause(KIND, "a pair of two shapes")
def _(trial: Trial) -> str:
    return two_grids(trial, AFFINE, lambda voxels: voxels[:, :30])


@cause(KIND, "a pair turned by 5 degrees")
def _(trial: Trial) -> str:
    angle = np.deg2rad(5)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return two_grids(trial, turned @ AFFINE)
