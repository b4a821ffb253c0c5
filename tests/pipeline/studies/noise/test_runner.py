"""How a study's cells share a machine."""

from __future__ import annotations

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
