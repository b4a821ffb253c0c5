"""The command line that imports weights."""

import ast
import importlib.util
import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.scripts import run as run_bundle
from monai.data import MetaTensor

from pipeline.compat import import_state_dict
from pipeline.handlers import CheckpointError
from pipeline.handlers.checkpoint import load_network
from pipeline.networks import NICEEncoder, NICEGenerator, PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator, NICETranslator
from transforms import ScaleMRIntensityd

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "import_weights.py"


def load(path):
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUTOENCODERS = load(ROOT / "tests" / "pipeline" / "compat" / "test_autoencoders.py")
NICE = load(ROOT / "tests" / "pipeline" / "compat" / "test_nicegan.py")


@pytest.fixture(scope="module")
def main():
    return load(SCRIPT).main


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
        assert bytes(written.pop("_extra_state").tolist()) == b"CycleGANTranslator(imported)"
    expected = {f"{role}.{name}": tensor for name, tensor in networks[role].state_dict().items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    printed = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in networks[role].parameters())
    assert f"{type(networks[role]).__name__} ({role}): {count:,} parameters" in printed
    assert '"spatial_dims": 2' in printed
    assert f"written to {out}" in printed
    assert ("to translate with it" in printed) == (role == "generator")


def test_target_window_goes_with_a_generator(main, networks, tmp_path, capsys):
    out = tmp_path / "out.pt"
    main([str(tmp_path / "generator.pth"), str(out), "--target-window", "-1000", "2000", "--image-size", "96"])
    assert torch.load(out, weights_only=True)["trained_size"].tolist() == [96, 96, 0]
    assert torch.load(out, weights_only=True)["target_window"].tolist() == [-1000, 2000]
    assert "-1 and 1 stand for -1000 and 2000" in capsys.readouterr().out


