"""Folders, knobs and the resolved config."""

from __future__ import annotations

import json
import textwrap

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from pipeline.bundle import RunFolder, by_size, default_weights, device, flag, spatial_size


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("False", False), (True, True), (0, False), ("yes", True)]
)
def test_flag_reads_what_the_command_line_hands_over(value, expected):
    assert flag("resume", value) is expected


def test_flag_refuses_anything_else():
    with pytest.raises(ValueError, match="resume must be true or false, got 'maybe'"):
        flag("resume", "maybe")


def test_device_auto_and_unknown():
    assert device("auto").type in ("cpu", "cuda")
    assert device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device must be .* got 'gpu'"):
        device("gpu")


@pytest.mark.parametrize(("value", "expected"), [(64, (64, 64)), ([64, 96], (64, 96))])
def test_spatial_size(value, expected):
    assert spatial_size(value) == expected


@pytest.mark.parametrize("value", [0, [64], [64, -1], "64", [64.0, 64], True])
def test_bad_spatial_size(value):
    with pytest.raises(ValueError, match=r"spatial_size must be a positive whole number or 2 of them, got"):
        spatial_size(value)


def test_values_go_by_the_size_of_the_networks():
    assert by_size("paper", small=16, paper=64) == 64
    assert by_size(None, small=16, paper=64) is None  # nothing is asked for
    with pytest.raises(ValueError, match=r"network_size must be one of \['paper', 'small'\], got 'large'"):
        by_size("large", small=16, paper=64)


def parse(config):
    parser = ConfigParser(config)
    parser.parse()
    return parser


def folder_config(tmp_path, **extra):
    return {
        "output_dir": str(tmp_path / "run"),
        "noise_level": 3,
        "noise": {"level": "@noise_level", "shared": "%noise_level"},
        "rate": "$10 ** -3",
        "folder": {"_target_": "pipeline.bundle.RunFolder", "output_dir": "@output_dir", "resume": False},
        **extra,
    }


def test_config_is_written_whole_and_runs_by_itself(tmp_path):
    config = folder_config(tmp_path)
    parser = parse(config)
    parser.get_parsed_content("rate")
    folder = parser.get_parsed_content("folder")
    assert not (tmp_path / "run").exists()
    folder.begin()
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["noise"] == {"level": "@noise_level", "shared": 3}
    assert written["rate"] == "$10 ** -3"
    assert parse(written).get_parsed_content("noise::level") == 3


def test_no_password_is_written(tmp_path):
    uri = "http://me:pa@ss@host:5000/?token=abc"
    config = folder_config(tmp_path, tracking_uri=uri, tracker={"note": f"see {uri}", "all": [uri]})
    parse(config).get_parsed_content("folder").begin()
    written = (tmp_path / "run" / "config.json").read_text()
    assert "pa@ss" not in written
    assert "abc" not in written
    assert json.loads(written)["tracking_uri"] == "http://host:5000/"


def test_an_earlier_run_is_set_aside_whole(tmp_path):
    RunFolder(tmp_path).begin()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_text("weights")
    (tmp_path / "notes.txt").write_text("mine")
    second = RunFolder(tmp_path)
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    second.begin()
    kept = list((tmp_path / "previous").rglob("last.pt"))
    assert [path.read_text() for path in kept] == ["weights"]
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "notes.txt").exists()


def resumed(tmp_path):
    folder = RunFolder(tmp_path, resume=True)
    engine = Engine(lambda engine, batch: None)
    folder.attach(engine)
    return folder, engine


def test_resuming_keeps_everything(tmp_path):
    RunFolder(tmp_path).begin()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_text("state")
    (tmp_path / "model.pt").write_text("weights")
    _, engine = resumed(tmp_path)
    engine.run([0])
    assert (tmp_path / "model.pt").read_text() == "weights"
    assert not (tmp_path / "previous").exists()


def test_resuming_keeps_the_config_until_the_checkpoint_fits(tmp_path):
    (tmp_path / "config.json").write_text("before")
    _, engine = resumed(tmp_path)
    seen = []
    engine.add_event_handler(Events.STARTED, lambda: seen.append((tmp_path / "config.json").read_text()))
    engine.run([0])
    assert seen == ["before"]
    assert json.loads((tmp_path / "config.json").read_text()) == {}


def test_resuming_without_a_checkpoint_overwrites_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.pt").write_text("weights")
    _, engine = resumed(tmp_path)
    engine.run([0])
    assert [path.read_text() for path in (tmp_path / "previous").rglob("model.pt")] == ["weights"]
    assert (tmp_path / "config.json").exists()


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"resume: .* holds no run"):
        RunFolder(tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


def test_a_folder_serves_one_process(tmp_path, python):
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    script = tmp_path / "other.py"
    script.write_text(f"from pipeline.bundle import RunFolder; RunFolder({str(folder.output_dir)!r})")
    code, said = python(script, cwd=tmp_path)
    assert code == 1
    assert f"output_dir {folder.output_dir} is in use by another running process" in said
    assert folder.output_dir == tmp_path / "run"


def test_command_line_ends_with_the_cause(tmp_path, python):
    (tmp_path / "train.json").write_text(
        json.dumps(
            {
                "imports": ["$import pipeline", "$import pipeline.bundle", "$import pipeline.settings"],
                "max_epochs": 1,
                "initialize": ["$pipeline.bundle.explain_errors()", "$pipeline.settings.check('training')"],
                "run": "$print('not reached')",
            }
        )
    )
    command = ("-m", "monai.bundle", "run", "--config_file", "train.json", "--max_epochs", "-2")
    code, said = python(*command, cwd=tmp_path)
    assert code == 1
    last = textwrap.dedent(said).strip().splitlines()[-1]
    assert last == "error: max_epochs must be a whole number of at least 1, got -2"


def test_default_weights_are_the_runs_at_home_and_the_bundles_own_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.bundle.project_dir", lambda: tmp_path)
    run = tmp_path / "outputs" / "reggan" / "model.pt"
    home, away = tmp_path / "bundles" / "reggan", tmp_path / "app" / "model" / "reggan"
    assert default_weights(home, "reggan") == str(run)
    assert default_weights(away, "reggan") == str(away / "models" / "model.pt")
    for path in (run, home / "models" / "model.pt", away / "models" / "model.pt"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert default_weights(home, "reggan") == str(run)
    assert default_weights(away, "reggan") == str(away / "models" / "model.pt")
    run.unlink()
    assert default_weights(home, "reggan") == str(home / "models" / "model.pt")
    (away / "models" / "model.pt").unlink()
    run.touch()
    assert default_weights(away, "reggan") == str(run)
