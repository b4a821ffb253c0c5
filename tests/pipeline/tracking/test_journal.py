"""What is appended is read back: all of it, once, in order, by one owner."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from pipeline.tracking.journal import Journal, RunRecord, leftovers, read_segment

RECORD = RunRecord("sqlite:////a.db", "study", key="k" * 32, start_time=1)


def test_a_reader_beside_a_writer_gets_everything_in_order(tmp_path: Path) -> None:
    journal, seen = Journal(tmp_path / "unsent" / "a", RECORD), []
    writer = threading.Thread(target=lambda: [journal.append("metrics", n=n) for n in range(500)])
    writer.start()
    while writer.is_alive() or journal.segments():
        for segment in journal.closed_segments():
            seen += [record["n"] for record in read_segment(segment)]
            segment.unlink()
    assert seen == list(range(500))
    journal.close()
    assert not list(tmp_path.iterdir())


def test_a_journal_that_is_opened_again_goes_on_behind_its_records(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a", RECORD)
    first.append("metrics", n=1)
    first.close()
    second = Journal(tmp_path / "a")
    second.append("metrics", n=2)
    assert second.record == RECORD
    assert [record["n"] for segment in second.closed_segments() for record in read_segment(segment)] == [1, 2]


def test_the_id_of_the_run_is_kept_in_both_places(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a", RunRecord("http://h", "study"), tmp_path / "run.json")
    assert RunRecord.load(tmp_path / "run.json").run_id is None
    journal.record.run_id = "abc"
    journal.save_record()
    assert RunRecord.load(tmp_path / "run.json") == RunRecord.load(tmp_path / "a" / "run.json") == journal.record


def test_a_journal_has_one_owner(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a", RECORD)
    journal.append("metrics", n=1)
    with pytest.raises(BlockingIOError, match="still going on"):
        Journal(tmp_path / "a", RECORD)
    journal.close()
    Journal(tmp_path / "a", RECORD).close()


def test_a_folder_without_a_record_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        Journal(tmp_path / "a")
    Journal(tmp_path / "a", RECORD).close()  # and the lock was given back


def test_leftovers_are_those_that_nobody_writes_to(tmp_path: Path) -> None:
    unsent = tmp_path / "mlflow_unsent"
    journals = {name: Journal(unsent / name, RunRecord("http://h", "study", key=name)) for name in "abc"}
    for journal in journals.values():
        journal.append("metrics", n=1)
    (unsent / "d").mkdir()
    for name in "ac":
        journals[name].close()
    found = leftovers(tmp_path, besides="c")
    assert [journal.record.key for journal in found] == ["a"]


def test_damaged_lines_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "000001.jsonl"
    path.write_bytes(b'{"kind": "end"}\n\xff\n{"kind": "tags"}\n{"kind": "met')
    assert [record["kind"] for record in read_segment(path)] == ["end", "tags"]
    assert len(caplog.records) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"other": 1}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    assert RunRecord.load(path) is None
    assert "is no record" in caplog.text


def test_a_full_disk_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(line: bytes) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path / "a", RECORD)
    with monkeypatch.context() as full:
        full.setattr(journal, "_write", refuse)
        for n in range(3):
            journal.append("metrics", n=n)
    journal.append("metrics", n=3)
    found = [record["n"] for path in journal.closed_segments() for record in read_segment(path)]
    assert found == [0, 1, 2, 3]  # kept in memory meanwhile
    assert len(caplog.records) == 1


def test_a_record_that_the_disk_takes_in_part_is_whole_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "a", RECORD)
    journal.append("metrics", n=0)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:7]))
        journal.append("metrics", n=1)
        [segment] = journal.closed_segments()
        assert [record["n"] for record in read_segment(segment)] == [0]
        assert [json.loads(line)["n"] for line in journal.in_memory()] == [1]
    journal.append("metrics", n=2)
    found = [record["n"] for path in journal.closed_segments() for record in read_segment(path)]
    assert found == [0, 1, 2]
    assert journal.in_memory() == []


def test_what_no_disk_took_and_was_sent_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "a", RECORD)
    monkeypatch.setattr(journal, "_write", lambda line: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for n in range(3):
        journal.append("metrics", n=n)
    sent = journal.in_memory()
    journal.append("metrics", n=3)
    journal.forget(sent)
    assert [json.loads(line)["n"] for line in journal.in_memory()] == [3]
    caplog.clear()
    journal.close()
    assert "1 records for MLflow are lost" in caplog.text
