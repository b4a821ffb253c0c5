"""A metric is one entry of the catalogue, which everything reads that measures, prints or keeps metrics."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from ignite.engine import Engine

from pipeline.handlers import CaseTable, ProgressHandler
from pipeline.metrics import CATALOGUE, Metric, case_metrics
from pipeline.metrics.catalogue import columns, names_in
from pipeline.reporting import ScoreTable
from pipeline.studies.report.statistics import metrics_of


def largest_error(pred, target, *, data_range, mask=None):
    return torch.where(mask, (pred - target).abs(), 0).flatten(1).amax(1) / data_range


@pytest.fixture
def _entry(monkeypatch):
    entry = Metric("largest", "Largest error", largest_error, form=".3f", direction="lower")
    monkeypatch.setitem(CATALOGUE, "largest", entry)


@pytest.mark.usefixtures("_entry")
def test_a_metric_is_added_by_an_entry(tmp_path):
    label = torch.linspace(-1, 1, 200).reshape(2, 1, 10, 10)
    batch = {"pred": label.clone(), "source": -label, "intensity_map": label + 0.5, "label": label, "image": -label}
    engine = Engine(lambda engine, batch: batch)
    for name, metric in case_metrics(extra=True).items():
        metric.attach(engine, name)
    engine.run([batch])
    engine.state.case_ids = [("a", 0), ("b", 0)]
    values = engine.state.metrics
    assert values["largest"] == 0
    assert values["intensity_map_largest"] == pytest.approx(0.25)
    assert "label_source_information" in values
    assert "Largest error (lower)" in ScoreTable(values).text().splitlines()[0]
    assert ScoreTable(values).rows[3][-1] == "0.250"
    CaseTable(tmp_path)(engine)
    cases = pd.read_csv(tmp_path / "cases.csv")
    assert cases["intensity_map_largest"].tolist() == pytest.approx([0.25, 0.25])
    titles = [metric.title for metric in metrics_of(cases)]
    assert "Largest error" in titles
    assert "Largest error of the source as it is" in titles
    assert "largest" in names_in("quality")  # of a package's provenance
    lines = []
    progress = ProgressHandler(engine, metrics=["largest"])
    progress._write = lines.append
    progress._show_metrics(engine)
    assert lines == ["validation after epoch 1: Largest error 0.000"]


def test_names_are_keys_and_every_image_metric_has_a_function():
    assert all(name == metric.name for name, metric in columns().items())
    assert {metric.name for metric in CATALOGUE.values() if metric.score is None} == {
        *names_in("registration"),
        *names_in("drift"),
    }
