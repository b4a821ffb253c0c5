"""A packaged bundle trains and translates where this project is not installed."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.scripts import run as run_bundle

from pipeline.compat.recipe import Known, imported_recipe
from pipeline.models import CheckpointError, Model
from pipeline.networks import MUNITGenerator, NICEEncoder, NICEGenerator, ResNetGenerator, UNITGenerator
from pipeline.packaging import PackagingError, dicom_modality, package_bundle

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "reggan"
SETTINGS = {
    "device": "cpu",
    "spatial_size": 32,
    "max_epochs": 1,
    "batch_size": 2,
    "network_def#generator#filters": 4,
    "network_def#generator#residual_blocks": 1,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": "[4,4]",
}


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("package_bundle", ROOT / "scripts" / "package_bundle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two patients for training and one for validation: bright boxes that are dark in the target."""
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    lists = {"training": ["a", "b"], "validation": ["c"]}
    for name in "abc":
        image = np.zeros((34, 36, 6), np.float32)
        image[6:28, 6:30] = 400 + random.normal(0, 10, (22, 24, 6))
        image[12:20, 12:20] += 300
        for kind, volume in (("images", image), ("labels", np.where(image > 0, 1000 - image, 0).astype(np.float32))):
            (folder / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2.0, 4.0, 1.0])), folder / kind / f"{name}.nii.gz")
    entries = {
        split: [{"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"} for name in names]
        for split, names in lists.items()
    }
    (folder / "datalist.json").write_text(json.dumps(entries))
    return folder


