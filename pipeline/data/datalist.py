"""Which files make a data set: a Medical Decathlon JSON, folders of volumes, or folders of slices."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.cases import VOLUME_FOLDERS, Cases, no_cases
from pipeline.data.checks import REQUIRED_SPLITS, SPLITS, DataError, find_faults
from pipeline.data.folders import find_slice_folders, list_slice_folders, list_volume_folders, named
from pipeline.data.patients import assign_patients, compile_patient_pattern, draw_validation
from pipeline.io import holds_dicom, name_of, split_series

__all__ = ["load_cases"]

logger = logging.getLogger(__name__)

DATALIST_NAMES = ("datalist.json", "dataset.json")
"""Names under which a datalist is looked for in the data set's folder."""


def load_cases(
    dataset_dir: str | os.PathLike[str],
    datalist: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    patient_pattern: str | None = None,
    check: bool = True,
    needed: Sequence[str] = REQUIRED_SPLITS,
    store: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
) -> Cases:
    """List a data set's pairs, by patient, and make sure that they can be trained on.

    The pairs come from the first of these that is there:

    1. ``datalist``, a JSON file with lists ``training``, ``validation`` and ``test`` of ``{"image": path, "label":
       path}`` and, optionally, ``"patient"``. Paths are relative to ``dataset_dir``, or else to the JSON's folder;
    2. ``datalist.json`` or ``dataset.json`` in ``dataset_dir``, likewise;
    3. folders ``imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs``, paired by file name (an image may carry
       nnU-Net's ``_0000``);
    4. folders ``train/A train/B val/A ...`` of slices, paired by file name (also ``train2D`` and the like).

    A patient is the datalist's ``"patient"``, or what ``patient_pattern`` finds in the image's file name, or else what
    names of sessions share (``sub-01_ses-1`` and ``sub-01_ses-2``, ``p1_visit1``, ``p1_20240131``), or else the file
    itself: its name in folders of volumes, its path elsewhere. Test images may have no label; they are named and left
    out, since they can only be translated. Without a validation list, whole patients are moved
    there from training. The validation and the test list may be absent; a missing test list stays empty.

    Args:
        dataset_dir: folder of the data set.
        datalist: JSON file; looked for as given and within ``dataset_dir``.
        validation_fraction: share of the training patients that becomes the validation list where there is none, in
            (0, 1); at least one patient moves and one stays.
        seed: decides which patients move.
        patient_pattern: regular expression with one group that reads the patient from an image's file name, such as
            ``"(BraTS18_[^_]*_[^_]*_[0-9]*)"``. Needed for slices, of which a patient has many.
        check: whether to read every file and look for faults (see `check_cases`).
        needed: lists that must not be empty; without ``"validation"`` among them, no patients are moved there.
        store: folder that remembers files that were found sound, see `pipeline.data.checks.find_faults`.
        num_workers: threads that look into files; None for one for each core.

    Returns:
        The three lists, with the name of the folder and the digest of the data.

    Raises:
        DataError: anything is wrong with the list or the files; the message says all of it at once.
        ValueError: ``validation_fraction`` or ``patient_pattern`` is unusable.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie in (0, 1), got {validation_fraction}")
    pattern = compile_patient_pattern(patient_pattern)
    root = Path(str(dataset_dir)).expanduser()  # the command line makes numbers of names that look like one
    if not root.is_dir():
        raise DataError([f"dataset_dir {root} is no folder"])
    cases, faults = _list_cases(root, datalist, "training" in needed)
    faults += assign_patients(cases, pattern)
    if "validation" in needed and cases["training"] and not cases["validation"]:
        faults += draw_validation(cases, validation_fraction, seed)
    cases.name = Path(os.path.abspath(root)).name
    found, cases.digest = find_faults(cases, check, store, num_workers)
    faults += found
    if faults:
        raise DataError(faults)
    logger.info("%s: %s", root, ", ".join(f"{len(cases[split])} {split} pairs" for split in SPLITS))
    return cases


def _list_cases(root: Path, datalist: str | os.PathLike[str] | None, to_train: bool) -> tuple[Cases, list[str]]:
    """Find the layout and list it; returns the cases as far as they could be listed, and the faults."""
    if datalist:
        given = Path(str(datalist)).expanduser()
        found = next((path for path in (given, root / given) if path.is_file()), None)
        if found is None:
            return no_cases(), [f"datalist {given}: no such file, neither as given nor in {root}"]
        return _list_json(found, root, to_train)
    has_volumes = any((root / folder).is_dir() for folders in VOLUME_FOLDERS.values() for folder in folders)
    for path in (root / name for name in DATALIST_NAMES):
        # nnU-Net's dataset.json describes the folders and lists nothing.
        if path.is_file() and not (has_volumes and _lists_nothing(path)):
            return _list_json(path, root, to_train)
    slice_folders = find_slice_folders(root)
    if has_volumes or any(slice_folders.values()):
        listed, faults = (
            list_volume_folders(root, to_train) if has_volumes else list_slice_folders(root, slice_folders, to_train)
        )
        # Folders without a pair, in which DICOM lies: the one fault behind all others.
        raw = None if any(listed.values()) else _dicom(root)
        return listed, [raw] if raw else faults
    raw = _raw_studies(root)
    if raw:
        return no_cases(), [raw]
    expected = f"{' or '.join(DATALIST_NAMES)}, folders imagesTr and labelsTr, or folders train/A and train/B"
    return no_cases(), [f"{root} holds no data set: expected {expected}"]


def _prepare(root: Path) -> str:
    return f"python scripts/prepare.py {root} OUT --source NAME --target NAME makes a data set of it"


def _dicom(root: Path) -> str | None:
    """What to do with a folder that holds DICOM and no data set; None where there is none."""
    if not holds_dicom(root):
        return None
    return f"{root} holds DICOM as a scanner or an archive gives it, expected pairs on one grid: {_prepare(root)}"


def _raw_studies(root: Path) -> str | None:
    """What to do with a folder that holds raw studies and no data set; None where there are none."""
    found = _dicom(root)
    if found:
        return found
    prepare = _prepare(root)
    subjects = sorted(path.name for path in root.glob("sub-*") if path.is_dir())
    if subjects:
        return f"{root} is laid out as BIDS ({named(subjects, 3)}), expected pairs on one grid: {prepare}"
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        return None
    found = f"{root} holds folders ({named(folders, 3)}), expected imagesTr and labelsTr, train/A and train/B, or"
    return f"{found} {' or '.join(DATALIST_NAMES)}; if these are raw studies, {prepare}"


def _lists_nothing(path: Path) -> bool:
    """Whether a JSON file is a well-formed object without any of the three lists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and not any(isinstance(content.get(split), list) for split in SPLITS)


