"""Every part of the benchmark runs, in a tiny form."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch

from pipeline.studies import gpu, step_process, timing
from pipeline.studies.gpu import Variant

CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = Path(__file__).parents[2] / "scripts" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", [["--schedule", "plain"], [], ["--bf16"]])
def test_what_a_process_answers_that_runs_steps(options, monkeypatch, capsys):
    arguments = ["step_process", "--size", "32", "--network_size", "small", *options]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n2\n"))
    step_process.main()
    seconds = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert len(seconds) == 2
    assert min(seconds) > 0


@pytest.mark.slow  # a process for each schedule
def test_the_step(script, capsys):
    script.report_step(64, 1, CPU, "small")
    assert "ours, bf16" in capsys.readouterr().out


@pytest.mark.slow  # a process for each commit
def test_the_step_against_that_of_a_commit(script, capsys):
    script.report_against("HEAD", 1, 32, 1)
    assert "commit HEAD" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'5e4f953x' is no commit"), timing.checked_out("5e4f953x"):
        pass


def test_a_process_that_ends_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="measures 'bad' ended with code 2"):
        timing.steps_in_turns({"bad": (Path(__file__).parents[2], ["--size", "none"])}, 1)


@pytest.mark.slow  # a process for each schedule
def test_the_memory_of_a_step(script, capsys):
    script.report_memory(64, CPU, "small")
    assert "Peak memory" in capsys.readouterr().out


def test_the_loop_and_the_loader(script, capsys):
    script.report_loop(iterations=2, rounds=1, device=CPU)
    script.report_data(64, CPU, "small")
    out = capsys.readouterr().out
    assert "ms per iteration" in out
    assert "Pairs per second" in out


def test_onnx_beside_pytorch(script, capsys):
    pytest.importorskip("onnxruntime")
    script.report_onnx(1, (24, 20, 6))
    assert "Volumes per second" in capsys.readouterr().out


@pytest.mark.slow  # four trainings, each with a store of its own
def test_the_store_of_mlflow_grows_as_is_promised(script, capsys):
    """Of the default training, up to whole pages of the file, and with more epochs than there is a need to wait for."""
    script.report_store(epochs=(1, 4))
    grown = [int(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(grown) == 2
    assert 20 < grown[0] < grown[1] < 120


@pytest.mark.slow
def test_what_a_gpu_is_measured_with_runs_on_a_cpu(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    variants = [Variant("plain"), Variant(), Variant(precision="bf16", channels_last=True)], [Variant(batch=2)]
    gpu.measure(CPU, 600, path, 64, "small", (24, 20, 6), 0.0, 4, variants)
    content = json.loads(path.read_text())
    assert content["failed"] == {}
    assert content["skipped"] == []
    assert {"loader", "loop", "translation, bf16", "deterministic"} <= {row["name"] for row in content["rows"]}
    assert "| ours, fp32; batch 1 | 0." in capsys.readouterr().out


def test_what_fails_or_has_no_time_costs_its_own_row(tmp_path, capsys):
    report = gpu.Report(600, tmp_path / "gpu.json", {"device": "cpu", "torch": "", "python": ""})
    report.row("bad", lambda: 1 / 0)
    report.row("good", lambda: {"value": 1})
    report.seconds = 0
    report.row("late", lambda: {"value": 2})
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["failed"] == {"bad": "ZeroDivisionError: division by zero"}
    assert [row["name"] for row in content["rows"]] == ["good"]
    assert content["skipped"] == ["late"]
    assert "no time was left for: late" in gpu.table(content)


def test_a_row_is_cut_off_when_the_time_is_up(tmp_path):
    def endless():
        try:
            while True:
                pass
        except Exception:  # as a compiler's fallback would
            return {}

    report = gpu.Report(0.3, None, {"device": "cpu"})
    report.row("endless", endless)
    assert report.content["skipped"] == ["endless"]
