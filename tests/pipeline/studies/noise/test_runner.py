"""How a study's cells share a machine, and how long the rest takes."""

from __future__ import annotations

import json

import pytest

from pipeline.studies.noise.grid import Study
from pipeline.studies.noise.runner import StudyRunner

STUDY = Study.from_mapping({"name": "a", "methods": ["pix2pix", "reggan"], "noise": {"affine": [0, 5]}})


@pytest.fixture
def make(tmp_path):
    runners = []

    def build(**options):
        runners.append(StudyRunner(STUDY, tmp_path / "out", **options))
        return runners[-1]

    yield build
    for runner in runners:
        runner.close()


def test_the_time_left_goes_by_what_each_method_took(make):
    runner = make(jobs=2)
    first, second, third, fourth = runner.cells
    assert runner._time_left(runner.cells, {}) == "time left unknown yet"
    for cell, seconds in ((first, 100.0), (second, 400.0)):
        runner.folder(cell).mkdir(parents=True)
        (runner.folder(cell) / "done.json").write_text(json.dumps({"seconds": seconds}))
    assert [cell.method for cell in runner.cells] == ["pix2pix", "reggan", "pix2pix", "reggan"]
    assert runner._time_left([third, fourth], {}) == "about 4 min 10 s left"  # (100 + 400) / 2
    assert runner._time_left([fourth], {third: (0.5, 50.0)}) == "about 3 min 45 s left"  # (50 + 400) / 2


def test_one_study_at_a_time_in_a_folder(make, tmp_path):
    first = make()
    with pytest.raises(RuntimeError, match="out is in use by another running study"):
        StudyRunner(STUDY, tmp_path / "out")
    first.close()
    StudyRunner(STUDY, tmp_path / "out").close()


@pytest.mark.parametrize(
    ("options", "message"), [({"jobs": 0}, "jobs must be at least 1, got 0"), ({"devices": ()}, "at least one device")]
)
def test_what_is_wrong_is_named(make, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
    assert not (tmp_path / "out").exists()