def _list_json(path: Path, root: Path, to_train: bool) -> tuple[Cases, list[str]]:
    """List a Medical Decathlon JSON, going on behind each fault (MONAI's reader stops at the first)."""
    cases = no_cases()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return cases, [f"{path}: line {error.lineno}, column {error.colno}: {error.msg}"]
    except UnicodeDecodeError as error:
        return cases, [f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})"]
    if not isinstance(content, dict):
        return cases, [f'{path}: expected an object with a list "training", got {_kind(content)}']
    if to_train and "training" not in content:
        keys = ", ".join(f'"{key}"' for key in content) or "nothing"
        return cases, [f'{path}: expected a list "training", found {keys}']
    cases.modalities = _modalities(content.get("modality"))
    cases.registered = content.get("registered") is True
    faults = [
        f'{path}: "{key}" is none of the lists {", ".join(SPLITS)}; did you mean "{close[0]}"?'
        for key, value in content.items()
        if key not in SPLITS and isinstance(value, list) and (close := get_close_matches(key.lower(), SPLITS, 1, 0.75))
    ]
    for split in SPLITS:
        items = content.get(split, [])
        if not isinstance(items, list):
            faults.append(f'{path}: "{split}" must be a list, got {_kind(items)}')
            continue
        if to_train and split == "training" and not items:
            faults.append(f'{path}: the list "training" is empty')
        unlabelled = []
        for index, item in enumerate(items):
            if split == "test" and (isinstance(item, str) or (isinstance(item, dict) and "label" not in item)):
                unlabelled.append(str(item if isinstance(item, str) else item.get("image")))
                continue
            problem = _entry_problem(item)
            if problem:
                faults.append(f"{path}: {split}[{index}] {problem}")
            else:
                cases[split].append(_entry(item, path.parent, root))
        if unlabelled:
            logger.warning(
                "%s: %d test images have no label, so they can be translated and not evaluated: %s",
                path,
                len(unlabelled),
                named(unlabelled),
            )
    return cases, faults


def _modalities(said: Any) -> dict[str, str]:
    """Names of the modalities out of a datalist: the Decathlon names an image's channels, we the label's as well."""
    names = said if isinstance(said, dict) else {}
    places = {"source": ("image", "source", "0"), "target": ("label", "target")}
    found = {domain: next((names[key] for key in keys if key in names), None) for domain, keys in places.items()}
    return {domain: str(name) for domain, name in found.items() if name}


def _kind(value: Any) -> str:
    """Return what JSON calls a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _entry_problem(item: Any) -> str | None:
    """Return what is wrong with one entry of a JSON list, or None."""
    if not isinstance(item, dict):
        return f'must be {{"image": path, "label": path}}, got {_kind(item)} ({json.dumps(item)[:80]})'
    for key in ("image", "label"):
        if key not in item:
            return f'has no "{key}"; it has {", ".join(item) or "nothing"}'
        if not isinstance(item[key], str) or not item[key]:
            return f'"{key}" must be one path, got {_kind(item[key])} ({json.dumps(item[key])[:80]})'
    if item.get("mask") is not None and (not isinstance(item["mask"], str) or not item["mask"]):
        return f'"mask" must be one path, got {_kind(item["mask"])} ({json.dumps(item["mask"])[:80]})'
    if not isinstance(item.get("patient"), str | int | None):
        return f'"patient" must be a string, got {_kind(item["patient"])}'
    return None


def _entry(item: Mapping[str, Any], folder: Path, root: Path) -> dict[str, str]:
    """Turn one entry of a JSON list into a case; without a patient, ``"fallback"`` says what stands for it."""
    entry = {}
    for key in ("image", "label", *(["mask"] if item.get("mask") else [])):
        places = [Path(os.path.normpath(base / Path(item[key]).expanduser())) for base in (root, folder)]
        entry[key] = str(next((place for place in places if split_series(place)[0].exists()), places[0]))
    if item.get("patient") not in (None, ""):
        return {**entry, "case": str(item["patient"])}
    # imagesTr/p1.nii.gz and imagesVal/p1.nii.gz are one patient, p1/T1.nii.gz and p2/T1.nii.gz are two.
    given = PurePosixPath(Path(item["image"]).as_posix())
    image_folders = {folders[0] for folders in VOLUME_FOLDERS.values()}
    parts = [part for part in given.parts[:-1] if part not in image_folders and part != "."]
    return {**entry, "fallback": "/".join([*parts, name_of(given)]).lstrip("/")}
