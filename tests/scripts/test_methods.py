"""The command line that lists, tries and measures the methods."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.data import make_phantom
from pipeline.methods import METHODS

SCRIPT = Path(__file__).parents[2] / "scripts" / "methods.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("methods_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods") / "phantom"
    make_phantom(folder, subjects=(1, 1, 1), resolution=10.0)
    return folder


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(text):
    """Rows of the Markdown table in a text, by their first cell."""
    lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}


def test_list_names_all_with_their_configs(script, capsys):
    assert script.main(["--list"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + len(METHODS)
    for line, method in zip(lines[1:], METHODS.values(), strict=True):
        assert line.split()[0] == method.name
        assert line.split()[1:] == ["train.json", *method.overlays]


def test_list_of_some_keeps_the_order(script, capsys):
    assert script.main(["--list", "--only", "munit-c", "reggan"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.strip().splitlines()] == ["method", "reggan", "munit-c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "regan", "pix2pix"], "unknown method 'regan'; known are pix2pix, cyclegan-nc, reggan, "),
        (["--learn", "--steps", "2", "--evaluations", "3"], "--steps must be at least --evaluations, got 2 and 3"),
        (["--jobs", "0"], "must be a whole number of at least 1, got 0"),
        (["--dataset-dir", "nowhere"], "nowhere is no folder"),
    ],
)
def test_faults_are_said_and_nothing_is_run(script, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main([*arguments, "--output-dir", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_one_method_from_end_to_end(phantom, tmp_path):
    """As a user runs it, in a process of its own: quiet, with a table, its logs and an MLflow store."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(SCRIPT),
        "--only",
        "unit-c+r",
        "--output-dir",
        str(out),
        "--dataset-dir",
        str(phantom),
    ]
    result = subprocess.run(
        [*command, "--device", "cpu", "--filters", "2"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    row = table(result.stdout)["unit-c+r"]
    assert [row[stage] for stage in ("train", "evaluate", "resume", "translate")] == ["ok"] * 4
    assert float(row["PSNR"]) > 0
    assert "1 of 1 methods work." in result.stdout
    assert str(out) in result.stdout
    assert re.fullmatch(r"\[1/1\] unit-c\+r: ok, \d+ s\n", result.stderr)
    assert (out / "table.md").read_text() in result.stdout
    assert "epoch 3/3" in (out / "unit-c+r.log").read_text()
    assert len(list((out / "unit-c+r" / "translated").iterdir())) == 1

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    [experiment] = [found for found in client.search_experiments() if found.name == "methods"]
    # Resumed and still one run; the evaluation is another, below it.
    evaluation, run = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time desc"])
    assert run.data.params["method"] == evaluation.data.params["method"] == "unit-c+r"
    assert run.info.run_name == "unit-c+r, affine noise 3, seed 0"
    assert "val/psnr" in run.data.metrics
    assert "test/psnr" in evaluation.data.metrics
    assert evaluation.data.tags["mlflow.parentRunId"] == run.info.run_id


def test_learning_is_measured_before_during_and_after(script, phantom, tmp_path, capsys):
    """And what is finished is not run again, unless it was finished with other settings."""
    arguments = ["--learn", "--only", "pix2pix", "--output-dir", str(tmp_path), "--dataset-dir", str(phantom)]
    arguments += ["--steps", "7", "--evaluations", "3", "--spatial-size", "32", "--filters", "4", "--device", "cpu"]
    assert script.main(arguments) == 0
    row = table(capsys.readouterr().out)["pix2pix"]
    curve = [
        float(row[column]) for column in ("PSNR before training", "after 2 steps", "after 4 steps", "after 6 steps")
    ]
    assert float(row["gain"]) == pytest.approx(curve[-1] - curve[0], abs=0.011)
    assert float(row["gain over it"]) == pytest.approx(curve[-1] - float(row["source as it is"]), abs=0.011)
    with (tmp_path / "learning.csv").open(newline="") as file:
        entries = list(csv.DictReader(file))
    assert [(entry["method"], int(entry["step"])) for entry in entries] == [("pix2pix", step) for step in (0, 2, 4, 6)]
    assert [float(entry["psnr"]) for entry in entries] == pytest.approx(curve, abs=0.006)
    recorded = json.loads((tmp_path / "pix2pix.json").read_text())["evaluations"]
    assert len({entry["source_psnr"] for entry in recorded}) == 1  # of the same cases each time

    log = (tmp_path / "pix2pix.log").stat().st_size
    assert script.main(arguments) == 0
    printed = capsys.readouterr()
    assert "pix2pix: finished before" in printed.err
    assert table(printed.out)["pix2pix"] == row
    assert (tmp_path / "pix2pix.log").stat().st_size == log

    arguments[arguments.index("--steps") + 1] = "3"
    assert script.main(arguments) == 0
    assert "after 3 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_run_side_by_side(phantom, tmp_path):
    command = [sys.executable, str(SCRIPT), "--only", "pix2pix", "reggan", "--jobs", "2", "--dataset-dir", str(phantom)]
    command += ["--output-dir", str(tmp_path), "--filters", "2", "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(table(result.stdout)) == ["pix2pix", "reggan"]
