"""Which files make a data set: a Medical Decathlon JSON, folders of volumes, or folders of slices."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from pipeline.data.checks import FILES, REQUIRED_SPLITS, SPLITS, DataError, find_faults, inspect_all
from pipeline.io import READABLE, ImageError, check_regular, holds_dicom, name_of, split_series

__all__ = ["Cases", "load_cases"]

logger = logging.getLogger(__name__)

DATALIST_NAMES = ("datalist.json", "dataset.json")
"""Names under which a datalist is looked for in the data set's folder."""

VOLUME_FOLDERS = {
    "training": ("imagesTr", "labelsTr", "masksTr"),
    "validation": ("imagesVal", "labelsVal", "masksVal"),
    "test": ("imagesTs", "labelsTs", "masksTs"),
}
"""Folders of images, labels and, where there are any, masks per list, as in the Medical Segmentation Decathlon."""

SLICE_FOLDERS = {"training": "train", "validation": "val", "test": "test"}
"""How the names of the folders that hold A/ and B/ start, per list (the layout of the RegGAN authors)."""

CHANNEL_SUFFIX = "_0000"
"""What nnU-Net appends to the name of a case's first image."""
SECOND_CHANNEL = re.compile(r"_000[1-9]$")
"""And to those of its further images."""

SESSION = re.compile(
    r"^(?P<patient>.+?)[-_.](?:(?:ses|session|visit|time|timepoint|tp|t|scan|study|exam|examination|day|week|month)"
    r"[-_]?\d+|(?:19|20)\d\d[-_]?\d\d[-_]?\d\d)(?:[-_.].*)?$",
    re.IGNORECASE,
)
"""Names of several examinations of one patient."""
SUBJECT = re.compile(r"^(sub-[0-9A-Za-z]+)(?:_|$)")
"""BIDS's names."""


