"""Which scans of a folder of studies make pairs: by name, by DICOM, by a list, in the layouts of known data sets."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.patients import compile_patient_pattern
from pipeline.io import READABLE, find_series, holds_dicom, name_of

logger = logging.getLogger(__name__)

SESSION = re.compile(
    r"(?:^|[\W_]+)(?:ses|session|study|visit|exam|examination|tp|timepoint|scan|t)[\W_]*\d+$|[\W_]+(?:19|20)\d{6}$",
    re.IGNORECASE,
)
"""End of an examination's name that says which of a patient's it is: ``_study2``, ``-ses-01``, ``_20240131``."""
IGNORED_PARTS = ("anat", "imagestr", "labelstr", "imagests", "labelsts")
MASK = re.compile(r"(?:^|[\W_]+)(?:(?:brain|bet|head|body)[\W_]*)*masks?(?![A-Za-z0-9])", re.IGNORECASE)
"""A mask by its name, with what programs of brain extraction put before it: ``_bet_mask``, ``_brainmask``."""


class StudiesError(ValueError):
    """No pairs can be found; the message says what was looked for and what is there."""


@dataclass(frozen=True)
class Pair:
    """Two scans of one examination.

    Attributes:
        patient, name: as the studies call them. Both may identify a person: they go into the key file and nowhere else.
        source, target: files, or ``folder::SeriesInstanceUID``.
        mask: file of the foreground on the source's grid; None where there is none.
    """

    patient: str = field(repr=False)
    name: str = field(repr=False)
    source: str = field(repr=False)
    target: str = field(repr=False)
    mask: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Found:
    """Pairs, in the order of their names, and examinations that are none, with the reason."""

    pairs: list[Pair]
    left_out: list[tuple[str, str]]


def find_pairs(studies: str | os.PathLike[str], source: str, target: str, patient_pattern: str | None = None) -> Found:
    """List the pairs of a folder of studies, or of a list of pairs.

    Args:
        studies: a folder; a DICOMDIR; or a CSV, YAML or JSON file of pairs with ``source``, ``target`` and, optionally,
            ``patient``, ``name`` and ``mask``, paths being relative to the file.
        source: which scan is meant, without regard to case: a part of a file's name (``T1W`` finds ``T1W.nii.gz``,
            ``sub-01_T1w.nii.gz`` and ``IXI002-Guys-0828-T1W.nii.gz``, not ``T1Wce``), a pattern with ``*`` of the
            whole name, a channel that an nnU-Net ``dataset.json`` names, or a DICOM series' description or modality.
        target: likewise.
        patient_pattern: regular expression with one group that reads the patient from an examination's name.

    Raises:
        StudiesError: there is no pair, or the list cannot be read.
        ValueError: the pattern is unusable.
    """
    place = Path(studies).expanduser()
    pattern = compile_patient_pattern(patient_pattern)
    if place.is_file():
        found = _by_series(place, source, target) if holds_dicom(place) else _listed(place)
    elif place.is_dir():
        found = _in_folder(place, source, target)
    else:
        raise StudiesError(f"{place}: no such folder or list of pairs")
    if not found.pairs:
        first = "".join(f"\n- {name}: {reason}" for name, reason in found.left_out[:10])
        raise StudiesError(f"{place}: no examination has both {source!r} and {target!r}{first}")
    pairs = [
        pair if pair.patient else Pair(patient_of(pair.name, pattern), pair.name, pair.source, pair.target, pair.mask)
        for pair in found.pairs
    ]
    return Found(sorted(pairs, key=lambda pair: (pair.patient, pair.name)), found.left_out)


def patient_of(name: str, pattern: re.Pattern[str] | None = None) -> str:
    """The patient out of an examination's name: without what counts examinations, and for BIDS its ``sub-``.

    Raises:
        StudiesError: the pattern does not match.
    """
    if pattern is not None:
        match = pattern.search(name)
        if not match or not match.group(1):
            raise StudiesError(f'patient_pattern "{pattern.pattern}" finds no patient in "{name}"')
        return match.group(1)
    subject = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)", name)
    if subject:
        return subject.group(1)
    parts = name.split("/")
    while len(parts) > 1 and not SESSION.sub("", "/" + parts[-1]).strip("/"):
        parts.pop()
    shorter = SESSION.sub("", parts[-1])
    parts[-1] = shorter or parts[-1]
    return "/".join(parts)


def _listed(path: Path) -> Found:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".yaml", ".yml", ".json"):
            content = yaml.safe_load(text)
            rows = content.get("pairs", content.get("training")) if isinstance(content, dict) else content
        else:
            rows = list(csv.DictReader(text.splitlines()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as error:
        raise StudiesError(f"{path}: cannot be read as a list of pairs ({error})") from error
    if not isinstance(rows, list):
        raise StudiesError(f"{path}: expected a list of pairs with source and target")
    pairs, left_out = [], []
    for number, row in enumerate(rows, 1):
        given = row if isinstance(row, Mapping) else {}
        values = {key: str(value).strip() for key, value in given.items() if key and value not in (None, "")}
        source, target = (
            values.get(ours, values.get(theirs)) for ours, theirs in (("source", "image"), ("target", "label"))
        )
        if not source or not target:
            left_out.append((f"entry {number}", "has no source or no target"))
            continue
        places = [_placed(path.parent, value) for value in (source, target)]
        mask = _placed(path.parent, values["mask"]) if "mask" in values else None
        name = values.get("name") or values.get("case") or values.get("patient") or f"entry{number:04d}"
        pairs.append(Pair(values.get("patient", ""), name, places[0], places[1], mask))
    return Found(pairs, left_out)


def _placed(folder: Path, value: str) -> str:
    return os.path.normpath(folder / Path(value).expanduser())


def _in_folder(root: Path, source: str, target: str) -> Found:
    images = sorted(
        path
        for path in root.rglob("*")
        if path.name.lower().endswith(READABLE) and path.is_file() and not path.name.startswith(".")
    )
    channels = _channels(root)
    found = _decathlon(root) if channels is None else None
    if found is not None:
        return found
    dicom = holds_dicom(root)
    if not images and not dicom:
        raise StudiesError(f"{root}: holds neither DICOM nor images ({' '.join(READABLE)})")
    by_name = _by_name(root, images, _channel(source, channels), _channel(target, channels))
    by_series = _by_series(root, source, target) if dicom else Found([], [])
    return Found(by_name.pairs + by_series.pairs, by_name.left_out + by_series.left_out)


def _description(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _channels(root: Path) -> dict[str, str] | None:
    """Names of channels, with their numbers, where files end in ``_0000``, ``_0001``: nnU-Net's layout."""
    names = _description(root).get("channel_names") or _description(root).get("modality")
    if not isinstance(names, dict) or not any(root.glob("imagesTr/*_0001.*")):
        return None
    return {str(name).lower(): f"{int(number):04d}" for number, name in names.items()}


