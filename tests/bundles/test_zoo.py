"""What MONAI's model zoo asks of a bundle, by its own checks, and that metadata.json is true."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.bundle.properties import MetaProperties
from monai.data import load_net_with_metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.compat.recipe import Known, imported_recipe
from pipeline.models import Model
from pipeline.networks import ResNetGenerator
from pipeline.packaging import package_bundle

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "reggan"
METADATA = BUNDLE / "configs" / "metadata.json"
INFERENCE = BUNDLE / "configs" / "inference.json"
# What the zoo's schema of 2024-07-25 demands, written down anew: the schema itself lies on the internet. metadata.json
# passes that one, too; CONTRIBUTING.md has the command.
TEXT, TABLE, LIST = {"type": "string"}, {"type": "object"}, {"type": "array"}
TENSORS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {
            **dict.fromkeys(("type", "format", "dtype"), TEXT),
            "num_channels": {"type": "integer"},
            "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
            "value_range": {"type": "array", "items": {"type": "number"}},
            "is_patch_data": {"type": "boolean"},
            "channel_def": TABLE,
        },
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    },
}
BASICS = ("schema", "version", "monai_version", "pytorch_version", "numpy_version")
WORDS = ("task", "description", "authors", "copyright", "data_source", "data_type", "intended_use")
CLASSES = ("image_classes", "label_classes", "pred_classes")
TEXTS = (*BASICS, *WORDS, *CLASSES)
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {**TEXT, "minLength": 1} for name in TEXTS},
        **dict.fromkeys(("changelog", "required_packages_version", "eval_metrics", "supported_apps"), TABLE),
        "references": {**LIST, "items": TEXT},
        "network_data_format": {
            "type": "object",
            "properties": dict.fromkeys(("inputs", "outputs", "post_processed_outputs"), TENSORS),
            "required": ["inputs", "outputs"],
        },
    },
    # The zoo's schema lets some of these go; a user wants them all.
    "required": [*TEXTS, "changelog", "required_packages_version", "eval_metrics", "references", "network_data_format"],
}


@pytest.fixture
def metadata():
    return json.loads(METADATA.read_text())


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def pins():
    """Versions of constraints.txt for a current Python, by name."""
    environment = {"python_version": "3.13"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    applying = [entry for entry in parsed if entry.marker is None or entry.marker.evaluate(environment)]
    return {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry in applying}


def test_metadata_has_the_schema_of_the_zoo(schema):
    verify_metadata(meta_file=str(METADATA), filepath=str(schema))


@pytest.mark.parametrize("name", ["version", "network_data_format"])
def test_the_check_of_the_schema_finds_faults(schema, metadata, tmp_path, name):
    del metadata[name]
    spoilt = tmp_path / "metadata.json"
    spoilt.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=f"'{name}' is a required property"):
        verify_metadata(meta_file=str(spoilt), filepath=str(schema))


def test_versions_are_the_project_s(metadata):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["version"] == project["version"]
    assert metadata["version"] in metadata["changelog"]
    pinned = pins()
    base = {"torch": "pytorch_version", "monai": "monai_version", "numpy": "numpy_version"}
    for package, key in base.items():
        assert metadata[key] == pinned[package]
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} - set(base)
    assert metadata["required_packages_version"] == {name: pinned[name] for name in needed}


def test_measured_quality_is_that_of_the_results(metadata):
    """One line of docs/results.md, the bundle's page and metadata.json tell the same."""
    measured = metadata["eval_metrics"]
    in_results = re.search(
        r"\| prediction \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ±",
        (ROOT / "docs" / "results.md").read_text(),
    )
    on_page = re.search(
        r"\| prediction \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", (BUNDLE / "docs" / "README.md").read_text()
    )
    expected = [measured[f"phantom_test_{name}"] for name in ("nmae", "psnr_db", "ssim")]
    assert [float(value) for value in in_results.groups()] == expected
    assert [float(value) for value in on_page.groups()] == expected


def test_every_property_of_the_metadata_is_there(metadata):
    for name, entry in MetaProperties.items():
        value = metadata
        for key in entry["id"].split("::")[1:]:
            value = value[key]
        assert value is not None, name


