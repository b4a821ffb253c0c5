"""A tiny data set on disk and a way to run the bundle's configs on it, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.scripts import run as run_bundle

from pipeline.errors import first_cause

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
SHAPE = (40, 34, 6)
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
# What makes the default networks small enough for a test; the paper's overlay takes the same.
TINY = {
    "device": "cpu",
    "store": "none",
    "spatial_size": 32,
    "max_epochs": 1,
    "decay_epochs": 0,
    "batch_size": 2,
    "picture_interval": 1,
    "network_def#generator#filters": 4,
    "network_def#generator#residual_blocks": 1,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": [4, 4],
}


def blob(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A pair of smooth volumes: an ellipsoid with an inner structure, of two contrasts, background 0."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    centre = random.uniform(-0.15, 0.15, size=(3, 1, 1, 1))
    radius = np.sqrt((((grid - centre) / np.array([0.8, 0.8, 1.6]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    inner = radius < random.uniform(0.4, 0.6)
    image = np.where(radius < 1, np.where(inner, 700, 400), 0) + (radius < 1) * random.normal(0, 10, SHAPE)
    label = np.where(radius < 1, np.where(inner, 200, 900), 0) + (radius < 1) * random.normal(0, 10, SHAPE)
    return image.clip(0).astype(np.float32), label.clip(0).astype(np.float32)


def write_pair(folder: Path, name: str, seed: int, affine: np.ndarray = AFFINE) -> dict[str, str]:
    """Write one pair below ``folder`` and return its entry of a datalist."""
    entry = {}
    for key, volume in zip(("image", "label"), blob(seed), strict=True):
        path = folder / f"{key}s" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume, affine), path)
        entry[key] = str(path.relative_to(folder))
    return entry


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training draws some, of which nobody looks at the print."""
    monkeypatch.setattr("pipeline.reporting.panels.DPI", 40)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training patients, one for validation, one for testing."""
    folder = tmp_path_factory.mktemp("dataset")
    datalist = {
        "training": [write_pair(folder, "a", 0), write_pair(folder, "b", 1)],
        "validation": [write_pair(folder, "c", 2)],
        "test": [write_pair(folder, "d", 3)],
    }
    (folder / "datalist.json").write_text(json.dumps(datalist))
    return folder


def run_chain(chain: Sequence[str], run_id: str = "run", **settings: Any) -> None:
    """Run a chain of the bundle's configs in this process, small; ``settings`` come last."""
    defaults: dict[str, Any] = {**TINY, "tracking_uri": "none"}
    if "train.json" not in chain:
        defaults = {"device": "cpu"} if "inference.json" in chain else {"device": "cpu", "tracking_uri": "none"}
    if "unet.json" in chain:
        defaults.pop("network_def#generator#residual_blocks", None)  # it has none
    run_bundle(
        run_id=run_id,
        config_file=[str(CONFIGS / name) for name in chain],
        logging_file=False,
        **(defaults | settings),
    )


Runner = Callable[..., None]


@dataclass
class Place:
    """Copies of good input, to be spoilt.

    Attributes:
        data: a data set: images/ and labels/ of the cases a to d, and datalist.json.
        run: folder of a finished training.
        source: a volume to translate.
        model: weights to translate it with.
        last: the checkpoint to resume from.
    """

    root: Path

    def __post_init__(self) -> None:
        self.data, self.run = self.root / "data", self.root / "run"
        self.source, self.model = self.data / "images" / "d.nii.gz", self.run / "model.pt"
        self.last = self.run / "checkpoints" / "last.pt"

    def fill(self, text: Any) -> Any:
        """Put the paths into a text with {data}, {run}, {source}, {model}, {last} in it."""
        return text.format(**vars(self)) if isinstance(text, str) else text

    def datalist(self, **lists: Any) -> None:
        """Change lists of the datalist; cases by their letters."""
        path = self.data / "datalist.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | lists))

    def cut_short(self, path: Path | str) -> None:
        """Leave the first half of a file."""
        path = self.data / path
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def revoxel(self, path: Path | str, change: Callable[..., Any], affine: np.ndarray | None = None) -> None:
        """Write a volume anew with other voxels, and with another affine where one is given."""
        volume = nib.load(self.data / path)
        voxels = change(np.asarray(volume.dataobj).copy())
        nib.save(nib.Nifti1Image(voxels, volume.affine if affine is None else affine), self.data / path)

    def set_voxel(self, path: Path | str, value: float) -> None:
        """Give one voxel of a volume another value."""

        def change(voxels: np.ndarray) -> np.ndarray:
            voxels[3, 4, 2] = value
            return voxels

        self.revoxel(path, change)


@pytest.fixture
def run_config(dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs a chain of configs on the tiny data set: ``run_config("train.json", "paper.json", max_epochs=2)``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*chain: str, run_id: str = "run", **overrides: Any) -> None:
        run_chain(chain, run_id, **{"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / "run"), **overrides})

    return run


@pytest.fixture(scope="session")
def trained_run(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run that has learned the two contrasts; to be read only."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = {"noise_level": 0, "learning_rate": 0.003, "max_epochs": 15, "val_interval": 15, "picture_interval": 15}
    run_chain(["train.json"], dataset_dir=str(dataset_dir), output_dir=str(folder), **settings)
    return folder


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Takes the content of every file below a folder, by relative name, to see whether anything was changed."""

    def take(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return take


@pytest.fixture
def place(dataset_dir: Path, trained_run: Path, tmp_path: Path) -> Place:
    """Good input that a test may spoil."""
    shutil.copytree(dataset_dir, tmp_path / "data")
    shutil.copytree(trained_run, tmp_path / "run")
    return Place(tmp_path)


@pytest.fixture
def assert_refused(
    run_config: Runner, place: Place, snapshot: Callable[[Path], dict[str, bytes]]
) -> Callable[..., None]:
    """Runs a chain on spoilt input and asserts what is said, and that no file has changed, come or gone.

    The command line closes with the message that is looked at here (see ``pipeline.bundle.explain_errors``).
    """

    def check(
        chain: Sequence[str], spoil: Callable[[Place], Any] | None, settings: dict[str, Any], says: Sequence[str]
    ) -> None:
        if spoil is not None:
            spoil(place)
        defaults = {"dataset_dir": str(place.data), "output_dir": str(place.run)}
        if "inference.json" in chain:
            defaults["output_dir"] = str(place.root / "translated")
            defaults |= {"image": str(place.source), "checkpoint": str(place.model)}
        before = snapshot(place.root)
        with pytest.raises((ValueError, TypeError, OSError, RuntimeError)) as caught:
            run_config(*chain, **{name: place.fill(value) for name, value in (defaults | settings).items()})
        cause = first_cause(caught.value)
        missing = [text for text in map(place.fill, says) if text not in str(cause)]
        assert not missing, f"{type(cause).__name__}: {cause}"
        assert snapshot(place.root) == before

    return check