def _channel(wanted: str, channels: Mapping[str, str] | None) -> str:
    return (channels or {}).get(wanted.lower(), wanted)


def _decathlon(root: Path) -> Found | None:
    """A list ``training`` of ``image`` and ``label`` in ``dataset.json``, or folders imagesTr and labelsTr of pairs."""
    rows = _description(root).get("training")
    if (
        isinstance(rows, list)
        and rows
        and all(isinstance(row, dict) and {"image", "label"} <= row.keys() for row in rows)
    ):
        pairs = [
            Pair(
                str(row.get("patient", "")),
                name_of(row["image"]),
                _placed(root, row["image"]),
                _placed(root, row["label"]),
            )
            for row in rows
        ]
        return Found(pairs, [])
    if not (root / "imagesTr").is_dir() or not (root / "labelsTr").is_dir() or any(root.glob("imagesTr/*_0001.*")):
        return None
    images, labels = (
        {
            name_of(path).removesuffix("_0000"): path
            for path in sorted((root / folder).iterdir())
            if path.name.lower().endswith(READABLE) or (path.is_dir() and holds_dicom(path))
        }
        for folder in ("imagesTr", "labelsTr")
    )
    lonely = [
        (name, f"lies in {'imagesTr' if name in images else 'labelsTr'} only") for name in sorted({*images} ^ {*labels})
    ]
    return Found(
        [Pair("", name, str(images[name]), str(labels[name])) for name in sorted({*images} & {*labels})], lonely
    )


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[\W_]+", text) if part]


def _matches(text: str, wanted: str) -> bool:
    """Whether a name is meant: a pattern fits all of it, or the words of ``wanted`` follow each other in it."""
    low, pattern = text.lower(), wanted.lower()
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(low, pattern)
    words, sought = _parts(low), _parts(pattern)
    return bool(sought) and any(words[at : at + len(sought)] == sought for at in range(len(words)))