class Cases(dict[str, list[dict[str, str]]]):
    """The three lists of a data set, ``{"training": [...], "validation": [...], "test": [...]}``.

    Each item is ``{"image": path, "label": path, "case": patient}``, and ``"mask"``, a path, where there is one.

    Attributes:
        name: of the data set's folder, without what lies above it; empty where the lists come from nowhere.
        digest: SHA-256 over names and contents of all files (see `check_cases`); None if they were not checked.
        modalities: names of the modalities, ``source`` and ``target``, as far as the datalist tells them.
        registered: whether the datalist says that its pairs were registered, or were made on one grid.
    """

    name: str = ""
    digest: str | None = None
    modalities: Mapping[str, str] = MappingProxyType({})
    registered: bool = False

    def modalities_or(self, source: str | None = None, target: str | None = None) -> dict[str, str | None]:
        """The names of the modalities: those given, or else the datalist's.

        Args:
            source: given name of the source's.
            target: given name of the target's.
        """
        given = {"source": source, "target": target}
        return {name: value or self.modalities.get(name) for name, value in given.items()}

    @property
    def lists_digest(self) -> str | None:
        """SHA-256 over which files are of whom, and in which list and role; None if the files were not checked.

        Unlike `digest`, it is another one where patients change their lists, or source and target are swapped.
        """
        if self.digest is None:
            return None
        files = [item[key] for items in self.values() for item in items for key in FILES if key in item]
        known = inspect_all(files)
        lists = {
            split: sorted(
                [known[item[key]].digest or "" for key in FILES if key in item] + [item["case"]] for item in items
            )
            for split, items in self.items()
        }
        return hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what may be told of the data set elsewhere: nothing that names a patient, a file or a path.

        Returns:
            ``name`` and ``digest``; ``pairs`` and ``patients``, the number of each by list.
        """
        return {
            "name": self.name,
            "digest": self.digest,
            "pairs": {split: len(items) for split, items in self.items()},
            "patients": {split: len({item["case"] for item in items}) for split, items in self.items()},
        }

    def require(self, split: str) -> list[dict[str, str]]:
        """Return one list, making sure that there is something in it.

        Args:
            split: name of the list.

        Raises:
            ValueError: there is no such list.
            DataError: the list is empty; the message says how to fill it.
        """
        if split not in self:
            raise ValueError(f"split must be one of {', '.join(self)}, got {split!r}")
        if not self[split]:
            images, labels, _ = VOLUME_FOLDERS[split]
            slices = SLICE_FOLDERS[split]
            filled = ", ".join(name for name in self if self[name]) or "none"
            raise DataError(
                [
                    f'the data set has no {split} pairs: add a list "{split}" to its datalist, or folders {images} and '
                    f"{labels}, or {slices}/A and {slices}/B; lists with pairs in them: {filled}"
                ]
            )
        return self[split]


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
    faults += _assign_patients(cases, pattern)
    if "validation" in needed and cases["training"] and not cases["validation"]:
        faults += _draw_validation(cases, validation_fraction, seed)
    cases.name = Path(os.path.abspath(root)).name
    found, cases.digest = find_faults(cases, check, store, num_workers)
    faults += found
    if faults:
        raise DataError(faults)
    logger.info("%s: %s", root, ", ".join(f"{len(cases[split])} {split} pairs" for split in SPLITS))
    return cases


def compile_patient_pattern(patient_pattern: str | None) -> re.Pattern[str] | None:
    """Compile the pattern that reads a patient; None where there is none.

    Raises:
        ValueError: it is no regular expression with one group.
    """
    if not patient_pattern:
        return None
    try:
        pattern = re.compile(patient_pattern)
    except re.error as error:
        raise ValueError(f'patient_pattern "{patient_pattern}" is no regular expression: {error}') from error
    if pattern.groups != 1:
        raise ValueError(f'patient_pattern "{patient_pattern}" must have one group (...), got {pattern.groups}')
    return pattern


def _list_cases(root: Path, datalist: str | os.PathLike[str] | None, to_train: bool) -> tuple[Cases, list[str]]:
    """Find the layout and list it; returns the cases as far as they could be listed, and the faults."""
    if datalist:
        given = Path(str(datalist)).expanduser()
        found = next((path for path in (given, root / given) if path.is_file()), None)
        if found is None:
            return _no_cases(), [f"datalist {given}: no such file, neither as given nor in {root}"]
        return _list_json(found, root, to_train)
    has_volumes = any((root / folder).is_dir() for folders in VOLUME_FOLDERS.values() for folder in folders)
    for path in (root / name for name in DATALIST_NAMES):
        # nnU-Net's dataset.json describes the folders and lists nothing.
        if path.is_file() and not (has_volumes and _lists_nothing(path)):
            return _list_json(path, root, to_train)
    slice_folders = _find_slice_folders(root)
    if has_volumes or any(slice_folders.values()):
        listed, faults = (
            _list_volume_folders(root, to_train) if has_volumes else _list_slice_folders(root, slice_folders, to_train)
        )
        # Folders without a pair, in which DICOM lies: the one fault behind all others.
        raw = None if any(listed.values()) else _dicom(root)
        return listed, [raw] if raw else faults
    raw = _raw_studies(root)
    if raw:
        return _no_cases(), [raw]
    expected = f"{' or '.join(DATALIST_NAMES)}, folders imagesTr and labelsTr, or folders train/A and train/B"
    return _no_cases(), [f"{root} holds no data set: expected {expected}"]


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
        return f"{root} is laid out as BIDS ({_named(subjects, 3)}), expected pairs on one grid: {prepare}"
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        return None
    found = f"{root} holds folders ({_named(folders, 3)}), expected imagesTr and labelsTr, train/A and train/B, or"
    return f"{found} {' or '.join(DATALIST_NAMES)}; if these are raw studies, {prepare}"


def _no_cases() -> Cases:
    """Return three empty lists."""
    return Cases({split: [] for split in SPLITS})


def _lists_nothing(path: Path) -> bool:
    """Whether a JSON file is a well-formed object without any of the three lists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and not any(isinstance(content.get(split), list) for split in SPLITS)


def _list_json(path: Path, root: Path, to_train: bool) -> tuple[Cases, list[str]]:
    """List a Medical Decathlon JSON, going on behind each fault (MONAI's reader stops at the first)."""
    cases = _no_cases()
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
                _named(unlabelled),
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


