"""Why MONAI's command could not read the configs that it was given."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pipeline.bundle import bundle_dir
from pipeline.chain import fault, missing_part

CONFIGS = bundle_dir() / "configs"
TRAIN, CYCLE = CONFIGS / "train.json", CONFIGS / "cycle.json"


def why(*configs, run=("run", "training"), more=()):
    text = str(configs[0]) if len(configs) == 1 else "[" + ",".join(f"'{path}'" for path in configs) + "]"
    return fault([*run, "--config_file", text, *more])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.json", b'{"max_epochs": 3,}', "mine.json is not JSON: .* line 1 column 18"),
        ("mine.json", b"", "mine.json is empty"),
        ("mine.json", b"[1, 2]", "mine.json must hold a dictionary of settings, got a list"),
        ("mine.json", b"null", "mine.json must hold a dictionary of settings, got nothing"),
        ("mine.json", b"\xff\xfe\x00", "mine.json is not text in UTF-8"),
        ("mine.json", b'{"a": 1, "a": 2}', "mine.json has a name twice: `a`"),
        ("mine.yaml", b"a: [1\nb: 2\n", "mine.yaml cannot be read"),
        ("mine.yaml", b"a: 1\na: 2\n", "mine.yaml has a name twice: `a`"),
        ("mine.txt", b"{}", "mine.txt has the suffix '.txt', expected one of .json"),
        ("mine.json", b'{"+weights": 3}', "mine.json: .*weights.*must|mine.json: config must be dict or list"),
        ("mine.json", b'{"nothing#inner": 3}', "mine.json changes 'nothing', which none of the configs in front of it"),
    ],
)
def test_a_file_that_cannot_be_stacked_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    found = why(TRAIN, path)
    assert found is not None
    assert re.search(said, found), found


def test_what_is_right_has_no_fault():
    assert why(TRAIN) is None
    assert why(TRAIN, CYCLE) is None
    assert why(TRAIN, CONFIGS / "evaluate.json", run=("run",)) is None
    assert why(CONFIGS / "inference.json", run=("run",)) is None
    assert fault(["verify_metadata", "--config_file", "gone.json"]) is None


def test_a_typo_in_the_name_is_answered_with_the_name(tmp_path):
    assert "did you mean" in why(CONFIGS / "trian.json")
    assert "train.json" in why(CONFIGS / "trian.json")
    assert str(TRAIN) in why("configs/train.json")
    assert "is a folder" in why(TRAIN, tmp_path)


def test_several_configs_are_a_list():
    assert f"['{TRAIN}','{CYCLE}']" in why(f"{TRAIN},{CYCLE}")
    assert f"['{TRAIN}','{CYCLE}']" in fault(["run", "training", "--config_file", str(TRAIN), str(CYCLE)])


def test_overlays_stand_behind_what_they_change():
    assert f"put it behind: --config_file \"['{TRAIN}','{CYCLE}']\"" in why(CYCLE, TRAIN)
    assert "is an overlay" in why(CYCLE)


def test_words_that_belong_to_nothing():
    assert "'resume' belongs to nothing" in why(TRAIN, run=("run", "training", "resume"))
    assert "there is no 'trainin' to run" in why(TRAIN, run=("run", "trainin"))
    assert "logging_file: gone.conf does not exist" in why(TRAIN, more=("--logging_file", "gone.conf"))
    assert "meta_file: gone.json does not exist" in why(TRAIN, more=("--meta_file", "gone.json"))
    assert "--tracking_uri" in why(TRAIN, more=("--tracking", "mlflow"))
    assert "names no config" in fault(["run", "training", "--config_file", "[]"])
    assert "names no config" in fault(["run", "training", "--config_file"])
    assert "there is --config" in fault(["run", "training", "--config", str(TRAIN)])
    assert "./%a.nii" in missing_part(["run", "--image", "%a.nii"])
    assert why(TRAIN, more=("--weights", f"%{TRAIN}#weights")) is None  # MONAI's own way to take a part of a file
    assert why(TRAIN, more=("--meta_file", f"['{TRAIN}','{CYCLE}']")) is None
    assert "gone.json" in why(TRAIN, more=("--meta_file", f"['{TRAIN}','gone.json']"))


def test_the_command_says_it_before_any_config_is_read(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "trian.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: config_file: ")
