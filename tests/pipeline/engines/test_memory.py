"""Memory that a step frees is kept for the next one while a training runs, and given back behind it."""

from __future__ import annotations

import platform

import pytest
import torch

from pipeline.engines import TranslationTrainer, memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc does")
SIZE = 2**24  # floats, 64 MiB: 16384 pages


def pages(times: int = 4) -> int:
    """Pages that the system has to hand out for a block that is allocated, written and freed so many times."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(SIZE).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def test_blocks_are_kept_inside_and_given_back_afterwards():
    with memory.kept_memory("cpu") as kept:
        assert kept
        pages()
        inside = pages()
    assert inside < 1000
    assert pages() > 1000


def test_what_the_environment_tunes_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    with memory.kept_memory("cpu") as kept:
        assert not kept


def test_a_training_keeps_it(make_translator, batch, reggan_weights, monkeypatch):
    translator = make_translator()
    generator, discriminator = (
        torch.optim.SGD(list(side), lr=1e-2)
        for side in (translator.generator_parameters(), translator.discriminator_parameters())
    )
    trainer = TranslationTrainer("cpu", 1, [batch], translator, generator, discriminator, reggan_weights)
    seen = []
    monkeypatch.setattr(memory, "_glibc", lambda: seen.append("asked"))
    trainer.run()
    assert seen == ["asked"]


def test_on_a_gpu_nothing_is_done():
    with memory.kept_memory("cuda:0") as kept:
        assert not kept
