"""A tiny data set on disk and a way to run the bundle's configs on it, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.scripts import run as run_bundle

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
SHAPE = (40, 34, 6)
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
# What makes the default networks small enough for a test; the paper's overlay takes the same.
TINY = {
    "device": "cpu",
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


INFERENCE_SETTINGS = (
    "device",
    "output_dir",
    "network_def#generator#filters",
    "network_def#generator#residual_blocks",
)


def run_chain(chain: Sequence[str], run_id: str = "run", **settings: Any) -> None:
    """Run a chain of the bundle's configs in this process, small; ``settings`` come last."""
    defaults: dict[str, Any] = {**TINY, "tracking_uri": "none"}
    if "train.json" not in chain:
        defaults = {name: value for name, value in TINY.items() if name in INFERENCE_SETTINGS}
    run_bundle(
        run_id=run_id,
        config_file=[str(CONFIGS / name) for name in chain],
        logging_file=False,
        **(defaults | settings),
    )


Runner = Callable[..., None]


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
