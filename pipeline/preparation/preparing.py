"""A folder of studies made into a data set: side by side, begun again where it stopped, with patients numbered."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.files import replacing
from pipeline.jobs import run_all
from pipeline.preparation.cases import FAILED, GOOD, Order, Outcome, Settings, finished, prepare_case, told
from pipeline.preparation.report import write_report
from pipeline.preparation.studies import Found, Pair

DATALIST = "datalist.json"
KEY_NOTE = (
    "Key to the numbers of prepared patients: it identifies persons. Keep it apart from the data, do not pass it on."
)

logger = logging.getLogger(__name__)


def key_of(output_dir: Path) -> Path:
    """Where the key lies if nobody says where: beside the folder of the results."""
    return output_dir.with_name(f"{output_dir.name}-key.csv")


def prepare(
    found: Found,
    output_dir: str | os.PathLike[str],
    settings: Settings,
    modalities: tuple[str, str],
    folds: int = 5,
    accept: Sequence[str] = (GOOD,),
    jobs: int = 1,
    seed: int = 0,
    key_file: str | os.PathLike[str] | None = None,
    progress: Callable[[Outcome, int, int], None] = lambda outcome, done, of: None,
) -> list[Outcome]:
    """Prepare all pairs.

    Args:
        found: what `find_pairs` found.
        output_dir: folder for ``images``, ``labels``, ``masks``, ``transforms``, ``datalist.json``, ``report.html`` and
            ``report.csv``.
        settings: how.
        modalities: names of source and target, for the datalist.
        folds: how many parts the patients are divided into. ``datalist.json`` validates on the first,
            ``datalist_fold1.json`` and so on with the others.
        accept: verdicts that a case may have to be in the datalist.
        jobs: cases at a time.
        seed: of the division.
        key_file: which number stands for whom; outside of ``output_dir``.
        progress: is called with each outcome, and how many of how many there are.

    Returns:
        The outcomes, by case.

    Raises:
        ValueError: the key would lie in the folder of the results, or is another one's, or ``folds`` is below 2.
    """
    out = Path(output_dir).expanduser().absolute()
    key = key_of(out) if key_file is None else Path(key_file).expanduser().absolute()
    if key.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"the key must not lie among the results, got {key} in {out}")
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    out.mkdir(parents=True, exist_ok=True)
    numbered = _number(found.pairs, key)
    outcomes: dict[str, Outcome] = {}
    orders = []
    for patient, case, pair in numbered:
        order = Order(case, patient, pair, str(out), settings)
        there = _finished(order)
        if there is None:
            orders.append(order)
        else:
            outcomes[case] = there
    total = len(numbered)
    if outcomes:
        logger.info("%d of %d cases are prepared already", len(outcomes), total)
    try:
        for order, outcome in run_all(prepare_case, orders, jobs, _failed):
            outcomes[order.case] = outcome
            progress(outcome, len(outcomes), total)
    finally:
        done = [outcomes[case] for case in sorted(outcomes)]
        write_report(out, done, settings, modalities)
        _write_datalists(out, done, modalities, folds, accept, seed, settings.registration)
    return done


def _finished(order: Order) -> Outcome | None:
    try:
        return finished(order)
    except Exception:  # a file that cannot be looked at is told of when the case's turn comes
        return None


def _failed(order: Order, error: Exception) -> Outcome:
    logger.debug("%s", order.case, exc_info=error)
    return Outcome(order.case, order.patient, FAILED, told(error))


def _number(pairs: Sequence[Pair], key: Path) -> list[tuple[str, str, Pair]]:
    """Number patients and their examinations as the key has it, and write into it who is new."""
    known = _read_key(key)
    patients = {patient: number for patient, _, number, _ in known}
    cases = {(patient, name): case for patient, name, _, case in known}
    numbered = []
    for pair in pairs:
        number = patients.setdefault(pair.patient, f"patient{len(patients) + 1:03d}")
        if (pair.patient, pair.name) not in cases:
            count = sum(patient == pair.patient for patient, _ in cases) + 1
            cases[pair.patient, pair.name] = f"{number}_{count}"
        numbered.append((number, cases[pair.patient, pair.name], pair))
    with replacing(key) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        os.chmod(beside, 0o600)
        file.write(f"# {KEY_NOTE}\n")
        writer = csv.writer(file)
        writer.writerow(["patient", "examination", "number", "case"])
        writer.writerows((patient, name, patients[patient], case) for (patient, name), case in cases.items())
    return sorted(numbered, key=lambda item: item[1])


def _read_key(key: Path) -> list[tuple[str, str, str, str]]:
    if not key.exists():
        return []
    lines = key.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[0].startswith(f"# {KEY_NOTE}"):
        raise ValueError(f"{key} is there already and is no key to prepared patients; say --key FILE")
    return [(row["patient"], row["examination"], row["number"], row["case"]) for row in csv.DictReader(lines[1:])]


def _write_datalists(
    out: Path,
    outcomes: Sequence[Outcome],
    modalities: tuple[str, str],
    folds: int,
    accept: Sequence[str],
    seed: int,
    registered: bool,
) -> None:
    """Write a datalist for each fold; a patient's examinations are in one."""
    kept = [outcome for outcome in outcomes if outcome.verdict in accept and outcome.mean_mm is not None]
    patients = sorted({outcome.patient for outcome in kept})
    drawn = [patients[at] for at in np.random.default_rng(seed).permutation(len(patients))]
    fold_of = {patient: at % folds for at, patient in enumerate(drawn)}
    for fold in range(folds):
        path = out / (DATALIST if fold == 0 else f"datalist_fold{fold}.json")
        if fold >= max(len(patients), 1):
            path.unlink(missing_ok=True)  # of an earlier run with more patients
            continue
        lists: dict[str, list[dict[str, str | int]]] = {"training": [], "validation": []}
        for outcome in kept:
            entry: dict[str, str | int] = {
                "image": f"images/{outcome.case}.nii.gz",
                "label": f"labels/{outcome.case}.nii.gz",
                "mask": f"masks/{outcome.case}.nii.gz",
                "patient": outcome.patient,
                "fold": fold_of[outcome.patient],
            }
            alone = len(patients) < 2
            lists["validation" if entry["fold"] == fold and not alone else "training"].append(entry)
        content = {
            "name": "prepared pairs",
            "modality": {"source": modalities[0], "target": modalities[1]},
            "registered": registered,
            **lists,
        }
        with replacing(path) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
