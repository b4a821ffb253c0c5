"""Properties of the score tables."""

from __future__ import annotations

import math

import torch

from pipeline.reporting.tables import ScoreTable, markdown_table, plain_table, summarise

METRICS = {
    "psnr": 25.0,
    "ssim": 0.9,
    "nmae": 0.03,
    "source_psnr": 15.5,
    "source_ssim": 0.7,
    "source_nmae": 0.1,
    "intensity_map_psnr": 22.0,
    "intensity_map_ssim": 0.8,
    "intensity_map_nmae": 0.05,
}


def test_score_rows_set_the_prediction_beside_both_baselines():
    rows = ScoreTable(METRICS).rows
    assert [row[0] for row in rows] == ["", "prediction", "source as it is", "intensity map"]
    assert rows[1][1:] == ["0.0300", "25.00", "0.9000"]
    assert rows[3][1:] == ["0.0500", "22.00", "0.8000"]


def test_score_rows_accept_tensors_and_show_what_is_missing():
    rows = ScoreTable({"psnr": torch.tensor(20.0), "source_ssim": 0.5}).rows
    assert rows[1:] == [["prediction", "-", "20.00", "-"], ["source as it is", "-", "-", "0.5000"]]


def test_plain_table_has_aligned_columns():
    lines = plain_table(ScoreTable(METRICS).rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"-", " "}


def test_markdown_table_has_as_many_cells_in_each_row():
    lines = markdown_table([["", "a|b"], ["x", "1"]]).splitlines()
    assert lines == ["|  | a\\|b |", "| --- | ---: |", "| x | 1 |"]


def test_table_says_what_is_gained_over_each_baseline():
    text = ScoreTable(METRICS).text()
    assert "Prediction against source as it is: +9.50 dB PSNR." in text
    assert "Prediction against intensity map: +3.00 dB PSNR." in text
    assert "| prediction |" in ScoreTable(METRICS).markdown()


SIDE = {
    "source_information": 1.2,
    "label_source_information": 1.5,
    "high_frequency": 0.62,
    "linear_psnr": 23.5,
    "endpoint_error": 0.5,
    "identity_endpoint_error": 2.25,
    "folded": 0.0125,
}


def test_what_else_was_measured_has_tables_of_its_own():
    lines = ScoreTable({**METRICS, **SIDE}).text().splitlines()
    assert lines[: len(ScoreTable(METRICS).text().splitlines())] == ScoreTable(METRICS).text().splitlines()
    leak, registration = lines.index("Leak, blur and scale:"), lines.index("Registration:")
    assert [line.split() for line in lines[leak + 4 : leak + 6]] == [
        ["prediction", "1.200", "0.620", "23.50"],
        ["true", "target", "1.500", "-", "-"],
    ]
    assert [line.split() for line in lines[registration + 4 :]] == [
        ["registration", "network", "0.500", "1.25%"],
        ["no", "registration", "2.250", "-"],
    ]
    assert "| no registration | 2.250 | - |" in ScoreTable({**METRICS, **SIDE}).markdown()


def test_table_claims_no_gain_from_values_that_are_not_finite():
    assert ScoreTable({"psnr": math.inf, "source_psnr": math.inf}).gains() == []


def test_statistics_of_nothing_are_null():
    summary = summarise(["a"], {"psnr": torch.tensor([math.inf]).numpy()})
    assert summary["slices"]["psnr"] == {"mean": None, "std": None, "median": None, "count": 0}
