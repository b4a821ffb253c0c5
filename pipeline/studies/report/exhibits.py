"""Which galleries a study's report shows, drawn from the cells' samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.reporting import Sample
from pipeline.studies.report.document import Picture
from pipeline.studies.report.figures import method_order
from pipeline.studies.report.findings import Condition, condition_name
from pipeline.studies.report.galleries import (
    CellSamples,
    Slice,
    draw_gallery,
    draw_levels,
    error_limit,
    shared_slices,
)

SHOWN = ("pix2pix", "reggan")  # as in the supplement's Figures 1 and 2

Loaded = dict[Condition, dict[str, dict[Slice, Sample]]]


def draw_exhibits(
    samples: Sequence[CellSamples],
    folder: Path,
    shown: Sequence[str] = SHOWN,
    source: str = "source",
    target: str = "target",
) -> tuple[list[Picture], list[str]]:
    """Draw, for each data set, galleries of two methods at the lowest and highest levels, and one slice at all levels.

    Each data set is shown with the seed that has most cells. All galleries share one colour scale.

    Args:
        samples: of any of the study's cells.
        folder: where the pictures go.
        shown: the two methods of the galleries; where one has no samples, another method takes its place.
        source: what the source is, such as "T1".
        target: what the target is, such as "T2".

    Returns:
        The pictures, and a note on each file that could not be shown.
    """
    pictures: list[Picture] = []
    notes: list[str] = []
    loaded: dict[tuple[str, int], Loaded] = {}
    for dataset in dict.fromkeys(cell.dataset for cell in samples):
        cells = [cell for cell in samples if cell.dataset == dataset]
        counts = Counter(cell.seed for cell in cells)
        seed = min(counts, key=lambda number: (-counts[number], number))
        loaded[dataset, seed] = _load([cell for cell in cells if cell.seed == seed], notes)
    galleries = {
        (dataset, seed, condition): _pair(conditions[condition], shown)
        for (dataset, seed), conditions in loaded.items()
        for condition in _ends(list(conditions))
    }
    limit = error_limit(cells for pair in galleries.values() for cells in pair.values())
    for (dataset, seed, condition), pair in galleries.items():
        slices = shared_slices(list(pair.values()))
        if not slices:
            notes.append(f"{dataset}, {_at(condition)}: {' and '.join(pair)} have no slice in common to show.")
            continue
        title = f"{dataset}, {_at(condition)}"
        file = f"gallery_{_safe(dataset)}_{_safe(condition_name(condition, several=True))}.png"
        draw_gallery(pair, slices, folder / file, limit, title, source, target)
        columns = f"{source}, {target}, then prediction and error of {' and '.join(pair)}"
        what = f"{len(slices)} test slices of {title}: {columns}"
        pictures.append(Picture(file, what, f"{what}. Seed {seed}; all galleries share one scale of errors."))
    for (dataset, seed), conditions in loaded.items():
        if len(conditions) > 1:
            pictures.append(_draw_levels(conditions, dataset, seed, folder, source, target))
    return pictures, notes


def _load(cells: Sequence[CellSamples], notes: list[str]) -> Loaded:
    loaded: Loaded = {}
    for cell in sorted(cells, key=lambda cell: (cell.noise_kind, cell.noise_level)):
        try:
            slices = cell.load()
        except ValueError as error:
            notes.append(f"{cell.method}, {_at((cell.noise_kind, cell.noise_level))}, {cell.dataset}: {error}")
            continue
        if slices:
            loaded.setdefault((cell.noise_kind, float(cell.noise_level)), {})[cell.method] = slices
    return loaded


def _ends(conditions: Sequence[Condition]) -> list[Condition]:
    """The lowest and highest affine level, and the highest of the other kind; conditions come sorted."""
    affine = [condition for condition in conditions if condition[0] == "affine"]
    other = [condition for condition in conditions if condition[0] != "affine"]
    return list(dict.fromkeys([*affine[:1], *affine[-1:], *other[-1:]]))


def _pair(cells: Mapping[str, dict[Slice, Sample]], shown: Sequence[str]) -> dict[str, dict[Slice, Sample]]:
    wanted = [method for method in shown if method in cells]
    others = [method for method in method_order(cells) if method not in wanted]
    chosen = [*wanted, *others][: max(1, len(shown))]
    return {method: cells[method] for method in chosen}


def _draw_levels(conditions: Loaded, dataset: str, seed: int, folder: Path, source: str, target: str) -> Picture:
    several = sum(kind != "affine" for kind, _ in conditions) > 1
    names = {condition: condition_name(condition, several) for condition in conditions}
    names = {condition: name if condition[0] != "affine" else f"level {name}" for condition, name in names.items()}
    cells = {
        method: {names[condition]: known[method] for condition, known in conditions.items() if method in known}
        for method in method_order(method for known in conditions.values() for method in known)
    }
    seen = Counter(key for known in conditions.values() for slices in known.values() for key in slices)
    common = [key for key, count in seen.items() if count == max(seen.values())]
    case, index = key = common[len(common) // 2]
    file = f"levels_{_safe(dataset)}.png"
    draw_levels(cells, list(names.values()), key, folder / file, f"{dataset}, {case}, slice {index}", source, target)
    what = (
        f"One test slice of {dataset} ({case}, slice {index}) as each method translates it after training at each level"
    )
    return Picture(file, what, f"{what}. Seed {seed}.")


def _at(condition: Condition) -> str:
    return ("noise level " if condition[0] == "affine" else "") + condition_name(condition, several=True)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "unnamed"
