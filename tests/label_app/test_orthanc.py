"""Series of a real Orthanc server as studies: translated by their UID, in float32, where they belong."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import re
import shutil
import subprocess
import time
import types
import zipfile
from pathlib import Path
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import requests

from pipeline.io import read_image

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")
pydicom = pytest.importorskip("pydicom")

PLUGINS = sorted(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*"))
pytestmark = pytest.mark.skipif(
    shutil.which("Orthanc") is None or not PLUGINS, reason="needs Debian's packages orthanc and orthanc-dicomweb"
)
USER, PASSWORD = "label", "only-the-server-knows"
LOGIN = {"MONAI_LABEL_DICOMWEB_USERNAME": USER, "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD}
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def orthanc(free_port, tmp_path_factory):
    """Address of an Orthanc server of this machine, empty."""
    folder = tmp_path_factory.mktemp("orthanc")
    port = free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGINS[0])],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
            try:
                requests.get(f"{address}/dicom-web/studies", timeout=10, auth=(USER, PASSWORD)).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def send_series(address, image):
    """Upload a volume of whole numbers as a series of MR slices; returns its UID."""
    generate_uid = pydicom.uid.generate_uid
    voxels, affine = np.asarray(image.dataobj).astype(np.uint16), RAS_TO_LPS @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(voxels.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_ = pydicom.dataset.FileDataset("slice", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.PatientName, slice_.PatientID, slice_.Modality = "Phantom", "phantom", "MR"
        slice_.StudyDate, slice_.StudyTime = "20200101", "120000"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.SeriesNumber, slice_.InstanceNumber = 1, index + 1
        slice_.ImageOrientationPatient = [*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])]
        slice_.ImagePositionPatient = list(affine[:3, 3] + index * affine[:3, 2])
        slice_.PixelSpacing, slice_.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
            setattr(slice_, name, [f"{value:.9g}"[:16] for value in getattr(slice_, name)])
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.Rows, slice_.Columns = voxels.shape[1], voxels.shape[0]
        slice_.PixelData = np.ascontiguousarray(voxels[:, :, index].T).tobytes()
        buffer = pydicom.filebase.DicomBytesIO()
        pydicom.dcmwrite(buffer, slice_, write_like_original=False)
        requests.post(f"{address}/instances", buffer.getvalue(), timeout=30, auth=(USER, PASSWORD)).raise_for_status()
    return str(series)


@pytest.fixture(scope="module")
def whole(studies, tmp_path_factory):
    """A volume of whole numbers, as a file."""
    source = nib.load(studies / "oblique.nii.gz")
    path = tmp_path_factory.mktemp("whole") / "whole.nii.gz"
    nib.save(nib.Nifti1Image(np.rint(source.get_fdata()).astype(np.uint16), source.affine), path)
    return path


@pytest.fixture(scope="module")
def series(orthanc, whole):
    return send_series(orthanc, nib.load(whole))


@pytest.fixture(scope="module")
def server(orthanc, series, start_server, bundles, tmp_path_factory):
    conf = ("--conf", "models", "reggan", "--conf", "bundles", str(bundles), "--conf", "store_derived", "on")
    temporary = tmp_path_factory.mktemp("temporary")
    yield start_server(f"{orthanc}/dicom-web", *conf, environment={**LOGIN, "TMPDIR": str(temporary)})
    assert [path for path in temporary.rglob("*") if path.suffix in (".gz", ".dcm", ".zip")] == []  # patients' data


def test_translates_a_series(server, series, whole, bundles, offline):
    assert server.request("GET", "/datastore/").json()["total"] == 1
    response = server.translate(series, result_dtype="uint16")
    assert response.status_code == 200, response.text
    served = nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
    assert served.get_data_dtype() == np.float32

    # MONAI Label makes a NIfTI file of the series, and keeps it.
    (converted,) = server.log.parent.glob(f".cache/monailabel/dicom/*/{series}.nii.gz")
    expected = offline(bundles / "reggan" / "models" / "model.pt", converted)
    np.testing.assert_allclose(served.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(served.get_fdata(), expected.get_fdata(), rtol=0, atol=1e-5)

    # That it is the right one shows in the volume that the series was made of.
    made_of = offline(bundles / "reggan" / "models" / "model.pt", whole)
    here, there = (nib.as_closest_canonical(image) for image in (served, made_of))
    np.testing.assert_allclose(here.affine, there.affine, atol=1e-3)
    difference = np.abs(here.get_fdata() - there.get_fdata())
    assert difference.mean() < 1e-3 * np.ptp(there.get_fdata())

    assert server.translate("1.2.3.4").status_code == 404


def test_gives_and_stores_the_derived_series(server, series, orthanc, tmp_path):
    volume = nib.Nifti1Image.from_bytes(gzip.decompress(server.translate(series).content))
    response = server.translate(series, result_extension=".dcm")
    assert response.status_code == 200, response.text
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        archive.extractall(tmp_path / "series")
    derived = read_image(tmp_path / "series")
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "series").iterdir())]
    assert response.headers["X-Model-SHA256"] in slices[0].DerivationDescription
    assert slices[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    assert slices[0].ReferencedSeriesSequence[0].SeriesInstanceUID == series
    factor = re.search(r"times ([\d.]+)\. ?", slices[0].DerivationDescription)
    factor = float(factor.group(1)) if factor else 1.0
    here, there = (
        nib.as_closest_canonical(image)
        for image in (nib.Nifti1Image(derived.numpy()[0] / factor, derived.affine.numpy()), volume)
    )
    np.testing.assert_allclose(here.affine, there.affine, atol=1e-3)
    np.testing.assert_allclose(here.get_fdata(), there.get_fdata().clip(0), atol=0.51 / factor)

    response = server.request(
        "POST",
        "/infer/reggan",
        params={"image": series, "output": "json"},
        data={"params": json.dumps({"result_extension": "dcm", "store_derived": True})},
    )
    assert response.status_code == 200, response.text
    uid = response.json()["stored_series"]
    query = {"Level": "Series", "Query": {"SeriesInstanceUID": uid}, "Expand": True}
    (found,) = requests.post(f"{orthanc}/tools/find", json=query, timeout=30, auth=(USER, PASSWORD)).json()
    assert len(found["Instances"]) == len(slices)
    assert found["MainDicomTags"]["SeriesDescription"].startswith("SYNTHETIC")
    for wrong, status in (
        ({"store_derived": True}, 400),
        ({"store_derived": "yes", "result_extension": ".dcm"}, 400),
        ({"save_label": True, "result_extension": ".dcm"}, 400),
    ):
        assert server.translate(series, **wrong).status_code == status, wrong


def test_nothing_is_stored_where_it_is_not_turned_on():
    from fastapi import HTTPException

    from pipeline.label_app.main import TranslationApp

    request = {"image": "1.2.3", "result_extension": ".dcm"}
    server = types.SimpleNamespace(_store_derived=False)
    TranslationApp._check_series(server, request)
    with pytest.raises(HTTPException, match="store_derived on") as caught:
        TranslationApp._check_series(server, {**request, "store_derived": True})
    assert caught.value.status_code == 403


def ask(server, path, method="GET", headers=None):
    """Ask for exactly this address, which clients would tidy up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, f"/proxy/dicom/{path}", headers=headers or {})
        response = connection.getresponse()
        return response.status, response.getheader("content-type"), response.read()
    finally:
        connection.close()


