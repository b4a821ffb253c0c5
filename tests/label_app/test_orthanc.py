"""Series of a real Orthanc server as studies: translated by their UID, in float32, where they belong."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")
pydicom = pytest.importorskip("pydicom")

PLUGINS = sorted(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*"))
pytestmark = pytest.mark.skipif(
    shutil.which("Orthanc") is None or not PLUGINS, reason="needs Debian's packages orthanc and orthanc-dicomweb"
)
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
        "AuthenticationEnabled": False,
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
                requests.get(f"{address}/dicom-web/studies", timeout=10).raise_for_status()
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
        requests.post(f"{address}/instances", data=buffer.getvalue(), timeout=30).raise_for_status()
    return str(series)


def test_translates_a_series(orthanc, start_server, bundles, studies, offline, tmp_path):
    source = nib.load(studies / "oblique.nii.gz")
    whole = nib.Nifti1Image(np.rint(source.get_fdata()).astype(np.uint16), source.affine)
    nib.save(whole, tmp_path / "whole.nii.gz")
    series = send_series(orthanc, whole)

    conf = ("--conf", "models", "reggan", "--conf", "bundles", str(bundles))
    server = start_server(f"{orthanc}/dicom-web", *conf)
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
    made_of = offline(bundles / "reggan" / "models" / "model.pt", tmp_path / "whole.nii.gz")
    here, there = (nib.as_closest_canonical(image) for image in (served, made_of))
    np.testing.assert_allclose(here.affine, there.affine, atol=1e-3)
    difference = np.abs(here.get_fdata() - there.get_fdata())
    assert difference.mean() < 1e-3 * np.ptp(there.get_fdata())

    assert server.translate("1.2.3.4").status_code == 404
    assert server.request("GET", "/proxy/dicom/..%2Fpatients").status_code == 400