def images_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the images that lie in a folder. Whatever else lies there is named, but for hidden files.

    Returns:
        The images by their name without suffix, in order; and a fault for every name that two of them share, for every
        image's name behind which is a folder, and for everything that cannot be read, such as a link to nothing.
    """
    by_name: dict[str, Path] = {}
    faults, others, folders = [], [], []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        is_image = path.name.lower().endswith(READABLE)
        if path.is_dir():
            if is_image:
                faults.append(f"{path}: is a folder, expected a file")
            else:
                folders.append(str(path))
            continue
        if not is_image and not path.is_symlink():
            others.append(path.name)
            continue
        try:
            check_regular(path, may_be_empty=True)  # what is in the files is for the checks
        except ImageError as error:
            faults.append(f"{path}: {error}")
            continue
        if not is_image:
            others.append(path.name)
            continue
        first = by_name.setdefault(name_of(path), path)
        if first is not path:
            faults.append(f"{folder}: {first.name} and {path.name} differ in the suffix only")
    for names, what in ((others, "files are no images"), (folders, "folders are not looked into")):
        if names:
            logger.warning("%s: %d %s and are left aside: %s", folder, len(names), what, _named(names))
    return by_name, faults


def _named(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _pair(
    image_dir: Path, label_dir: Path, to_translate: bool = False
) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Pair two folders by file name; returns (name, image, label) and the faults.

    Args:
        image_dir: folder of the images.
        label_dir: folder of the labels.
        to_translate: whether images may have no label: those are for translation only, and named.
    """
    if not image_dir.is_dir() and not label_dir.is_dir():
        return [], []
    (images, image_faults), (labels, label_faults) = images_in(image_dir), images_in(label_dir)
    faults = image_faults + label_faults
    second = [images[name].name for name in images if SECOND_CHANNEL.search(name)]
    if second:
        faults.append(
            f"{image_dir}: {_named(second)}: nnU-Net's names for further channels of a case; a source has one channel "
            "here, one image for each patient"
        )
        images = {name: path for name, path in images.items() if not SECOND_CHANNEL.search(name)}
    matched = {name: name if name in labels else name.removesuffix(CHANNEL_SUFFIX) for name in images}
    pairs = [(name, images[image], labels[name]) for image, name in matched.items() if name in labels]
    lonely_images = [images[image].name for image, name in matched.items() if name not in labels]
    wanted = set(matched.values())
    lonely_labels = [labels[name].name for name in labels if name not in wanted]
    if to_translate and lonely_images:
        logger.warning(
            "%s: %d images have no label in %s, so they can be translated and not evaluated: %s",
            image_dir,
            len(lonely_images),
            label_dir,
            _named(lonely_images),
        )
        lonely_images = []
    elif len(images) != len(labels):
        faults.append(f"{image_dir} holds {len(images)} images and {label_dir} {len(labels)}, expected as many")
    for folder, names, partner in ((image_dir, lonely_images, label_dir), (label_dir, lonely_labels, image_dir)):
        if names:
            faults.append(f"{folder}: no partner in {partner} for {', '.join(names)}")
    return pairs, faults


def _no_images(image_dir: Path, label_dir: Path) -> str:
    """Return the fault of a training list without anything in it."""
    return f"{image_dir} and {label_dir} hold no images ({' '.join(READABLE)}), expected the training pairs"


def _list_volume_folders(root: Path, to_train: bool) -> tuple[Cases, list[str]]:
    """List the folders imagesTr, labelsTr and so on; a file's name is its patient."""
    cases, faults = _no_cases(), []
    for split, (image_folder, label_folder, mask_folder) in VOLUME_FOLDERS.items():
        pairs, problems = _pair(root / image_folder, root / label_folder, split == "test")
        cases[split] = [{"image": str(image), "label": str(label), "fallback": name} for name, image, label in pairs]
        faults += problems + _add_masks(cases[split], root / mask_folder)
        if to_train and split == "training" and not pairs and not problems:
            faults.append(_no_images(root / image_folder, root / label_folder))
    return cases, faults


def _add_masks(items: Sequence[dict[str, str]], folder: Path) -> list[str]:
    """Give each case its mask of that name, where there are masks; returns the faults."""
    if not folder.is_dir():
        return []
    masks, faults = images_in(folder)
    lonely = []
    for item in items:
        found = masks.get(item["fallback"]) or masks.get(item["fallback"].removesuffix(CHANNEL_SUFFIX))
        if found is None:
            lonely.append(item["fallback"])
        else:
            item["mask"] = str(found)
    return faults + ([f"{folder}: no mask of {', '.join(lonely)}"] if lonely else [])


