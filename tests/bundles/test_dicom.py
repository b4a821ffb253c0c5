"""From a scanner's series to a derived one in an archive, by the bundle's own commands, and no patient by name."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import torch
from scipy import ndimage

from pipeline.errors import first_cause
from pipeline.io import find_series, read_image

ROOT = Path(__file__).resolve().parents[2]
SPACING = (2.0, 2.0, 4.0)
PLUGINS = sorted(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*"))


def script(path="scripts/translate_dicom.py"):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def studies(dataset_dir, make_dicom, tmp_path_factory):
    """The data set's patients as studies of two series each, source and target."""
    root = tmp_path_factory.mktemp("studies")
    for number, name in enumerate("abcd"):
        study = f"1.2.826.0.1.{number + 1}"
        for kind, title in (("images", "T1W tra"), ("labels", "T2W tra")):
            volume = np.rint(nib.load(dataset_dir / kind / f"{name}.nii.gz").get_fdata()).astype(np.uint16)
            make_dicom(root / name / kind, volume, spacing=SPACING, suffix="", study=study, description=title)
    return root


@pytest.fixture
def model_file(make_recipe, make_translator, tmp_path):
    """A model that nobody trained, which says that it makes T2."""
    network = make_translator()
    recipe = make_recipe(network)
    recipe["target"] = {**recipe["source"], "modality": "T2", "window": [0.0, 1500.0]}
    network.recipe = recipe
    torch.save(network.inference_state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def derived(run_config, model_file, studies, tmp_path):
    """What inference.json makes of patient d: a volume and a series."""
    out = tmp_path / "derived"
    image = {"image": str(studies / "d"), "series": "T1W*"}
    run_config("inference.json", checkpoint=str(model_file), output_dir=str(out), **image)
    return out


def test_inference_writes_a_derived_series_beside_the_volume(derived, studies):
    assert sorted(path.name for path in derived.iterdir()) == [
        "d_series3_derived",
        "d_series3_translated.nii.gz",
    ]
    volume, series = (read_image(path) for path in sorted(derived.iterdir(), reverse=True))
    source = read_image(studies / "d" / "images")
    np.testing.assert_allclose(series.affine, source.affine)
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-5)
    slices = [pydicom.dcmread(file) for file in sorted((derived / "d_series3_derived").iterdir())]
    assert len(slices) == source.shape[-1]
    told = slices[0].DerivationDescription
    factor = float(told.split("times ")[1].split()[0].rstrip(".")) if "times" in told else 1.0
    np.testing.assert_allclose(series.numpy() / factor, volume.numpy().clip(0), atol=0.5001 / factor)
    assert "method reggan" in told


