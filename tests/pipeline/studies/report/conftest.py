"""Results and samples of studies that were never run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.studies.report.galleries import CellSamples

# PSNR at level 0 and what each level takes from it.
PSNR = {"pix2pix": (27.0, 1.6), "cyclegan": (22.0, 0.2), "reggan": (26.5, 0.4)}
LEVELS = (*(("affine", float(level)) for level in range(6)), ("nonaffine", 5.0))


def study(
    methods: Iterable[str] = tuple(PSNR),
    levels: Iterable[tuple[str, float]] = LEVELS,
    seeds: int = 3,
    datasets: Mapping[str, int] = {"phantom": 4, "ms_mri": 2},
    slices: int = 5,
) -> pd.DataFrame:
    """Long form of a study that goes as one would hope; ``datasets`` says how many patients each has."""
    random = np.random.default_rng(0)
    easy = {(name, case): random.normal(0, 0.8) for name, count in datasets.items() for case in range(count)}
    rows = []
    for method in methods:
        for kind, level in levels:
            start, loss = PSNR.get(method, (20.0, 0.5))
            for seed in range(seeds):
                run = start - loss * level * (0.6 if kind == "nonaffine" else 1) + random.normal(0, 0.3)
                for (name, case), shift in easy.items():
                    for index in range(slices):
                        psnr = run + shift + random.normal(0, 0.7)
                        row = {
                            "method": method,
                            "noise_level": level,
                            "noise_kind": kind,
                            "seed": seed,
                            "dataset": name,
                        }
                        row |= {"case": f"patient{case:02d}", "slice": 40 + 5 * index}
                        row |= {"nmae": 0.9 * 10 ** (-psnr / 20), "psnr": psnr, "ssim": 1 - 2 * 10 ** (-psnr / 20)}
                        row |= {"source_psnr": 8 + shift, "intensity_map_psnr": 18 + shift}
                        row |= {"source_ssim": 0.82, "intensity_map_ssim": 0.86}
                        row |= {"source_nmae": 0.33, "intensity_map_nmae": 0.09}
                        row |= {"source_information": 0.6 + psnr / 100, "high_frequency": psnr / 28}
                        if method == "reggan":
                            own = 0.3 + 0.2 * level + abs(random.normal(0, 0.05))
                            row |= {
                                "endpoint_error": own,
                                "identity_endpoint_error": 1.1 * level,
                                "folded": 2e-4 * level,
                            }
                        rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture
def make_results() -> Callable[..., pd.DataFrame]:
    """Builds the long form of a synthetic study."""
    return study


def samples(folder: Path, results: pd.DataFrame, shape: tuple[int, int] = (48, 40)) -> list[CellSamples]:
    """A ``samples.npz`` for each cell of the results: ellipses, the worse the further off the truth."""
    cells = []
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    keys = ["method", "noise_level", "noise_kind", "seed", "dataset"]
    for number, (values, part) in enumerate(results.groupby(keys)):
        method, level, kind, seed, dataset = values
        shown = part.groupby(["case", "slice"], as_index=False)["psnr"].mean().head(8)

        def head(size: float, shift: float, contrast: float) -> np.ndarray:
            inside = ((x - shift) ** 2 / 0.6 + y**2 / 0.8) < size
            image = -1 + inside * (1 + contrast * np.cos(9 * (x - shift)) * np.cos(7 * y))
            return image.astype(np.float32)

        sizes = [0.4 + 0.06 * number for number in range(len(shown))]
        off = 0.03 * level * (1 if method == "pix2pix" else 0.15)
        path = folder / f"cell{number}.npz"
        np.savez(
            path,
            image=np.stack([head(size, 0, -0.8) for size in sizes]),
            label=np.stack([head(size, 0, 0.9) for size in sizes]),
            pred=np.stack([head(size, off, 0.85) for size in sizes]),
            case=np.array(shown["case"], dtype=str),
            slice=shown["slice"].to_numpy(),
            psnr=shown["psnr"].to_numpy(),
        )
        cells.append(CellSamples(path, str(method), float(level), str(kind), int(seed), str(dataset)))
    return cells


@pytest.fixture
def make_samples(tmp_path: Path) -> Callable[..., list[CellSamples]]:
    """Writes samples for the cells of a study."""
    folder = tmp_path / "samples"
    folder.mkdir()
    return lambda results, **options: samples(folder, results, **options)