def _find_slice_folders(root: Path) -> dict[str, list[Path]]:
    """Return, per list, the folders whose name starts with train, val or test and that hold A/ or B/."""
    folders = sorted(path for path in root.iterdir() if (path / "A").is_dir() or (path / "B").is_dir())
    return {
        split: [folder for folder in folders if folder.name.lower().startswith(start)]
        for split, start in SLICE_FOLDERS.items()
    }


def _list_slice_folders(
    root: Path, slice_folders: Mapping[str, Sequence[Path]], to_train: bool
) -> tuple[Cases, list[str]]:
    """List the folders train/A, train/B and so on; numbering restarts per folder, so names say nothing across lists."""
    cases, faults = _no_cases(), []
    for split, folders in slice_folders.items():
        if len(folders) > 1:
            faults.append(f"{root}: more than one folder for {split}: {', '.join(folder.name for folder in folders)}")
        folder = folders[0] if folders else root / SLICE_FOLDERS[split]
        pairs, problems = _pair(folder / "A", folder / "B", split == "test")
        cases[split] = [
            {"image": str(image), "label": str(label), "fallback": f"{folder.name}/{name}"}
            for name, image, label in pairs
        ]
        faults += problems
        if to_train and split == "training" and not pairs and not problems:
            faults.append(_no_images(folder / "A", folder / "B"))
    return cases, faults


def _assign_patients(cases: Cases, pattern: re.Pattern[str] | None) -> list[str]:
    """Fill in ``"case"`` where the datalist does not give the patient; returns the faults."""
    faults = []
    unnamed = [item for split in SPLITS for item in cases[split] if "fallback" in item]
    people = {} if pattern is not None else _people([item["fallback"] for item in unnamed])
    for item in unnamed:
        fallback = item.pop("fallback")
        item["case"] = people.get(fallback, fallback)
        if pattern is None:
            continue
        match = pattern.search(Path(item["image"]).name)
        if match and match.group(1):
            item["case"] = match.group(1)
        else:
            faults.append(f'{item["image"]}: patient_pattern "{pattern.pattern}" finds no patient in the file name')
    return faults


def _people(names: Sequence[str]) -> dict[str, str]:
    """The patients of files whose names say that they are examinations of one, by the files' names."""
    found = {}
    for name in dict.fromkeys(names):
        folder, _, last = name.rpartition("/")
        subject = next((part for part in name.split("/") if SUBJECT.match(part)), None)
        session = SESSION.match(last)
        if subject is not None:
            found[name] = SUBJECT.match(subject).group(1)  # type: ignore[union-attr]
        elif session is not None:
            found[name] = "/".join(filter(None, (folder, session["patient"])))
    shared = {person for person, count in Counter(found.values()).items() if count > 1}
    people = {name: person for name, person in found.items() if person in shared}
    if not people or len({people.get(name, name) for name in names}) < 2:
        return {}  # a name that all of them share is no patient's
    logger.info(
        "files that are named as sessions of one patient count as one patient (%d of %s); set patient_pattern if not",
        len(shared),
        _named(sorted(shared), 5),
    )
    return people


def _draw_validation(cases: Cases, fraction: float, seed: int) -> list[str]:
    """Move whole patients, drawn at random, from training to validation; returns the faults."""
    patients = sorted({item["case"] for item in cases["training"]})
    if len(patients) < 2:
        return [
            f'there is no validation list, and "{patients[0]}" is the only training patient: add a list "validation" '
            "(or imagesVal and labelsVal, or val/A and val/B) or a second patient"
        ]
    if len(patients) == len(cases["training"]) and all(item["image"].endswith(".npy") for item in cases["training"]):
        logger.warning(
            "every slice counts as a patient of its own, so validation may show patients seen in training: "
            "set patient_pattern if the file names tell the patient"
        )
    count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
    drawn = {patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:count]}
    cases["validation"] = [item for item in cases["training"] if item["case"] in drawn]
    cases["training"] = [item for item in cases["training"] if item["case"] not in drawn]
    names = {(name_of(item["image"]), item["case"]) for item in cases["validation"]}
    # Of a patient whose name is read from those of several files, the files are told.
    shown = sorted({name if name.startswith(case) else case for name, case in names})
    logger.info("no validation list: %d of %d patients taken from training: %s", count, len(patients), shown)
    return []