def test_the_script_does_the_same(derived, model_file, studies, tmp_path, capsys):
    arguments = [
        str(studies / "d"),
        str(tmp_path / "out"),
        "--checkpoint",
        str(model_file),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit):
        script().main(arguments)
    said = capsys.readouterr().err
    assert "holds 2 DICOM series, and it is not clear which is meant" in said
    assert '"T2W tra" (MR, 6 images, ' in said
    assert not (tmp_path / "out").exists()
    assert script().main([*arguments, "--series", "t1w*"]) == 0
    here, there = (
        np.stack([pydicom.dcmread(file).pixel_array for file in sorted(folder.iterdir())])
        for folder in (tmp_path / "out", derived / "d_series3_derived")
    )
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("lost", ["gap", "empty"])
def test_a_broken_series_leaves_nothing(run_config, model_file, studies, tmp_path, lost):
    shutil.copytree(studies / "d" / "images", tmp_path / "in")
    (tmp_path / "in" / "IM0003").unlink() if lost == "gap" else (tmp_path / "in" / "IM0003").write_bytes(b"")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run_config(
            "inference.json",
            checkpoint=str(model_file),
            image=str(tmp_path / "in"),
            output_dir=str(tmp_path / "out"),
        )
    says = "5 slices where 6 at 4 mm belong" if lost == "gap" else "IM0003, which is empty"
    assert says in str(first_cause(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nobody_is_named_by_a_training(studies, person, tmp_path, run_config, caplog, capfd):
    """Training on studies with MLflow, then translation."""
    caplog.set_level(logging.DEBUG)
    pairs = [
        {"image": str(studies / name / "images"), "label": f"{studies / name}::T2W*", "patient": name} for name in "abc"
    ]
    lists = {"training": pairs[:2], "validation": pairs[2:], "test": []}
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    out = tmp_path / "output"
    run_config(
        "train.json",
        dataset_dir=str(tmp_path),
        datalist=str(tmp_path / "datalist.json"),
        output_dir=str(out / "run"),
        store=str(out / "store"),
        tracking_uri=f"sqlite:///{out / 'mlflow.db'}",
    )
    translate_and_search(out, out / "run" / "model.pt", studies, person, tmp_path, run_config, caplog, capfd)
    assert any(path.suffix == ".db" for path in out.iterdir())


def test_nobody_is_named_by_a_translation(studies, model_file, person, tmp_path, run_config, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    translate_and_search(tmp_path / "output", model_file, studies, person, tmp_path, run_config, caplog, capfd)


def translate_and_search(out, model, studies, person, tmp_path, run_config, caplog, capfd):
    """Only the derived series says whose it is, and a deidentified one does not."""
    typed = tmp_path / "in" / f"{person['PatientID']}_T1"
    shutil.copytree(studies / "d" / "images", typed)
    for name, settings in (("plain", {}), ("nobody", {"deidentify": True})):
        run_config("inference.json", checkpoint=str(model), image=str(typed), output_dir=str(out / name), **settings)
    shown = capfd.readouterr()
    (series,) = (path for path in (out / "plain").iterdir() if path.is_dir())
    secrets = [*person.values(), "Musterfrau", "Erika"]
    assert pydicom.dcmread(next(series.iterdir())).PatientID == person["PatientID"]
    for path in out.rglob("*"):
        content = path.read_bytes() if path.is_file() and path.parent != series else b""
        for value in secrets:
            assert value not in str(path.relative_to(out)), path
            assert value.encode() not in content, (path, value)
            assert value.encode("utf-16-le") not in content, (path, value)
    # The one thing that names the patient in the log is what was typed.
    log = (caplog.text + shown.out + shown.err).replace(str(typed), "TYPED")
    assert [value for value in secrets if value in log] == []


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """An Orthanc server of this machine: address of its DICOMweb service, and its port for C-STORE."""
    if shutil.which("Orthanc") is None or not PLUGINS:
        pytest.skip("needs Debian's packages orthanc and orthanc-dicomweb")
    import socket

    folder = tmp_path_factory.mktemp("orthanc")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": ports[0],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ARCHIVE",
        "DicomPort": ports[1],
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"sender": ["SENDER", "127.0.0.1", 104]},
        "Plugins": [str(PLUGINS[0])],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{ports[0]}/dicom-web"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
            try:
                requests.get(f"{address}/studies", timeout=10).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.2)
        yield address, ports[1]
    finally:
        process.terminate()
        process.wait(20)


def store_by_network(files, port):
    from pynetdicom import AE

    entity = AE(ae_title="SENDER")
    entity.add_requested_context(pydicom.uid.MRImageStorage, pydicom.uid.ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="ARCHIVE")
    assert association.is_established
    try:
        return [association.send_c_store(pydicom.dcmread(file)).Status for file in files]
    finally:
        association.release()


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_an_archive_takes_it_and_gives_it_back(derived, orthanc, tmp_path, write_slice, way):
    pytest.importorskip("pynetdicom")
    client = pytest.importorskip("dicomweb_client.api").DICOMwebClient(orthanc[0])
    sent = derived / "d_series3_derived"
    files = sorted(sent.iterdir())
    if way == "C-STORE":
        assert store_by_network(files, orthanc[1]) == [0] * len(files)
    else:
        client.store_instances([pydicom.dcmread(file) for file in files])
    first = pydicom.dcmread(files[0])
    back = client.retrieve_series(first.StudyInstanceUID, first.SeriesInstanceUID)
    assert len(back) == len(files)
    (tmp_path / "back").mkdir()
    for data in back:
        write_slice(tmp_path / "back" / f"{data.SOPInstanceUID}", data)
    (one,) = find_series(tmp_path / "back")
    assert one.description == "SYNTHETIC T2, NOT FOR CLINICAL USE"
    before, after = read_image(sent), read_image(tmp_path / "back")
    np.testing.assert_array_equal(before.numpy(), after.numpy())
    np.testing.assert_array_equal(before.affine.numpy(), after.affine.numpy())
    volume = read_image(derived / "d_series3_translated.nii.gz")
    np.testing.assert_allclose(after.numpy(), volume.numpy().clip(0), atol=0.5001)
    np.testing.assert_allclose(after.affine, volume.affine, atol=1e-5)
    found = client.search_for_series(first.StudyInstanceUID)
    assert first.SeriesInstanceUID in {one["0020000E"]["Value"][0] for one in found}  # in the source's study


@pytest.mark.slow
def test_the_command_line(model_file, studies, tmp_path, person):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "bundles/reggan/configs/inference.json"]
    command += ["--image", studies / "d", "--series", "T1W tra", "--output_dir", tmp_path / "out", "--device", "cpu"]
    command += ["--checkpoint", model_file, "--deidentify", "true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(list((tmp_path / "out" / "d_series3_derived").iterdir())) == 6
    assert not [value for value in person.values() if value in result.stdout + result.stderr]


def errors_of(tool, folder):
    """What dicom3tools find wrong with a series."""
    runs = [[tool, *sorted(folder.iterdir())]]
    if tool == "dciodvfy":
        runs = [[tool, "-new", file] for file in sorted(folder.iterdir())[:1]]
    results = [subprocess.run(command, capture_output=True, text=True) for command in runs]
    return {
        line for result in results for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")
    }


@pytest.fixture(scope="module")
def raw_studies(make_dicom, tmp_path_factory):
    """Studies of four made-up persons as an archive gives them: T1, and T2 moved by millimetres and degrees."""
    root = tmp_path_factory.mktemp("raw")
    make_head = script("tests/pipeline/preparation/conftest.py").head
    for number in range(1, 5):
        source, target = make_head(number)
        angle = 0.03 * number
        turned = (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
        for scan, title, place in (
            (source, "t1_se_tra", {"origin": (-90, -100, -75)}),
            (target, "t2_tse_tra", {"origin": (-86 - number, -103, -70), "directions": turned}),
        ):
            make_dicom(
                root / f"MUSTERFRAU_{number}" / title, np.rint(scan.voxels).astype(np.uint16), spacing=scan.spacing,
                suffix="", study=f"1.2.826.0.1.77.{number}", description=title, PatientID=f"ID-4711-{number}", **place,
            )  # fmt: skip
    return root


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True])
def test_training_warns_of_pairs_that_lie_apart(prepared, tmp_path, run_config, caplog):
    """5 mm through the plane, and what prepare makes of such pairs, looked at although they say that they were."""
    make_head = script("tests/pipeline/preparation/conftest.py").head
    for number in range(1, 4):
        for name, scan, shift in zip(("T1", "T2"), make_head(number), (0.0, 5.0), strict=True):
            affine = scan.affine.copy()
            affine[2, 3] += shift
            (tmp_path / "raw" / f"p{number}").mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(scan.voxels, affine), tmp_path / "raw" / f"p{number}" / f"{name}.nii.gz")
    data = tmp_path / ("prepared" if prepared else "raw")
    if prepared:
        line = [str(tmp_path / "raw"), str(data), "--source", "T1", "--target", "T2"]
        assert script("scripts/prepare.py").main(line) == 0
        content = json.loads((data / "datalist.json").read_text())
        (data / "datalist.json").write_text(json.dumps({**content, "registered": False}))
    else:  # on one grid, as a user would resample them: the header's 5 mm are in the voxels
        pairs = []
        for number in range(1, 4):
            image, label = (data / f"p{number}" / f"{name}.nii.gz" for name in ("T1", "T2"))
            moved = nib.load(label)
            voxels = ndimage.shift(moved.get_fdata(), (0, 0, 5 / 4.2), order=1, mode="nearest")
            nib.save(nib.Nifti1Image(voxels.astype(np.float32), nib.load(image).affine), label)
            pairs.append({"image": str(image), "label": str(label), "patient": f"p{number}"})
        (data / "datalist.json").write_text(json.dumps({"training": pairs[:2], "validation": pairs[2:]}))
    with caplog.at_level(logging.INFO):
        run_config("train.json", dataset_dir=str(data), output_dir=str(tmp_path / "run"), noise_level=0)
    assert ("do not line up: 2 of 2 patients" in caplog.text) == (not prepared)
    assert ("2 patients line up" in caplog.text) == prepared
    through = [float(found) for found in re.findall(r"([\d.]+) mm of it through the plane", caplog.text)]
    assert through == pytest.approx([] if prepared else [5.0, 5.0], abs=0.5)


