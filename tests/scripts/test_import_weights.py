"""The command line that imports weights."""

import csv
import importlib.util
import re
import shlex
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.scripts import run as run_bundle
from monai.data import MetaTensor

from pipeline.errors import first_cause
from pipeline.inference import Exporter
from pipeline.models import CheckpointError, ContradictionError, Model, load_strictly
from pipeline.networks import NICEEncoder, NICEGenerator, PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import NICETranslator, decode_recipe
from pipeline.workflow import ConfigWorkflow
from transforms import ScaleMRIntensityd

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
SCRIPT = ROOT / "scripts" / "import_weights.py"


def load(path):
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUTOENCODERS = load(ROOT / "tests" / "pipeline" / "compat" / "test_autoencoders.py")
CYCLEGAN = load(ROOT / "tests" / "pipeline" / "compat" / "test_cyclegan.py")
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
        recipe = decode_recipe(written.pop("_extra_state"))
        assert (recipe["target"]["window"], recipe["grid"]["spatial_size"]) == ([-1, 1], None)
    expected = {f"{role}.{name}": tensor for name, tensor in networks[role].state_dict().items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    printed = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in networks[role].parameters())
    assert f"{type(networks[role]).__name__} ({role}): {count:,} parameters" in printed
    assert '"spatial_dims": 2' in printed
    assert f"written to {out}" in printed
    assert ("to translate with it" in printed) == (role == "generator")


EVERYTHING = (
    "--target-window -1000 2000 --source-window 0 800 --image-size 96 --slice-axis 1 --orientation LPS "
    "--source-modality MR --target-modality CT --method pix2pix"
)


def test_what_is_said_of_a_generator_goes_with_it(main, networks, tmp_path, capsys):
    out = tmp_path / "out.pt"
    main([str(tmp_path / "generator.pth"), str(out), *EVERYTHING.split()])
    recipe = Model(out).recipe
    assert recipe.target_window == (-1000, 2000)
    assert recipe["target"]["scaling"]["arguments"] == {"window": [-1000, 2000], "foreground": "above-background"}
    assert recipe["source"]["scaling"]["arguments"] == {"window": [0, 800], "foreground": "above-background"}
    assert (recipe.spatial_size, recipe.slice_axis, recipe["grid"]["orientation"]) == ((96, 96), 1, "LPS")
    assert (recipe["source"]["modality"], recipe["target"]["modality"], recipe["method"]) == ("MR", "CT", "pix2pix")
    printed = capsys.readouterr().out
    assert "-1 and 1 stand for -1000 and 2000\n" in printed
    assert "source is scaled by the fixed window from 0 to 800\n" in printed
    assert "slices are counted along axis 1\n" in printed
    assert "modalities: source MR, target CT; method: pix2pix" in printed
    assert "assumed" not in printed
    assert "--spatial_size" not in printed


def test_what_is_assumed_is_said(main, networks, tmp_path, capsys):
    main([str(tmp_path / "generator.pth"), str(tmp_path / "out.pt")])
    printed = capsys.readouterr().out
    for line in (
        "source is scaled as MR, from 0 to percentile 99.5 of what is above (assumed; --source-window says otherwise)",
        "-1 and 1 stand for -1 and 1: predictions stay in [-1, 1] (assumed; --target-window says otherwise)",
        "volumes are turned to RAS (assumed; --orientation says otherwise)",
        "slices are counted along axis 2 (assumed; --slice-axis says otherwise)",
        "size of images: not known",
        "modalities: source not known, target not known; method: not known",
    ):
        assert f"{line}\n" in printed


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
        ("discriminator.pth out.pt --slice-axis 1", "--slice-axis belongs to a generator, but .* discriminator"),
        ("generator.pth out.pt --source-window 9 5", "source window must be two finite values, low < high, got"),
        ("generator.pth out.pt --orientation RAA", "orientation must have one letter of each .* got 'RAA'"),
        (
            "generator.pth out.pt --method munit-c",
            "--method must be one of this backbone's, .*; got 'munit-c'",
        ),
        ("generator.pth out.pt --method magic", "--method must be one of this backbone's, pix2pix, .*; got 'magic'"),
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


def test_runs_from_anywhere_and_explains_itself(tmp_path, python):
    code, said = python(SCRIPT, "--help", cwd=tmp_path)
    assert code == 0
    for word in ("IN", "OUT", "--target-window", "--force", "recipe", "netG_A2B.pth netD_A.pth"):
        assert word in said


def test_an_imported_generator_is_what_inference_loads(main, networks, tmp_path):
    out = tmp_path / "out.pt"
    main([str(tmp_path / "generator.pth"), str(out), "--image-size", "96"])
    translator = Model(out).build()
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(translator(image), networks["generator"](image))
    other = NICETranslator({}, encoder=partial(NICEEncoder, filters=2), generator=partial(NICEGenerator, filters=2))
    with pytest.raises(CheckpointError, match=r"trained as CycleGANTranslator\(imported\), but .* builds NICETransl"):
        load_strictly(other, torch.load(out, weights_only=True), out)


