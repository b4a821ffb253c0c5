"""Settings, software and source code are told as they are, without secrets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.provenance import environment, flatten, git_state, redact


def test_flattened_settings_keep_top_level_names() -> None:
    class Part:
        pass

    settings = {
        "max_epochs": 5,
        "spatial_size": (256, 256),
        "weights": {"adversarial": 1.0, "smoothness": 10},
        "handlers": [{"_target_": "Saver"}, {"_target_": "Bar"}],
        "device": torch.device("cpu"),
        "nothing": None,
        "empty": {},
        "network": Part(),
    }
    assert flatten(settings) == {
        "max_epochs": "5",
        "spatial_size": "[256, 256]",
        "weights.adversarial": "1.0",
        "weights.smoothness": "10",
        "handlers.0._target_": "Saver",
        "handlers.1._target_": "Bar",
        "device": "cpu",
        "nothing": "None",
        "empty": "{}",
        "network": f"{__name__}.{Part.__qualname__}",
    }


def test_no_settings_are_no_parameters() -> None:
    assert flatten({}) == {}


def test_passwords_do_not_get_through() -> None:
    assert redact("run --tracking_uri https://me:secret@host:5000/a --x") == (
        "run --tracking_uri https://***@host:5000/a --x"
    )
    assert flatten({"tracking_uri": "https://me:secret@host"}) == {"tracking_uri": "https://***@host"}
    assert redact("sqlite:////data/a@b/mlflow.db") == "sqlite:////data/a@b/mlflow.db"


def test_the_environment_names_versions_and_device() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert {"python", "os", "monai", "mlflow", "ignite", "command"} <= set(found)
    assert "none" not in found.values()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_a_tracked_file_only(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    source = tmp_path / "module.py"
    source.write_text("a = 1\n")
    assert git_state(source) is None
    git("init")
    assert git_state(source) is None
    git("add", "module.py")
    git("commit", "-m", "first")
    clean = git_state(source)
    assert clean is not None
    assert len(clean[0]) == 40
    assert not clean[1]
    source.write_text("a = 2\n")
    assert git_state(source) == (clean[0], True)
