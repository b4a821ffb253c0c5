"""What the studies of the paper's methods share: a method and its settings, and the table of what came out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import replacing
from pipeline.jobs import output_into
from pipeline.methods import METHODS
from pipeline.reporting.tables import markdown_table
from pipeline.tracking.sender import make_client, prepare_environment

LONGEST_CELL = 120


@dataclass(frozen=True)
class Task:
    """What to do with one method; plain values, since it may travel to another process.

    Attributes:
        method: its name.
        output_dir: of all methods; this one's run is in the folder of its name.
        settings: of every chain of configs, such as dataset_dir.
        sizes: widths of its networks.
        steps: of learning.
        evaluations: of learning, after the one before training.
    """

    method: str
    output_dir: Path
    settings: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    evaluations: int = 1

    @property
    def run_dir(self) -> Path:
        """Folder of the method's run."""
        return self.output_dir / self.method

    @property
    def log(self) -> Path:
        """What the method's run prints."""
        return self.output_dir / f"{self.method}.log"

    @property
    def record(self) -> Path:
        """What the method has learned."""
        return self.output_dir / f"{self.method}.json"

    def describe(self) -> dict[str, Any]:
        """Everything that the result depends on, safe for JSON."""
        return json.loads(json.dumps({**asdict(self), "chain": METHODS[self.method].overlays}, default=str))


def say(line: str, error: str = "") -> None:
    """Tell of one method, beside the table; an error's report is indented."""
    print(line, *(f"    {more}" for more in error.splitlines()), sep="\n", file=sys.stderr, flush=True)


def cell(text: str) -> str:
    """The first line of a text, as short as a table can bear."""
    line = text.strip().splitlines()[0]
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 3]}..."


def finish(tasks: Sequence[Task], rows: Sequence[Sequence[str]], sentence: str) -> None:
    """Print the table and a sentence on it, keep them as ``table.md``, and say where everything is."""
    folder = tasks[0].output_dir
    text = f"{markdown_table(rows)}\n\n{sentence}\n"
    with replacing(folder / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    print(f"{text}\nRuns, logs and table: {folder}\nMLflow store: {tasks[0].settings['tracking_uri']}")


def prepare_store(path: Path) -> str:
    """Address of an SQLite store of MLflow, with its tables: processes that start together would collide making them.

    Args:
        path: of the database; what MLflow prints goes into a ``.log`` beside it.
    """
    uri = f"sqlite:///{path}"
    if not path.exists():
        with output_into(path.with_suffix(".log")):
            prepare_environment()
            make_client(uri)
    return uri
