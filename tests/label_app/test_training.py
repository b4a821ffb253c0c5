"""Training over HTTP on the pairs of the studies: progress, new weights in use afterwards, and a run in MLflow."""

from __future__ import annotations

import gzip
import json
import shutil
import time

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

import mlflow

from pipeline.label_app.train import training_settings
from pipeline.models import Model, file_digest

PACKAGED = {"file": "model.pt", "data_source": "what a package says"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def own_bundles(bundles, tmp_path_factory):
    """Bundles that training may write to."""
    folder = tmp_path_factory.mktemp("own") / "bundles"
    shutil.copytree(bundles, folder)
    (folder / "reggan" / "models" / "provenance.json").write_text(json.dumps(PACKAGED))
    shutil.copytree(folder / "reggan", folder / "bent")
    config = folder / "bent" / "configs" / "train.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"slice_axis": 1}))
    return folder


@pytest.fixture(scope="module")
def store(outputs):
    return f"sqlite:///{outputs / 'mlflow.db'}"


@pytest.fixture(scope="module")
def server(start_server, studies, own_bundles, outputs, store):
    return start_server(
        studies,
        *("--conf", "models", "reggan,bare,foreign,bent"),
        *("--conf", "bundles", str(own_bundles)),
        *("--conf", "output_dir", str(outputs)),
        *("--conf", "tracking_uri", store),
    )


def translate(server, model):
    response = server.translate("ras", model=model)
    assert response.status_code == 200, response.text
    return nib.Nifti1Image.from_bytes(gzip.decompress(response.content)).get_fdata()


def test_new_weights_are_used_after_training(server, own_bundles, outputs, store):
    before = translate(server, "reggan")
    started = server.request("POST", "/train/reggan", json={"max_epochs": 2, "tracking_uri": "file:///nowhere"})
    assert started.status_code == 200, started.text
    assert started.json()["status"] in ("SUBMITTED", "RUNNING")
    assert server.request("POST", "/train/reggan").status_code == 429  # one at a time
    status = server.wait_for("/train/")
    assert status["status"] == "DONE", "\n".join(status["details"])

    stats = server.request("GET", "/info/").json()["train_stats"]["reggan"]
    assert (stats["epoch"], stats["max_epochs"]) == (2, 2)
    assert stats["best_metrics"]["psnr"] > 0

    after = translate(server, "reggan")
    assert np.abs(after - before).max() > 1
    models = own_bundles / "reggan" / "models"
    provenance = json.loads((models / "provenance.json").read_text())
    assert provenance["sha256"] == file_digest(models / "model.pt")
    assert provenance["started_from_sha256"] == file_digest(next((models / "previous").glob("model-*.pt")))
    assert provenance["data_source"].startswith("2 pairs")
    assert provenance["scores"]["validation_psnr"] == pytest.approx(stats["best_metrics"]["psnr"])
    assert (models / "config.json").read_text() == (outputs / "reggan" / "config.json").read_text()
    [kept] = (models / "previous").glob("provenance-*.json")  # of the weights of before
    assert json.loads(kept.read_text()) == PACKAGED

    runs = mlflow.MlflowClient(store).search_runs(
        [mlflow.MlflowClient(store).get_experiment_by_name("reggan").experiment_id]
    )
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert runs[0].info.run_name == "reggan-label"
    assert any("psnr" in name for name in runs[0].data.metrics)


def test_training_is_offline_inference_too(server, own_bundles, studies, offline):
    """What the server answers after training is what the new weights say offline."""
    expected = offline(own_bundles / "reggan" / "models" / "model.pt", studies / "ras.nii.gz")
    np.testing.assert_allclose(translate(server, "reggan"), expected.get_fdata(), rtol=0, atol=1e-5)


def train(server, model, **settings):
    started = server.request("POST", f"/train/{model}", json=settings)
    assert started.status_code == 200, started.text
    status = server.wait_for("/train/")
    assert status["status"] == "DONE", "\n".join(status["details"])
    return server.request("GET", "/info/").json()["train_stats"][model]


def test_training_goes_on_where_the_model_ends(server, own_bundles, store, train_model, methods):
    """With the networks, the grid and the scaling of the model, of which the bundle's train.json has none."""
    overlays, tiny = methods("unit-c+r")
    weights = own_bundles / "foreign" / "models" / "model.pt"
    unlike = {"network_def#generator#filters": 6, "slice_axis": 1, "spatial_size": [40, 32]}
    named = {"source_modality": "T1", "target_modality": "T2"}
    scaling = {"target_intensity#upper_percentile": 99.0}
    shutil.copy(train_model(*overlays, **tiny, **unlike, **named, **scaling), weights)
    before, digests = Model(weights).recipe, [file_digest(weights)]
    logged = len(server.log.read_text())
    scores = [train(server, "foreign", max_epochs=1)["best_metrics"]["psnr"]]
    digests.append(file_digest(weights))
    # Only what scores better than the start is kept: enough epochs that it surely does.
    assert train(server, "foreign", max_epochs=5)["best_epoch"] > 0

    after = Model(weights).recipe
    for section in ("networks", "translator", "weights", "source", "grid"):
        assert after[section] == before[section]
    assert after["target"]["scaling"]["arguments"]["upper_percentile"] == 99
    assert (after["source"]["modality"], after["target"]["modality"]) == ("T1", "T2")
    assert after["training"]["started_from"] == digests[1]
    previous = (weights.parent / "previous").glob("model-*.pt")
    assert {file_digest(path) for path in previous} == set(digests)
    # The first model came without the networks that only training has, the second lies beside its checkpoint.
    assert server.log.read_text()[logged:].count("these networks start anew: discriminator") == 1
    client = mlflow.MlflowClient(store)
    [second, _] = client.search_runs(
        [client.get_experiment_by_name("foreign").experiment_id], order_by=["attributes.start_time DESC"]
    )
    [first_score, *_] = client.get_metric_history(second.info.run_id, "val/psnr")
    assert first_score.step == 0
    assert first_score.value == pytest.approx(scores[0], abs=1e-3)


def test_training_without_what_is_there_starts_from_nothing(server, own_bundles):
    weights = own_bundles / "foreign" / "models" / "model.pt"
    train(server, "foreign", max_epochs=1, pretrained=False)
    recipe = Model(weights).recipe
    assert (recipe["method"], recipe["training"]["started_from"]) == ("reggan", None)
    assert json.loads((weights.parent / "provenance.json").read_text())["sha256"] == file_digest(weights)


def test_weights_that_cannot_be_used_are_refused_before_training(server, own_bundles):
    weights = own_bundles / "foreign" / "models" / "model.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    response = server.request("POST", "/train/foreign", json={"max_epochs": 1})
    assert (response.status_code, "damaged" in response.json()["detail"]) == (409, True), response.text
    assert str(own_bundles) not in response.text


def test_a_model_that_does_not_fit_the_config_is_refused_before_training(server, own_bundles):
    started = server.request("POST", "/train/bent", json={"max_epochs": 1, "tracking": "None"})
    assert started.status_code == 200, started.text
    status = server.wait_for("/train/")
    assert status["status"] == "ERROR"
    told = "\n".join(status["details"][-5:])
    assert "slice_axis: given 1, the model has 2" in told, told
    assert not (own_bundles / "bent" / "models" / "previous").exists()


def test_a_bundle_without_weights_is_trained_from_nothing_and_may_be_stopped(server, own_bundles):
    assert server.translate("ras", model="bare").status_code == 409
    started = server.request("POST", "/train/bare", json={"max_epochs": 500, "tracking": "None"})
    assert started.status_code == 200, started.text
    weights = own_bundles / "bare" / "models" / "model.pt"
    deadline = time.monotonic() + 240
    while not weights.is_file():
        assert time.monotonic() < deadline, server.request("GET", "/train/").text
        time.sleep(0.5)
    stopped = server.request("DELETE", "/train/")
    assert stopped.status_code == 200, stopped.text
    assert np.ptp(translate(server, "bare")) > 0
    assert "bare" in server.request("GET", "/info/").json()["models"]


@pytest.mark.parametrize(
    ("status", "words", "model", "body", "query"),
    [
        (404, "no training of 'nothing'", "nothing", {}, {}),
        (422, "max_epochs", "reggan", {"max_epochs": 0}, {}),
        (422, "val_split", "reggan", {"val_split": 0}, {}),
        (422, "noise_level", "reggan", {"noise_level": 9}, {}),
        (422, "device", "reggan", {"device": "abacus"}, {}),
        (400, "run_sync", "reggan", {}, {"run_sync": True}),
    ],
)
def test_settings_that_cannot_be_are_refused(server, status, words, model, body, query):
    response = server.request("POST", f"/train/{model}", json=body, params=query)
    assert (response.status_code, words in response.json()["detail"]) == (status, True), response.text


def test_too_few_pairs_are_refused(start_server, studies, own_bundles, tmp_path):
    folder = tmp_path / "one"
    (folder / "labels" / "final").mkdir(parents=True)
    for name in ("phantom_001.nii.gz", "labels/final/phantom_001.nii.gz"):
        shutil.copy(studies / name, folder / name)
    server = start_server(folder, "--conf", "models", "reggan", "--conf", "bundles", str(own_bundles))
    response = server.request("POST", "/train/reggan", json={"max_epochs": 1})
    assert response.status_code == 422
    assert "at least 2 pairs, the studies have 1" in response.json()["detail"]


def test_settings_of_3d_slicer_are_understood():
    """It sends back everything that the server advertises, lists as they are or their first entry."""
    settings = training_settings({"device": ["cpu"], "tracking": ["mlflow", "None"], "gpus": "all", "run_id": ""})
    assert settings == {
        "max_epochs": 11,
        "val_split": 0.2,
        "noise_level": 0,
        "pretrained": True,
        "tracking": True,
        "device": "cpu",
    }
