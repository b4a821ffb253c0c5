"""Runs of the bundle within a study: the configs' paths, the store that they share, and what an error says."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from monai.bundle import run

from pipeline.bundle import bundle_dir, first_cause
from pipeline.studies.processes import output_into
from pipeline.tracking.sender import prepare_environment

ERROR_LINES = 8


def config_paths(chain: Sequence[str]) -> list[str]:
    """Paths of the bundle's configs by their names, such as "train.json"."""
    return [str(bundle_dir() / "configs" / name) for name in chain]


def run_chain(chain: Sequence[str], **settings: Any) -> None:
    """Run a chain of the bundle's configs in this process, as ``python -m monai.bundle run`` does.

    Args:
        chain: names of the configs.
        settings: entries of the config that take other values.
    """
    run(run_id="run", config_file=config_paths(chain), logging_file=False, **settings)


def prepare_store(path: Path) -> str:
    """Address of an SQLite store of MLflow, with its tables: processes that start together would collide making them.

    Args:
        path: of the database; what MLflow prints goes into a ``.log`` beside it.
    """
    uri = f"sqlite:///{path}"
    if not path.exists():
        with output_into(path.with_suffix(".log")):
            prepare_environment()
            MlflowClient(uri).search_experiments()
    return uri


def cause(error: BaseException) -> str:
    """An error's first cause and what it says, without MONAI's wrapping: "ValueError: ..."."""
    first = first_cause(error)
    return f"{type(first).__name__}: {first}"


def last_lines(error: BaseException) -> str:
    """The end of the report of an error's first cause."""
    lines = "".join(traceback.format_exception(first_cause(error))).rstrip().splitlines()
    return "\n".join(lines[-ERROR_LINES:])