def test_the_zoo_s_files_are_there():
    files = {str(path.relative_to(BUNDLE)) for path in BUNDLE.rglob("*") if path.is_file()}
    assert {
        "LICENSE",
        "docs/README.md",
        "docs/data_license.txt",
        "configs/metadata.json",
        "configs/train.json",
    } <= files
    page = (BUNDLE / "docs" / "README.md").read_text()
    for heading in (
        "# Model Overview",
        "## Data",
        "## Performance",
        "## MONAI Bundle Commands",
        "# Intended use",
        "# Limits",
    ):
        assert f"\n{heading}\n" in f"\n{page}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights of networks that no config file describes."""
    torch.manual_seed(0)
    networks = {"generator": (ResNetGenerator, {"filters": 6, "residual_blocks": 1, "upsampling": "resize"})}
    known = Known(
        (0.0, 900.0), image_size=(64, 96), slice_axis=1, source_modality="T1-weighted MR", target_modality="CT"
    )
    recipe = imported_recipe("cyclegan", networks, (1, 1), 2, known)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(recipe.translator({}).inference_state_dict(), path)
    return path


@pytest.fixture(scope="module")
def packaged(model, tmp_path_factory):
    """The unpacked package of it."""
    folder = tmp_path_factory.mktemp("package")
    package_bundle(folder / "reggan.zip", ROOT, model=model, data_source="nothing at all")
    zipfile.ZipFile(folder / "reggan.zip").extractall(folder)
    return folder / "reggan"


@pytest.mark.parametrize("n", [1, 3])
def test_network_takes_and_gives_what_the_metadata_says(n, model):
    common = {"net_id": "network_def", "meta_file": str(METADATA), "n": n, "device": "cpu", "bundle_root": str(BUNDLE)}
    verify_net_in_out(**common, config_file=str(BUNDLE / "configs" / "train.json"))
    verify_net_in_out(**common, config_file=str(INFERENCE), checkpoint=str(model))


def test_a_package_passes_the_zoo_s_checks(packaged, schema):
    files = {"meta_file": str(packaged / "configs" / "metadata.json")}
    verify_metadata(**files, filepath=str(schema))
    verify_net_in_out(
        **files,
        net_id="network_def",
        config_file=str(packaged / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(packaged),
    )
    said = json.loads((packaged / "configs" / "metadata.json").read_text())
    assert said["data_source"] == "nothing at all"
    assert said["image_classes"] == (
        "one channel, source modality (T1-weighted MR), physical intensities, scaled to [-1, 1] by ScaleMRIntensityd "
        "(background 0.0, foreground above-background, upper_percentile 99.5)"
    )
    assert said["pred_classes"] == "one channel, target modality (CT), physical intensities, on the grid of the image"
    formats = said["network_data_format"]
    source, target = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert (source["modality"], source["spatial_shape"]) == ("MR", [64, 96])
    assert (target["modality"], target["spatial_shape"]) == ("CT", [64, 96])


def test_metadata_of_other_sizes_are_found_out(packaged, tmp_path):
    said = json.loads((packaged / "configs" / "metadata.json").read_text())
    said["network_data_format"]["inputs"]["image"]["num_channels"] = 2
    (tmp_path / "metadata.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"images of shape \(batch, 1, height, width\), got \(1, 2, 64, 96\)"):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(tmp_path / "metadata.json"),
            config_file=str(packaged / "configs" / "inference.json"),
            device="cpu",
            bundle_root=str(packaged),
        )


def test_checkpoint_becomes_torchscript(packaged, tmp_path):
    """As the zoo's own checks call it."""
    weights, configs = packaged / "models" / "model.pt", packaged / "configs"
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(weights),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        bundle_root=str(packaged),
    )
    scripted, metadata, files = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=["inference.json"])
    images = torch.rand(2, 1, 97, 102) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(scripted(images), Model(weights).build().eval()(images))
    assert metadata["version"] == json.loads(METADATA.read_text())["version"]
    assert json.loads(files["inference.json"])["network_def"]


def test_the_training_config_can_be_read():
    """By a person: related entries on one line, and no more of them than fit on four pages."""
    assert len(METADATA.with_name("train.json").read_text().splitlines()) <= 250
