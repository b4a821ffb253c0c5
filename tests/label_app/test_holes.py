"""What an attacker may send, against a real server: it is refused with one sentence, and nothing is left of it."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

import torch

APP = Path(__file__).resolve().parents[2] / "pipeline" / "label_app"
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = {}\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nspace: left-posterior-superior\n"
NRRD += "space directions: (1,0,0) (0,1,0) (0,0,1)\n{}\n\n"


@pytest.fixture(autouse=True)
def _nothing_outside(ward):
    """No test of this file changes anything that is not in the studies."""
    before = ward.outside()
    yield
    ward.wait_until_tidy(before)
    deadline = time.monotonic() + 10
    while left := [path for path in ward.studies.iterdir() if path.name.startswith(".") and path.name != ".lock"]:
        assert time.monotonic() < deadline, left  # the list of studies is written beside its place for a moment
        time.sleep(0.1)


@pytest.fixture(scope="module")
def volume(ward):
    return (ward.studies / "ras.nii.gz").read_bytes()


def refused(response, *statuses, says=""):
    """Check that an answer is a refusal in one sentence, without a trace or a place."""
    assert response.status_code in statuses, (response.status_code, response.text)
    detail = response.json()["detail"]
    assert isinstance(detail, str)
    assert says in detail, detail
    for word in ("Traceback", "/tmp", "/usr", "/root", "/home", "site-packages", 'File "'):
        assert word not in detail, detail
    assert "\n" not in detail
    return True


def send(ward, name, content, path="/infer/reggan", field="file", method="POST", **params):
    return ward.server.request(method, path, params=params, files={field: (name, content)})


def foreign(ward):
    """Files that are read from elsewhere, with what a server must not show."""
    secret = str(ward.folder / "secret")
    pair = nib.Nifti1Pair(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    stream = io.BytesIO()
    pair.header.write_to(stream)
    return {
        "a.mhd": META.format(secret).encode(),
        "a.mha": META.format(secret).encode(),
        "list.mha": META.format("LIST\n" + secret).encode(),
        "pattern.mha": META.format(f"{secret}%d 1 1 1").encode(),
        "a.nhdr": NRRD.format(f"data file: {secret}").encode(),
        "a.nrrd": NRRD.format(f"data file: {secret}").encode(),
        "list.nrrd": NRRD.format(f"datafile: LIST\n{secret}").encode(),
        "device.nrrd": NRRD.format("data file: /dev/zero").encode(),
        "a.hdr": stream.getvalue(),
        "pair.nii": stream.getvalue(),
        "a.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "a.dcm": b"\0" * 128 + b"DICM",
        "a.vtk": b"# vtk DataFile Version 3.0",
    }


def test_no_file_that_reads_another_is_taken(ward):
    for name, content in foreign(ward).items():
        start = time.monotonic()
        refused(send(ward, name, content), 422)
        refused(send(ward, name, content, "/datastore/image", method="PUT", image="spy"), 422)
        refused(send(ward, name, content, "/datastore/label", "label", "PUT", image="ras", tag="spy"), 422)
        refused(send(ward, name, content, "/session/", "files", "PUT"), 422)
        assert time.monotonic() - start < 5
    assert "spy" not in ward.server.request("GET", "/datastore/", params={"output": "all"}).text


def test_archives_are_not_unpacked(ward):
    packed = {}
    for name, content in (("a.tar", io.BytesIO()), ("a.zip", io.BytesIO())):
        if name == "a.tar":
            with tarfile.open(fileobj=content, mode="w") as archive:
                link = tarfile.TarInfo("link.nii.gz")
                link.type, link.linkname = tarfile.SYMTYPE, str(ward.folder / "secret")
                archive.addfile(link)
        else:
            with zipfile.ZipFile(content, "w") as archive:
                archive.writestr("../../outside.nii", b"x")
        packed[name] = content.getvalue()
    for name, content in packed.items():
        refused(send(ward, name, content, "/session/", "files", "PUT", uncompress=True), 400, says="archive")
        refused(send(ward, name, content, "/session/", "files", "PUT"), 422)
        refused(send(ward, name, content), 422)


def test_links_pipes_and_devices_in_the_studies_are_not_seen(ward):
    made = {name: ward.studies / f"{name}.nii.gz" for name in ("link", "device", "pipe")}
    os.symlink(ward.folder / "secret", made["link"])
    os.symlink("/dev/zero", made["device"])
    os.mkfifo(made["pipe"])
    try:
        time.sleep(1)  # the server watches the folder
        for name in made:
            refused(ward.server.request("GET", "/datastore/image", params={"image": name}), 404)
            refused(ward.server.translate(name), 404, 422)
            refused(
                ward.server.request("PUT", "/datastore/label", params={"image": name}, files={"label": b"x"}), 404, 422
            )
        # One that became a link after the server had seen it.
        shutil.copy(ward.studies / "ras.nii.gz", ward.studies / "later.nii.gz")
        deadline = time.monotonic() + 10
        while '"later"' not in ward.server.request("GET", "/datastore/", params={"output": "all"}).text:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.unlink(ward.studies / "later.nii.gz")
        os.symlink(ward.folder / "secret", ward.studies / "later.nii.gz")
        refused(ward.server.request("GET", "/datastore/image", params={"image": "later"}), 404)
        refused(ward.server.translate("later"), 404, 422)
        response = ward.server.request("DELETE", "/datastore/image", params={"id": "later"})
        assert response.status_code in (200, 404)
    finally:
        for path in (*made.values(), ward.studies / "later.nii.gz"):
            path.unlink(missing_ok=True)
    assert (ward.folder / "secret").read_bytes() == b"r" * 64


def test_a_file_that_is_no_volume_is_refused_in_the_studies_too(ward):
    (ward.studies / "false.nrrd").write_bytes(NRRD.format(f"data file: {ward.folder / 'secret'}").encode())
    try:
        deadline = time.monotonic() + 10
        while (response := ward.server.translate("false")).status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.2)
        refused(response, 422, says="data file")
    finally:
        (ward.studies / "false.nrrd").unlink()


NAMES = ["..", ".", "../x", "a/../../x", "/x", "..\\x", ".hidden", "C:x", "a\nb", "a\x1b[31mb", "a\0b", "x" * 300, " x"]
NAMES += ["\uff0e\uff0e", "\uff0e\uff0e\uff0fx", "\u2025", "a\u2028b", "\u202ex"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused_wherever_they_stand(ward, volume, name):
    before = sorted(path.name for path in ward.studies.rglob("*"))
    put = {"path": "/datastore/image", "method": "PUT"}
    refused(send(ward, "a.nii.gz", volume, image=name, **put), 400)
    for file in (name, f"{name}.nii.gz"):  # the name in the form
        if file.isprintable() and "\\" not in file:  # others do not come through a form as they are
            refused(send(ward, file, volume, **put), 400, 422)
            refused(send(ward, file, volume, "/session/", "files", "PUT"), 422) if file == name else None
    refused(send(ward, "a.nii.gz", volume, "/datastore/label", "label", "PUT", image="ras", tag=name), 400)
    refused(send(ward, "a.nii.gz", volume, "/datastore/label", "label", "PUT", image=name, tag="x"), 400)
    for query in ({"id": name}, {"id": "ras", "tag": name}):
        path = "/datastore/label" if "tag" in query else "/datastore/image"
        refused(ward.server.request("DELETE", path, params=query), 400)
    refused(ward.server.translate(name), 400)
    refused(ward.server.translate("ras", save_label=True, label_tag=name), 400)
    refused(ward.server.request("POST", "/infer/reggan", params={"session_id": name}), 400)
    refused(ward.server.request("POST", "/batch/infer/reggan", json={"images": [name]}), 400)
    refused(ward.server.request("POST", "/batch/infer/reggan", json={"images": ["ras"], "label_tag": name}), 400)
    assert sorted(path.name for path in ward.studies.rglob("*")) == before


def test_what_is_put_under_a_good_name_can_be_removed_again(ward, volume):
    for name in ("new", "Ä b-c_1.2", "a.nii", "日本"):
        response = send(ward, "a.nii.gz", volume, "/datastore/image", method="PUT", image=name)
        if name.endswith(".nii"):
            assert refused(response, 400, says="suffix")
            continue
        assert response.status_code == 200, response.text
        label = send(ward, "b.nii.gz", volume, "/datastore/label", "label", "PUT", image=name, tag="mine")
        assert label.status_code == 200, label.text
        about = ward.server.request("GET", "/datastore/image/info", params={"image": name}).json()
        assert about["name"] == f"{name}.nii.gz"
        assert "path" not in about
        found = ward.server.request("GET", "/datastore/image", params={"image": name})
        assert found.content == volume
        assert ward.server.request("DELETE", "/datastore/image", params={"id": name}).status_code == 200
        assert list(ward.studies.rglob(f"{name}*")) == []
        refused(ward.server.request("GET", "/datastore/image", params={"image": name}), 404)


@pytest.mark.parametrize("images", [["free"], [], None, 5, True, "words", "", ["ras", 5], ["ras", ["ras"]], {"ras": 1}])
def test_a_batch_that_nobody_understands_does_nothing(ward, images):
    refused(ward.server.request("POST", "/batch/infer/reggan", json={"images": images}), 400, 404, says="images")
    assert ward.server.request("GET", "/batch/infer").status_code == 404
    refused(ward.server.request("POST", "/batch/infer/reggan", params={"images": "free"}), 400, says="images")
    twice = ward.server.request("POST", "/batch/infer/reggan", params={"images": "unlabeled"}, json={"images": ["ras"]})
    refused(twice, 400, says="twice")


WRONG = [
    ("POST", "/infer/reggan", {}),
    ("POST", "/infer/reggan", {"data": {"params": "{}"}}),
    *(
        ("POST", "/infer/reggan", {"params": {"image": "ras"}, "data": {"params": params}})
        for params in (
            *("5", "[]", '"x"', "{", "NaN", '{"device": NaN}', '{"device": 1e999}', '{"a": ' + "9" * 5000 + "}"),
            *(
                "[" * 3000,
                '{"device": 5}',
                '{"device": []}',
                '{"result_extension": 5}',
                '{"result_extension": "..nii"}',
            ),
            *('{"label_tag": []}', '{"label_tag": "' + "x" * 400 + '"}', '{"image": 5}', '{"a": "\\ud800"}', "\0"),
        )
    ),
    ("POST", "/infer/reggan", {"params": {"image": "ras", "output": "words"}}),
    ("POST", "/infer/reggan", {"params": {"image": "ras", "session_id": "x"}}),
    ("POST", "/infer/reggan", {"params": {"session_id": "junk"}}),
    ("POST", "/infer/reggan", {"params": {"session_id": "00000000-0000-0000-0000-000000000000"}}),
    ("POST", "/infer/reggan", {"params": {"image": "ras"}, "files": [("file", b"x"), ("file", b"y")]}),
    ("POST", "/infer/reggan", {"files": {"file": ("a.nii.gz", b"")}}),
    ("POST", "/infer/reggan", {"data": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
    ("POST", "/infer/reggan", {"data": b"--x", "headers": {"content-type": "multipart/form-data"}}),
    ("POST", "/infer/nothing", {"params": {"image": "ras"}}),
    ("POST", "/infer/" + "x" * 300, {"params": {"image": "ras"}}),
    ("POST", "/infer/bare", {"params": {"image": "ras"}}),
    ("POST", "/infer/wsi/reggan", {"json": {}}),
    *(
        ("POST", "/train/reggan", {"data": body})
        for body in ("5", "[]", "{", '{"val_split": NaN}', '{"max_epochs": 1.5}')
    ),
    ("POST", "/train/reggan", {"data": '{"max_epochs": ' + "9" * 400 + "}"}),
    ("POST", "/train/reggan", {"json": {"max_epochs": 10**9}}),
    ("POST", "/train/reggan", {"json": {"device": {}}}),
    ("POST", "/train/reggan", {"json": {"tracking": {}}}),
    ("POST", "/train/reggan", {"json": {}, "params": {"run_sync": True}}),
    ("POST", "/train/reggan", {"json": {}, "params": {"enqueue": "words"}}),
    ("POST", "/train/nothing", {"json": {}}),
    ("POST", "/batch/infer/nothing", {"json": {}}),
    ("POST", "/batch/infer/reggan", {"json": {"max_batch_size": "5"}}),
    ("POST", "/batch/infer/reggan", {"json": {"device": "abacus"}}),
    ("PUT", "/datastore/image", {}),
    ("PUT", "/datastore/image", {"data": {"file": "text"}}),
    (
        "PUT",
        "/datastore/image",
        {"params": {"image": "x"}, "data": {"params": "5"}, "files": {"file": ("a.nii", b"x")}},
    ),
    ("PUT", "/datastore/image", {"params": {"image": "x"}, "files": {"file": ("a.nii.gz", b"x")}}),
    ("PUT", "/datastore/label", {"params": {"image": "nothing"}, "files": {"label": ("a.nii.gz", b"x")}}),
    ("PUT", "/datastore/label", {"files": {"label": ("a.nii.gz", b"x")}}),
    ("PUT", "/datastore/image/info", {"params": {"image": "ras"}, "data": {"info": "5"}}),
    ("PUT", "/datastore/image/info", {"params": {"image": "ras"}, "data": {"info": '{"a": NaN}'}}),
    ("PUT", "/datastore/image/info", {"params": {"image": "ras"}, "data": {"info": '{"a": "' + "x" * 70000 + '"}'}}),
    ("PUT", "/datastore/image/info", {"params": {"image": "nothing"}, "data": {"info": "{}"}}),
    ("PUT", "/datastore/label/info", {"params": {"label": "ras", "tag": "nothing"}, "data": {"info": "null"}}),
    ("GET", "/datastore/image", {}),
    ("GET", "/datastore/image", {"params": {"image": "nothing"}}),
    ("GET", "/datastore/image/info", {"params": {"image": "nothing"}}),
    ("GET", "/datastore/label", {"params": {"label": "ras", "tag": "nothing"}}),
    ("GET", "/datastore/dataset", {"params": {"limit_cases": -1}}),
    ("GET", "/datastore/dataset", {"params": {"limit_cases": 10**30}}),
    ("GET", "/datastore/", {"params": {"output": "words"}}),
    ("DELETE", "/datastore/image", {"params": {"id": "nothing"}}),
    ("DELETE", "/datastore/label", {"params": {"id": "ras", "tag": "nothing"}}),
    ("GET", "/session/junk", {}),
    ("GET", "/session/%00", {}),
    ("DELETE", "/session/..%2f..", {}),
    ("PUT", "/session/", {"params": {"expiry": -5}, "files": {"files": ("a.nii.gz", b"x")}}),
    ("PUT", "/session/", {"files": [("files", ("a.nii.gz", b"x")), ("files", ("b.nii.gz", b"x"))]}),
    ("PUT", "/session/", {}),
    ("POST", "/activelearning/nothing", {"json": {}}),
    ("POST", "/activelearning/random", {"json": []}),
    ("POST", "/activelearning/random", {"json": {"client_id": [5]}}),
    ("POST", "/scoring/dice", {"json": {}}),
    ("GET", "/logs/", {"params": {"lines": 10**30}}),
    ("GET", "/logs/", {"params": {"lines": -1}}),
    ("GET", "/logs/", {"params": {"lines": "many"}}),
    ("PUT", "/model/nothing", {"files": {"file": ("m.pt", b"x")}}),
    ("GET", "/model/nothing", {}),
    ("GET", "/model/info/bare", {}),
    ("DELETE", "/model/bare", {}),
    ("GET", "/proxy/dicom/studies", {}),
    ("POST", "/proxy/dicom/studies", {}),
    ("GET", "/nothing", {}),
    ("PATCH", "/datastore/image", {}),
    ("GET", "/info/" + "%25" * 3000, {}),
    ("GET", "/x%0d%0aSet-Cookie:a", {}),
    ("GET", "/static/%2e%2e/%2e%2e/app.py", {}),
    ("GET", "/static/%252e%252e/app.py", {}),
    ("GET", "/static/..%5capp.py", {}),
]


@pytest.mark.parametrize(
    "wrong", range(len(WRONG)), ids=lambda index: f"{index}-{WRONG[index][0]}-{WRONG[index][1][:30]}"
)
def test_what_is_wrong_is_the_clients_fault_and_said_in_one_sentence(ward, wrong):
    method, path, arguments = WRONG[wrong]
    response = ward.server.request(method, path, **arguments)
    refused(response, *range(400, 500))
    assert ward.server.request("GET", "/train/").status_code == 404


def test_heads_and_what_has_no_body(ward):
    for params, status in (
        ({"image": "ras"}, 200),
        ({"image": "ras", "check_sum": "FOO:x"}, 400),
        ({"image": "ras", "check_sum": "SHA256:x"}, 404),
        ({"image": "nothing"}, 404),
    ):
        assert ward.server.request("HEAD", "/datastore/image", params=params).status_code == status
    assert ward.server.request("DELETE", "/train/").json() is None
    assert ward.server.request("DELETE", "/batch/infer").json() is None
    assert ward.server.request("POST", "/activelearning/random").status_code == 200


def test_garbage_does_not_replace_good_weights(ward, volume, tmp_path):
    good = ward.weights.read_bytes()
    state = torch.load(ward.weights)
    spoiled = {
        "empty": b"",
        "garbage": b"garbage",
        "cut": good[:5000],
        "flipped": good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :],
    }
    for name, content in (
        ("no recipe", {key: value for key, value in state.items() if "_extra_state" not in key}),
        ("nan", {k: torch.full_like(v, float("nan")) if v.is_floating_point() else v for k, v in state.items()}),
        ("other", {f"x.{key}": value for key, value in state.items()}),
        ("list", [1, 2, 3]),
    ):
        torch.save(content, tmp_path / "model.pt")
        spoiled[name] = (tmp_path / "model.pt").read_bytes()
    for name, content in spoiled.items():
        response = ward.server.request("PUT", "/model/reggan", files={"file": ("m.pt", content)})
        assert refused(response, 422, says="the one in use stays"), name
        assert ward.weights.read_bytes() == good
        refused(ward.server.request("PUT", "/model/bare", files={"file": ("m.pt", content)}), 422)
    assert ward.server.translate("ras").status_code == 200


def test_weights_of_before_are_kept(ward):
    good = ward.weights.read_bytes()
    kept = ward.weights.with_name("previous")
    try:
        response = ward.server.request("PUT", "/model/reggan", files={"file": ("m.pt", good)})
        assert response.status_code == 200, response.text
        assert [path.read_bytes() for path in kept.iterdir()] == [good]
        assert ward.server.request("DELETE", "/model/reggan").status_code == 200
        refused(ward.server.translate("ras"), 409)
        shutil.copy(next(kept.iterdir()), ward.weights)
        assert ward.server.translate("ras").status_code == 200
    finally:
        ward.weights.write_bytes(good)
        shutil.rmtree(kept, ignore_errors=True)


def test_no_line_of_the_log_can_be_forged(ward, volume):
    forged = "[2026-01-01 00:00:00] [1] [MainThread] [INFO] forged"
    server = ward.server
    words = f"x\n{forged}\r{forged}\x1b[31m\u2028{forged}"
    server.translate(words)
    server.translate("ras", device=words, label_tag=words)
    server.request("GET", "/info/", headers={"X-Request-ID": "a\x1b[31m", "User-Agent": "\x1b[31m"})
    server.request("GET", "/nothing%0a" + forged.replace(" ", "%20"))
    server.request("GET", "/nothing/..%0a" + forged.replace(" ", "%20"))
    server.request("GET", "/info/", headers={"Origin": "https://a.example.org/\x1b[31m"})
    server.request("POST", "/train/reggan", json={"device": words})
    server.request("POST", f"/batch/infer/reggan?images={forged}%0a{forged}")
    send(ward, f"{forged}\x1b.nii.gz", volume, "/datastore/image", method="PUT")
    server.request("PUT", "/datastore/image/info", params={"image": "ras"}, data={"info": json.dumps({"note": words})})
    server.request("PUT", "/datastore/image/info", params={"image": "ras"}, data={"info": json.dumps({"note": ""})})
    log = server.log.read_text(errors="replace")
    assert [line for line in log.splitlines() if line.startswith("[2026-01-01 00:00:00] [1]")] == []
    assert "\x1b" not in log


def bomb(voxels):
    """A packed volume of zeros, of which its header says so many voxels on each side."""
    header = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()[:352])
    header[42:48] = struct.pack("<3h", voxels, voxels, voxels)
    zeros = gzip.compress(bytes(1 << 24))
    return gzip.compress(bytes(header)) + zeros * 40


def test_bombs_and_too_large_uploads_are_refused_at_once(ward):
    for voxels in (850, 160, 2):  # too large as said, as unpacked, more than said
        start = time.monotonic()
        refused(send(ward, "a.nii.gz", bomb(voxels)), 422)
        refused(send(ward, "a.nii.gz", bomb(voxels), "/datastore/image", method="PUT", image="bomb"), 422)
        assert time.monotonic() - start < 5
    start = time.monotonic()
    for method, path, headers in (
        ("POST", "/infer/reggan", {"Content-Length": str(1 << 40)}),
        ("POST", "/train/reggan", {"Content-Length": str(1 << 21)}),
        ("GET", "/info/", {"Content-Length": str(1 << 21)}),
    ):
        response = ward.server.request(method, path, headers=headers, data=iter([]))
        refused(response, 413)
    assert time.monotonic() - start < 5
    assert ward.server.request("GET", "/info/").status_code == 200


def test_nothing_is_patched_for_the_whole_process(ward):
    """The app does without: what other parts of the process use is as it came."""
    script = """
