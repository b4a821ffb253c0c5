"""The benchmark's stand-in for the data set has all that the training config asks of one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def test_the_loop_of_the_training_config_runs_on_pairs_in_memory(monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.report_loop(iterations=2, rounds=1, device=torch.device("cpu"))
    assert "ms per iteration" in capsys.readouterr().out