def test_options_may_stand_between_the_files(main, many, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["unit/netG_B2A.pth", "--image-size", "64", "unit/netG_A2B.pth", "--target-window", "-5", "9", "out.pt"])
    written = torch.load("out.pt", weights_only=True)
    assert Model("out.pt").recipe.spatial_size == (64, 64)
    assert Model("out.pt").recipe.target_window == (-5, 9)
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
    assert "--checkpoint 'a model.pt' --spatial_size PIXELS --image T1.nii.gz" in printed


def run_printed(command, **settings):
    """Run the command that was printed, in this process, with some of its settings replaced."""
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    values = dict(zip((word.removeprefix("--") for word in words[4::2]), words[5::2], strict=True))
    run_bundle(run_id="run", logging_file=False, **(values | settings))


class AuthorsGenerator(torch.nn.Module):
    """The authors' generator of the CycleGAN backbone."""

    def __init__(self, blocks, **settings):
        super().__init__()
        self.blocks, self.state = blocks, CYCLEGAN.authors_generator(blocks=blocks, **settings)

    def state_dict(self):
        return self.state

    def forward(self, x):
        return CYCLEGAN.Arithmetic(self.state).generator(x, self.blocks)


UNIT = partial(AUTOENCODERS.AuthorsUNIT, filters=4, blocks=2)
MUNIT = partial(AUTOENCODERS.AuthorsMUNIT, filters=4, blocks=1, style=3, mlp=16)
NICE_FULL = partial(NICE.AuthorsGenerator, filters=4, blocks=2, size=32)
NICE_LIGHT = partial(NICE.AuthorsGenerator, filters=6, blocks=1, light=True)
NICE_ALONE = partial(NICE.AuthorsGenerator, filters=4, blocks=1, light=True, own_encoder=True)
JUDGE = NICE.AuthorsDiscriminator
# By backbone and variant: the names of the files, what makes their networks, and how these translate.
MODELS = {
    "cyclegan": (["netG_A2B"], [partial(AuthorsGenerator, blocks=2, filters=5)], lambda a, x: a(x)),
    "unit": (["netG_A2B", "netG_B2A"], [UNIT, UNIT], lambda a, b, x: b.dec(a.enc(x))),
    "munit": (
        ["netG_A2B", "netG_B2A"],
        [MUNIT, MUNIT],
        lambda a, b, x: b.decode(a.enc_content(x), torch.zeros(len(x), 3)),
    ),
    "nice": (["netG_A2B", "netD_A"], [NICE_FULL, partial(JUDGE, filters=4)], lambda a, b, x: a(b.encode(x))),
    "light nice": (["netG_A2B", "netD_A"], [NICE_LIGHT, partial(JUDGE, filters=6)], lambda a, b, x: a(b.encode(x))),
    "nice with its own encoder": (["netG_A2B"], [NICE_ALONE], lambda a, x: a(x)),
}
SIZE = 32


class Place:
    """An imported model, the authors' networks that it is of, and a volume in RAS to translate."""

    def __init__(self, main, folder, model):
        torch.manual_seed(0)
        self.folder, self.model = folder, folder / "model.pt"
        names, kinds, self._translate = MODELS[model]
        self.networks = [NICE.trained(kind()) for kind in kinds]
        self.files = [folder / f"{name}.pth" for name in names]
        for path, network in zip(self.files, self.networks, strict=True):
            torch.save(network.state_dict(), path)
        self.knows_size = getattr(kinds[0], "keywords", {}).get("size") is not None
        self.main = main
        volume = np.random.default_rng(0).uniform(0, 700, (SIZE, SIZE, SIZE)).astype(np.float32)
        volume[:, :4] = 0
        volume[20:] *= 0.5
        self.volume = volume
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "T1.nii.gz")

    def convert(self, *options):
        size = [] if self.knows_size else ["--image-size", str(SIZE)]
        self.main([*map(str, self.files), str(self.model), *size, *options])

    def translate(self, **settings):
        """What inference.json makes of the volume."""
        config = str(ROOT / "bundles" / "reggan" / "configs" / "inference.json")
        where = {"image": str(self.folder / "T1.nii.gz"), "output_dir": str(self.folder / "out"), "device": "cpu"}
        run_bundle(
            run_id="run", config_file=config, logging_file=False, checkpoint=str(self.model), **where, **settings
        )
        return self.translated()

    def translated(self):
        return nib.load(self.folder / "out" / "T1_translated.nii.gz").get_fdata()

    def theirs(self, slices):
        return self._translate(*self.networks, slices)


@pytest.fixture
def place(main, tmp_path, monkeypatch, request):
    monkeypatch.chdir(ROOT)
    return Place(main, tmp_path, request.param)


