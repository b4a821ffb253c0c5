"""Training over HTTP on the pairs of the studies: progress, new weights in use afterwards, and a run in MLflow."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import time

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

import mlflow
import torch

from pipeline.label_app.train import start_from, training_settings

PACKAGED = {"file": "model.pt", "data_source": "what a package says"}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def own_bundles(bundles, tmp_path_factory):
    """Bundles that training may write to."""
    folder = tmp_path_factory.mktemp("own") / "bundles"
    shutil.copytree(bundles, folder)
    (folder / "reggan" / "models" / "provenance.json").write_text(json.dumps(PACKAGED))
    return folder


@pytest.fixture(scope="module")
def store(outputs):
    return f"sqlite:///{outputs / 'mlflow.db'}"


@pytest.fixture(scope="module")
def server(start_server, studies, own_bundles, outputs, store):
    return start_server(
        studies,
        *("--conf", "models", "reggan,bare,foreign"),
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
    weights = torch.load(own_bundles / "reggan" / "models" / "model.pt")
    assert weights["trained_size"].tolist() == [64, 64, 0]  # as before: it went on from those weights

    models = own_bundles / "reggan" / "models"
    provenance = json.loads((models / "provenance.json").read_text())
    assert provenance["sha256"] == digest(models / "model.pt")
    assert provenance["started_from_sha256"] == digest(next((models / "previous").glob("model-*.pt")))
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
    expected = offline(own_bundles / "reggan", studies / "ras.nii.gz")
    np.testing.assert_allclose(translate(server, "reggan"), expected.get_fdata(), rtol=0, atol=1e-5)


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


def test_training_that_fails_says_why(server):
    started = server.request("POST", "/train/foreign", json={"max_epochs": 1})
    assert started.status_code == 200, started.text
    status = server.wait_for("/train/")
    assert status["status"] == "ERROR"
    assert any("does not fit the network" in line for line in status["details"][-3:]), status["details"]


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


def test_starting_from_weights_leaves_training_only_networks_and_the_data_alone(make_translator, tmp_path):
    trained = make_translator(seed=1)
    trained.describe_data((0.0, 700.0), (32, 32))
    torch.save(trained.inference_state_dict(), tmp_path / "model.pt")
    network = make_translator(seed=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    start_from(network, tmp_path / "model.pt")
    inference = trained.inference_state_dict()
    for name, value in network.state_dict().items():
        taken = name in inference and name not in ("target_window", "trained_size", "_extra_state")
        torch.testing.assert_close(value, inference[name] if taken else fresh[name], rtol=0, atol=0)


def spoil_nothing(path, state):
    torch.save({"network": state}, path)


def of_other_weights(path, state):
    torch.save({"network": {name: value + 1 for name, value in state.items()}}, path)


def of_other_networks(path, state):
    torch.save({"network": {name: value for name, value in state.items() if "discriminator" not in name}}, path)


def cut_short(path, state):
    torch.save({"network": state}, path)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("write", "goes_on"),
    [(spoil_nothing, True), (of_other_weights, False), (of_other_networks, False), (cut_short, False)],
)
def test_training_only_networks_go_on_from_the_checkpoint_of_the_same_weights(
    make_translator, tmp_path, write, goes_on
):
    trained = make_translator(seed=1)
    trained.describe_data((0.0, 700.0), (32, 32))
    torch.save(trained.inference_state_dict(), tmp_path / "model.pt")
    write(tmp_path / "best.pt", trained.state_dict())
    network = make_translator(seed=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    start_from(network, tmp_path / "model.pt", tmp_path / "best.pt")
    expected = trained.state_dict()
    for name, value in network.named_parameters():
        of_training = name.startswith(("discriminator", "registration"))
        torch.testing.assert_close(value.data, fresh[name] if of_training and not goes_on else expected[name])