def _without(text: str, wanted: str) -> str:
    """A name without the words of a pattern, which two scans of an examination differ in."""
    words = _parts(wanted)
    if any(sign in wanted for sign in "*?["):
        words = [word for word in words if len(word) > 1]
    together = r"[\W_]*(?<![A-Za-z0-9])" + r"[\W_]+".join(map(re.escape, words)) + r"(?![A-Za-z0-9])"
    return re.sub(together, "", text, flags=re.IGNORECASE).strip("_-. ") if words else text


def _by_name(root: Path, images: Iterable[Path], source: str, target: str) -> Found:
    scans: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    unused: list[str] = []
    for path in images:
        stem = name_of(path)
        roles = [(role, word) for role, word in (("source", source), ("target", target)) if _matches(stem, word)]
        is_mask = MASK.search(stem) or any(MASK.search(part) for part in path.relative_to(root).parent.parts)
        if is_mask:
            if [role for role, _ in roles] == ["target"]:
                unused.append(path.name)  # masks lie on the source's grid
                continue
            roles = [("mask", source)]
        if len(roles) == 2:  # "T1 Gd" is said more closely than "T1"
            roles = (
                [max(roles, key=lambda each: len(_parts(each[1])))]
                if len(_parts(source)) != len(_parts(target))
                else roles
            )
        for role, word in roles:
            parts = [part for part in path.relative_to(root).parent.parts if part.lower() not in IGNORED_PARTS]
            *folders, rest = (_without(MASK.sub("", part) if is_mask else part, word) for part in (*parts, stem))
            folders = [part for part in folders if part]
            if rest and not (folders and folders[-1] == rest):
                folders.append(rest)
            scans["/".join(folders) or root.name][role].append(path)
    pairs, left_out = [], []
    for name, there in sorted(scans.items()):
        missing = [word for role, word in (("source", source), ("target", target)) if not there[role]]
        many = [role for role in ("source", "target", "mask") if len(there[role]) > 1]
        if missing and not (there["source"] or there["target"]):
            unused += [path.name for path in there["mask"]]
            continue
        if missing:
            left_out.append((name, f"has no {' and no '.join(map(repr, missing))}"))
        elif many:
            files = ", ".join(path.name for path in there[many[0]])
            left_out.append(
                (name, f"has several that may be the {many[0]}: {files}; say a closer pattern, or list the pairs")
            )
        elif there["source"] == there["target"]:
            left_out.append((name, "has one file that is meant as both; say closer patterns"))
        else:
            mask = str(there["mask"][0]) if there["mask"] else None
            pairs.append(Pair("", name, str(there["source"][0]), str(there["target"][0]), mask))
    if unused:
        more = f" and {len(unused) - 10} more" if len(unused) > 10 else ""
        logger.warning("%d masks belong to no pair and are not used: %s%s", len(unused), ", ".join(unused[:10]), more)
    return Found(pairs, left_out)


def _by_series(root: Path, source: str, target: str) -> Found:
    studies = defaultdict(list)
    faults: list[str] = []
    for series in filter(lambda one: one.image, find_series(root, faults)):
        studies[series.patient, series.study_uid].append(series)
    pairs: list[Pair] = []
    left_out = [("the folder of studies", fault) for fault in faults]
    for (patient, study), there in sorted(studies.items()):
        chosen = []
        for wanted in (source, target):
            fits = [series for series in there if _matches(series.description, wanted)]
            fits = fits or [series for series in there if series.modality.lower() == wanted.lower()]
            chosen.append(fits)
        if all(len(fits) == 1 for fits in chosen) and chosen[0] != chosen[1]:
            places = [f"{_folder(series.files)}::{series.uid}" for [series] in chosen]
            pairs.append(Pair(patient or study, f"{patient}/{study}", *places))
            continue
        listed = "; ".join(str(series) for series in there)
        unclear = [
            f"{len(fits)} series fit {wanted!r}"
            for fits, wanted in zip(chosen, (source, target), strict=True)
            if len(fits) != 1
        ]
        left_out.append(
            (f"a study of {len(there)} series", f"{' and '.join(unclear) or 'one series fits both'}; it has {listed}")
        )
    return Found(pairs, left_out)


def _folder(files: Iterable[Path]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
