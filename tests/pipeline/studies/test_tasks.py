"""What studies of the methods share."""

from __future__ import annotations

from mlflow import MlflowClient

from pipeline.studies.tasks import prepare_store


def test_a_store_is_made_once_and_ready(tmp_path):
    uri = prepare_store(tmp_path / "mlflow.db")
    made = (tmp_path / "mlflow.db").read_bytes()
    assert uri == prepare_store(tmp_path / "mlflow.db") == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert (tmp_path / "mlflow.db").read_bytes() == made
    assert [experiment.name for experiment in MlflowClient(uri).search_experiments()] == ["Default"]
