"""The study of drift: its interval and picture, and that it goes from training to the table."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data import ensure_phantom
from pipeline.metrics.catalogue import names_in
from pipeline.studies import drift


def table(noise, runs=6, epochs=5):
    random = np.random.default_rng(1)
    rows = [
        {"run": f"{variant}-seed{seed}", "variant": variant, "seed": seed, "epoch": epoch, "displacement": true}
        for seed in range(runs // 2)
        for variant in list(drift.VARIANTS)[:2]
        for epoch, true in enumerate(random.uniform(0.1, 4, epochs), 1)
    ]
    frame = pd.DataFrame(rows)
    frame["drift"] = frame["displacement"] * np.exp(noise * random.standard_normal(len(frame)))
    return frame


def test_r_is_pearson_s_and_its_interval_is_wider_where_runs_differ():
    frame = table(0.3)
    r, low, high = drift.agreement(frame)
    assert r == pytest.approx(frame["drift"].corr(frame["displacement"]))
    assert low < r < high <= 1
    assert drift.agreement(table(0.0)) == pytest.approx((1, 1, 1))
    assert drift.agreement(frame) == (r, low, high)
    # Half of the runs say nothing: whole runs are drawn, so that the interval knows it.
    spoilt = frame.copy()
    spoilt.loc[spoilt["variant"] == "affine-free", "drift"] = 1.0
    _, low_spoilt, high_spoilt = drift.agreement(spoilt)
    assert high_spoilt - low_spoilt > high - low


def test_the_picture_has_a_point_for_each_checkpoint():
    [axes] = drift.draw(table(0.3)).axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == 30
    assert axes.get_title().startswith("30 checkpoints of 6 runs: r ")


@pytest.mark.slow
def test_the_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(drift, "VARIANTS", {name: drift.VARIANTS[name] for name in ("affine-free", "reggan-held")})
    data = ensure_phantom(tmp_path / "phantom", subjects=(1, 1, 0), resolution=8.0)
    settings = {"dataset_dir": str(data), "store": "none", "spatial_size": 32, "network_def#generator#filters": 4}
    settings |= {"network_def#registration#channels": [4, 4], "device": "cpu"}
    folder = tmp_path / "out"
    found = drift.run_study(folder, [0], 2, settings)
    assert (folder / drift.PICTURE).is_file()
    assert list(found["run"]) == ["affine-free-seed0"] * 2 + ["reggan-held-seed0"] * 2
    assert np.isfinite(found[[*names_in("drift"), "displacement"]]).all(axis=None)
    recipe = json.loads((folder / "affine-free-seed0" / "config.json").read_text())
    assert recipe["weights"]["adversarial"] == 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/epoch*.pt")}
    again = drift.run_study(folder, [0], 2, settings)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/epoch*.pt")} == before
    pd.testing.assert_frame_equal(again, found)
