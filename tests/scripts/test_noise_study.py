"""The noise study from its command line: the quick preset, stopping and starting again, broken cells."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from pipeline.data import ensure_phantom, make_phantom
from pipeline.files import file_digest
from pipeline.models import Model
from pipeline.studies.noise.cells import read_progress
from pipeline.studies.noise.grid import Study
from pipeline.workflow import ConfigWorkflow

SCRIPT = Path(__file__).parents[2] / "scripts" / "noise_study.py"
QUICK = SCRIPT.parent / "studies" / "quick.yaml"
TINY = {
    "spatial_size": [48, 48],
    "batch_size": 2,
    "network_def#generator#filters": 4,
    "network_def#generator#residual_blocks": 1,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": [4, 8],
}
# Long enough to be stopped in the middle, with checkpoints behind it and epochs before it.
STOPPED = {
    "methods": ["reggan"],
    "noise": {"affine": [5]},
    "steps": 80,
    "overlays": ["augmentation.json"],
    "settings": {"val_interval": "$@max_epochs", "picture_interval": "$@max_epochs"},
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "phantom"
    make_phantom(folder, subjects=(1, 1, 1), resolution=10.0)
    return folder


def words(phantom, folder, *arguments, devices=("cpu",)):
    # Two jobs, so that a cell has one thread: tiny tensors gain nothing from more.
    options = ["--dataset-dir", f"coarse={phantom}", "--output-dir", str(folder), "--jobs", "2", "--devices", *devices]
    return [*arguments, *options]


def study(folder, **content):
    """A study of the given content, in a file."""
    path = folder / "study.yaml"
    path.write_text(json.dumps({**content, "settings": {**TINY, **content.get("settings", {})}}))  # JSON is YAML
    return str(path)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("noise_study_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, capsys):
    """Runs the command line in this process, the cells still in theirs."""

    def run(line):
        try:
            code = script.main(line)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=printed.out, stderr=printed.err)

    return run


def results(folder):
    return pd.read_csv(folder / "results.csv")


@pytest.mark.slow
def test_quick_preset(run, phantom, tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    devices = ("cpu", "cpu:0")  # two names of the one that is everywhere; a job for each
    done = run(words(phantom, tmp_path / "out", "--preset", "quick", "--tracking-uri", store, devices=devices))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 of 4 cells are finished" in done.stdout
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "cells").glob("*/cell.json")]
    assert {cell["run"]["device"] for cell in cells} == set(devices)
    table = results(tmp_path / "out")
    assert set(zip(table["method"], table["noise_level"], strict=True)) == {
        (method, level) for method in ("pix2pix", "reggan") for level in (0, 5)
    }
    assert table[["nmae", "psnr", "ssim", "source_information", "high_frequency"]].notna().all(axis=None)
    of_reggan = table["method"] == "reggan"
    assert table.loc[of_reggan, ["endpoint_error", "folded"]].notna().all(axis=None)
    assert table.loc[~of_reggan, "endpoint_error"].isna().all()
    assert (table.loc[of_reggan & (table["noise_level"] == 0), "identity_endpoint_error"] == 0).all()
    report = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "data:image/png;base64," in report
    assert not re.search(r'(src|href)="https?:', report)

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("noise-study-quick")
    cell = "params.method = 'reggan' and params.noise_level = '5' and params.seed = '0'"
    [scored] = client.search_runs(experiment.experiment_id, f"{cell} and params.split = 'test'")
    found = client.get_run(scored.data.tags["mlflow.parentRunId"])
    assert found.info.status == scored.info.status == "FINISHED"
    assert not [name for name in found.data.metrics if name.startswith("test/")]
    means = table[of_reggan & (table["noise_level"] == 5)]
    assert scored.data.metrics["test/psnr"] == pytest.approx(means["psnr"].mean(), abs=1e-4)
    [parent] = client.search_runs(experiment.experiment_id, "params.jobs = '2'")
    assert parent.info.status == "FINISHED"
    assert found.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["psnr/reggan/affine5"] == pytest.approx(means["psnr"].mean(), abs=1e-4)
    names = {entry.path for entry in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/summary.md", "report/quality.png"} <= names
    assert len(client.search_runs(experiment.experiment_id)) == 1 + 2 * 4

    # A level that is added is run, what is there is not, and the parent stays the one that there is.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("done.json")}
    grown = yaml.safe_load(QUICK.read_text())
    grown["noise"]["affine"] += [2]
    grown["method_noise"] = {"reggan": {"affine": [0, 5]}}
    (tmp_path / "grown.yaml").write_text(yaml.safe_dump(grown))
    line = ["--study", str(tmp_path / "grown.yaml"), "--tracking-uri", store]
    again = run(words(phantom, tmp_path / "out", *line))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "5 of 5 cells are finished" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    levels = results(tmp_path / "out").groupby("method")["noise_level"].unique()
    assert {method: set(found) for method, found in levels.items()} == {"pix2pix": {0, 2, 5}, "reggan": {0, 5}}
    assert len(client.search_runs(experiment.experiment_id)) == 1 + 2 * 5
    assert "psnr/pix2pix/affine2" in client.get_run(parent.info.run_id).data.metrics

    # Another setting does not mix with what is there.
    other = study(tmp_path, name="noise-study-quick", methods=["reggan"], noise={"affine": [5]}, steps=9)
    refused = run(words(phantom, tmp_path / "out", "--study", other))
    assert refused.returncode == 2
    assert "holds a run of other settings: settings#fit is 'resize', now None" in refused.stderr


def test_an_epoch_of_the_quick_preset_is_its_four_steps(tmp_path):
    quick = Study.load(QUICK)
    data = ensure_phantom(tmp_path / "phantom", **quick.phantom)
    [cell, *_] = quick.cells()
    settings = {**quick.settings, "dataset_dir": data, "store": "none", "device": "cpu", "tracking_uri": "none"}
    workflow = ConfigWorkflow(quick.chain(cell), output_dir=str(tmp_path / "run"), **settings)
    assert len(workflow.part("train#dataloader")) == quick.steps == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_started_again_equals_undisturbed(run, phantom, tmp_path, undisturbed, kind):
    line = words(phantom, tmp_path, "--study", study(tmp_path, **STOPPED), "--tracking-uri", "none")
    started = subprocess.Popen(
        [sys.executable, str(SCRIPT), *line],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # pytest may run in the background
    )
    cell = tmp_path / "cells" / "coarse-reggan-affine5-seed0"
    deadline = time.monotonic() + 300
    while read_progress(cell)[0] < 0.3 or not (cell / "checkpoints" / "last.pt").is_file():
        assert started.poll() is None, "the study ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(started.pid, kind)
    assert started.wait(90) == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    assert not (cell / "done.json").exists()
    again = run(line)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (cell / "log.txt").read_text().count("epoch 1/") == 1  # it went on, not from the start
    pd.testing.assert_frame_equal(results(tmp_path), undisturbed, check_exact=True)


@pytest.fixture(scope="module")
def undisturbed(script, phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert script.main(words(phantom, folder, "--study", study(folder, **STOPPED), "--tracking-uri", "none")) == 0
    return results(folder)


@pytest.mark.slow(minutes=3)
def test_a_cluster_that_loses_a_worker_has_the_results_of_this_machine(script, run, phantom, tmp_path, cluster):
    content = {**STOPPED, "methods": ["reggan", "pix2pix"], "noise": {"affine": [0, 1, 3, 5]}}
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    line = ["--study", study(tmp_path, **content), "--tracking-uri", "none"]
    assert run(words(phantom, here, *line)).returncode == 0

    address, [first, _] = cluster
    arguments = words(phantom, there, *line, "--scheduler", address)
    started = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600

    def begun(process):
        """The folder of the cell of a worker, once it is in the middle."""
        for cell in (there / "cells").glob("*"):
            if 0.3 < read_progress(cell)[0] < 0.9 and (cell / "checkpoints" / "last.pt").is_file():
                children = Path(f"/proc/{process.pid}/task").glob("*/children")
                for child in " ".join(path.read_text() for path in children).split():
                    if str(cell).encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                        return cell
        return None

    while (cell := begun(first)) is None:
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    _, said = started.communicate(timeout=600)
    assert started.returncode == 0, said
    assert (cell / "log.txt").read_text().count("epoch 1/") == 1  # the other worker went on with it
    pd.testing.assert_frame_equal(results(there), results(here), check_exact=True)


@pytest.mark.slow
def test_a_method_goes_on_from_the_model_of_another(run, phantom, tmp_path):
    """And is not run where that one failed."""
    content = {"methods": ["reggan", "reggan-affine"], "noise": {"affine": [5]}, "steps": 2}
    content |= {"method_start": {"reggan-affine": "reggan"}, "settings": {"val_interval": 1, "picture_interval": 9}}
    log = "cells/coarse-reggan-affine-affine5-seed0/log.txt"
    path = study(tmp_path, **content, method_settings={"reggan": {"batch_size": 0}})
    done = run(words(phantom, tmp_path / "broken", "--study", path, "--tracking-uri", "none"))
    assert done.returncode == 1
    assert "it goes on from coarse-reggan-affine5-seed0, which failed" in done.stderr
    assert not (tmp_path / "broken" / log).exists()

    out = tmp_path / "out"
    done = run(words(phantom, out, "--study", study(tmp_path, **content), "--tracking-uri", "none"))
    assert done.returncode == 0, done.stderr[-3000:]
    first = out / "cells" / "coarse-reggan-affine5-seed0" / "checkpoints" / "last.pt"
    second = Model(out / "cells" / "coarse-reggan-affine-affine5-seed0" / "model.pt")
    assert second.recipe["training"]["started_from"] == file_digest(first)
    assert set(results(out)["method"]) == {"reggan", "reggan-affine"}


def test_a_broken_cell_is_reported_and_does_not_stop_the_rest(run, phantom, tmp_path):
    broken = {"reggan": {"network_def#registration#channels": [4] * 7}}  # too deep for 48 pixels
    path = study(tmp_path, methods=["reggan", "pix2pix"], noise={"affine": [1]}, steps=1, method_settings=broken)
    done = run(words(phantom, tmp_path, "--study", path, "--tracking-uri", "none"))
    assert done.returncode == 1
    assert "1 of 2 cells are finished" in done.stdout
    assert "coarse-reggan-affine1-seed0: failed: ValueError: spatial_size must be at least 256" in done.stderr
    assert set(results(tmp_path)["method"]) == {"pix2pix"}
    assert "spatial_size must be at least 256" in (tmp_path / "report" / "summary.md").read_text()

    # Another setting does not mix with what is there.
    other = study(tmp_path, methods=["pix2pix"], noise={"affine": [1]}, steps=9)
    refused = run(words(phantom, tmp_path, "--study", other, "--tracking-uri", "none"))
    assert refused.returncode == 2
    assert "holds a run of other settings" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "missing.yaml"], "study missing.yaml cannot be read"),
        (["--preset", "quick", "--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--preset", "quick", "--split", "training"], "invalid choice: 'training'"),
        (["--preset", "quick", "--dataset-dir", "a=nowhere"], "data set 'a': .*nowhere is no folder"),
        (["--preset", "quick", "--dataset-dir", "nowhere"], "data sets are given as NAME=FOLDER, got 'nowhere'"),
        (["--preset", "quick", "--dataset-dir", "a=.", "a=."], "data set 'a' is there twice"),
    ],
)
def test_bad_input_is_named(script, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--dataset-dir" not in arguments:
        arguments = [*arguments, "--dataset-dir", "here=."]
    with pytest.raises(SystemExit, match="2"):
        script.main([*arguments, "--output-dir", "out"])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_list_says_what_is_done(script, tmp_path, capsys):
    folder = tmp_path / "out" / "cells" / "here-pix2pix-affine0-seed0"
    folder.mkdir(parents=True)
    (folder / "done.json").write_text("{}")
    arguments = ["--preset", "quick", "--dataset-dir", f"here={tmp_path}", "--output-dir", str(tmp_path / "out")]
    assert script.main([*arguments, "--list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["here-reggan-affine5-seed0", "train.json", "0%"] in lines
    assert ["here-pix2pix-affine0-seed0", "train.json", "pix2pix.json", "100%"] in lines


def test_a_part_of_a_study_can_be_asked_for(script, capsys):
    assert script.main(["--preset", "science", "--list", "--methods", "pix2pix", "--seeds", "4", "5"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert names == ["phantom-pix2pix-affine0-seed4", "phantom-pix2pix-affine0-seed5"]
    with pytest.raises(SystemExit, match="2"):
        script.main(["--preset", "quick", "--list", "--methods", "nicegan"])
    assert "methods must be among" in capsys.readouterr().err