@pytest.fixture
def many(networks, tmp_path):
    """Files of every family, under the authors' names in a folder each; the one-file networks beside them."""
    unit, munit, nice = AUTOENCODERS.AuthorsUNIT, AUTOENCODERS.AuthorsMUNIT, NICE.AuthorsGenerator
    small = {"filters": 2, "blocks": 1}
    for name, network in {
        "unit/netG_A2B": unit(**small),
        "unit/netG_B2A": unit(**small),
        "again/netG_A2B": unit(**small),
        "wide/netG_B2A": unit(filters=3, blocks=1),
        "munit/netG_A2B": munit(**small),
        "nice/netG_A2B": nice(**small, light=True),
        "nice/netD_A": NICE.AuthorsDiscriminator(filters=2),
        "nice/netD_B": NICE.AuthorsDiscriminator(filters=2),
        "alone/netG_A2B": nice(**small, light=True, own_encoder=True),
        "full/netG_A2B": nice(**small, size=32, own_encoder=True),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    cut = tmp_path / "unit" / "cut.pth"
    cut.write_bytes((tmp_path / "unit" / "netG_B2A.pth").read_bytes()[:-3000])
    state = torch.load(tmp_path / "unit" / "netG_B2A.pth", weights_only=True)
    torch.save(dict(list(state.items())[:-3]), tmp_path / "unit" / "less.pth")
    torch.save({"a": state}, tmp_path / "unit" / "nested.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "unit" / "module.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.pth out.pt", "none.pth does not exist"),
        ("generator.pth generator.pth --force", "IN and OUT are the same file"),
        (
            "unit/netG_A2B.pth unit/netG_B2A.pth unit/netG_B2A.pth --force",
            "IN and OUT are the same file, unit/netG_B2A",
        ),
        ("generator.pth taken.pt", "taken.pt exists already; --force replaces it"),
        ("generator.pth out.pt --target-window 5 5", "low < high, got"),
        ("generator.pth out.pt --image-size 0", "--image-size takes a positive number of pixels, got 0"),
        ("discriminator.pth out.pt --target-window 0 5", "belongs to a generator, but .* discriminator"),
        ("discriminator.pth out.pt --image-size 96", "--image-size belongs to a generator, but .* discriminator"),
        ("taken.pt out.pt", "taken.pt cannot be read, it may be cut short"),
        ("generator.pth discriminator.pth out.pt", "no model is made of ResNetGenerator .* and PatchDiscriminator"),
        ("unit/netG_A2B.pth out.pt", "no model is made of UNITGenerator .*for UNIT or MUNIT the autoencoder of the so"),
        ("unit/netG_A2B.pth unit/netG_B2A.pth", "no model is made of UNITGenerator"),
        ("unit/netG_A2B.pth munit/netG_A2B.pth out.pt", "no model is made of UNITGenerator .* and MUNITGenerator"),
        ("unit/netG_A2B.pth generator.pth out.pt", "no model is made of UNITGenerator .* and ResNetGenerator"),
        ("unit/netG_A2B.pth wide/netG_B2A.pth out.pt", "not of the same form: filters 2 and 3"),
        ("unit/netG_A2B.pth unit/netG_A2B.pth out.pt", "both files hold the same weights"),
        ("unit/netG_A2B.pth again/netG_A2B.pth out.pt", "are both named after domain A; give the source's"),
        ("unit/netG_A2B.pth unit/cut.pth out.pt", "unit/cut.pth cannot be read, it may be cut short"),
        ("unit/netG_A2B.pth unit/less.pth out.pt", "unit/less.pth: the shapes fit no .* 21 tensors where 24"),
        (
            "unit/netG_A2B.pth unit/nested.pth out.pt",
            "unit/nested.pth is no state dict: its entry 'a' holds OrderedDict",
        ),
        ("unit/netG_A2B.pth unit/module.pth out.pt", "unit/module.pth holds objects .* could run code"),
        ("nice/netG_A2B.pth out.pt", "no model is made of NICEGenerator .*the discriminator of source images"),
        ("nice/netD_A.pth out.pt", "no model is made of NICEEncoder"),
        (
            "nice/netG_A2B.pth nice/netD_B.pth out.pt",
            "do not belong together: a generator reads the features of its so",
        ),
        ("nice/netG_A2B.pth unit/netG_B2A.pth out.pt", "no model is made of NICEGenerator .* and UNITGenerator"),
        ("alone/netG_A2B.pth nice/netD_A.pth out.pt", "has its own encoder; give its file without"),
        ("full/netG_A2B.pth out.pt --image-size 64", r"images of size \(32, 32\) only, got \(64, 64\)"),
    ],
)
def test_faults_end_with_one_line_and_write_nothing(main, many, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("taken.pt").write_text("old")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit, match=f"import_weights.py: error: .*{message}"):
        main(arguments.split())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_force_replaces_the_output(main, networks, tmp_path):
    out = tmp_path / "out.pt"
    out.write_text("old")
    main([str(tmp_path / "registration.pth"), str(out), "--force"])
    assert all(name.startswith("registration.") for name in torch.load(out, weights_only=True))


