"""What the methods cost: the numbers in the docs, and how times and memory are measured."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import torch

from pipeline.bundle import project_dir
from pipeline.methods import METHODS
from pipeline.studies import cost
from pipeline.studies.timing import in_turns, peak_memory

CPU = torch.device("cpu")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def documented():
    """The rows of the table in docs/methods.md, by method."""
    text = (project_dir() / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in text.splitlines() if line.startswith("| `")]
    return {row[0].split("`")[1]: row for row in rows}


@pytest.mark.parametrize("name", METHODS)
def test_the_docs_have_the_parameters_and_overlays_of_each_method(documented, name):
    with torch.device("meta"):
        translator, _ = cost.make_translator(name, "paper")
    _, generator, discriminator, registration = cost.count_parameters(translator)
    _, overlays, _, *numbers = documented[name][:5]
    assert [int(number.replace(",", "")) for number in numbers] == [generator, discriminator]
    assert registration == (2_058_018 if "+r" in name or name.startswith("reggan") else 0)
    assert tuple(overlays.replace("`", "").split()) == METHODS[name].overlays


def test_a_method_is_measured_against_reggan(monkeypatch, capsys):
    peaks = {"reggan": 200.0, "pix2pix": 150.0}
    monkeypatch.setattr(cost, "peak_memory", lambda make_step, name, *_, device: peaks[name])
    seconds = {"reggan": [2.0, 4.0, 2.0], "pix2pix": [1.0, 1.0, 1.0]}
    monkeypatch.setattr(cost, "in_turns", lambda works, *_, **__: {name: seconds[name] for name in works})
    cost.report_cost(["pix2pix", "reggan"], 64, 3, CPU, "small")
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {row[0]: row for row in lines}
    assert rows["pix2pix"][-3:] == ["1000 ms", "0.50", "0.75"]
    assert rows["reggan"][-3:] == ["2000 ms", "1.00", "1.00"]
    assert float(rows["pix2pix"][-4]) < float(rows["reggan"][-4])  # it registers nothing
    assert rows["reggan"][1] == "registration, generator, discriminator"


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 61 along every axis for MultiScaleDiscriminator"):
        cost.report_cost(["unit-c"], 60, 1, CPU, "small")


def test_a_step_is_that_of_the_trainer():
    step = cost.method_step("reggan", 32, CPU, "small")
    losses = {f"generator/{term}" for term in ("adversarial", "correction", "smoothness")} | {
        "discriminator/adversarial"
    }
    assert step()["losses"].keys() == losses


def test_works_are_timed_in_turns_after_a_round_to_warm_up():
    done = []
    works = {"long": lambda: (done.append("long"), time.sleep(0.02)), "short": lambda: done.append("short")}
    times = in_turns(works, 2, CPU)
    assert done == ["long", "short"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"long": 2, "short": 2}
    assert min(times["long"]) >= 0.02


def test_the_peak_is_of_the_steps_alone():
    size = 64
    found = peak_memory(partial, np.ones, (size, 2**17), device=CPU)  # each of its steps: so many MiB of float64
    assert size - 1 <= found < size + 32
