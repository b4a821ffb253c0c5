"""What a run has to say to MLflow, kept on disk until it has been sent.

Below the output directory of a run:

    mlflow_run.json                 the current run: its id, experiment and store
    mlflow_unsent/<key>/run.json    the same, for each run that has something unsent
    mlflow_unsent/<key>/000001.jsonl, 000002.jsonl, ...   the records, oldest first, one JSON object a line
    mlflow_unsent/<key>/files/...   the files that the records speak of, linked or copied
    mlflow_unsent/<key>.rejected.jsonl   what the store will never take, with its reasons; only if there is any

The training thread appends records; the sending thread closes the segment at hand, sends the closed ones and deletes
them. Records survive the death of the process, and a segment that was sent but not yet deleted is merely sent again.
What a full disk does not take is kept in memory, and written as soon as there is room, or sent from there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import ProcessLock, replacing

logger = logging.getLogger(__name__)

RUN_FILE = "mlflow_run.json"
UNSENT_FOLDER = "mlflow_unsent"
HEADER_FILE = "run.json"
LOCK_FILE = "lock"
FILES_FOLDER = "files"


@dataclass
class RunRecord:
    """Which run of which store a journal belongs to.

    Attributes:
        tracking_uri: MLflow store, without user name and password.
        experiment: name of the experiment.
        artifact_location: where a newly made experiment keeps its artifacts; None leaves it to the store.
        run_name: name of the run; None leaves it to MLflow.
        key: unique name of the run on our side; known before the store has been reached.
        start_time: milliseconds since the epoch.
        run_id: MLflow's id of the run; None until the store has been reached.
        parent: key of the run that this one is shown below; None for a run that stands alone.
        experiment_id: MLflow's id of the experiment; None until the store has been reached.
    """

    tracking_uri: str
    experiment: str
    artifact_location: str | None = None
    run_name: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    start_time: int = field(default_factory=lambda: int(time.time() * 1000))
    run_id: str | None = None
    parent: str | None = None
    experiment_id: str | None = None

    @classmethod
    def load(cls, path: Path) -> RunRecord | None:
        """Reads a record; None where there is none, or none that can be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s is no record of an MLflow run and is left alone: %s", path, error)
            return None

    def save(self, path: Path) -> None:
        """Writes the record, in one piece."""
        with replacing(path) as beside:
            beside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