@pytest.mark.parametrize("place", MODELS, indirect=True)
def test_the_printed_command_translates_as_the_authors_does(place, capsys):
    place.convert("--target-window", "0", "1000")
    command = capsys.readouterr().out.splitlines()[-1].strip()
    assert "--checkpoint" in command
    assert command.count(" --") == 4  # and config_file, image, output_dir: no other setting is needed
    where = {"image": str(place.folder / "T1.nii.gz"), "output_dir": str(place.folder / "out")}
    run_printed(command, **where, device="cpu")

    scaled = ScaleMRIntensityd(keys="image")({"image": MetaTensor(torch.from_numpy(place.volume)[None])})["image"]
    with torch.no_grad():
        expected = place.theirs(scaled.as_tensor().movedim(-1, 0))[:, 0].movedim(0, -1)
    translated = place.translated()
    assert translated == pytest.approx(500 * (expected.numpy() + 1), abs=0.2)
    assert translated.std() > 5


@pytest.mark.parametrize("place", MODELS, indirect=True)
@torch.no_grad()
def test_the_file_alone_says_windows_axes_and_networks(place):
    options = "--source-window 100 600 --target-window -1000 2000 --orientation LPS --slice-axis 0"
    place.convert(*options.split())
    translated = place.translate()

    turned = torch.from_numpy(place.volume).flip(0, 1)[:, None]  # RAS to LPS; slices first, then one channel
    scaled = (turned.clamp(100, 600) - 100) / 250 - 1
    network = Model(place.model).build().eval()
    for expected, tolerance in ((network(scaled), 0.3), (place.theirs(scaled), 0.6)):  # of a window of 3000
        expected = 1500 * (expected[:, 0].flip(0, 1) + 1) - 1000
        assert translated == pytest.approx(expected.numpy(), abs=tolerance)
    assert translated.std() > 15


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(name, marks=[] if name in ("cyclegan", "nice with its own encoder") else [pytest.mark.slow])
        for name in MODELS
    ],
    indirect=True,
)
def test_the_file_alone_is_evaluated_exported_and_run_from_onnx(place):
    place.convert("--target-window", "0", "1000")
    translated = place.translate()
    (place.folder / "labelsTs").mkdir()
    (place.folder / "imagesTs").mkdir()
    nib.save(nib.Nifti1Image(place.volume, np.eye(4)), place.folder / "imagesTs" / "p.nii.gz")
    label = place.volume.max() - place.volume
    nib.save(nib.Nifti1Image(label, np.eye(4)), place.folder / "labelsTs" / "p.nii.gz")
    settings = {"checkpoint": str(place.model), "dataset_dir": str(place.folder), "device": "cpu"}
    folder = place.folder / "evaluation"
    run_bundle(
        run_id="run",
        config_file=str(CONFIGS / "evaluate.json"),
        logging_file=False,
        tracking_uri="none",
        evaluation_dir=str(folder),
        **settings,
    )
    with (folder / "volumes.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["mae"]) == pytest.approx(np.abs(translated - label)[label > 1e-2].mean(), rel=1e-4)

    settings = {"checkpoint": str(place.model), "image": str(place.folder / "T1.nii.gz"), "device": "cpu"}
    exporter = Exporter(ConfigWorkflow(["inference.json"], **settings))
    for suffix in (".onnx", ".ts"):
        exporter.export(place.folder / f"model{suffix}", exporter.slices())
    place.model = place.folder / "model.onnx"
    assert place.translate() == pytest.approx(translated, abs=0.1)  # 1e-4 of the window


@pytest.mark.parametrize("place", ["cyclegan"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"slice_axis": 1}, "slice_axis: given 1, the model has 2"),
        ({"spatial_size": 64}, r"spatial_size: given \[64, 64\], the model has \[32, 32\]"),
        ({"spatial_size": [32, 64]}, r"spatial_size: given \[32, 64\], the model has \[32, 32\]"),
        ({"network_def#generator#filters": 64}, "network_def#generator#filters: given 64, the model has 5"),
        ({"backbone": "unit"}, "backbone: given 'unit', the model has 'cyclegan'"),
        ({"orientation": "LPS"}, "orientation: given 'LPS', the model has 'RAS'"),
        ({"source_intensity": {"background": 5}}, "source_intensity#background: given 5, the model has 0.0"),
    ],
)
def test_settings_that_contradict_an_imported_model_are_refused(place, settings, says):
    place.convert()
    with pytest.raises(RuntimeError) as raised:
        place.translate(**settings)
    error = first_cause(raised.value)
    assert isinstance(error, ContradictionError)
    assert re.search(says, str(error))


@pytest.mark.parametrize("place", ["cyclegan"], indirect=True)
def test_a_size_that_nobody_knows_has_to_be_given(place, capsys):
    place.main([str(place.files[0]), str(place.model), "--target-window", "0", "1000"])
    assert "--spatial_size PIXELS --image" in capsys.readouterr().out
    with pytest.raises(RuntimeError) as raised:
        place.translate()
    assert "does not say at which image size it was trained; pass spatial_size" in str(first_cause(raised.value))
    unknown = place.translate(spatial_size=SIZE)
    place.convert("--target-window", "0", "1000", "--force")
    np.testing.assert_array_equal(unknown, place.translate())
