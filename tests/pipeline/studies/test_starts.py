"""What starts and translations are measured with runs, in a tiny form."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import check_cases, load_cases
from pipeline.io import read_image
from pipeline.studies.starts import report_starts, write_pairs
from pipeline.studies.translation import report_translation, unpack_commit, write_ct
from transforms import foreground_mask

ROOT = Path(__file__).resolve().parents[3]
TINY = (
    *("--spatial_size", "32", "--network_def#generator#filters", "4", "--network_def#generator#residual_blocks", "1"),
    *("--network_def#discriminator#filters", "4", "--network_def#registration#channels", "[4,4]"),
)


def test_generated_pairs_are_sound_and_no_two_are_equal(tmp_path):
    write_pairs(tmp_path, 2, (24, 20, 10))
    write_pairs(tmp_path, 3, (24, 20, 10), first=2)
    cases = load_cases(tmp_path)
    assert len(cases["training"]) == 2
    check_cases(cases)
    paths = sorted(tmp_path.rglob("*.nii.gz"))
    assert len(paths) == len({path.read_bytes() for path in paths}) == 6
    assert 0.1 < foreground_mask(read_image(paths[0])[0].numpy()).mean() < 0.5


@pytest.mark.slow(minutes=2)  # five trainings
def test_starts_are_measured(tmp_path, capsys):
    rows = report_starts(tmp_path / "starts", [2, 3], (24, 20, 10), 2, settings=TINY)
    assert not (tmp_path / "starts").exists()
    assert [row["pairs"] for row in rows] == [2, 3]
    for row in rows:
        assert row["second"].cpu > 0
        assert row["first"].first["step"] == 1
        assert row["first"].last["step"] == 2
        assert len(row["together"]) == len(row["ranks"]) == 2
        assert all(100 < share < 4000 for share in row["together"] + row["ranks"])
    assert "| 3 |" in capsys.readouterr().out


def test_a_ct_lies_in_air(tmp_path):
    image = read_image(write_ct(tmp_path / "ct.nii.gz", (32, 32, 4)))
    values = image.as_tensor().numpy()
    assert np.median(values[0, 0]) < -900
    assert 0.2 < foreground_mask(values[0]).mean() < 0.6


@pytest.mark.slow
def test_a_translation_is_measured_here_and_at_another_commit(tmp_path, capsys):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("no repository")
    ratios = report_translation(tmp_path, head.stdout.strip(), {"head": (40, 40, 8), "ct": (40, 40, 8)}, 1)
    assert set(ratios) == {"head", "ct"}
    assert all(0.2 < ratio < 5 for ratio in ratios.values())
    assert "| ct 40x40x8 |" in capsys.readouterr().out


def test_a_commit_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="commit nosuch: "):
        unpack_commit("nosuch", tmp_path)
