"""Drawing of translations: a grid of slices, their errors and displacement fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.metrics.image import BACKGROUND_TOLERANCE
from pipeline.reporting.panels import Panel, Row, cropping_box, draw_grid, scale_limit
from pipeline.reporting.samples import IMAGES, Sample
from transforms.scale import BACKGROUND


@dataclass(frozen=True)
class _Column:
    title: str
    kind: str  # "image", "error" or "field"
    content: Callable[[Sample], np.ndarray | None]
    psnr: Callable[[Sample], float | None] = lambda sample: None


def _error(image: np.ndarray | None, target: np.ndarray) -> np.ndarray | None:
    return None if image is None else np.abs(image - target)


TARGET = "Target"
COLUMNS = (
    _Column("Source", "image", lambda sample: sample.source),
    _Column("Prediction", "image", lambda sample: sample.prediction),
    _Column(TARGET, "image", lambda sample: sample.target),
    _Column("Error", "error", lambda sample: _error(sample.prediction, sample.target), lambda sample: sample.psnr),
    _Column("Intensity map", "image", lambda sample: sample.baseline),
    _Column(
        "Its error", "error", lambda sample: _error(sample.baseline, sample.target), lambda sample: sample.baseline_psnr
    ),
    _Column("Misaligned target", "image", lambda sample: sample.misaligned),
    _Column("Warped prediction", "image", lambda sample: sample.warped),
    _Column("Displacement", "field", lambda sample: sample.ddf),
)


def draw_translation(
    samples: Sequence[Sample], path: str | Path, title: str = "", error_limit: float | None = None
) -> None:
    """Draw a grid of translations: a row per sample, a column per kind of image that at least one sample has.

    Images are shown on the fixed grey scale [-1, 1], absolute errors on one colour scale and displacements on another,
    each shared by all rows; what is background in all of them is cut off. The view is the radiologist's: the first
    array axis runs from right to left and the second upwards, so that an axial slice of a volume in RAS orientation has
    the patient's right on the left side and the front on top (sagittal: front on the left; coronal: right on the left,
    head on top).

    Args:
        samples: at least one, all of one shape.
        path: the picture's file, of any kind that matplotlib writes without a window (``.png``, ``.pdf``); replaced in
            one go.
        title: a line on top.
        error_limit: end of the error scale in intensity units (the whole range is 2), default what 98 % of the shown
            foreground errors stay below. Give it to compare pictures with each other.

    Raises:
        ValueError: if there are no samples, their shapes differ, or ``error_limit`` is not positive.
    """
    if not samples:
        raise ValueError("no samples to draw, expected at least one")
    shapes = {sample.source.shape for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"samples must have one shape, got {sorted(shapes)}")
    if error_limit is not None and not error_limit > 0:
        raise ValueError(f"error_limit must be positive, got {error_limit}")
    samples = _cropped(samples)
    columns = [column for column in COLUMNS if any(column.content(sample) is not None for sample in samples)]
    limits = {kind: _limit(samples, kind) for kind in ("error", "field")}
    if error_limit is not None:
        limits["error"] = error_limit
    rows = [Row(_label(sample), [_panel(column, sample) for column in columns]) for sample in samples]
    draw_grid([column.title for column in columns], rows, limits, path, title)


def _cropped(samples: Sequence[Sample]) -> list[Sample]:
    """Cut off what is background in every image of every sample."""
    x, y = cropping_box(image for sample in samples for image in _images(sample).values())
    cropped = []
    for sample in samples:
        parts: dict[str, Any] = {name: image[x, y] for name, image in _images(sample).items()}
        cropped.append(replace(sample, **parts, ddf=None if sample.ddf is None else sample.ddf[:, x, y]))
    return cropped


def _images(sample: Sample) -> dict[str, np.ndarray]:
    images = {name: getattr(sample, name) for name in IMAGES}
    return {name: image for name, image in images.items() if image is not None}


def _limit(samples: Sequence[Sample], kind: str) -> float:
    shown = ((column.content(sample), sample.target) for sample in samples for column in COLUMNS if column.kind == kind)
    return scale_limit(kind, ((content, target) for content, target in shown if content is not None))


def _label(sample: Sample) -> str:
    return "\n".join([sample.case, "" if sample.slice is None else f"slice {sample.slice}"])


def _panel(column: _Column, sample: Sample) -> Panel:
    psnr = column.psnr(sample)
    foreground = sample.target > BACKGROUND + BACKGROUND_TOLERANCE if column.title == TARGET else None
    caption = "" if psnr is None else f"PSNR {psnr:.2f} dB"
    return Panel(column.kind, column.content(sample), caption, foreground=foreground)
