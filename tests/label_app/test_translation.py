"""Translation through a running server is translation offline, and what cannot be translated is said."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

import torch
from monai.transforms import LoadImage
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def server(start_server, studies, bundles, tmp_path_factory):
    return start_server(
        studies,
        *("--conf", "models", "reggan,bare,foreign"),
        *("--conf", "bundles", str(bundles)),
        *("--conf", "output_dir", str(tmp_path_factory.mktemp("outputs"))),
    )


def volume(response):
    assert response.status_code == 200, response.text
    return nib.Nifti1Image.from_bytes(gzip.decompress(response.content))


@pytest.fixture(scope="module")
def translated(server):
    return volume(server.translate("ras"))


def reason(response):
    return response.json()["detail"]


@pytest.mark.parametrize("name", ["ras", "lps", "oblique"])
def test_equals_offline_inference(server, offline, bundles, studies, name):
    served = volume(server.translate(name))
    expected = offline(bundles / "reggan" / "models" / "model.pt", studies / f"{name}.nii.gz")
    source = nib.load(studies / f"{name}.nii.gz")
    assert served.shape == source.shape
    np.testing.assert_allclose(served.affine, source.affine, atol=1e-5)
    assert served.get_data_dtype() == np.float32
    assert np.ptp(expected.get_fdata()) > 100
    np.testing.assert_allclose(served.get_fdata(), expected.get_fdata(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_is_float32_whatever_is_asked(server, translated, dtype):
    served = volume(server.translate("ras", result_dtype=dtype, result_compress=True))
    assert served.get_data_dtype() == np.float32
    np.testing.assert_array_equal(served.get_fdata(), translated.get_fdata())


def test_answers_in_the_format_of_3d_slicer(server, translated, tmp_path):
    response = server.translate("ras", result_extension=".nrrd", result_dtype="uint8")
    assert response.status_code == 200, response.text
    path = tmp_path / "answer.nrrd"
    path.write_bytes(response.content)
    served = LoadImage(image_only=True)(path)
    assert served.dtype == torch.float32
    np.testing.assert_allclose(served.affine, translated.affine, atol=1e-5)
    np.testing.assert_array_equal(served.numpy(), translated.get_fdata(dtype=np.float32))


def test_the_client_of_monai_label(server, studies, translated, tmp_path):
    """The plug-ins of 3D Slicer and OHIF ask for these two."""
    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    path, about = client.infer("reggan", "ras", {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert about["latencies"]["total"] > 0
    np.testing.assert_array_equal(LoadImage(image_only=True)(path).numpy(), translated.get_fdata(dtype=np.float32))
    path, _ = client.infer("reggan", "", {}, file=str(studies / "ras.nii.gz"))
    np.testing.assert_array_equal(nib.load(path).get_fdata(), translated.get_fdata())
    with pytest.raises(MONAILabelClientException, match="422"):
        client.infer("reggan", "broken", {})


def test_the_whole_answer_has_the_volume_and_what_there_is_to_say(server, translated):
    response = server.request("POST", "/infer/reggan", params={"image": "ras"})
    assert response.status_code == 200, response.text
    assert gzip.compress(b"")[:2] in response.content
    assert b"latencies" in response.content
    assert response.headers["content-type"].startswith("multipart/form-data")


def test_translates_an_uploaded_volume(server, studies, translated):
    with (studies / "ras.nii.gz").open("rb") as stream:
        response = server.request("POST", "/infer/reggan", params={"output": "image"}, files={"file": stream})
    np.testing.assert_array_equal(volume(response).get_fdata(), translated.get_fdata())


def test_translates_the_volume_of_a_session(server, studies, translated):
    with (studies / "ras.nii.gz").open("rb") as stream:
        created = server.request("PUT", "/session/", files={"files": stream})
    assert created.status_code == 200, created.text
    query = {"session_id": created.json()["session_id"], "output": "image"}
    response = server.request("POST", "/infer/reggan", params=query)
    np.testing.assert_array_equal(volume(response).get_fdata(), translated.get_fdata())


def test_says_what_it_offers(server):
    info = server.request("GET", "/info/").json()
    assert sorted(info["models"]) == ["foreign", "reggan"]
    assert info["models"]["reggan"]["type"] == "others"
    assert sorted(info["trainers"]) == ["bare", "foreign", "reggan"]
    assert "tracking_uri" not in info["trainers"]["reggan"]["config"]


def test_batch_keeps_results_and_names_the_images_that_fail(server, studies, translated):
    response = server.request("POST", "/batch/infer/reggan", params={"images": "unlabeled"})
    assert response.status_code == 200, response.text
    status = server.wait_for("/batch/infer")
    kept = {path.name for path in (studies / "labels" / "original").iterdir()}
    assert kept == {"ras.nii.gz", "lps.nii.gz", "oblique.nii.gz"}, status
    assert status["status"] == "ERROR"  # the broken one
    assert any("1 of 4 images were not translated" in line for line in status["details"])
    assert "oblique" not in server.log.read_text()  # names of images are for clients, not for the log
    result = nib.load(studies / "labels" / "original" / "ras.nii.gz")
    assert result.get_data_dtype() == np.float32
    np.testing.assert_array_equal(result.get_fdata(), translated.get_fdata())


@pytest.mark.parametrize("image", ["/etc/passwd", "../ras", "labels/final/phantom_001", "..", "C:\\ras"])
def test_refuses_paths(server, image):
    response = server.translate(image)
    assert response.status_code == 400
    assert "path" in reason(response)


def test_refuses_paths_in_the_parameters(server, studies, phantom):
    outside = str(phantom / "imagesTs" / "phantom_003.nii.gz")
    for image in (outside, str(studies / "ras.nii.gz")):
        response = server.translate("ras", image=image)
        assert response.status_code == 400
        assert "not a path" in reason(response)


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("PUT", "/datastore/label", {"image": "ras", "tag": "../../outside"}),
        ("PUT", "/datastore/image", {"image": "../outside"}),
        ("GET", "/datastore/image", {"image": "../../etc/passwd"}),
        ("DELETE", "/datastore/image", {"id": "../outside"}),
    ],
)
def test_refuses_paths_to_the_datastore(server, method, path, query):
    files = {"label": io.BytesIO(b"x"), "file": io.BytesIO(b"x")} if method == "PUT" else None
    assert server.request(method, path, params=query, files=files).status_code == 400


@pytest.mark.parametrize(
    ("status", "words", "call"),
    [
        (404, "no image 'nothing'", lambda server: server.translate("nothing")),
        (404, "no model 'nothing'", lambda server: server.translate("ras", model="nothing")),
        (422, "broken.nii.gz", lambda server: server.translate("broken")),
        (409, "has no weights yet", lambda server: server.translate("ras", model="bare")),
        (409, "was not made by this", lambda server: server.translate("ras", model="foreign")),
        (422, "result_extension", lambda server: server.translate("ras", result_extension=".seg.nrrd")),
        (422, "device", lambda server: server.translate("ras", device="abacus")),
        (422, "device", lambda server: server.translate("ras", device={"cuda": 0})),
        (
            400,
            "params must be JSON",
            lambda server: server.request("POST", "/infer/reggan", data={"params": "{"}, params={"image": "ras"}),
        ),
        (404, "nothing", lambda server: server.request("DELETE", "/datastore/image", params={"id": "nothing"})),
        (400, "label_tag", lambda server: server.translate("ras", save_label=True, label_tag="final")),
        (400, "label_tag", lambda server: server.translate("ras", save_label=True, label_tag="../x")),
        (
            400,
            "dicom_seg",
            lambda server: server.request("POST", "/infer/reggan", params={"image": "ras", "output": "dicom_seg"}),
        ),
        (400, "whole-slide", lambda server: server.request("POST", "/infer/wsi_v2/reggan", params={"image": "ras"})),
        (400, "label_tag", lambda server: server.request("POST", "/batch/infer/reggan", json={"label_tag": "final"})),
        (409, "has no weights", lambda server: server.request("POST", "/batch/infer/bare")),
    ],
)
def test_says_what_is_wrong(server, status, words, call):
    response = call(server)
    assert (response.status_code, words in reason(response)) == (status, True), response.text


def test_archives_do_not_unpack_to_elsewhere(server, tmp_path):
    with tarfile.open(tmp_path / "scan.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../../../../../../../" + str(tmp_path / "outside").lstrip("/")))
    with (tmp_path / "scan.tar").open("rb") as stream:
        response = server.request("PUT", "/session/", params={"uncompress": True}, files={"files": stream})
    assert response.status_code == 400
    assert "archive" in reason(response)
    assert not (tmp_path / "outside").exists()


def test_what_is_wrong_does_not_say_where_things_lie(server, studies, bundles):
    assert str(studies) not in json.dumps(reason(server.translate("broken")))
    assert str(bundles) not in json.dumps(reason(server.translate("ras", model="foreign")))


def test_a_result_can_be_kept(server, studies):
    response = server.translate("ras", save_label=True, label_tag="kept")
    assert response.status_code == 200, response.text
    assert (studies / "labels" / "kept" / "ras.nii.gz").is_file()


def test_still_answers_after_all_this(server, translated):
    np.testing.assert_array_equal(volume(server.translate("ras")).get_fdata(), translated.get_fdata())
