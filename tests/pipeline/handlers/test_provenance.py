"""Settings, data and source code are described so that a difference shows and a mere move does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.handlers.provenance import case_files, dataset_digest, environment, flatten, git_state, redact


def make_dataset(folder: Path, content: bytes = b"voxels", size: int = 3) -> list[Path]:
    files = [folder / "imagesTr" / f"{n}.nii" for n in range(size)] + [folder / "labelsTr" / "0.nii"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content + file.name.encode())
    return files


def test_the_digest_depends_on_the_content_alone(tmp_path: Path) -> None:
    here, there = make_dataset(tmp_path / "here"), make_dataset(tmp_path / "somewhere" / "else")
    digest = dataset_digest(here)
    assert digest == dataset_digest(reversed(here)) == dataset_digest([str(file) for file in there])
    assert len(digest) == 32


def test_the_digest_sees_each_change(tmp_path: Path) -> None:
    digests = {dataset_digest(make_dataset(tmp_path / "a"))}
    digests.add(dataset_digest(make_dataset(tmp_path / "b", content=b"voxelz")))
    digests.add(dataset_digest(make_dataset(tmp_path / "c", size=4)))
    renamed = make_dataset(tmp_path / "d")
    digests.add(dataset_digest([*renamed[1:], renamed[0].rename(renamed[0].with_name("renamed.nii"))]))
    missing = make_dataset(tmp_path / "e")
    missing[0].unlink()
    digests.add(dataset_digest(missing))
    assert len(digests) == 5


@pytest.mark.parametrize("position", [0, 700_000, 2_999_999])
def test_the_digest_samples_large_files_at_both_ends(tmp_path: Path, position: int) -> None:
    content = bytearray(3_000_000)
    file = tmp_path / "volume.nii"
    file.write_bytes(content)
    before = dataset_digest([file])
    content[position] = 1
    file.write_bytes(content)
    assert (dataset_digest([file]) != before) == (position != 700_000)


def test_the_digest_of_nothing_is_one_too() -> None:
    assert len(dataset_digest([])) == 32


def test_case_files_come_from_lists_and_from_splits() -> None:
    cases = [{"image": "a", "label": "b", "case": "1"}, {"image": "c", "case": "2"}]
    assert case_files(cases) == case_files({"training": cases[:1], "test": cases[1:]}) == ["a", "b", "c"]


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
