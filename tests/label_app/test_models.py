"""Whatever model lies in a bundle is served as its recipe says, or refused, and a client is told what is unusual."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

import torch

from pipeline.label_app.infer import TranslationTask
from pipeline.models import Model, file_digest

TOLERANCE = 1e-4  # of the target's window
KINDS = {
    "munit": (
        "munit-c+r",
        {
            "network_def#generator#filters": 6,
            "network_def#generator#residual_blocks": 2,
            "slice_axis": 0,
            "spatial_size": [48, 32],
            "source_modality": "T1",
            "target_modality": "T2",
        },
    ),
    "nicegan": ("nicegan-nc+r", {"orientation": "LPS"}),
    "ct": (
        "reggan",
        {
            "target_intensity": {
                "_target_": "transforms.ScaleCTIntensityd",
                "keys": "label",
                "allow_missing_keys": True,
                "window": [100, 1200],
            },
            "slice_axis": 1,
            "target_modality": "CT",
        },
    ),
}


@pytest.fixture(scope="module")
def models(train_model, methods):
    """Three models of other networks, grids and scalings than any config of the bundle has."""

    def train(name, settings):
        overlays, tiny = methods(name)
        return train_model(*overlays, **(tiny | settings))

    return {kind: train(name, settings) for kind, (name, settings) in KINDS.items()}


@pytest.fixture(scope="module")
def own_studies(studies, tmp_path_factory):
    """A volume as in training; one that is three times as bright; one of two channels."""
    folder = tmp_path_factory.mktemp("own_studies")
    shutil.copy(studies / "ras.nii.gz", folder)
    source = nib.load(studies / "ras.nii.gz")
    voxels = source.get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(3 * voxels, source.affine), folder / "bright.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([voxels, voxels], -1), source.affine), folder / "two_channels.nii.gz")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory, copy_bundle):
    """Where the model file of the served bundle is, or is yet to be."""
    bundle = copy_bundle(tmp_path_factory.mktemp("bundles") / "changing")
    return bundle / "models" / "model.pt"


@pytest.fixture(scope="module")
def server(start_server, own_studies, weights):
    folder = weights.parents[1]
    return start_server(own_studies, "--conf", "models", folder.name, "--conf", "bundles", str(folder.parent))


@pytest.fixture
def put(weights):
    """Puts a file where the server looks for its model, as `mv` does."""

    def replace(model):
        shutil.copy(model, weights.with_name("beside"))
        os.replace(weights.with_name("beside"), weights)

    return replace


def about(server, image):
    response = server.request("POST", "/infer/changing", params={"image": image, "output": "json"})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("kind", KINDS)
def test_serves_one_model_after_the_other_as_offline(server, put, weights, models, own_studies, offline, kind):
    model = Model(models[kind])
    put(models[kind])
    response = server.translate("ras", model="changing")
    assert response.status_code == 200, response.text
    served = nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
    expected = offline(models[kind], own_studies / "ras.nii.gz")
    np.testing.assert_allclose(served.affine, expected.affine, atol=1e-5)
    assert np.ptp(expected.get_fdata()) > 0.01 * model.recipe.data_range
    np.testing.assert_allclose(
        served.get_fdata(), expected.get_fdata(), rtol=0, atol=TOLERANCE * model.recipe.data_range
    )

    said = about(server, "ras")
    low, high = model.recipe.target_window
    version = json.loads((weights.parents[1] / "configs" / "metadata.json").read_text())["version"]
    assert said["model"] == {
        "name": "changing",
        "version": version,
        "method": KINDS[kind][0],
        "backbone": model.recipe["backbone"],
        "source_modality": "T1" if kind == "munit" else "T1-weighted MR",
        "target_modality": {"munit": "T2", "ct": "CT"}.get(kind, "T2-weighted MR"),
        "target_window": [low, high],
        "data_range": high - low,
        "sha256": file_digest(models[kind]),
    }
    if kind == "ct":
        assert (low, high) == (100, 1200)
    assert said["warnings"] == []


def test_what_is_unlike_the_training_is_in_the_answer_and_in_the_log(server, put, models):
    put(models["ct"])
    [warning] = about(server, "bright")["warnings"]
    assert warning.startswith("intensities: the 99.5th percentile is")
    assert warning in server.log.read_text()
    assert about(server, "ras")["warnings"] == []


def test_warnings_are_kept_with_results(server, put, models):
    put(models["ct"])
    response = server.translate("bright", model="changing", save_label=True, label_tag="original")
    assert response.status_code == 200, response.text
    kept = server.request("GET", "/datastore/label/info", params={"label": "bright", "tag": "original"}).json()
    assert kept["params"]["warnings"] == about(server, "bright")["warnings"] != []

    assert server.request("POST", "/batch/infer/changing", json={"label_tag": "batch"}).status_code == 200
    status = server.wait_for("/batch/infer")
    assert any("1 of 3 images were not translated" in line for line in status["details"]), status  # the one of channels
    info = server.request("GET", "/datastore/label/info", params={"label": "bright", "tag": "batch"}).json()
    assert info["params"]["warnings"] == kept["params"]["warnings"]
    assert info["params"]["model"]["sha256"] == file_digest(models["ct"])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:5000])


def without_values(path):
    content = torch.load(path)
    next(value for value in content.values() if value.is_floating_point()).fill_(float("nan"))
    torch.save(content, path)


def without_recipe(path):
    content = torch.load(path)
    del content["_extra_state"]
    torch.save(content, path)


def of_other_networks(path):
    content = torch.load(path)
    torch.save({f"other.{name}" if "generator" in name else name: value for name, value in content.items()}, path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (flip_a_bit, "damaged"),
        (cut_short, "cut short"),
        (without_values, "NaN"),
        (without_recipe, "holds no recipe"),
        (of_other_networks, "was not made by this"),
    ],
)
def test_a_file_of_no_use_is_refused_until_there_is_a_good_one(server, put, weights, models, tmp_path, spoil, says):
    shutil.copy(models["ct"], tmp_path / "model.pt")
    spoil(tmp_path / "model.pt")
    put(tmp_path / "model.pt")
    for _ in range(2):  # nor is what was served before
        response = server.translate("ras", model="changing")
        assert (response.status_code, says in response.json()["detail"]) == (409, True), response.text
    assert str(weights.parent) not in response.text
    put(models["ct"])
    assert server.translate("ras", model="changing").status_code == 200


def test_another_number_of_channels_is_refused(server, put, models, own_studies, weights):
    put(models["ct"])
    response = server.translate("two_channels", model="changing")
    assert (response.status_code, "one channel" in response.json()["detail"]) == (422, True), response.text
    # What the check of the file does not see, a series of a DICOM server say, the reader refuses.
    task = TranslationTask(weights.parents[1], {})
    with pytest.raises((ValueError, RuntimeError), match="one channel"):
        task({"image": str(own_studies / "two_channels.nii.gz"), "device": "cpu"})


def test_a_config_that_contradicts_the_model_is_refused(put, models, copy_bundle, tmp_path):
    bundle = copy_bundle(tmp_path / "bundle")
    shutil.copy(models["ct"], bundle / "models" / "model.pt")
    config = bundle / "configs" / "inference.json"
    config.write_text(config.read_text().replace('"slice_axis": null', '"slice_axis": 2'))
    with pytest.raises(RuntimeError) as caught:
        TranslationTask(bundle, {}).prepare("cpu")
    assert "slice_axis: given 2, the model has 1" in str(caught.value.__cause__)


def test_the_file_is_read_once(models, copy_bundle, tmp_path, monkeypatch):
    """Neither its weights nor its digest cost a request anything."""
    bundle = copy_bundle(tmp_path / "bundle")
    shutil.copy(models["ct"], bundle / "models" / "model.pt")
    task, read = TranslationTask(bundle, {}), []
    monkeypatch.setattr("pipeline.label_app.infer.file_digest", lambda path: read.append(path) or file_digest(path))
    for _ in range(3):
        task.prepare("cpu")
    assert read == [bundle / "models" / "model.pt"]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(models, copy_bundle, tmp_path, monkeypatch):
    bundle = copy_bundle(tmp_path / "bundle")
    path = bundle / "models" / "model.pt"
    shutil.copy(models["ct"], path)
    others = [models["nicegan"]]

    def digest(file):
        if others:
            shutil.copy(others.pop(), file)
        return file_digest(file)

    monkeypatch.setattr("pipeline.label_app.infer.file_digest", digest)
    task = TranslationTask(bundle, {})
    task.prepare("cpu")
    assert (task.about["method"], task.about["sha256"]) == ("nicegan-nc+r", file_digest(path))