class Journal:
    """The unsent records of one run.

    `append` is for the thread that trains, the other methods are for the one that sends.

    Args:
        folder: folder of this run's segments; made where it is missing.
        record: the run, None to read it from the folder.
        run_file: a second place to save the record to, beside the folder's own.

    Raises:
        BlockingIOError: another process, or another tracker of this one, is writing to the folder.
        FileNotFoundError: ``record`` is None and the folder holds none.
    """

    def __init__(self, folder: Path, record: RunRecord | None = None, run_file: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = ProcessLock(folder / LOCK_FILE)
        if not self._lock.acquire():
            raise BlockingIOError(f"{folder} is in use by a run that is still going on")
        self._run_file = run_file
        self._guard = threading.Lock()
        self._write_failed = False
        self._unwritten: list[bytes] = []  # lines, oldest first
        self._segment: int | None = None  # descriptor of the open segment
        self._count = max([int(path.stem) for path in self.segments()], default=0)
        try:
            # The folder's own record is the newer one: it is saved first.
            known = RunRecord.load(folder / HEADER_FILE) or record
            if known is None:
                raise FileNotFoundError(f"{folder} holds no {HEADER_FILE}")
            self.record = known
            self.save_record()
        except OSError:
            self._lock.release()
            raise

    def save_record(self) -> None:
        """Writes the run's record, for instance once its id is known."""
        self.record.save(self.folder / HEADER_FILE)
        if self._run_file is not None:
            self.record.save(self._run_file)

    def append(self, kind: str, **content: Any) -> None:
        """Adds a record; where the disk does not take it, says so once, and keeps it in memory.

        Args:
            kind: what the record says, see `pipeline.tracking.sender.RunSender`.
            **content: JSON values.
        """
        line = json.dumps({"kind": kind, **content}) + "\n"
        with self._guard:
            self._unwritten.append(line.encode())
            self._write_all()

    def append_file(self, path: Path, folder: str | None) -> None:
        """Adds a record for a file, and holds on to the file; warns if there is none.

        Args:
            path: the file; may be moved or replaced afterwards.
            folder: folder among the run's artifacts; its root if None.
        """
        try:
            kept = self._keep(path)
        except OSError as error:
            logger.warning("%s cannot be kept for MLflow: %s", path, error)
            return
        self.append("artifact", path=kept.relative_to(self.folder).as_posix(), folder=folder)

    def _keep(self, path: Path) -> Path:
        path = path.resolve(strict=True)
        files = self.folder / FILES_FOLDER
        files.mkdir(exist_ok=True)
        kept = Path(tempfile.mkdtemp(dir=files)) / path.name  # the name is the artifact's
        try:
            os.link(path, kept)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, kept)
        return kept

    def _write_all(self) -> None:
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            if not self._write_failed:
                self._write_failed = True
                logger.warning(
                    "values for MLflow are kept in memory, since %s cannot be written to: %s", self.folder, error
                )

    def _write(self, line: bytes) -> None:
        if self._segment is None:
            path = self.folder / f"{self._count + 1:06d}.jsonl"
            self._segment = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._count += 1
        size = os.fstat(self._segment).st_size
        written = os.write(self._segment, line)  # in one call: a killed process leaves whole lines behind
        if written < len(line):  # as on a disk that is nearly full
            os.ftruncate(self._segment, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def segments(self) -> list[Path]:
        """All segments, oldest first."""
        return sorted(path for path in self.folder.glob("*.jsonl") if path.stem.isdigit())

    def closed_segments(self) -> list[Path]:
        """Closes the open segment and gives all segments, oldest first."""
        with self._guard:
            self._write_all()
            if self._segment is not None:
                os.close(self._segment)
                self._segment = None
            return self.segments()

    def in_memory(self) -> list[bytes]:
        """The records, oldest first, that the disk does not take; all that is in segments is older."""
        with self._guard:
            return list(self._unwritten)

    def forget(self, sent: Sequence[bytes]) -> None:
        """Drops records that are in memory, these very ones, once they are sent."""
        gone = set(map(id, sent))
        with self._guard:
            self._unwritten = [line for line in self._unwritten if id(line) not in gone]

    def reject(self, content: dict[str, Any], reason: str) -> None:
        """Puts a value that the store will never take aside, so that it does not hold up the others."""
        with self.folder.with_suffix(".rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, **content}, default=str) + "\n")

    def close(self) -> None:
        """Lets go of the folder, and removes it if nothing in it is unsent."""
        segments = self.closed_segments()
        if self._unwritten:
            logger.warning(
                "%d records for MLflow are lost: neither %s nor the store took them", len(self._unwritten), self.folder
            )
        if not segments:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the journals of other runs are there
                self.folder.parent.rmdir()
        self._lock.release()


def read_segment(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a segment; lines that a crash of the machine cut short are left out."""
    yield from read_records(path.read_bytes().splitlines(), path)


def read_records(lines: Iterable[bytes], place: object) -> Iterator[dict[str, Any]]:
    """Yields the records of lines, without those that are damaged."""
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("line %d of %s is damaged and left out", number, place)


def leftovers(output_dir: Path, besides: str) -> list[Journal]:
    """The journals of earlier runs in an output directory that are no longer written to, parents before their children.

    Args:
        output_dir: output directory of a run.
        besides: key of the current run, left out.
    """
    journals = []
    for folder in sorted((output_dir / UNSENT_FOLDER).glob("*")):
        if folder.name == besides or not folder.is_dir():
            continue
        try:
            journals.append(Journal(folder))
        except (BlockingIOError, FileNotFoundError) as error:
            logger.debug("%s is left alone: %s", folder, error)
    return sorted(journals, key=lambda journal: journal.record.start_time)
