"""Every kind of fault: none is silent. What counts as silent is tested on made-up causes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SCRIPT = ROOT / "scripts" / "try_faults.py"


@pytest.fixture(scope="module")
def faults():
    """The package of the causes, found as the script finds it."""
    sys.path.insert(0, str(TESTS))
    try:
        from faults import causes, kinds, trial

        yield {"causes": causes, "kinds": kinds, "trial": trial}
    finally:
        sys.path.remove(str(TESTS))


def test_there_are_enough_causes_and_most_are_in_nobody_s_report(faults):
    causes = faults["kinds"].CAUSES
    assert len(causes) >= 150
    own = Counter(cause.kind for cause in causes if not cause.reported)
    assert set(own) == set(faults["kinds"].KINDS)
    assert min(own.values()) >= 3


def done(faults, code, text):
    return faults["trial"].Done(code, text, 0.1)


def test_what_is_said_too_vaguely_or_not_at_all_is_silent(faults, tmp_path):
    trial = faults["trial"].Trial(tmp_path, tmp_path, tmp_path)
    silent = faults["trial"].SilentError
    assert trial.refused(done(faults, 1, "INFO x\nerror: seed must be small"), "seed") == "refused"
    with pytest.raises(silent, match="exit 0"):
        trial.refused(done(faults, 0, "error: seed must be small"), "seed")
    with pytest.raises(silent, match="says nothing of seed"):
        trial.refused(done(faults, 1, "error: seed\nKeyError: 3"), "seed")
    with pytest.raises(silent, match="signal 9"):
        trial.refused(done(faults, -9, "error: seed"), "seed")
    assert trial.right_or_said(done(faults, 0, "WARNING below 0"), lambda: False, "below") == "warned"
    assert trial.right_or_said(done(faults, 0, "INFO below 0"), lambda: True, "below") == "right"
    with pytest.raises(silent, match="a wrong result"):
        trial.right_or_said(done(faults, 0, "INFO below 0"), lambda: False, "below")
    (tmp_path / "out").mkdir()
    trial.nothing_written()
    (tmp_path / "out" / "p_translated.nii.gz").touch()
    with pytest.raises(silent, match="p_translated"):
        trial.nothing_written()


def test_broken_files_and_secrets_are_found(faults, tmp_path):
    import zipfile

    import nibabel as nib
    import numpy as np

    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4)), path)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("notes", "the secret " * 99)
    assert list(faults["trial"].broken(tmp_path)) == []
    assert list(faults["trial"].files_with(tmp_path, "secret")) == ["b.zip/notes"]
    path.write_bytes(path.read_bytes()[:-500])
    (tmp_path / "c.json").write_text("{")
    assert [name.split()[0] for name in faults["trial"].broken(tmp_path)] == ["a.nii.gz", "c.json"]


def run(*arguments):
    result = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    print(result.stdout[-20000:])
    return result


def test_a_sample_of_all_kinds(python):
    """The second of each kind."""
    code, said = python(SCRIPT, "--sample", cwd=ROOT)
    assert code == 0, said[-6000:]
    assert re.search(r"\| all \| 13 \|.*\| 13 \| 0 \|", said), said[-3000:]


@pytest.mark.slow(minutes=6)
def test_no_cause_is_silent():
    result = run()
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-3000:]
    tried, survived, silent = map(int, re.search(r"\| all \| (\d+) \|.*\| (\d+) \| (\d+) \|", result.stdout).groups())
    assert tried >= 150
    assert tried == survived
    assert silent == 0
