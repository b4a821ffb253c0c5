"""Slices and what became of them, as pictures show them: taken from batches, written, and read again."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.files import replacing

IMAGES = ("source", "prediction", "target", "baseline", "misaligned", "warped")  # of a sample


@dataclass(frozen=True)
class Sample:
    """One slice and what became of it; arrays (X, Y), as they lie in the volume, intensities in [-1, 1].

    Attributes:
        source: the input.
        prediction: what the network makes of it.
        target: the aligned target.
        case: the patient.
        slice: index of the slice.
        baseline: another prediction to compare with.
        misaligned: the target as training sees it.
        warped: the prediction, warped onto the misaligned target.
        ddf: displacement field (2, X, Y) in pixels, pull-back, channel i along axis i.
        psnr: of the prediction, in dB.
        baseline_psnr: of the baseline, in dB.
    """

    source: np.ndarray
    prediction: np.ndarray
    target: np.ndarray
    case: str = ""
    slice: int | None = None
    baseline: np.ndarray | None = None
    misaligned: np.ndarray | None = None
    warped: np.ndarray | None = None
    ddf: np.ndarray | None = None
    psnr: float | None = None
    baseline_psnr: float | None = None

    @property
    def error(self) -> np.ndarray:
        """Absolute error of the prediction (X, Y)."""
        return np.abs(self.prediction - self.target)

    def __post_init__(self) -> None:
        if self.source.ndim != 2:
            raise ValueError(f"pictures show slices (X, Y), got a source of shape {self.source.shape}")
        for name in IMAGES:
            image = getattr(self, name)
            if image is not None and image.shape != self.source.shape:
                raise ValueError(f"{name} has shape {image.shape}, expected the source's {self.source.shape}")
        if self.ddf is not None and self.ddf.shape != (2, *self.source.shape):
            raise ValueError(f"ddf has shape {self.ddf.shape}, expected {(2, *self.source.shape)}")


def evenly_spread(total: int, count: int) -> list[int]:
    """Up to ``count`` of ``range(total)``: the middles of equal parts, since the ends of a volume show little."""
    count = min(total, count)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def batch_samples(batch: Mapping[str, Any]) -> list[Sample]:
    """One sample per item of a batch, of the first channel of each image.

    Args:
        batch: ``image``, ``label`` and ``pred`` (B, C, X, Y); ``intensity_map``, ``misaligned``, ``warped`` alike and
            ``ddf`` (B, 2, X, Y) and ``psnr`` (B,) where there are any; ``case`` and ``slice``, B each.
    """

    def image(key: str, index: int) -> np.ndarray:
        return torch.as_tensor(batch[key][index]).detach().float().cpu().numpy()

    def optional(key: str, index: int) -> np.ndarray | None:
        return image(key, index)[0] if key in batch else None

    return [
        Sample(
            source=image("image", index)[0],
            prediction=image("pred", index)[0],
            target=image("label", index)[0],
            case=str(case),
            slice=int(batch["slice"][index]),
            baseline=optional("intensity_map", index),
            misaligned=optional("misaligned", index),
            warped=optional("warped", index),
            ddf=image("ddf", index) if "ddf" in batch else None,
            psnr=float(batch["psnr"][index]) if "psnr" in batch else None,
        )
        for index, case in enumerate(batch["case"])
    ]


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write what other pictures of the same N slices can be drawn from, as one ``.npz`` file.

    It holds ``image``, ``label`` and ``pred``, (N, X, Y) float32 in [-1, 1], ``case`` (N,) text, ``slice`` (N,) whole
    numbers, and ``psnr`` (N,), nan where it was not measured.
    """
    arrays: dict[str, Any] = {
        "image": np.stack([sample.source for sample in samples]).astype(np.float32),
        "label": np.stack([sample.target for sample in samples]).astype(np.float32),
        "pred": np.stack([sample.prediction for sample in samples]).astype(np.float32),
        "case": np.array([sample.case for sample in samples]),
        "slice": np.array([sample.slice for sample in samples]),
        "psnr": np.array([np.nan if sample.psnr is None else sample.psnr for sample in samples]),
    }
    with replacing(path) as beside, beside.open("wb") as file:  # to a name without .npz NumPy would add it
        np.savez_compressed(file, **arrays)


def read_samples(path: Path) -> list[Sample]:
    """The samples that `write_samples` has written.

    Raises:
        ValueError: the file is missing, damaged, or its arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image", "label", "pred", "case", "slice", "psnr")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no samples that can be shown: {error}") from error
    shape = arrays["image"].shape
    for name, array in arrays.items():
        expected = shape if name in ("image", "label", "pred") else shape[:1]
        if len(shape) != 3 or array.shape != expected:
            raise ValueError(f"{path}: {name} has shape {array.shape}, expected {expected}, image (N, X, Y)")
    return [
        Sample(source, prediction, target, str(case), int(index), psnr=None if np.isnan(score) else float(score))
        for source, target, prediction, case, index, score in zip(*arrays.values(), strict=True)
    ]