def test_runs_from_anywhere_and_explains_itself(tmp_path):
    command = [sys.executable, str(SCRIPT), "--help"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for word in ("IN", "OUT", "--target-window", "--force", "generator.*", "netG_A2B.pth netD_A.pth"):
        assert word in finished.stdout


def test_an_imported_generator_is_what_inference_loads(main, networks, tmp_path):
    out = tmp_path / "out.pt"
    main([str(tmp_path / "generator.pth"), str(out), "--image-size", "96"])
    settings = import_state_dict(torch.load(tmp_path / "generator.pth", weights_only=True)).settings["generator"]
    translator = CycleGANTranslator({}, generator=partial(ResNetGenerator, **settings))
    load_network(translator, out)
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(translator(image), networks["generator"](image))
    other = NICETranslator({}, encoder=partial(NICEEncoder, filters=2), generator=partial(NICEGenerator, filters=2))
    with pytest.raises(CheckpointError, match=r"trained as CycleGANTranslator\(imported\), but .* builds NICETransl"):
        load_network(other, out)


def test_options_may_stand_between_the_files(main, many, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["unit/netG_B2A.pth", "--image-size", "64", "unit/netG_A2B.pth", "--target-window", "-5", "9", "out.pt"])
    written = torch.load("out.pt", weights_only=True)
    assert written["trained_size"].tolist() == [64, 64, 0]
    assert written["target_window"].tolist() == [-5, 9]
    expected = torch.load("unit/netG_A2B.pth", weights_only=True)["dec.model.2.norm.gamma"]
    assert torch.equal(written["decoder.image.stages.2.weight"], expected)


def test_networks_of_the_paper_s_size_need_no_further_settings(main, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AUTOENCODERS.AuthorsUNIT().state_dict().items()}
    for number, name in enumerate(("netG_A2B.pth", "netG_B2A.pth")):
        torch.save({key: torch.full(shape, float(number)) for key, shape in shapes.items()}, name)
    main(["netG_A2B.pth", "netG_B2A.pth", "a model.pt"])
    printed = capsys.readouterr().out
    assert "netG_B2A.pth: UNITGenerator (autoencoder): 11,127,937 parameters" in printed
    assert "translates from the domain of netG_A2B.pth into that of netG_B2A.pth" in printed
    assert "--checkpoint 'a model.pt' --network_size paper --spatial_size PIXELS --image T1.nii.gz" in printed


def run_printed(command, **settings):
    """Run the command that was printed, in this process, with some of its settings replaced."""
    words = shlex.split(command)
    assert words[:5] == ["python", "-m", "monai.bundle", "run", "--config_file"]
    values = dict(zip((word.removeprefix("--") for word in words[6::2]), words[7::2], strict=True))
    for name, value in values.items():
        if value[0] in "[0123456789":
            values[name] = json.loads(value)
    run_bundle(run_id="run", config_file=ast.literal_eval(words[5]), logging_file=False, **(values | settings))


UNIT = partial(AUTOENCODERS.AuthorsUNIT, filters=4, blocks=2)
MUNIT = partial(AUTOENCODERS.AuthorsMUNIT, filters=4, blocks=1, style=3, mlp=16)
JUDGE = partial(NICE.AuthorsDiscriminator, filters=4)


@pytest.mark.parametrize(
    ("names", "kinds", "translate"),
    [
        (["netG_A2B", "netG_B2A"], [UNIT, UNIT], lambda a, b, x: b.dec(a.enc(x))),
        (
            ["netG_A2B", "netG_B2A"],
            [MUNIT, MUNIT],
            lambda a, b, x: b.decode(a.enc_content(x), torch.zeros(len(x), 3)),
        ),
        (
            ["netG_A2B", "netD_A"],
            [partial(NICE.AuthorsGenerator, filters=4, blocks=2, size=32), JUDGE],
            lambda a, b, x: a(b.encode(x)),
        ),
        (
            ["netG_A2B"],
            [partial(NICE.AuthorsGenerator, filters=4, blocks=1, light=True, own_encoder=True)],
            lambda a, x: a(x),
        ),
    ],
    ids=["unit", "munit", "nice", "nice with its own encoder"],
)
def test_the_printed_command_translates_as_the_authors_does(
    main, tmp_path, capsys, monkeypatch, names, kinds, translate
):
    torch.manual_seed(0)
    networks = [NICE.trained(kind()) for kind in kinds]
    paths = [tmp_path / f"{name}.pth" for name in names]
    for path, network in zip(paths, networks, strict=True):
        torch.save(network.state_dict(), path)
    size = [] if getattr(kinds[0], "keywords", {}).get("size") else ["--image-size", "32"]
    main([*map(str, paths), str(tmp_path / "model.pt"), "--target-window", "0", "1000", *size])
    command = capsys.readouterr().out.splitlines()[-1].strip()

    volume = np.random.default_rng(0).uniform(0, 700, (32, 32, 3)).astype(np.float32)
    volume[:, :4] = 0
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "T1.nii.gz")
    monkeypatch.chdir(ROOT)
    files = {"image": str(tmp_path / "T1.nii.gz"), "output_dir": str(tmp_path / "out")}
    run_printed(command, **files, device="cpu")

    scaled = ScaleMRIntensityd(keys="image")({"image": MetaTensor(torch.from_numpy(volume)[None])})["image"]
    with torch.no_grad():
        expected = translate(*networks, scaled.as_tensor().movedim(-1, 0))[:, 0].movedim(0, -1)
    translated = nib.load(tmp_path / "out" / "T1_translated.nii.gz").get_fdata()
    assert translated == pytest.approx(500 * (expected.numpy() + 1), abs=0.2)
    assert translated.std() > 5
