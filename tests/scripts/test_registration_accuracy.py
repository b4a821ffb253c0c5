"""The experiment on known displacements: a few of its cases on real data, and its own parts on made-up ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.preparation.registration import Scan

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("accuracy_script", ROOT / "scripts" / "registration_accuracy.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_displacements_are_as_large_as_they_say(script):
    scan = Scan(np.random.default_rng(0).uniform(1, 9, (20, 22, 24)).astype(np.float32), np.diag([2.0, 2, 2, 1]))
    for trial in (trial for group in script.trials() for trial in group if trial.kind == "known"):
        target, matrix = script.changed(trial, scan, np.random.default_rng(1))
        angle = np.degrees(np.arccos((np.trace(matrix[:3, :3]) - 1) / 2))
        assert angle == pytest.approx(trial.turn, abs=1e-5)
        assert np.linalg.norm(matrix[:3, 3]) == pytest.approx(trial.shift)
        assert target.spacing == pytest.approx(trial.spacing or (2, 2, 2))


def test_there_are_as_many_as_asked_for(script):
    every = [trial for group in script.trials() for trial in group]
    assert len({trial.name for trial in every}) == len(every)
    assert sum(trial.kind == "known" for trial in every) >= 20
    assert max(trial.shift for trial in every) == 25
    assert max(trial.turn for trial in every) == 15


def row(**values):
    sound = {
        "case": "x", "kind": "known", "thickness_mm": "1.0", "error_mm": "0.1", "to_unmoved_mm": "0.1",
        "verdict": "good",
    }  # fmt: skip
    return {**sound, **values}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"error_mm": "1.2", "thickness_mm": "5"}, "above 1 mm that are judged good: bad"),
        ({"kind": "wrong"}, "wrong patients judged good: bad"),
        ({"error_mm": "0.9"}, "against the headers' truth, slices up to 2 mm: mean 0.50"),
        ({"error_mm": "0.8", "thickness_mm": "3"}, "against the headers' truth, slices above 2 mm"),
        ({"kind": "raw", "to_unmoved_mm": "0.4"}, "between starts: at most 0.4"),
    ],
)
def test_bounds_are_told(script, change, says):
    rows = [
        row(), row(thickness_mm="4"), row(kind="made"), row(kind="raw"), row(kind="wrong", verdict="failed"),
        row(case="bad", **change),
    ]  # fmt: skip
    missed = [words for ok, words in script.judged(rows) if not ok]
    assert len(missed) == (says is not None)
    assert says is None or says in missed[0]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real scans in ../shared/data, which the project does not ship")
def test_real_scans(script):
    load = lambda name: script.read(DATA, name)  # noqa: E731
    groups = [
        [
            trial
            for trial in group
            if any(part in trial.name for part in ("not moved", "25 mm", "4 mm", "header", "20 mm"))
        ]
        for group in script.trials()
    ]
    rows = [row for number in (0, 1, 4) for row in script.run((number, groups[number]), load)]
    assert {row["kind"] for row in rows} == {"known", "made", "raw", "wrong"}
    for one in rows:
        assert (one["verdict"] == "good") == (one["kind"] != "wrong"), one
        if one["kind"] in ("known", "made"):
            assert float(one["error_mm"]) < (0.35 if one["kind"] == "known" else 0.05)
        if one["to_unmoved_mm"]:
            assert float(one["to_unmoved_mm"]) < 0.3
