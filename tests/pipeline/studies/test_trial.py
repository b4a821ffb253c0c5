"""Trying the methods: a failure is shown and stops nothing else. What works is in tests/scripts/test_methods.py."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.data import make_phantom
from pipeline.studies import learning, trial
from pipeline.studies.tasks import LONGEST_CELL, Task, cell


def tasks_of(names, folder, **settings):
    return [Task(name, folder, {"tracking_uri": "none", "device": "cpu", **settings}) for name in names]


def test_a_failure_is_shown_and_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    """Stages that need no more than the training are tried all the same."""
    make_phantom(tmp_path / "phantom", subjects=(1, 1, 1), resolution=10.0)
    ran = []

    def run_chain(chain, **settings):
        ran.append((Path(settings["output_dir"]).name, chain[-1]))
        if "no_registration.json" in chain:
            raise RuntimeError("Failed to instantiate part") from ValueError("filters must be 1 | 2,\ngot 3")
        if chain[-1] == "evaluate.json":
            raise OSError("disk is full")

    monkeypatch.setattr(trial, "run_chain", run_chain)
    monkeypatch.setattr(trial, "_check_epoch", lambda *_: None)
    tasks = tasks_of(["cyclegan-nc", "reggan"], tmp_path, dataset_dir=str(tmp_path / "phantom"))
    assert not trial.report_trial(tasks, 1)
    printed = capsys.readouterr()
    assert "| cyclegan-nc | ValueError: filters must be 1 \\| 2, | - | - | - | - |" in printed.out
    assert "| reggan | ok | OSError: disk is full |" in printed.out
    assert "0 of 2 methods work." in printed.out
    assert "    got 3\n" in printed.err
    assert "    OSError: disk is full\n" in printed.err
    assert ran[0] == ("cyclegan-nc", "no_registration.json")
    assert ("cyclegan-nc", "evaluate.json") not in ran
    assert ran[1:] == [("reggan", "train.json"), ("reggan", "evaluate.json"), ("translated", "inference.json")]


def die(task):
    raise MemoryError(f"{task.method} is too large")


def test_a_method_whose_process_died_has_its_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trial, "try_method", die)
    assert not trial.report_trial(tasks_of(["reggan"], tmp_path), 1)
    assert "| reggan | MemoryError: reggan is too large | - | - | - | - | nan |" in capsys.readouterr().out


def test_learning_that_fails_has_its_row_and_is_not_kept(tmp_path, monkeypatch, capsys):
    curve = [{"step": step, "psnr": psnr, "source_psnr": 9.0} for step, psnr in ((0, 8.5), (5, 9.5))]

    def learn(task):
        if task.method == "reggan":
            raise MemoryError("too large")
        return {"evaluations": curve, "seconds": 1.0, "error": "", "cause": ""}

    monkeypatch.setattr(learning, "learn_method", learn)
    assert not learning.report_learning(tasks_of(["pix2pix", "reggan"], tmp_path), 1)
    printed = capsys.readouterr().out
    assert "| pix2pix | 8.50 | 9.50 | +1.00 | 9.00 | +0.50 | 1 |" in printed
    assert "| reggan | MemoryError: too large | - | - | - | - | - |" in printed
    assert "1 of 2 methods end above their first evaluation and above the source." in printed
    with (tmp_path / "learning.csv").open(newline="") as file:
        assert [(row["method"], row["step"]) for row in csv.DictReader(file)] == [("pix2pix", "0"), ("pix2pix", "5")]


def test_a_cell_is_one_short_line():
    assert cell("\nfirst\nsecond") == "first"
    assert cell("x" * LONGEST_CELL) == "x" * LONGEST_CELL
    assert cell("x" * (LONGEST_CELL + 1)) == "x" * (LONGEST_CELL - 3) + "..."