import tempfile, tarfile
filters = tarfile.TarFile.__dict__.get("extraction_filter")
import jwt, logging
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.endpoints.user import auth
from monailabel.datastore.local import LocalDatastore
before = AsyncTask.run, jwt.decode, dict(vars(LocalDatastore)), tempfile.gettempdir()
from monailabel.interfaces.utils.app import app_instance
from monailabel.app import app
from fastapi.testclient import TestClient
with TestClient(app, base_url="http://localhost") as client:
    app_instance().info()
    assert client.get("/info/").status_code == 200
assert (AsyncTask.run, jwt.decode, dict(vars(LocalDatastore)), tempfile.gettempdir()) == before
assert auth.jwt is jwt
assert tarfile.TarFile.__dict__.get("extraction_filter") is filters
print("as it came")
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(ward.server.log.parent),
        "MONAI_LABEL_APP_DIR": str(APP),
        "MONAI_LABEL_STUDIES": str(ward.studies),
        "MONAI_LABEL_APP_CONF": json.dumps(
            {"models": "reggan", "bundles": str(ward.folder / "bundles"), "auth": "off"}
        ),
        "TMPDIR": str(ward.folder / "tmp"),
    }
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert "as it came" in ran.stdout, ran.stderr[-3000:]


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs the program prlimit")
def test_where_there_is_no_room_nothing_is_cut_short(ward, start_server, tmp_path):
    """A bound on the size of files, which the system answers in the way of a full disk."""
    source = nib.load(ward.studies / "ras.nii.gz")
    voxels = source.get_fdata(dtype=np.float32)
    large, bound = voxels.nbytes, 350_000
    assert large > bound + 50_000
    (tmp_path / "tmp").mkdir()
    (tmp_path / "studies").mkdir()
    shutil.copy(ward.studies / "ras.nii.gz", tmp_path / "studies")
    server = start_server(
        tmp_path / "studies",
        *("--conf", "models", "reggan", "--conf", "bundles", str(ward.folder / "bundles")),
        environment={"TMPDIR": str(tmp_path / "tmp")},
        prefix=("prlimit", f"--fsize={bound}"),
    )
    for suffix in (".nii", ".nrrd", ".mha"):
        response = server.translate("ras", result_extension=suffix)
        assert refused(response, 507, says="disk is full"), suffix
    content = nib.Nifti1Image(voxels, source.affine).to_bytes()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for request in (
        {"method": "POST", "path": "/infer/reggan", "files": {"file": ("a.nii", content)}},
        {
            "method": "PUT",
            "path": "/datastore/image",
            "params": {"image": "new"},
            "files": {"file": ("a.nii", content)},
        },
        {
            "method": "PUT",
            "path": "/datastore/label",
            "params": {"image": "ras"},
            "files": {"label": ("a.nii", content)},
        },
        {"method": "PUT", "path": "/session/", "files": {"files": ("a.nii", content)}},
    ):
        refused(server.request(**request), 507, says="disk is full")
    response = server.translate("ras")  # packed it has room, or else it is not answered either
    assert response.status_code == 507 or gzip.decompress(response.content)
    deadline = time.monotonic() + 10  # the server cleans up once the answer is on its way
    while (left := sorted(str(path) for path in tmp_path.rglob("*"))) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == before
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.suffix in (".nii", ".nrrd", ".mha", ".gz")] == []
    assert server.request("GET", "/datastore/").json()["total"] == 1
