"""Fixtures that several test files share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

from pipeline.models.describing import describe_translator
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator, Translator

REGGAN = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and sums then do not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is saved."""
    from matplotlib.figure import Figure  # slow to import: most tests draw nothing

    saved: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    return saved


@pytest.fixture
def reggan_weights() -> dict[str, float]:
    """The paper's weights of mode NC+R."""
    return dict(REGGAN)


@pytest.fixture
def make_translator() -> Callable[..., CycleGANTranslator]:
    """Builds a translator of tiny networks for 32x32 images."""

    def build(weights: Mapping[str, float] = REGGAN, seed: int = 0) -> CycleGANTranslator:
        torch.manual_seed(seed)
        return CycleGANTranslator(
            weights,
            generator=partial(ResNetGenerator, filters=4, residual_blocks=1),
            discriminator=partial(PatchDiscriminator, filters=4),
            registration=partial(RegistrationNet, channels=(4, 4)),
        )

    return build


RECIPE: dict[str, Any] = {
    "format": "reggan-recipe",
    "version": 1,
    "method": "reggan",
    "backbone": "cyclegan",
    "network_size": "small",
    "weights": dict(REGGAN),
    "source": {
        "modality": "T1",
        "channels": 1,
        "scaling": {
            "class": "transforms.ScaleMRIntensityd",
            "arguments": {"upper_percentile": 99.5, "background": 0.0},
        },
    },
    "target": {
        "modality": None,
        "channels": 1,
        "scaling": {"class": "transforms.ScaleCTIntensityd", "arguments": {"window": [0.0, 1000.0]}},
        "window": [0.0, 1000.0],
    },
    "grid": {
        "spatial_dims": 2,
        "orientation": "RAS",
        "spacing": None,
        "slice_axis": 2,
        "spatial_size": [32, 32],
        "fit": "resize",
    },
    "foreground": {"rule": "above-background", "min_foreground": 0.1},
    "data": None,
    "training": {
        "origin": "trained",
        "data_digest": "d" * 64,
        "noise_level": 3,
        "noise_kind": "affine",
        "seed": 0,
        "commit": None,
        "epoch": 0,
        "iteration": 0,
        "settings": {"batch_size": 2},
        "started_from": None,
    },
}


@pytest.fixture
def make_recipe(make_translator: Callable[..., CycleGANTranslator]) -> Callable[..., dict[str, Any]]:
    """Builds the content of a valid recipe, changed: ``make_recipe(grid={"slice_axis": 0}, method="mine")``."""

    def build(of: Translator | None = None, /, **changes: Any) -> dict[str, Any]:
        described, networks = describe_translator(make_translator() if of is None else of)
        content = copy.deepcopy(RECIPE) | {"translator": described, "networks": networks}
        for name, value in changes.items():
            both = isinstance(value, Mapping) and isinstance(content.get(name), Mapping)
            content[name] = {**content[name], **value} if both else value
        return content

    return build


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two pairs of 32x32 images in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1 for name in ("image", "label")}


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Asserts that two states are equal to the bit, through dictionaries and lists."""

    def compare(first: Any, second: Any) -> None:
        if isinstance(first, dict):
            assert first.keys() == second.keys()
            for key in first:
                compare(first[key], second[key])
        elif isinstance(first, (list, tuple)):
            assert len(first) == len(second)
            for one, other in zip(first, second, strict=True):
                compare(one, other)
        else:
            assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second

    return compare