@pytest.mark.slow
def test_the_whole_way(raw_studies, orthanc, person, tmp_path, run_config, write_slice, caplog, capfd):
    """Raw studies, a data set, a training, a derived series, an archive, and the series fetched from there."""
    pytest.importorskip("pynetdicom")
    client = pytest.importorskip("dicomweb_client.api").DICOMwebClient(orthanc[0])
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    prepared = [str(raw_studies), str(out / "prepared"), "--source", "t1_se", "--target", "t2_tse"]
    assert script("scripts/prepare.py").main([*prepared, "--key", str(tmp_path / "key.csv")]) == 0
    assert "4 good, 0 doubtful, 0 failed" in capfd.readouterr().out
    run_config(
        "train.json", dataset_dir=str(out / "prepared"), output_dir=str(out / "run"), noise_level=0,
        tracking_uri=f"sqlite:///{out / 'mlflow.db'}",
    )  # fmt: skip
    assert "do not line up" not in caplog.text
    case = raw_studies / "MUSTERFRAU_4"
    line = [str(case), "--series", "t1*", "--checkpoint", str(out / "run" / "model.pt"), "--device", "cpu"]
    series, nobody = tmp_path / "derived", out / "nobody"
    assert script().main([line[0], str(series), *line[1:]]) == 0
    assert script().main([line[0], str(nobody), *line[1:], "--deidentify"]) == 0
    run_config("inference.json", checkpoint=str(out / "run" / "model.pt"), image=str(case), series="t1*",
               output_dir=str(out / "volume"), derived_series=False)  # fmt: skip

    for tool in ("dciodvfy", "dcentvfy"):
        if shutil.which(tool):
            for made in (series, nobody):
                assert not errors_of(tool, made) - errors_of(tool, case / "t1_se_tra")

    (volume,) = (out / "volume").glob("*.nii.gz")
    volume, source = read_image(volume), read_image(case / "t1_se_tra")
    for way, sent in (("C-STORE", series), ("STOW-RS", nobody)):
        files = sorted(sent.iterdir())
        assert len(files) == source.shape[-1]
        if way == "C-STORE":
            assert store_by_network(files, orthanc[1]) == [0] * len(files)
        else:
            client.store_instances([pydicom.dcmread(file) for file in files])
        first = pydicom.dcmread(files[0])
        back = tmp_path / way
        back.mkdir()
        for data in client.retrieve_series(first.StudyInstanceUID, first.SeriesInstanceUID):
            write_slice(back / data.SOPInstanceUID, data)
        fetched = read_image(back)
        factor = float(first.DerivationDescription.split("times ")[1].split()[0].rstrip(".")
                       if "times" in first.DerivationDescription else 1)  # fmt: skip
        np.testing.assert_allclose(fetched.numpy() / factor, volume.numpy().clip(0), atol=0.5001 / factor)
        np.testing.assert_allclose(fetched.affine, source.affine, atol=1e-6)

    shown = capfd.readouterr()
    secrets = ["MUSTERFRAU", "ID-4711", "Musterfrau", "Erika", *person.values(), str(raw_studies)]
    for path in out.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for value in secrets:
            assert value not in str(path.relative_to(out)), path
            assert value.encode() not in content, (path, value)
            assert value.encode("utf-16-le") not in content, (path, value)
    log = (caplog.text + shown.out + shown.err).replace(str(case), "TYPED").replace(str(raw_studies), "TYPED")
    assert [value for value in secrets if value in log] == []
    assert "ID-4711-4" in (tmp_path / "key.csv").read_text()
