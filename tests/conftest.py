"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator

REGGAN = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and sums then do not depend on the machine."""
    torch.set_num_threads(1)


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