def without_hints():
    """The environment, without any hint to this checkout; one thread, as the commands have that are run here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    return kept | {"OMP_NUM_THREADS": "1"}


def run(python, folder, *words, **settings):
    """Run a bundle command line in a folder, without any hint to this checkout in the environment."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [python, "-m", "monai.bundle", "run", *words, *options]
    result = subprocess.run(command, cwd=folder, env=without_hints(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def here(python, *words, **settings):
    """Run a bundle command line of the checkout."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    code, said = python("-m", "monai.bundle", "run", *words, *options, cwd=ROOT)
    assert code == 0, said[-3000:]


@pytest.fixture(scope="module")
def run_dir(dataset, tmp_path_factory, python):
    """A finished training of the checkout, of networks that no config file of it describes."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = str(ROOT / "bundles" / "reggan" / "configs" / "train.json")
    settings = {**SETTINGS, "dataset_dir": dataset, "output_dir": folder, "tracking_uri": "none"}
    here(python, "training", "--config_file", config, **settings)
    return folder


@pytest.fixture(scope="module")
def package(main, run_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("package") / "reggan.zip"
    main([str(output), "--run", str(run_dir), "--data-source", "boxes"])
    return output


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter that has this one's packages, but not this project: a .pth file within a .pth file is not read."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    [site_packages] = folder.glob("lib/python*/site-packages")
    (site_packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    for module in ("pipeline", "transforms"):
        result = subprocess.run(
            [python, "-c", f"import {module}"],
            cwd=folder,
            env=without_hints(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"No module named '{module}'" in result.stderr, "the project is visible: install it with --editable"
    return str(python)


@pytest.fixture
def unpacked(package, tmp_path):
    zipfile.ZipFile(package).extractall(tmp_path)
    return tmp_path / "reggan"


def read(unpacked, name):
    return json.loads((unpacked / name).read_text())


def test_it_translates_where_the_project_is_not_installed(bare_python, unpacked, dataset, run_dir, tmp_path, python):
    image = dataset / "images" / "c.nii.gz"
    inference = ("--config_file", "configs/inference.json")
    run(bare_python, unpacked, *inference, image=image, output_dir=tmp_path / "there")
    config = str(BUNDLE / "configs" / "inference.json")
    settings = {"checkpoint": run_dir / "model.pt", "image": image, "output_dir": tmp_path / "here"}
    here(python, "--config_file", config, **settings)
    there, ours = (nib.load(tmp_path / place / "c_translated.nii.gz") for place in ("there", "here"))
    np.testing.assert_array_equal(there.get_fdata(), ours.get_fdata())
    np.testing.assert_array_equal(there.affine, ours.affine)


@pytest.mark.slow
def test_it_trains_where_the_project_is_not_installed(bare_python, unpacked, dataset, run_dir):
    """To the weights that it comes to here."""
    said = run(
        bare_python, unpacked, "training", "--config_file", "configs/train.json", dataset_dir=dataset, **SETTINGS
    )
    assert str(unpacked / "outputs" / "reggan" / "model.pt") in said
    first, second = (
        torch.load(path, weights_only=True) for path in (run_dir / "model.pt", unpacked / "outputs/reggan/model.pt")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if name != "_extra_state")
    ours, theirs = (Model(path).recipe for path in (run_dir / "model.pt", unpacked / "outputs/reggan/model.pt"))
    assert theirs["training"]["commit"] is None  # there is no repository
    assert {**theirs.content, "training": {**theirs["training"], "commit": ours["training"]["commit"]}} == ours.content
    assert (unpacked / "outputs" / "mlflow.db").is_file()
    assert str(ROOT) not in (unpacked / "outputs" / "reggan" / "config.json").read_text()


def test_weights_and_where_they_came_from(unpacked, run_dir):
    provenance = read(unpacked, "models/provenance.json")
    weights = (unpacked / "models" / "model.pt").read_bytes()
    assert weights == (run_dir / "model.pt").read_bytes()
    assert provenance["sha256"] == hashlib.sha256(weights).hexdigest()
    assert provenance["data_source"] == read(unpacked, "configs/metadata.json")["data_source"] == "boxes"
    assert provenance["scores"] == read(unpacked, "configs/metadata.json")["eval_metrics"]
    assert provenance["scores"]["validation_psnr"] > 0
    assert read(unpacked, "models/recipe.json") == Model(unpacked / "models" / "model.pt").recipe.content
    assert provenance.keys().isdisjoint({"training", "trained_as", "trained_size", "target_window"})  # the recipe's
    assert read(unpacked, f"models/{provenance['recipe']}")["training"]["iteration"] == 6
    assert read(unpacked, "models/config.json") == json.loads((run_dir / "config.json").read_text())


def test_nothing_of_this_place_is_in_it(unpacked):
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {"LICENSE", "docs/README.md", "docs/data_license.txt", "requirements.txt", "constraints.txt"} <= names
    assert [name for name in names if name.endswith(".pt")] == ["models/model.pt"]
    assert not [name for name in names if "__pycache__" in name or "label_app" in name]
    assert (unpacked / "configs" / "inference.json").read_bytes() == (BUNDLE / "configs/inference.json").read_bytes()
    for name in names - {"models/config.json", "models/model.pt"}:
        assert str(ROOT) not in (unpacked / name).read_text(), name


def test_same_run_same_bytes(package, run_dir, tmp_path):
    package_bundle(tmp_path / "again.zip", ROOT, run_dir=run_dir, data_source="boxes")
    assert (tmp_path / "again.zip").read_bytes() == package.read_bytes()


def test_passwords_in_addresses_are_left_out(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((run_dir / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "tracking_uri": "https://me:secret@host/"}))
    package_bundle(tmp_path / "a.zip", ROOT, run_dir=tmp_path / "run", data_source="boxes")
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        assert json.loads(package.read("reggan/models/config.json"))["tracking_uri"] == "https://***@host/"


def spoil_weights(folder):
    weights = torch.load(folder / "model.pt", weights_only=True)
    weights["generator.stem.0.weight"].fill_(float("nan"))
    torch.save(weights, folder / "model.pt")


def spoil_recipe(folder, **changes):
    weights = torch.load(folder / "model.pt", weights_only=True)
    recipe = json.loads(bytes(weights["_extra_state"].tolist())) | changes
    weights["_extra_state"] = torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)
    torch.save(weights, folder / "model.pt")


def widen(folder):
    networks = Model(folder / "model.pt").recipe["networks"]
    networks["generator"]["arguments"]["filters"] = 8
    spoil_recipe(folder, networks=networks)


def flip_bit(path, place):
    """Flip a bit in a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "name", "source", "says"),
    [
        (lambda folder: (folder / "model.pt").unlink(), "a.zip", "boxes", "model.pt is missing; train first"),
        (lambda folder: None, "a.tar", "boxes", "must end in .zip, got 'a.tar'"),
        (lambda folder: (folder / "config.json").write_text("{"), "a.zip", "boxes", "config.json is no JSON"),
        (lambda folder: None, "a.zip", None, "say in data_source what .*run was trained on: the phantom it was not"),
        (spoil_weights, "a.zip", "boxes", r"NaN or infinite, in generator.stem.0.weight \(196 of 196 values\)"),
        (lambda folder: flip_bit(folder / "model.pt", 9000), "a.zip", "boxes", "model.pt is damaged: its record"),
        (
            lambda folder: shutil.copy(folder / "checkpoints" / "best.pt", folder / "model.pt"),
            "a.zip",
            "boxes",
            "holds the whole state of a training, optimisers included; expected its model.pt",
        ),
        (
            lambda folder: spoil_recipe(folder, weights={"adversarial": -1}),
            "a.zip",
            "boxes",
            "the recipe of .*model.pt is not valid: weights#adversarial: -1 is less than",
        ),
        (widen, "a.zip", "boxes", "the weights do not translate: .* was not made by this CycleGANTranslator"),
    ],
)
def test_what_cannot_be_packaged_is_said_and_nothing_is_written(run_dir, tmp_path, spoil, name, source, says):
    shutil.copytree(run_dir, tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(PackagingError, match=says):
        package_bundle(tmp_path / name, ROOT, run_dir=tmp_path / "run", data_source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_scores_are_those_of_the_weights(run_dir, tmp_path, caplog):
    shutil.copytree(run_dir, tmp_path / "run")
    training = Model(run_dir / "model.pt").recipe["training"]
    spoil_recipe(tmp_path / "run", training={**training, "epoch": 7})
    said = package_bundle(tmp_path / "a.zip", ROOT, run_dir=tmp_path / "run", data_source="boxes")
    assert said["scores"] == {}
    assert "best.pt is not of the weights in" in caplog.text


def test_command_line_closes_with_one_line(main, package, tmp_path):
    with pytest.raises(SystemExit, match=r"package_bundle.py: error: .* exists already"):
        main([str(package), "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"holds no finished training: model.pt is missing; train first"):
        main([str(tmp_path / "a.zip"), "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"package_bundle.py: error: .*no.pt does not exist"):
        main([str(tmp_path / "a.zip"), "--model", str(tmp_path / "no.pt"), "--data-source", "boxes"])


# By backbone: networks with their arguments, none of which is the default or a size of train.json.
NETWORKS = {
    "cyclegan": {"generator": (ResNetGenerator, {"filters": 5, "residual_blocks": 2, "downsamplings": 1})},
    "unit": {"generator": (UNITGenerator, {"filters": 3, "residual_blocks": 1})},
    "munit": {"generator": (MUNITGenerator, {"filters": 3, "residual_blocks": 1, "style_dim": 3, "mlp_width": 5})},
    "nicegan": {
        "encoder": (NICEEncoder, {"filters": 3}),
        "generator": (NICEGenerator, {"filters": 3, "residual_blocks": 1, "image_size": (32, 24)}),
    },
}
WINDOW = (-1000.0, 2000.0)


def write_model(path, backbone, size=(32, 24)):
    """A model of such networks, with windows, axes and modalities that are no default, too."""
    known = Known(
        target_window=WINDOW,
        source_window=(0.0, 800.0),
        image_size=size,
        slice_axis=0,
        orientation="LPS",
        source_modality="T1-weighted MR",
        target_modality="CT",
    )
    torch.manual_seed(0)
    recipe = imported_recipe(backbone, NETWORKS[backbone], (1, 1), 2, known)
    torch.save(recipe.translator({}).inference_state_dict(), path)
    return path


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=[pytest.mark.slow] if name != "nicegan" else []) for name in NETWORKS]
)
def test_a_model_without_a_run_translates_elsewhere_as_it_does_here(bare_python, main, dataset, tmp_path, backbone):
    model, image = write_model(tmp_path / "imported.pt", backbone), dataset / "images" / "c.nii.gz"
    main([str(tmp_path / "a.zip"), "--model", str(model), "--data-source", "heads of elsewhere"])
    zipfile.ZipFile(tmp_path / "a.zip").extractall(tmp_path)
    unpacked = tmp_path / "reggan"
    run(bare_python, unpacked, "--config_file", "configs/inference.json", image=image)
    there = nib.load(unpacked / "outputs" / "translated" / "c_translated.nii.gz")

    config = str(BUNDLE / "configs" / "inference.json")
    settings = {"checkpoint": str(model), "image": str(image), "output_dir": str(tmp_path / "here"), "device": "cpu"}
    run_bundle(run_id="run", config_file=config, logging_file=False, **settings)
    here = nib.load(tmp_path / "here" / "c_translated.nii.gz")
    np.testing.assert_allclose(there.get_fdata(), here.get_fdata(), rtol=0, atol=1e-4 * (WINDOW[1] - WINDOW[0]))
    np.testing.assert_array_equal(there.affine, here.affine)
    assert here.get_fdata().std() > 1

    assert (unpacked / "models" / "model.pt").read_bytes() == model.read_bytes()
    assert not (unpacked / "models" / "config.json").exists()
    provenance = read(unpacked, "models/provenance.json")
    assert provenance["data_source"] == "heads of elsewhere"
    assert provenance["scores"] == {}
    assert "config" not in provenance
    assert read(unpacked, "models/recipe.json")["training"]["origin"] == "imported"
    formats = read(unpacked, "configs/metadata.json")["network_data_format"]
    source, target = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert (source["modality"], source["num_channels"], source["spatial_shape"]) == ("MR", 1, [32, 24])
    assert (target["modality"], target["num_channels"], target["spatial_shape"]) == ("CT", 1, [32, 24])
    restored = formats["post_processed_outputs"]["pred"]
    assert (restored["modality"], restored["spatial_shape"], restored["value_range"]) == ("CT", ["*"] * 3, list(WINDOW))


def test_a_model_needs_its_size_and_a_source(tmp_path):
    model = write_model(tmp_path / "a.pt", "cyclegan", size=())
    with pytest.raises(PackagingError, match=r"say in data_source what .*a.pt was trained on: the phantom it"):
        package_bundle(tmp_path / "a.zip", ROOT, model=model)
    with pytest.raises(PackagingError, match=r"does not say at which image size .* import it again with --image-size"):
        package_bundle(tmp_path / "a.zip", ROOT, model=model, data_source="heads")
    with pytest.raises(PackagingError, match="either a run or a model is packaged, got run_dir None and model None"):
        package_bundle(tmp_path / "a.zip", ROOT, data_source="heads")


@pytest.mark.parametrize(
    ("name", "dicom"),
    [("T1-weighted MR", "MR"), ("T2", "MR"), ("flair", "MR"), ("CT", "CT"), ("PET (FDG)", "PT"), ("OCT", "OCT")],
)
def test_modalities_have_dicom_s_names(name, dicom):
    assert dicom_modality(name) == dicom


def test_training_goes_on_from_the_packaged_model(bare_python, unpacked, dataset):
    settings = {"start_from": "models/model.pt", "dataset_dir": dataset, "device": "cpu", "max_epochs": 1}
    run(bare_python, unpacked, "training", "--config_file", "configs/train.json", **settings, tracking_uri="none")
    recipe = Model(unpacked / "outputs" / "reggan" / "model.pt").recipe
    assert recipe["training"]["started_from"] == read(unpacked, "models/provenance.json")["sha256"]
    assert recipe["networks"] == read(unpacked, "models/recipe.json")["networks"]
    assert recipe["grid"]["spatial_size"] == [32, 32]


def spoilt_package(package, folder, rank, unpack):
    """Unpack a copy of a package with a bit flipped amid one of its largest weights; return folder and exit status."""
    folder.mkdir()
    damaged = Path(shutil.copy(package, folder))
    with zipfile.ZipFile(damaged) as files:
        entry = files.getinfo("reggan/models/model.pt")
        assert files.infolist()[-1] is entry  # so that all else is there when unpacking stops at it
        assert entry.compress_type == zipfile.ZIP_STORED
        model = files.read(entry)
    with zipfile.ZipFile(io.BytesIO(model)) as records:
        record = sorted(records.infolist(), key=lambda each: each.file_size)[-1 - rank]
    # Between its header and its bytes there is padding, of which no sum is kept.
    names = sum(struct.unpack_from("<2H", model, record.header_offset + 26))
    within = record.header_offset + 30 + names + record.file_size // 2
    flip_bit(damaged, entry.header_offset + 30 + len(entry.filename) + within)
    to = ["."] if "zipfile" in unpack else []
    result = subprocess.run([*unpack, damaged.name, *to], cwd=folder, capture_output=True, check=False)
    return folder / "reggan", result.returncode


@pytest.mark.parametrize(
    "unpack",
    [
        pytest.param((sys.executable, "-m", "zipfile", "-e"), id="python"),
        pytest.param(("unzip", "-q"), id="unzip", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_bit_in_the_weights_is_not_translated_with(bare_python, package, dataset, tmp_path, unpack):
    """Unpacking says so, too, but leaves the damaged file, or a part of it, behind."""
    if shutil.which(unpack[0]) is None:
        pytest.skip("needs Info-ZIP's unzip")
    for rank in range(4):
        unpacked, status = spoilt_package(package, tmp_path / str(rank), rank, unpack)
        assert status != 0
        with pytest.raises(CheckpointError, match=r"model.pt (is damaged: its record|cannot be read, it may be cut)"):
            Model(unpacked / "models" / "model.pt")
    image = str(dataset / "images" / "c.nii.gz")
    translate = [bare_python, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--image", image]
    result = subprocess.run(translate, cwd=unpacked, env=without_hints(), capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "models/model.pt" in result.stderr.splitlines()[-1]
    assert not (unpacked / "outputs").exists()
