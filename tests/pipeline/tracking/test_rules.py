"""Stores that MLflow can use are told from those it cannot, and keys are made acceptable."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.tracking.rules import (
    clean_key,
    clean_values,
    resolve_tracking_uri,
    sqlite_path,
    without_credentials,
)

DEFAULT = "/data/outputs/mlflow.db"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_knob_wins_over_the_variable_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_tracking_uri(None, DEFAULT) == f"sqlite:///{DEFAULT}"
    assert resolve_tracking_uri(None, "http://default:1") == "http://default:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable:2")
    assert resolve_tracking_uri(None, DEFAULT) == "http://variable:2"
    assert resolve_tracking_uri("http://knob:3", DEFAULT) == "http://knob:3"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_tracking_uri(None, DEFAULT) == f"sqlite:///{DEFAULT}"


@pytest.mark.parametrize("word", ["none", "None", "NONE", "", " "])
def test_tracking_can_be_turned_off(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://variable:2")
    assert resolve_tracking_uri(word, DEFAULT) is None


def test_a_relative_database_is_one_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri("sqlite:///runs/a.db", DEFAULT) == f"sqlite:///{tmp_path.resolve()}/runs/a.db"
    assert resolve_tracking_uri(None, "runs/a.db") == f"sqlite:///{tmp_path.resolve()}/runs/a.db"
    assert resolve_tracking_uri("sqlite:////a/b.db?timeout=9", DEFAULT) == "sqlite:////a/b.db?timeout=9"


@pytest.mark.parametrize("uri", ["./mlruns", "/data/mlruns", "file:///data/mlruns", "file:mlruns", "mlflow.db"])
def test_plain_folders_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=rf"tracking_uri must be a database or a server.*got '{uri}'"):
        resolve_tracking_uri(uri, DEFAULT)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_databases_without_a_file_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=rf"tracking_uri must name an SQLite file.*got '{uri}'"):
        resolve_tracking_uri(uri, DEFAULT)


@pytest.mark.parametrize("uri", ["http://h:5000", "https://h/mlflow", "postgresql://u:p@h/db", "databricks"])
def test_servers_are_taken_as_they_are(uri: str) -> None:
    assert resolve_tracking_uri(uri, DEFAULT) == uri
    assert sqlite_path(uri) is None


def test_credentials_are_taken_out_of_addresses() -> None:
    assert without_credentials("https://me:p@ss@host:5000/a") == "https://host:5000/a"
    assert without_credentials("https://host:5000/a") == "https://host:5000/a"
    assert without_credentials("sqlite:////data/a@b.db") == "sqlite:////data/a@b.db"


@pytest.mark.parametrize(
    ("uri", "clean"),
    [
        ("http://h:5/?token=abc&a=1", "http://h:5/?a=1"),
        ("http://TOKEN@h:5", "http://h:5"),
        ("http://me:p%40ss@h:5/a", "http://h:5/a"),
        ("postgresql://u:p@h/db?password=x&connect_timeout=3", "postgresql://h/db?connect_timeout=3"),
        ("sqlite:////a/b@c.db?timeout=9", "sqlite:////a/b@c.db?timeout=9"),
    ],
)
def test_addresses_are_kept_without_what_is_secret(uri: str, clean: str) -> None:
    assert without_credentials(uri) == clean


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://me:p/ss@h:5", "percent-encoded"),
        ("http://me:pass@[::1:9", "is no address"),
        ("htpp://me:pass@h:5", "begins with 'htpp', expected 'http'"),
        ("folder/me:pass?token=pass", "no longer keeps runs in plain folders"),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        resolve_tracking_uri(uri, DEFAULT)
    assert "p/ss" not in str(caught.value)
    assert "token=pass" not in str(caught.value)
    assert ":pass@" not in str(caught.value)
    with pytest.raises(ValueError, match="must be the address of an MLflow store, or none, got 5"):
        resolve_tracking_uri(5, DEFAULT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train/generator/adversarial", "train/generator/adversarial"),
        ("train#handlers[0]", "train_handlers_0_"),
        ("/a//b/../c/", "a/b/c"),
        ("ö %", "ö _"),
        ("", "_"),
        ("..", "_"),
    ],
)
def test_keys_become_acceptable(name: str, key: str) -> None:
    assert clean_key(name) == key


def test_long_keys_are_cut_but_kept_apart() -> None:
    first, second = clean_key("k" * 300 + "a"), clean_key("k" * 300 + "b")
    assert first != second
    assert len(first) == len(second) == 250


def test_long_values_are_cut_with_a_mark() -> None:
    assert clean_values({"a": "x" * 10, "b": "y" * 11}, 10) == {"a": "x" * 10, "b": "y" * 7 + "..."}
