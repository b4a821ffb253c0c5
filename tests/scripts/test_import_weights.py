"""The command line that imports weights."""

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.handlers.checkpoint import load_network
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.networks.weights import import_state_dict
from pipeline.translators import CycleGANTranslator

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_weights.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("import_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def networks(tmp_path):
    """Networks by role, with their weights saved under other names as `<role>.pth`."""
    built = {
        "generator": ResNetGenerator(filters=4, residual_blocks=1),
        "discriminator": PatchDiscriminator(filters=4),
        "registration": RegistrationNet(channels=(4, 8)),
    }
    for role, network in built.items():
        renamed = {f"module.{i}": tensor for i, tensor in enumerate(network.state_dict().values())}
        torch.save(renamed, tmp_path / f"{role}.pth")
    return built


@pytest.mark.parametrize("role", ["generator", "discriminator", "registration"])
def test_each_network_is_converted_and_named(main, networks, tmp_path, capsys, role):
    out = tmp_path / "out" / "weights.pt"
    main([str(tmp_path / f"{role}.pth"), str(out)])
    written = torch.load(out, weights_only=True)
    if role == "generator":
        assert written.pop("target_window").tolist() == [-1, 1]
        assert written.pop("trained_size").tolist() == [0, 0, 0]
    expected = {f"{role}.{name}": tensor for name, tensor in networks[role].state_dict().items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    printed = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in networks[role].parameters())
    assert f"{type(networks[role]).__name__} ({role}): {count:,} parameters" in printed
    assert '"spatial_dims": 2' in printed
    assert f"written to {out}" in printed


def test_target_window_goes_with_a_generator(main, networks, tmp_path, capsys):
    out = tmp_path / "out.pt"
    main([str(tmp_path / "generator.pth"), str(out), "--target-window", "-1000", "2000", "--image-size", "96"])
    assert torch.load(out, weights_only=True)["trained_size"].tolist() == [96, 96, 0]
    assert torch.load(out, weights_only=True)["target_window"].tolist() == [-1000, 2000]
    assert "-1 and 1 stand for -1000 and 2000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth", "out.pt"], "none.pth does not exist"),
        (["generator.pth", "generator.pth", "--force"], "IN and OUT are the same file"),
        (["generator.pth", "taken.pt"], "taken.pt exists already; --force replaces it"),
        (["generator.pth", "out.pt", "--target-window", "5", "5"], "low < high, got"),
        (["discriminator.pth", "out.pt", "--target-window", "0", "5"], "belongs to a generator, but .* discriminator"),
        (["discriminator.pth", "out.pt", "--image-size", "96"], "takes a positive number for a generator, got 96"),
        (["taken.pt", "out.pt"], "taken.pt is damaged"),
    ],
)
def test_faults_end_with_one_line_and_write_nothing(main, networks, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("taken.pt").write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit, match=f"import_weights.py: error: .*{message}"):
        main(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Path("taken.pt").read_text() == "old"


def test_force_replaces_the_output(main, networks, tmp_path):
    out = tmp_path / "out.pt"
    out.write_text("old")
    main([str(tmp_path / "registration.pth"), str(out), "--force"])
    assert all(name.startswith("registration.") for name in torch.load(out, weights_only=True))


def test_runs_from_anywhere_and_explains_itself(tmp_path):
    command = [sys.executable, str(SCRIPT), "--help"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for word in ("IN", "OUT", "--target-window", "--force", "generator.*"):
        assert word in finished.stdout


def test_an_imported_generator_is_what_inference_loads(main, networks, tmp_path):
    out = tmp_path / "out.pt"
    main([str(tmp_path / "generator.pth"), str(out), "--image-size", "96"])
    settings = import_state_dict(torch.load(tmp_path / "generator.pth", weights_only=True)).settings
    translator = CycleGANTranslator({}, generator=partial(ResNetGenerator, **settings))
    load_network(translator, out)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(translator(image), networks["generator"](image))