def test_viewers_search_and_fetch_through_the_server(server, series):
    status, kind, content = ask(server, "studies?limit=5&includefield=00081030&fuzzymatching=false")
    assert (status, kind) == (200, "application/dicom+json"), content
    (study,) = (entry["0020000D"]["Value"][0] for entry in json.loads(content))
    for path in (
        *("qido/studies", "series", f"series?SeriesInstanceUID={series}&Modality=MR", f"studies/{study}/series"),
        *(f"studies/{study}/series/{series}/instances", f"qido/studies/{study}/series/{series}/metadata"),
        f"wado/studies/{study}/metadata",
    ):
        status, _, content = ask(server, path)
        assert (status, len(json.loads(content)) > 0) == (200, True), path
    instance = json.loads(ask(server, f"studies/{study}/series/{series}/instances")[2])[0]["00080018"]["Value"][0]
    frames = {"Accept": "multipart/related; type=application/octet-stream"}
    path = f"studies/{study}/series/{series}/instances/{instance}/frames/1"
    status, kind, content = ask(server, path, headers=frames)
    assert (status, kind.split(";")[0]) == (200, "multipart/related")
    assert len(content) > 1000
    assert ask(server, "studies/1.2.3/metadata")[0] == 404
    assert ask(server, "series?Modality=CT")[2].strip() in (b"[]", b"")


ELSEWHERE = [
    "system",
    "patients",
    "instances/x/file",
    "tools/find",
    "modalities",
    "changes",
    "plugins",
    "app/explorer.html",
]
CLIMBING = [
    *(
        "..",
        "%2e%2e",
        ".%2e",
        "%252e%252e",
        "%25252e%25252e",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
        "%ef%bc%8e%ef%bc%8e",
    ),
    *(
        "..%00",
        "..;",
        "..%5c",
        "%255c..",
        "%2e%2e%2f",
        "%252e%252e%252f",
        "..%252f..",
        "....//",
        "%u002e%u002e",
        "%%32%65%%32%65",
    ),
]


def test_nothing_else_of_the_dicom_server_is_reached(server, series):
    paths = [*ELSEWHERE, *(f"{kind}/{path}" for path in ELSEWHERE for kind in ("wado", "qido", "stow"))]
    paths += [
        f"{start}{climb}/{path}" for climb in CLIMBING for path in ELSEWHERE[:4] for start in ("", "wado/", "studies/")
    ]
    paths += [f"studies/1.2.3/{climb}/{climb}/{climb}/system" for climb in CLIMBING]
    paths += [
        "studies/../../system",
        "studies//../system",
        "/studies/..",
        "studies%3f/../system",
        "studies%23/../system",
    ]
    paths += [
        "studies/1.2.3/archive",
        "studies/1.2.3/anonymize",
        "stow/studies",
        "servers",
        "http://127.0.0.1/",
        "@127.0.0.1",
    ]
    paths += [
        "studies?limit=x",
        "studies?a/b=1",
        "studies?limit=1%0d%0aX:1",
        "studies?" + "a=1&" * 200,
        "studies/" + "1" * 500,
    ]
    paths += ["studies/1.2.3/series/1..2/metadata", "studies/١٢/metadata", "studies/1.2.3%20/metadata"]
    for path in paths:
        status, _, content = ask(server, path if path.isascii() else quote(path, safe="/"))
        assert status in (400, 403, 404), (path, status, content[:200])
        assert b"DicomAet" not in content, path
        assert b"detail" in content, path
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("studies", "tools/find", "wado/studies", "%252e%252e/tools/find"):
            assert ask(server, path, method)[0] in (400, 403, 404, 405)
