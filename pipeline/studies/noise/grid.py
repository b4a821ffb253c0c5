"""What a noise study runs: a grid of methods, misalignments, seeds and data sets, read from a small YAML file."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.methods import METHODS
from transforms import MAX_NOISE_LEVEL, NOISE_KINDS

DEFAULT_DATASET = "phantom"
# What a study may choose of its phantom, see `pipeline.data.phantom.PhantomParameters`.
PHANTOM = ("subjects", "resolution")
# What a cell is may not be set for all of them; where things lie is the study's business.
RESERVED = (
    "noise_level",
    "noise_kind",
    "seed",
    "dataset_dir",
    "output_dir",
    "run_name",
    "experiment_name",
    "tracking_uri",
    "resume",
    "device",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        method: its name, see `pipeline.methods.METHODS`.
        noise_level: misalignment in training, 0 to 5.
        noise_kind: "affine" or "nonaffine".
        seed: of the run.
        dataset: name of the data set.
    """

    method: str
    noise_level: float
    noise_kind: str
    seed: int
    dataset: str

    @property
    def name(self) -> str:
        """Name of the cell's folder and run, such as ``phantom-reggan-affine5-seed0``."""
        return f"{self.dataset}-{self.method}-{self.noise_kind}{self.noise_level:g}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A grid of runs, all with the same settings.

    Attributes:
        name: of the MLflow experiment, and by default of the study's folder.
        methods: names out of `pipeline.methods.METHODS`.
        noise: noise levels by kind, such as ``{"affine": [0, 5], "nonaffine": [5]}``.
        method_noise: the same, by its name, for a method that is run at other levels than the rest: one that does not
            compare with the target, such as CycleGAN, need not be run at all of them.
        method_start: by its name, for a method that goes on from the model of another: that other method, which stands
            before it in ``methods`` and is run at its levels, too. It starts from the last checkpoint of the same
            noise, seed and data set.
        seeds: of the runs.
        datasets: folder by name; None for the phantom that the project makes.
        phantom: what that phantom is made of, such as ``{"subjects": (1, 1, 1), "resolution": 8.0}``; it then lies in
            the study's folder. None for the one that the project makes by default.
        steps: training steps of each run, rounded to whole epochs; None leaves the length to ``settings``.
        overlays: configs stacked over each method's chain, such as ``("paper.json",)``.
        settings: of each run, by their path in the config, such as ``{"batch_size": 4}``.
        method_settings: the same for the runs of one method, by its name.
        split: list of the data set that is scored, "test" or "validation".
        gallery: the two methods whose pictures are set side by side.
        source: what the source images are, for the report.
        target: what the target images are.

    Raises:
        ValueError: if anything is missing, unknown or out of range.
    """

    name: str
    methods: tuple[str, ...]
    noise: Mapping[str, tuple[float, ...]]
    method_noise: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    method_start: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    datasets: Mapping[str, str | None] = field(default_factory=lambda: {DEFAULT_DATASET: None})
    phantom: Mapping[str, Any] | None = None
    steps: int | None = None
    overlays: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    method_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    split: str = "test"
    gallery: tuple[str, ...] = ("pix2pix", "reggan")
    source: str = "T1"
    target: str = "T2"

    def __post_init__(self) -> None:
        for name in (self.name, *self.datasets):
            if not _NAME.fullmatch(str(name)):
                raise ValueError(f"names must be made of letters, digits, '_', '.' and '-', got {name!r}")
        for what, methods in (("methods", self.methods), ("gallery", self.gallery)):
            for method in methods:
                _check_known(method, METHODS, what)
        _check_values("methods", self.methods)
        _check_values("seeds", self.seeds)
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise ValueError(f"seeds must be whole numbers of at least 0, got {seed!r}")
        if not self.datasets:
            raise ValueError("datasets must name at least one data set, got none")
        for name in self.phantom or {}:
            _check_known(name, PHANTOM, "phantom")
        for method in self.method_noise:
            _check_known(method, self.methods, "method_noise")
        for noise in (self.noise, *self.method_noise.values()):
            _check_noise(noise)
        self._check_starts()
        if self.steps is not None and (
            isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1
        ):
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}")
        if self.steps is not None and "max_epochs" in self.settings:
            raise ValueError("steps and settings#max_epochs both say how long to train; give one of them")
        if self.split not in ("test", "validation"):
            raise ValueError(f"split must be test or validation, got {self.split!r}")
        for method, settings in (("", self.settings), *self.method_settings.items()):
            if method:
                _check_known(method, self.methods, "method_settings")
            taken = sorted(set(settings) & set(RESERVED))
            if taken:
                raise ValueError(f"settings must not hold {taken}: the study itself sets them")

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a YAML file whose entries are the attributes; without ``name`` it is named like the file.

        Raises:
            ValueError: if the file is missing, is no YAML mapping, or anything in it is wrong; the message names it.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"study {path} cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"study {path} is no YAML: {error}") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"study {path} must hold a mapping of settings, got {type(content).__name__}")
        try:
            return cls.from_mapping({"name": path.stem, **content})
        except ValueError as error:
            raise ValueError(f"study {path}: {error}") from error

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Study:
        """A study of plain lists and dictionaries.

        Raises:
            ValueError: if an entry is unknown, missing, of the wrong kind, or out of range.
        """
        known = cls.__dataclass_fields__
        for entry in content:
            _check_known(str(entry), known, "entries")
        values = dict(content)
        for entry in ("name", "methods", "noise"):
            if values.get(entry) is None:
                raise ValueError(f"the entry '{entry}' is missing")
        for entry in ("methods", "seeds", "overlays", "gallery"):
            if entry in values:
                values[entry] = _as_tuple(entry, values[entry])
        if values.get("phantom") is None:
            values.pop("phantom", None)
        for entry in ("datasets", "settings", "method_noise", "method_start", "method_settings", "phantom"):
            if entry in values and not isinstance(values[entry], Mapping):
                raise ValueError(f"{entry} must be a mapping, got {values[entry]!r}")
        values["noise"] = _as_noise("noise", values["noise"])
        values["method_noise"] = {
            method: _as_noise(f"method_noise#{method}", noise)
            for method, noise in values.get("method_noise", {}).items()
        }
        for method, settings in values.get("method_settings", {}).items():
            if not isinstance(settings, Mapping):
                raise ValueError(f"method_settings#{method} must be a mapping, got {settings!r}")
        return cls(**values)

    def narrowed(self, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Study:
        """The same study with fewer methods, or with other seeds.

        Args:
            methods: those to keep, among the study's; what one of them starts from is kept, too. None for all.
            seeds: in place of the study's; None for those.

        Raises:
            ValueError: a method is none of the study's, or a seed is no whole number of at least 0.
        """
        study = self if seeds is None else replace(self, seeds=tuple(seeds))
        if methods is None:
            return study
        for method in methods:
            _check_known(method, self.methods, "methods")
        wanted = set(methods)
        for method in reversed(self.methods):  # what a method starts from stands before it
            if method in wanted and method in self.method_start:
                wanted.add(self.method_start[method])
        kept = tuple(method for method in self.methods if method in wanted)
        per_method: dict[str, Any] = {
            name: {method: value for method, value in getattr(self, name).items() if method in kept}
            for name in ("method_noise", "method_start", "method_settings")
        }
        return replace(study, methods=kept, **per_method)

    def describe(self) -> dict[str, Any]:
        """The study as plain values, safe for JSON; `from_mapping` takes them back."""
        return json.loads(json.dumps(asdict(self)))

    def cells(self) -> Iterator[Cell]:
        """All cells, those of the first seed and data set first, so that a first answer is there early."""
        for seed in self.seeds:
            for dataset in self.datasets:
                grids = {method: self.points(method) for method in self.methods}
                for kind, level in dict.fromkeys(point for points in grids.values() for point in points):
                    for method, points in grids.items():
                        if (kind, level) in points:
                            yield Cell(method, level, kind, seed, dataset)

    def start(self, cell: Cell) -> Cell | None:
        """The cell from whose model a cell goes on; None for fresh weights."""
        method = self.method_start.get(cell.method)
        return None if method is None else replace(cell, method=method)

    def points(self, method: str) -> list[tuple[str, float]]:
        """Noise kinds and levels that a method is run at."""
        noise = self.method_noise.get(method, self.noise)
        return [(kind, level) for kind, levels in noise.items() for level in levels]

    def _check_starts(self) -> None:
        for method, start in self.method_start.items():
            _check_known(method, self.methods, "method_start")
            _check_known(start, self.methods, f"method_start#{method}")
            if self.methods.index(start) >= self.methods.index(method):
                raise ValueError(f"method_start: {method} starts from {start}, which must stand before it in methods")
            missing = [
                f"{kind} {level:g}" for kind, level in self.points(method) if (kind, level) not in self.points(start)
            ]
            if missing:
                raise ValueError(
                    f"method_start: {method} starts from {start}, which is not run at {', '.join(missing)}"
                )

    def chain(self, cell: Cell) -> list[str]:
        """Names of the configs that the cell is trained with."""
        return ["train.json", *METHODS[cell.method].overlays, *self.overlays]

    def run_settings(self, cell: Cell) -> dict[str, Any]:
        """What the cell sets in its configs, for training and evaluation alike."""
        settings = {
            "noise_level": int(cell.noise_level) if float(cell.noise_level).is_integer() else cell.noise_level,
            "noise_kind": cell.noise_kind,
            "seed": cell.seed,
            **({} if self.datasets[cell.dataset] is None else {"dataset_dir": str(self.datasets[cell.dataset])}),
            **self.settings,
            **self.method_settings.get(cell.method, {}),
        }
        if self.steps is not None:
            settings["max_epochs"] = f"$max(1, round({self.steps} / len(@train#dataloader)))"
        return settings


def _check_noise(noise: Mapping[str, Sequence[float]]) -> None:
    if not any(noise.values()):
        raise ValueError("noise must hold at least one level, such as {affine: [0, 5]}, got none")
    for kind, levels in noise.items():
        _check_known(kind, NOISE_KINDS, "noise")
        _check_unique(f"noise levels of kind {kind}", levels)
        for level in levels:
            if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 <= level <= MAX_NOISE_LEVEL:
                raise ValueError(f"noise levels must lie in [0, {MAX_NOISE_LEVEL:g}], got {level!r}")


def _as_noise(name: str, value: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping of levels by kind, got {value!r}")
    return {kind: _as_tuple(f"{name}#{kind}", levels) for kind, levels in value.items()}


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return tuple(value)


def _check_values(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"{name} must hold at least one entry, got none")
    _check_unique(name, values)


def _check_unique(name: str, values: Sequence[Any]) -> None:
    twice = sorted({str(value) for value in values if list(values).count(value) > 1})
    if twice:
        raise ValueError(f"{name} must be different from each other, got {', '.join(twice)} twice")


def _check_known(name: str, known: Any, what: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), list(known), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"{what} must be among {', '.join(known)}, got {name!r}{hint}")
