"""Who the images are of: patients out of file names, and those that are drawn for validation."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.cases import Cases
from pipeline.data.checks import SPLITS
from pipeline.data.folders import named
from pipeline.io import name_of

__all__ = ["assign_patients", "compile_patient_pattern", "draw_validation"]

logger = logging.getLogger(__name__)

SESSION = re.compile(
    r"^(?P<patient>.+?)[-_.](?:(?:ses|session|visit|time|timepoint|tp|t|scan|study|exam|examination|day|week|month)"
    r"[-_]?\d+|(?:19|20)\d\d[-_]?\d\d[-_]?\d\d)(?:[-_.].*)?$",
    re.IGNORECASE,
)
"""Names of several examinations of one patient."""
SUBJECT = re.compile(r"^(sub-[0-9A-Za-z]+)(?:_|$)")
"""BIDS's names."""


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


def assign_patients(cases: Cases, pattern: re.Pattern[str] | None) -> list[str]:
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
        subject = next(filter(None, map(SUBJECT.match, name.split("/"))), None)
        session = SESSION.match(last)
        if subject is not None:
            found[name] = subject.group(1)
        elif session is not None:
            found[name] = "/".join(filter(None, (folder, session["patient"])))
    shared = {person for person, count in Counter(found.values()).items() if count > 1}
    people = {name: person for name, person in found.items() if person in shared}
    if not people or len({people.get(name, name) for name in names}) < 2:
        return {}  # a name that all of them share is no patient's
    logger.info(
        "files that are named as sessions of one patient count as one patient (%d of %s); set patient_pattern if not",
        len(shared),
        named(sorted(shared), 5),
    )
    return people


def draw_validation(cases: Cases, fraction: float, seed: int) -> list[str]:
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
