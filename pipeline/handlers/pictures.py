"""Pictures of translations: what went in, what came out, what it should have been, and how far off it is."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from pipeline.handlers.tables import replacing

PANEL_WIDTH = 1.8  # inches
LEFT, RIGHT, GAP, CAPTION, HEADER, FOOTER = 0.5, 0.1, 0.05, 0.2, 0.3, 0.95  # inches
DPI = 150
# Arrows along the longer side of a displacement field: more would touch each other in print.
ARROWS = 16
MIN_DISPLACEMENT = 0.1  # pixels; the colour scale of a field that is still the identity
MIN_ERROR = 0.02  # the same for errors
SEED = 0  # of the pictures' own randomness

NOTE = "For volumes in RAS orientation the patient's right is on the left side, as in radiology."
FIELD_NOTE = " Arrows point to where the warped prediction takes its values from."


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

    def __post_init__(self) -> None:
        if self.source.ndim != 2:
            raise ValueError(f"pictures show slices (X, Y), got a source of shape {self.source.shape}")
        for name in ("prediction", "target", "baseline", "misaligned", "warped"):
            image = getattr(self, name)
            if image is not None and image.shape != self.source.shape:
                raise ValueError(f"{name} has shape {image.shape}, expected the source's {self.source.shape}")
        if self.ddf is not None and self.ddf.shape != (2, *self.source.shape):
            raise ValueError(f"ddf has shape {self.ddf.shape}, expected {(2, *self.source.shape)}")


@dataclass(frozen=True)
class _Column:
    title: str
    kind: str  # "image", "error" or "field"
    content: Callable[[Sample], np.ndarray | None]
    compared: Callable[[Sample], np.ndarray | None] | None = None


def _error(image: np.ndarray | None, target: np.ndarray) -> np.ndarray | None:
    return None if image is None else np.abs(image - target)


COLUMNS = (
    _Column("Source", "image", lambda sample: sample.source),
    _Column("Prediction", "image", lambda sample: sample.prediction),
    _Column("Target", "image", lambda sample: sample.target),
    _Column("Absolute error", "error", lambda sample: _error(sample.prediction, sample.target)),
    _Column("Intensity map", "image", lambda sample: sample.baseline),
    _Column("Its absolute error", "error", lambda sample: _error(sample.baseline, sample.target)),
    _Column("Misaligned target", "image", lambda sample: sample.misaligned),
    _Column("Warped prediction", "image", lambda sample: sample.warped),
    _Column("Displacement", "field", lambda sample: sample.ddf),
)
