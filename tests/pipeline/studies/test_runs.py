"""Runs of the bundle within a study."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from pipeline.studies.runs import cause, config_paths, last_lines, prepare_store


def test_configs_are_found():
    assert all(Path(path).is_file() for path in config_paths(["train.json", "evaluate.json"]))


def test_a_store_is_made_once_and_ready(tmp_path):
    uri = prepare_store(tmp_path / "mlflow.db")
    made = (tmp_path / "mlflow.db").read_bytes()
    assert uri == prepare_store(tmp_path / "mlflow.db") == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert (tmp_path / "mlflow.db").read_bytes() == made
    assert [experiment.name for experiment in MlflowClient(uri).search_experiments()] == ["Default"]


def test_an_error_is_told_by_its_first_cause():
    try:
        try:
            raise ValueError("filters must be 1,\ngot 3")
        except ValueError as first:
            raise RuntimeError("Failed to instantiate part") from first
    except RuntimeError as caught:
        error = caught
    assert cause(error) == "ValueError: filters must be 1,\ngot 3"
    assert last_lines(error).endswith("ValueError: filters must be 1,\ngot 3")
    assert "Failed to instantiate" not in last_lines(error)
