"""The embedded data set: a digital brain phantom of paired T1- and T2-weighted volumes, made on first use.

No download: the anatomy comes from the MNI152 maps inside `nilearn` (`phantom_anatomy`), the contrast from the MR
signal equations (`phantom_signal`). The pairs are perfectly aligned; training adds the misalignment.
"""

from __future__ import annotations

import json
import logging
import operator
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipeline.data.phantom_anatomy import Anatomy, BrainTemplate, Grid, make_anatomy
from pipeline.data.phantom_signal import make_images
from pipeline.files import folder_beside, remove_leftovers

SPLITS = {"training": "Tr", "validation": "Val", "test": "Ts"}  # key in the datalist: suffix of the folders
RECORD_NAME = "phantom.json"  # the parameters, in the folder of a finished phantom
DATALIST_NAME = "datalist.json"
VERSION = 1  # raised whenever the same parameters would give other images

_RESOLUTION_LIMITS = (0.5, 10.0)  # mm
_NOISE_LIMITS = (0.0, 0.5)
_BIAS_LIMITS = (0.0, 0.5)
_MOST_LESIONS = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhantomParameters:
    """Everything that determines a phantom, checked on construction.

    Args:
        subjects: how many subjects to make for training, validation and test; at least one for training.
        seed: whole number >= 0. Subject k depends on the seed and k alone.
        resolution: edge of a voxel in mm, in [0.5, 10].
        noise: SD of the receiver noise relative to the white matter signal, in [0, 0.5].
        bias: strength of the smooth shading (SD of its logarithm), in [0, 0.5].
        lesions: fewest and most white matter lesions of a subject.

    Raises:
        ValueError: if a value is out of its range; names the parameter, the value and what was expected.
    """

    subjects: Sequence[int] = (6, 2, 2)
    seed: int = 0
    resolution: float = 2.0
    noise: float = 0.03
    bias: float = 0.08
    lesions: Sequence[int] = (5, 20)

    def __post_init__(self) -> None:
        subjects = _whole_numbers("subjects", self.subjects, 3, "numbers of training, validation and test subjects")
        if subjects[0] == 0:
            raise ValueError(f"subjects must hold at least one training subject, got {subjects}")
        lesions = _whole_numbers("lesions", self.lesions, 2, "numbers, the fewest and the most")
        if not lesions[0] <= lesions[1] <= _MOST_LESIONS:
            raise ValueError(f"lesions must be (fewest, most) with fewest <= most <= {_MOST_LESIONS}, got {lesions}")
        checked = {
            "subjects": subjects,
            "seed": _whole_numbers("seed", (self.seed,), 1, "number")[0],
            "resolution": _number_within("resolution", self.resolution, _RESOLUTION_LIMITS, "mm"),
            "noise": _number_within("noise", self.noise, _NOISE_LIMITS),
            "bias": _number_within("bias", self.bias, _BIAS_LIMITS),
            "lesions": lesions,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the way to normalise a field of a frozen dataclass


@dataclass(frozen=True)
class Subject:
    """One subject of the phantom: T1- and T2-weighted volume (X, Y, Z) float32, their affine, and what is in them."""

    t1: np.ndarray
    t2: np.ndarray
    affine: np.ndarray
    anatomy: Anatomy


def simulate_subject(number: int, parameters: PhantomParameters, template: BrainTemplate | None = None) -> Subject:
    """Make one subject in memory.

    Args:
        number: which subject, >= 1.
        parameters: of the phantom; the numbers of subjects play no part.
        template: the MNI152 maps, to share them between subjects; loaded where absent.

    Returns:
        The subject; same arguments, same arrays.
    """
    grid = Grid(parameters.resolution)
    anatomy = make_anatomy(template or BrainTemplate(), grid, parameters.seed, number, parameters.lesions)
    t1, t2 = make_images(anatomy, grid, parameters.seed, number, parameters.noise, parameters.bias)
    return Subject(t1, t2, grid.affine, anatomy)


def make_phantom(
    output_dir: str | Path,
    subjects: Sequence[int] = PhantomParameters.subjects,
    seed: int = PhantomParameters.seed,
    resolution: float = PhantomParameters.resolution,
    noise: float = PhantomParameters.noise,
    bias: float = PhantomParameters.bias,
    lesions: Sequence[int] = PhantomParameters.lesions,
) -> Path:
    """Write a phantom data set, or reuse the one that is there.

    The folder gets `datalist.json` (Medical Decathlon form: lists `training`, `validation` and `test` of `image`, the
    T1-weighted volume, and `label`, the T2-weighted one), `phantom.json` (the parameters) and the volumes as NIfTI,
    float32, in `imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs`.

    It is built in a hidden folder beside `output_dir` and renamed when complete, so an interrupted one is never taken
    for complete, and of two processes that start at once the slower one takes what the faster one made.

    Args:
        output_dir: folder to make; its parents are made too.
        subjects: see `PhantomParameters`, as are the others.
        seed: random seed.
        resolution: edge of a voxel in mm.
        noise: SD of the noise relative to white matter.
        bias: strength of the smooth shading.
        lesions: fewest and most lesions of a subject.

    Returns:
        Path of the datalist.

    Raises:
        ValueError: if a parameter is out of its range.
        NotWrittenError: if the disk is full, or nothing may be written there.
        FileExistsError: if `output_dir` is something else: a file, a folder with other content, a phantom with other
            parameters, or one that lost some of its files.
    """
    parameters = PhantomParameters(subjects, seed, resolution, noise, bias, lesions)
    output_dir = Path(output_dir)
    if _is_taken(output_dir):
        _check_same(output_dir, asdict(parameters))
        logger.info("Brain phantom in %s is complete, using it", output_dir)
        return output_dir / DATALIST_NAME
    start = time.perf_counter()
    remove_leftovers(output_dir.parent)
    with folder_beside(output_dir) as folder:
        partial = folder / output_dir.name
        _write(partial, parameters)
        try:
            partial.rename(output_dir)
        except OSError:
            if not _is_taken(output_dir):
                raise
            _check_same(output_dir, asdict(parameters))  # another process was faster
    logger.info(
        "Made the brain phantom (%d subjects) in %s in %.1f s",
        sum(parameters.subjects),
        output_dir,
        time.perf_counter() - start,
    )
    return output_dir / DATALIST_NAME


def ensure_phantom(dataset_dir: str | Path, **parameters: Any) -> str:
    """Make the phantom where `dataset_dir` is absent or empty; leave any other folder alone.

    Args:
        dataset_dir: folder of the data set.
        **parameters: arguments of `make_phantom`. Where the folder already is a phantom, it must have been made with
            the ones given here; the ones left out may be anything.

    Returns:
        `dataset_dir` as a string, for use inside a config.

    Raises:
        ValueError: if a parameter is unknown or out of its range.
        FileExistsError: if `dataset_dir` is a file, or a phantom with other parameters or without some of its files.
    """
    known = {field.name for field in fields(PhantomParameters)}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise ValueError(f"unknown phantom parameter {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    folder = Path(dataset_dir)
    if not _is_taken(folder):
        make_phantom(folder, **parameters)
    elif (folder / RECORD_NAME).is_file():
        checked = asdict(PhantomParameters(**parameters))
        _check_same(folder, {name: checked[name] for name in parameters})
    return str(dataset_dir)


def _whole_numbers(name: str, values: Sequence[int], count: int, meaning: str) -> tuple[int, ...]:
    """Check that values are `count` whole numbers >= 0 and return them as a tuple of int."""
    shown = values[0] if count == 1 else values
    try:
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = ()
    if len(numbers) != count or any(isinstance(value, bool) for value in values) or min(numbers) < 0:
        raise ValueError(f"{name} must be {count} whole {meaning}, each >= 0, got {shown!r}")
    return numbers


def _number_within(name: str, value: float, limits: tuple[float, float], unit: str = "") -> float:
    """Check that a number lies within limits and return it as a float."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not limits[0] <= value <= limits[1]:
        raise ValueError(f"{name} must lie in [{limits[0]:g}, {limits[1]:g}]{unit and ' '}{unit}, got {value!r}")
    return float(value)


def _is_taken(folder: Path) -> bool:
    """Whether something other than an empty folder is there; raises FileExistsError for a file."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} must be a folder for the brain phantom, but it is a file")
    return folder.is_dir() and any(folder.iterdir())


def _check_same(folder: Path, expected: dict[str, Any]) -> None:
    """Raise FileExistsError unless the folder is a complete phantom with the expected parameters."""
    advice = "choose another folder, or delete this one to make it anew"
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        found = {"version": record["version"], **record["parameters"]}
        lists = _file_names(found["subjects"])
    except (OSError, ValueError, LookupError, TypeError):
        raise FileExistsError(f"{folder} is not empty and is no brain phantom: {advice}") from None
    wanted = {"version": VERSION, **json.loads(json.dumps(expected))}  # tuples become lists, as in the record
    differences = [
        f"{name} is {found.get(name)}, expected {value}" for name, value in wanted.items() if found.get(name) != value
    ]
    if differences:
        raise FileExistsError(f"{folder} holds a brain phantom whose {'; '.join(differences)}: {advice}")
    names = [DATALIST_NAME, *(name for pairs in lists.values() for pair in pairs for name in pair.values())]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileExistsError(
            f"{folder} lost {len(missing)} files of its brain phantom, such as {missing[0]}: {advice}"
        )


def _file_names(subjects: Sequence[int]) -> dict[str, list[dict[str, str]]]:
    """The lists of the datalist: subjects numbered through training, validation and test."""
    names: dict[str, list[dict[str, str]]] = {}
    number = 0
    for (split, suffix), count in zip(SPLITS.items(), subjects, strict=True):
        numbers = range(number + 1, number + count + 1)
        names[split] = [{key: f"{key}s{suffix}/phantom_{k:03d}.nii.gz" for key in ("image", "label")} for k in numbers]
        number += count
    return names


def _write(folder: Path, parameters: PhantomParameters) -> None:
    """Write all files of a phantom into a new folder."""
    template = BrainTemplate()
    lists = _file_names(parameters.subjects)
    for suffix in SPLITS.values():
        for key in ("images", "labels"):
            (folder / f"{key}{suffix}").mkdir(parents=True)
    pairs = [pair for split in lists.values() for pair in split]
    for number, pair in enumerate(pairs, start=1):
        subject = simulate_subject(number, parameters, template)
        for name, volume in ((pair["image"], subject.t1), (pair["label"], subject.t2)):
            image = nib.Nifti1Image(volume, subject.affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(subject.affine, code="mni")
            image.set_qform(subject.affine, code="mni")
            nib.save(image, folder / name)
    record = {"version": VERSION, "parameters": asdict(parameters)}
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    datalist = {
        "name": "BrainPhantom",
        "description": "Digital brain phantom, T1- to T2-weighted MR, aligned pairs, made from the MNI152 tissue maps",
        "modality": {"image": "T1-weighted MR", "label": "T2-weighted MR"},
        "registered": True,
        **lists,
    }
    (folder / DATALIST_NAME).write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")
