"""What an evaluation says."""

from __future__ import annotations

from pathlib import Path

import pytest
from ignite.engine import Engine

from pipeline.handlers import EvaluationReport

METRICS = {"psnr": 25.0, "source_psnr": 15.0, "nmae": 0.1, "volume_psnr": 24.0}
DATASET = {"name": "brains", "digest": "d1" * 32, "pairs": {"training": 8, "validation": 2, "test": 1}}


@pytest.fixture
def evaluator():
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = dict(METRICS)
    engine.state.case_ids = [("p1", 3), ("p1", 4), ("p2", 3)]
    return engine


def test_scores_and_places_are_printed(evaluator, tmp_path, capsys):
    (tmp_path / "cases.csv").write_text("case")
    handler = EvaluationReport(tmp_path, "weights.pt", split="validation")
    handler.attach(evaluator)
    evaluator.run([0])
    printed = capsys.readouterr().out
    assert f"Validation cases, translated by {Path('weights.pt').absolute()}\n" in printed
    assert "3 slices of 2 patients, at the size of the training, scaled to [-1, 1]:" in printed
    assert "Prediction against source as it is: +10.00 dB PSNR." in printed
    assert f"scores per slice:  {tmp_path / 'cases.csv'}" in printed
    assert "error maps" not in printed  # none were drawn
    assert "whole volumes" not in printed  # none were scored


def test_whole_volumes_are_said_first(evaluator, tmp_path):
    evaluator.state.metrics |= {"volume_mae": 12.345, "volume_source_psnr": 20.0, "volume_intensity_map_psnr": 23.5}
    evaluator.state.volumes = [{"case": case, "volume": str(n)} for n, case in enumerate(["p1", "p1", "p2"])]
    text = EvaluationReport(tmp_path, "weights.pt", dataset=DATASET).text(evaluator)
    volumes, slices = text.split("3 slices of 2 patients")
    assert volumes.startswith("\nTest cases of brains, translated by ")
    assert "3 whole volumes of 2 patients, in physical units:" in volumes
    [prediction] = [line.split() for line in volumes.splitlines() if line.startswith("prediction ")]
    assert prediction == ["prediction", "12.35", "24.00"]
    assert "Prediction against source as it is: +4.00 dB PSNR." in volumes
    assert "Prediction against intensity map: +0.50 dB PSNR." in volumes
    assert "Prediction against source as it is: +10.00 dB PSNR." in slices
