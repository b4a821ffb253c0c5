"""The command line of the phantom."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.image import imread

SMALL = ["--subjects", "1", "1", "0", "--resolution", "8"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "make_phantom.py"
    spec = importlib.util.spec_from_file_location("make_phantom_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "phantom"
    assert script.main([str(folder), *SMALL, "--picture", str(folder.parent / "pictures" / "phantom.png")]) == 0
    return folder


def test_writes_the_data_set_and_the_picture(made: Path) -> None:
    assert (made / "datalist.json").is_file()
    picture = imread(made.parent / "pictures" / "phantom.png")
    assert picture[..., :3].max() > 0.9
    assert picture[..., :3].std() > 0.1


def test_says_what_it_wrote_and_reuses_it(script: ModuleType, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(made), *SMALL]) == 0
    output = capsys.readouterr().out
    assert "1 training, 1 validation, 0 test" in output
    assert "23x28x23 voxels" in output
    assert str(made / "datalist.json") in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "7"], "noise must lie in"),
        (["--subjects", "0", "1", "1"], "subjects must hold"),
        ([], "subjects is"),
    ],
)
def test_faults_are_one_line_and_status_2(
    script: ModuleType, made: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert script.main([str(made), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_names_every_option(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in ("output_dir", "--subjects", "--seed", "--resolution", "--noise", "--bias", "--lesions", "--picture"):
        assert option in shown
