"""A packaged bundle trains and translates where this project is not installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
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

from pipeline.packaging import PackagingError, package_bundle, with_networks_of

ROOT = Path(__file__).resolve().parents[2]
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


def run(python, folder, *words, **settings):
    """Run a bundle command line in a folder, without any hint to this checkout in the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [python, "-m", "monai.bundle", "run", *words, *options]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def run_dir(dataset, tmp_path_factory):
    """A finished training of the checkout, of networks that no config file of it describes."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = str(ROOT / "bundles" / "reggan" / "configs" / "train.json")
    settings = {**SETTINGS, "dataset_dir": dataset, "output_dir": folder, "tracking_uri": "none"}
    run(sys.executable, ROOT, "training", "--config_file", config, **settings)
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
            [python, "-c", f"import {module}"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert f"No module named '{module}'" in result.stderr, "the project is visible: install it with --editable"
    subprocess.run([python, "-c", "import monai, torch"], cwd=folder, check=True)
    return str(python)


@pytest.fixture
def unpacked(package, tmp_path):
    zipfile.ZipFile(package).extractall(tmp_path)
    return tmp_path / "reggan"


def read(unpacked, name):
    return json.loads((unpacked / name).read_text())


def test_it_translates_and_trains_where_the_project_is_not_installed(bare_python, unpacked, dataset, run_dir, tmp_path):
    image = dataset / "images" / "c.nii.gz"
    inference = ("--config_file", "configs/inference.json")
    run(bare_python, unpacked, *inference, image=image, output_dir=tmp_path / "there")
    here = str(ROOT / "bundles" / "reggan" / "configs" / "inference.json")
    sizes = {
        name: SETTINGS[name] for name in ("network_def#generator#filters", "network_def#generator#residual_blocks")
    }
    settings = {**sizes, "checkpoint": run_dir / "model.pt", "image": image, "output_dir": tmp_path / "here"}
    run(sys.executable, ROOT, "--config_file", here, **settings)
    there, here = (nib.load(tmp_path / place / "c_translated.nii.gz") for place in ("there", "here"))
    np.testing.assert_array_equal(there.get_fdata(), here.get_fdata())
    np.testing.assert_array_equal(there.affine, here.affine)

    said = run(
        bare_python, unpacked, "training", "--config_file", "configs/train.json", dataset_dir=dataset, **SETTINGS
    )
    assert str(unpacked / "outputs" / "reggan" / "model.pt") in said
    first, second = (
        torch.load(path, weights_only=True) for path in (run_dir / "model.pt", unpacked / "outputs/reggan/model.pt")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
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
    assert provenance["training"] == {"epoch": 1, "iteration": 6}
    assert provenance["trained_size"] == [32, 32]
    assert provenance["trained_as"] == "CycleGANTranslator(adversarial, correction, smoothness)"
    assert read(unpacked, "models/config.json") == json.loads((run_dir / "config.json").read_text())


def test_nothing_of_this_place_is_in_it(unpacked):
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {"LICENSE", "docs/README.md", "docs/data_license.txt", "requirements.txt", "constraints.txt"} <= names
    assert [name for name in names if name.endswith(".pt")] == ["models/model.pt"]
    assert not [name for name in names if "__pycache__" in name or "label_app" in name]
    for name in names - {"models/config.json", "models/model.pt"}:
        assert str(ROOT) not in (unpacked / name).read_text(), name


def test_same_run_same_bytes(package, run_dir, tmp_path):
    package_bundle(tmp_path / "again.zip", run_dir, ROOT, "boxes")
    assert (tmp_path / "again.zip").read_bytes() == package.read_bytes()


def test_passwords_in_addresses_are_left_out(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((run_dir / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "tracking_uri": "https://me:secret@host/"}))
    package_bundle(tmp_path / "a.zip", tmp_path / "run", ROOT, "boxes")
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        assert json.loads(package.read("reggan/models/config.json"))["tracking_uri"] == "https://***@host/"


def widen(folder):
    config = json.loads((folder / "config.json").read_text())
    config["network_def"]["generator"]["filters"] = 8
    (folder / "config.json").write_text(json.dumps(config))


def spoil_weights(folder):
    weights = torch.load(folder / "model.pt", weights_only=True)
    weights["generator.stem.0.weight"].fill_(float("nan"))
    torch.save(weights, folder / "model.pt")


@pytest.mark.parametrize(
    ("spoil", "name", "source", "says"),
    [
        (lambda folder: (folder / "model.pt").unlink(), "a.zip", "boxes", "model.pt is missing; train first"),
        (lambda folder: (folder / "config.json").write_text("{"), "a.zip", "boxes", "config.json is no JSON"),
        (lambda folder: None, "a.tar", "boxes", "must end in .zip, got 'a.tar'"),
        (lambda folder: None, "a.zip", None, "was trained on data of its own .* say in data_source which"),
        (spoil_weights, "a.zip", "boxes", "translates into NaN or infinite values: the training has diverged"),
        (
            widen,
            "a.zip",
            "boxes",
            "the weights do not fit the run's config: .* was not made by this CycleGANTranslator",
        ),
    ],
)
def test_what_cannot_be_packaged_is_said_and_nothing_is_written(run_dir, tmp_path, spoil, name, source, says):
    shutil.copytree(run_dir, tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(PackagingError, match=says):
        package_bundle(tmp_path / name, tmp_path / "run", ROOT, source)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_command_line_closes_with_one_line(main, package, tmp_path):
    with pytest.raises(SystemExit, match=r"package_bundle.py: error: .* exists already"):
        main([str(package), "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"holds no finished training: model.pt is missing; train first"):
        main([str(tmp_path / "a.zip"), "--run", str(tmp_path)])


def test_inference_gets_the_networks_of_the_training_with_all_that_they_refer_to():
    training = {
        "network_def": {"weights": "@weights", "generator": {"filters": "@width"}},
        "width": "$by_size(@network_size)",
        "network_size": "paper",
        "weights": {"adversarial": 1},
        "max_epochs": 80,
    }
    inference = {"network_def": {"weights": {}}, "network_size": "small", "weights": {}, "image": "x"}
    assert with_networks_of(training, inference) == {
        **{name: training[name] for name in ("network_def", "width", "network_size")},
        "weights": {},
        "image": "x",
    }
