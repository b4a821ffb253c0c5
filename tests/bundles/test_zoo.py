"""What MONAI's model zoo asks of a bundle, by its own checks, and that metadata.json is true."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.bundle.properties import MetaProperties
from monai.data import load_net_with_metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.models import Model, Recipe
from pipeline.networks import ResNetGenerator
from pipeline.translators import CycleGANTranslator

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


@pytest.fixture
def default_model(make_recipe, tmp_path):
    """Weights of the default networks, where the zoo has those of the bundle."""
    torch.manual_seed(0)
    network = CycleGANTranslator(
        {}, generator=partial(ResNetGenerator, filters=16, residual_blocks=4, upsampling="resize")
    )
    Recipe(make_recipe(network, grid={"spatial_size": [96, 96]})).travel_with(network)
    torch.save(network.inference_state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


@pytest.mark.parametrize("config", ["inference.json", "train.json"])
@pytest.mark.parametrize("n", [1, 3])
def test_network_takes_and_gives_what_the_metadata_says(default_model, config, n):
    verify_net_in_out(
        **({"checkpoint": default_model} if config == "inference.json" else {}),
        net_id="network_def",
        meta_file=str(METADATA),
        config_file=str(BUNDLE / "configs" / config),
        n=n,
        device="cpu",
        bundle_root=str(BUNDLE),
    )


def test_checkpoint_becomes_torchscript(default_model, tmp_path):
    """As the zoo's own checks call it, on the default networks."""
    network = Model(default_model).build().eval()
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=default_model,
        checkpoint=default_model,
        meta_file=str(METADATA),
        config_file=str(INFERENCE),
        bundle_root=str(BUNDLE),
    )
    scripted, metadata, files = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=["inference.json"])
    images = torch.rand(2, 1, 97, 102) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(scripted(images), network(images))
    assert metadata["version"] == json.loads(METADATA.read_text())["version"]
    assert json.loads(files["inference.json"])["network_def"]
