"""Properties of the tables that an evaluation writes and a training prints."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from pipeline.handlers import CaseTable, SummaryHandler

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
CASES = [("a", 3), ("a", 4), ("b", 7)]


def evaluate(
    output_dir: Path,
    details: dict[str, torch.Tensor],
    cases: list[tuple[str, int]] = CASES,
    volumes: list[dict[str, object]] | None = None,
) -> None:
    engine = Engine(lambda engine, batch: None)
    CaseTable(output_dir).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def finish(engine: Engine) -> None:
        engine.state.metric_details, engine.state.case_ids = details, cases
        if volumes is not None:
            engine.state.volumes = volumes

    engine.run([0])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


SIDE = {
    "source_information": 1.2,
    "label_source_information": 1.5,
    "high_frequency": 0.62,
    "linear_psnr": 23.5,
    "endpoint_error": 0.5,
    "identity_endpoint_error": 2.25,
    "folded": 0.0125,
}


def test_summary_has_the_other_tables_where_they_were_measured(tmp_path):
    evaluate(tmp_path / "plain", {"psnr": torch.tensor([20.0, 22.0, 30.0])})
    details = {name: torch.tensor([value, value, value + 0.3]) for name, value in SIDE.items()}
    evaluate(tmp_path / "all", {"psnr": torch.tensor([20.0, 22.0, 30.0]), **details})
    plain, full = ((tmp_path / name / "summary.md").read_text() for name in ("plain", "all"))
    assert "## Leak, blur and scale" not in plain
    assert "## Registration" not in plain
    assert "| prediction | 1.300 ± 0.173 | 0.720 ± 0.173 |" in full
    assert "| registration network | 0.600 ± 0.173 | 11.25% ± 17.32% |" in full
    assert "| no registration | 2.350 ± 0.173 | - |" in full


def test_csv_has_a_row_per_slice_and_a_column_per_metric(tmp_path):
    evaluate(tmp_path, {"psnr": torch.tensor([20.0, 22.0, 30.0]), "source_psnr": torch.tensor([10.0, 11.0, 12.0])})
    rows = read_csv(tmp_path / "cases.csv")
    assert [(row["case"], int(row["slice"])) for row in rows] == CASES
    assert [float(row["psnr"]) for row in rows] == [20, 22, 30]
    assert list(rows[0]) == ["case", "slice", "psnr", "source_psnr"]


def test_summary_counts_slices_and_patients_apart(tmp_path):
    evaluate(tmp_path, {"psnr": torch.tensor([20.0, 22.0, 30.0])})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["slices"]["psnr"] == pytest.approx({"mean": 24, "std": math.sqrt(28), "median": 22, "count": 3})
    assert summary["patients"] == {"a": {"slices": 2, "psnr": 21}, "b": {"slices": 1, "psnr": 30}}
    assert summary["over_patients"]["psnr"] == pytest.approx(
        {"mean": 25.5, "std": math.sqrt(40.5), "median": 25.5, "count": 2}
    )
    assert summary["notes"] == []
    assert "Slices: 3. Patients: 2." in (tmp_path / "summary.md").read_text()


def test_values_that_are_not_finite_stay_in_the_csv_and_are_noted_in_the_summary(tmp_path):
    evaluate(tmp_path, {"psnr": torch.tensor([20.0, math.inf, math.nan]), "ssim": torch.tensor([0.5, 0.5, 0.8])})
    assert [row["psnr"] for row in read_csv(tmp_path / "cases.csv")] == ["20", "inf", "nan"]
    text = (tmp_path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert summary["slices"]["psnr"] == {"mean": 20, "std": None, "median": 20, "count": 1}
    assert summary["patients"]["b"]["psnr"] is None
    assert summary["over_patients"]["psnr"]["count"] == 1
    assert len(summary["notes"]) == 1
    assert "psnr: 2 of 3 values are not finite (1 infinite, 1 not a number)" in summary["notes"][0]
    assert "Notes" in (tmp_path / "summary.md").read_text()


VOLUMES = [
    {"case": "a", "volume": "a1", "mae": 10.0, "psnr": 20.0, "source_psnr": 10.0},
    {"case": "a", "volume": "a2", "mae": 20.0, "psnr": 22.0, "source_psnr": 11.0},
    {"case": "b", "volume": "b1", "mae": 30.0, "psnr": math.inf, "source_psnr": 12.0},
]


def test_whole_volumes_have_a_table_of_their_own(tmp_path):
    """Where each patient counts once, however many volumes there are of it."""
    evaluate(tmp_path, {"psnr": torch.tensor([20.0, 22.0, 30.0])}, volumes=VOLUMES)
    rows = read_csv(tmp_path / "volumes.csv")
    assert list(rows[0]) == ["case", "volume", "mae", "psnr", "source_psnr"]
    assert [(row["case"], row["volume"], row["psnr"]) for row in rows] == [
        ("a", "a1", "20"),
        ("a", "a2", "22"),
        ("b", "b1", "inf"),
    ]
    text = (tmp_path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    volumes = summary["volumes"]
    assert volumes["patients"] == {
        "a": {"volumes": 2, "mae": 15, "psnr": 21, "source_psnr": 10.5},
        "b": {"volumes": 1, "mae": 30, "psnr": None, "source_psnr": 12},
    }
    assert volumes["over_patients"]["mae"] == pytest.approx(
        {"mean": 22.5, "std": math.sqrt(112.5), "median": 22.5, "count": 2}
    )
    assert volumes["over_patients"]["psnr"] == {"mean": 21, "std": None, "median": 21, "count": 1}
    assert any(note.startswith("volumes: psnr: 1 of 3 values are not finite") for note in summary["notes"])
    page = (tmp_path / "summary.md").read_text()
    assert page.index("## Whole volumes") < page.index("## Over slices")
    assert "Volumes: 3. Patients: 2, each counting once." in page
    assert "| prediction | 22.50 ± 10.61 | 21.00 |" in page
    assert "| a | 2 | 15.00 | 21.00 |" in page


def test_without_whole_volumes_there_is_no_table_of_them(tmp_path):
    evaluate(tmp_path, {"psnr": torch.tensor([20.0, 22.0, 30.0])})
    assert not (tmp_path / "volumes.csv").exists()
    assert "volumes" not in json.loads((tmp_path / "summary.json").read_text())
    assert "Whole volumes" not in (tmp_path / "summary.md").read_text()


def test_wrong_number_of_values_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metric psnr has values of shape \(2,\), expected one for each of 3 slices"):
        evaluate(tmp_path, {"psnr": torch.tensor([1.0, 2.0])})


def finished_trainer(handler: SummaryHandler, **state: object) -> Engine:
    trainer = Engine(lambda engine, batch: None)
    handler.attach(trainer)
    for name, value in state.items():
        setattr(trainer.state, name, value)
    trainer.run([0], max_epochs=4)
    return trainer


def evaluator_with(metrics: dict[str, float]) -> Engine:
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics = metrics
    return evaluator


def test_summary_is_printed_once_with_the_last_validation_and_all_places(capsys):
    finished_trainer(SummaryHandler(evaluator_with(METRICS), {"checkpoint": "runs/a/last.pt", "MLflow": Path("m.db")}))
    out = capsys.readouterr().out
    assert out.count("Validation after epoch 4:") == 1
    assert "intensity map" in out
    assert "checkpoint: runs/a/last.pt" in out
    assert "MLflow:     m.db" in out


def test_summary_prefers_the_best_epoch(capsys):
    handler = SummaryHandler(evaluator_with({"psnr": 20.0}), {})
    finished_trainer(handler, best_epoch=2, best_metrics={"psnr": 21.0})
    out = capsys.readouterr().out
    assert "Validation after epoch 2, the best of 4:" in out
    assert "21.00" in out
    assert "20.00" not in out


def test_summary_without_validation_still_names_the_places(capsys):
    finished_trainer(SummaryHandler(None, {"checkpoint": "last.pt"}))
    out = capsys.readouterr().out
    assert "no validation was run" in out
    assert "last.pt" in out


def test_summary_leaves_out_places_that_there_are_not():
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch = 1
    text = SummaryHandler(None, {"weights": "model.pt", "store": None}).text(engine)
    assert "weights: model.pt" in text
    assert "store" not in text
