"""A quick look at pairs that were never prepared: do the scans lie on each other?"""

from __future__ import annotations

import inspect
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from pipeline.data.inspection import inspect_all
from pipeline.data.store import VolumeStore, open_store, source_of_room
from pipeline.io import read_image
from pipeline.preparation.registration import COARSE, MIDDLE, Scan, residual
from transforms import UNMEASURED_KEY, foreground_mask

CHECKED = 3
"""Patients that are looked at."""
TOLERATED = 1.5
"""Mean displacement in mm that is not warned of; at voxels of 4 and 2 mm a sound pair is found within less."""
GAIN = 1.01
"""Mutual information has to grow by this factor for a displacement to be believed."""
LEAST_SIDE = 60.0
"""Sides in mm below which a volume has too few voxels of 4 mm to register."""

logger = logging.getLogger(__name__)


def check_registration(
    cases: Sequence[Mapping[str, Any]],
    wanted: bool = True,
    registered: bool = False,
    patients: int = CHECKED,
    store: str | os.PathLike[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Register the pairs of a few patients at low resolution and warn of those that do not line up.

    Nothing is changed, and nothing is refused: RegGAN is for what a rigid registration leaves, within the plane.

    Args:
        cases: pairs, ``{"image": path, "label": path, "case": patient}``.
        wanted: False to leave it out.
        registered: whether the data say that they were registered, as `prepare` does; then nothing is done.
        patients: how many are looked at, evenly spread over the list.
        store: folder that keeps what was found of a pair, see `pipeline.data.store`; None or "none" for no such memory.

    Returns:
        Of each case that was looked at: mean displacement and its part through the plane, in mm.
    """
    if not wanted or registered:
        return {}
    by_patient = {str(case["case"]): case for case in cases if not str(case["image"]).endswith(".npy")}
    names = sorted(by_patient)
    chosen = [names[at] for at in sorted({int(at) for at in np.linspace(0, len(names) - 1, patients)})] if names else []
    start = time.monotonic()
    found, warnings = {}, []
    for name in chosen:
        looked = _look_once(by_patient[name], store)
        if looked is None:
            continue
        mean, through, gained = looked
        found[name] = (mean, through)
        if mean > TOLERATED and gained:
            warnings.append(f"{name}: {mean:.1f} mm apart, {through:.1f} mm of it through the plane")
    if warnings:
        logger.warning(
            "the pairs do not line up: %d of %d patients that were looked at can be registered better by a rigid"
            " movement (%s). What lies through the plane no registration of slices can take out: prepare the data with"
            " scripts/prepare.py, or say --registration_check false",
            len(warnings), len(found), "; ".join(warnings),
        )  # fmt: skip
    elif found:
        logger.info("%d patients line up (%.0f s)", len(found), time.monotonic() - start)
    return found


def _look_once(case: Mapping[str, Any], store: str | os.PathLike[str] | None) -> tuple[float, float, bool] | None:
    """See `_look`; looked up where the same files were looked at before."""
    opened = open_store(store)
    paths = [str(case[key]) for key in ("image", "label")]
    digests = [report.digest for report in inspect_all(paths).values()]
    if opened is None or not all(digests):
        return _look(case)
    sources = [source_of_room(path) for path in (__file__, inspect.getfile(foreground_mask))]

    def look() -> torch.Tensor:
        looked = _look(case)
        return torch.tensor([math.nan] if looked is None else looked, dtype=torch.float64)

    found = opened.once(VolumeStore.key("registration", metadata.version("itk"), sources, digests), look).tolist()
    return None if len(found) == 1 else (found[0], found[1], bool(found[2]))


def _look(case: Mapping[str, Any]) -> tuple[float, float, bool] | None:
    """Mean and through-plane displacement in mm, and whether it is believed; None where there is too little to see."""
    scans = []
    for key in ("image", "label"):
        image = read_image(case[key])
        if image.meta.get(UNMEASURED_KEY, False):
            return None
        scans.append(Scan(image.numpy()[0], image.affine.numpy()))
    source, target = scans
    if (np.array(source.voxels.shape) * source.spacing < LEAST_SIDE).any() or min(source.voxels.shape) < 8:
        return None
    mask = foreground_mask(source.voxels, list(source.spacing))
    if not mask.any():
        return None
    result = residual(source, target, mask, (COARSE, MIDDLE))
    return result.mean, result.through_plane, result.after > GAIN * result.before
