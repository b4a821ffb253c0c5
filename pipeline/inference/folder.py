"""A folder of volumes, translated side by side: what is done is not done again, and what fails stops nothing."""

from __future__ import annotations

import csv
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import cause
from pipeline.files import file_digest, replacing
from pipeline.inference.opening import build_network, open_model
from pipeline.inference.scoring import translate
from pipeline.inference.translation import Translation
from pipeline.io import READABLE, holds_dicom, name_of, write_image
from pipeline.jobs import run_all

TABLE_FILE = "translations.csv"
DICOM_COMMAND = "python scripts/translate_dicom.py SERIES OUT translates a series into a derived series"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """A volume to translate; plain values, since it may travel to another machine.

    Attributes:
        source: its file.
        target: file of the translated volume.
        checkpoint: of the model.
        sha256: of the model's file.
        device: to translate on.
        slices_at_once: slices that the network sees together.
    """

    source: str
    target: str
    checkpoint: str
    sha256: str
    device: str
    slices_at_once: int


@dataclass(frozen=True)
class Outcome:
    """What came of an order, as the table has it.

    Attributes:
        source: file, relative to the folder of the sources.
        target: file, relative to that of the results.
        state: "translated" or "failed".
        cause: of a failure.
        seconds: that it took.
        size: of the source in bytes.
        changed: when the source was last changed, in nanoseconds.
        sha256: of the model's file.
    """

    source: str
    target: str
    state: str
    cause: str
    seconds: float
    size: int
    changed: int
    sha256: str


def translate_folder(
    source: str | Path,
    output_dir: str | Path,
    checkpoint: str | Path,
    output_ext: str = ".nii.gz",
    device: str = "auto",
    slices_at_once: int = 8,
    jobs: int = 1,
    scheduler: str | None = None,
    told: Callable[[Outcome, int, int], None] = lambda outcome, done, of: None,
) -> list[Outcome]:
    """Translate all volumes below a folder.

    Results lie in the same subfolders of ``output_dir``, beside ``translations.csv``, which says what came of each.
    Called again, it translates what is new, what has changed or failed, and all of it with another model.

    Args:
        source: folder; hidden files and folders are left aside.
        output_dir: folder for the results, outside of ``source``.
        checkpoint: model file.
        output_ext: format of the results.
        device: to translate on, as PyTorch calls it; ``auto`` for the first GPU, or else the CPU, of who does the work.
        slices_at_once: slices that the network sees together.
        jobs: volumes at a time.
        scheduler: see `pipeline.jobs.engine`.
        told: is called with each outcome, and how many of how many there are.

    Returns:
        The outcome of every volume, in the order of their names.

    Raises:
        ValueError: ``output_dir`` lies in ``source``, or two files would be translated into one.
        FileNotFoundError: ``source`` has no volume; DICOM is none here, and the message says what translates it.
        ModelError: the model cannot be used.
    """
    root, out = (Path(str(path)).expanduser().absolute() for path in (source, output_dir))
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"the folder for the results must not lie in that of the sources, got {out} in {root}")
    model = Path(str(checkpoint)).expanduser().absolute()
    open_model(model)  # what cannot be used is found before anything is begun
    sha256 = file_digest(model)
    orders, known = [], _read_table(out / TABLE_FILE)
    done: dict[str, Outcome] = {}
    for path, target in _targets(root, output_ext).items():
        there = known.get(str(path))
        wanted = (str(target), "translated", *_state(root / path), sha256)
        before = there and (there.target, there.state, there.size, there.changed, there.sha256)
        if there and before == wanted and (out / target).is_file():
            done[str(path)] = there
            continue
        orders.append(Order(str(root / path), str(out / target), str(model), sha256, device, slices_at_once))
    total = len(done) + len(orders)
    if done:
        logger.info("%d of %d volumes are translated already", len(done), total)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for order, (fault, seconds) in run_all(
            translate_volume, orders, jobs, _failed, scheduler, partial(_name, root)
        ):
            name = _name(root, order)
            outcome = Outcome(
                name,
                str(Path(order.target).relative_to(out)),
                "failed" if fault else "translated",
                fault,
                round(seconds, 2),
                *_state(Path(order.source)),
                sha256,
            )
            done[name] = outcome
            _append(out / TABLE_FILE, outcome)
            told(outcome, len(done), total)
    finally:
        outcomes = [done[name] for name in sorted(done)]
        _write_table(out / TABLE_FILE, [*outcomes, *(row for name, row in known.items() if name not in done)])
    return outcomes


def translate_volume(order: Order) -> tuple[str, float]:
    """Translate one volume; returns no fault, and the seconds that it took."""
    start = time.perf_counter()
    translation, network, device = _opened(order.checkpoint, order.sha256, order.device, order.slices_at_once)
    source = translation.preprocessing({"image": order.source})["image"]
    pred = translate(source, translation, network, device)
    Path(order.target).parent.mkdir(parents=True, exist_ok=True)
    write_image(order.target, pred, source)
    return "", time.perf_counter() - start


@functools.lru_cache(maxsize=1)
def _opened(
    checkpoint: str, sha256: str, device: str, slices_at_once: int
) -> tuple[Translation, nn.Module, torch.device]:
    """The model, opened once in each process.

    Raises:
        ValueError: the file is another one by now.
    """
    found = file_digest(checkpoint)
    if found != sha256:
        raise ValueError(f"{checkpoint} has changed meanwhile: its SHA-256 was {sha256}, now it is {found}")
    model = open_model(checkpoint)
    first = "cuda:0" if torch.cuda.is_available() else "cpu"  # of the machine that does the work
    place = torch.device(first if device == "auto" else device)
    return Translation(model.recipe, slices_at_once), build_network(model).to(place).eval(), place


def _state(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file; zeros where it cannot be reached, as that of a dangling link."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _name(root: Path, order: Order) -> str:
    return str(Path(order.source).relative_to(root))


def _failed(order: Order, error: Exception) -> tuple[str, float]:
    return cause(error), 0.0


def _targets(root: Path, suffix: str) -> dict[Path, Path]:
    """The volumes below a folder and where each one's result goes, relative to the folders of both."""
    found: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for path in sorted(root.rglob("*")):
        inner = path.relative_to(root)
        if any(part.startswith(".") for part in inner.parts) or not path.name.lower().endswith(READABLE):
            continue
        if path.is_dir():
            continue
        target = inner.parent / f"{name_of(path)}_translated{suffix}"
        first = taken.setdefault(target, inner)
        if first is not inner:
            raise ValueError(f"{root}: {first} and {inner} would both be translated into {target}")
        found[inner] = target
    series = root.is_dir() and holds_dicom(root)
    if not found:
        dicom = f"; it holds DICOM: {DICOM_COMMAND}" if series else ""
        raise FileNotFoundError(f"{root} has no file ending in {', '.join(READABLE)}{dicom}")
    if series:
        logger.warning("%s holds DICOM, too, which is left aside: %s", root, DICOM_COMMAND)
    return found


def _read_table(path: Path) -> dict[str, Outcome]:
    """The outcomes of before, by source; the last one of each."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    found = {}
    for row in rows:
        where, came = (row["source"], row["target"]), (row["state"], row["cause"])
        seconds, size, changed = float(row["seconds"]), int(row["size"]), int(row["changed"])
        found[row["source"]] = Outcome(*where, *came, seconds, size, changed, row["sha256"])
    return found


_COLUMNS = [field.name for field in fields(Outcome)]


def _append(path: Path, outcome: Outcome) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(asdict(outcome))


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(outcome) for outcome in outcomes)
