"""A made-up head with structure everywhere, in two contrasts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.preparation.registration import Scan


def head(person: int, size=(46, 50, 36), spacing=(4.0, 4.0, 4.2)):
    """Two scans on one grid: tissues from smooth noise within an ellipsoid, and another contrast of them."""
    rng = np.random.default_rng(person)
    axes = [np.linspace(-1, 1, length) for length in size]
    radius = np.sqrt(
        sum((each / side) ** 2 for each, side in zip(np.meshgrid(*axes, indexing="ij"), (0.75, 0.8, 0.85), strict=True))
    )
    texture = ndimage.gaussian_filter(rng.normal(size=size), 2.0)
    tissue = np.digitize(texture / texture.std(), (-0.6, 0.5)) + 1
    tissue[radius > 0.92] = 4
    tissue[radius > 1] = 0
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(size) * spacing / 2
    scans = []
    for values in ((0, 400, 700, 1000, 850), (0, 900, 520, 300, 200)):
        voxels = ndimage.gaussian_filter(np.array(values, np.float32)[tissue], 0.5)
        scans.append(Scan((voxels + rng.rayleigh(8, size)).astype(np.float32), affine))
    return scans


@pytest.fixture(scope="session")
def make_head():
    return head


@pytest.fixture(scope="session")
def people():
    return {person: head(person) for person in (1, 2)}
