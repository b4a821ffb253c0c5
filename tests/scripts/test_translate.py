"""A folder of volumes from its command line: what fails stops nothing, and what is done is not done again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("translate_script", ROOT / "scripts" / "translate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write_model(make_recipe, make_translator, tmp_path):
    def write(seed=0):
        network = make_translator(seed=seed)
        network.recipe = make_recipe(network)
        torch.save(network.inference_state_dict(), tmp_path / "model.pt")
        return str(tmp_path / "model.pt")

    return write


def write_volume(path, seed, slices=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).uniform(50, 900, (40, 36, slices)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def states(folder):
    table = pd.read_csv(folder / "translations.csv", keep_default_na=False)
    return dict(zip(table["source"], table["state"], strict=True))


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_a_folder_is_translated_once(script, write_model, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    for index, name in enumerate(("a.nii.gz", "deep/a.nii.gz", "deep/b.nii")):
        write_volume(source / name, index)
    (source / "broken.nii.gz").write_bytes(b"no volume")
    (source / "gone.nii").symlink_to(tmp_path / "nowhere")
    (source / ".hidden.nii").write_bytes(b"no volume")
    line = [str(source), str(out), "--checkpoint", write_model(), "--device", "cpu"]
    assert script.main(line) == 1
    said = capsys.readouterr()
    assert "3 of 5 volumes are translated" in said.out
    assert "broken.nii.gz: failed: " in said.err
    whole = ("a.nii.gz", "deep/a.nii.gz", "deep/b.nii")
    assert states(out) == {
        **dict.fromkeys(("broken.nii.gz", "gone.nii"), "failed"),
        **dict.fromkeys(whole, "translated"),
    }
    before = times(out)
    assert set(before) == {"a_translated.nii.gz", "b_translated.nii.gz"}
    assert nib.load(out / "deep" / "a_translated.nii.gz").shape == (40, 36, 4)

    write_volume(source / "broken.nii.gz", 7)
    write_volume(source / "new.nii.gz", 8)
    (source / "gone.nii").unlink()
    (out / "deep" / "b_translated.nii.gz").unlink()
    assert script.main(line) == 0
    after = times(out)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"{name}_translated.nii.gz" for name in ("broken", "new", "b")
    }
    assert len(states(out)) == 6  # what is gone stays told

    write_model(seed=1)
    assert script.main(line) == 0  # another model, so all of them
    last = times(out)
    assert all(last[name] != after[name] for name in after)


def test_the_voxels_are_those_of_inference_json(script, write_model, tmp_path):
    from pipeline.workflow import run_chain

    write_volume(tmp_path / "in" / "a.nii.gz", 3)
    model = write_model()
    script.main([str(tmp_path / "in"), str(tmp_path / "out"), "--checkpoint", model, "--device", "cpu"])
    image = {"image": str(tmp_path / "in" / "a.nii.gz"), "output_dir": str(tmp_path / "one")}
    run_chain(["inference.json"], checkpoint=model, device="cpu", **image)
    first, second = (nib.load(tmp_path / folder / "a_translated.nii.gz") for folder in ("out", "one"))
    np.testing.assert_array_equal(first.get_fdata(), second.get_fdata())
    np.testing.assert_array_equal(first.affine, second.affine)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_dir": "in/out"}, "must not lie in that of the sources"),
        ({"source": "nowhere"}, "has no file ending in"),
        ({"--checkpoint": "missing.pt"}, "missing.pt"),
        ({"--jobs": "0"}, "--jobs must be at least 1, got 0"),
        ({"--scheduler": "nobody"}, "scheduler must be the address of a Dask scheduler, got 'nobody'"),
        ({"twice": "in/a.nrrd"}, "a.nii.gz and a.nrrd would both be translated into a_translated.nii.gz"),
    ],
)
def test_what_cannot_be_is_refused(script, write_model, tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    write_volume(tmp_path / "in" / "a.nii.gz", 0)
    if "twice" in change:
        (tmp_path / change["twice"]).write_bytes(b"")
    options = {"--checkpoint": write_model(), **{name: value for name, value in change.items() if name[0] == "-"}}
    line = [
        change.get("source", "in"),
        change.get("output_dir", "out"),
        *(word for pair in options.items() for word in pair),
    ]
    with pytest.raises(SystemExit, match="2"):
        script.main(line)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*translated*"))


def test_dicom_is_sent_to_its_own_command(script, write_model, make_dicom, tmp_path, capsys, caplog):
    make_dicom(tmp_path / "in" / "p1", np.ones((8, 8, 3), np.uint16), suffix="")
    line = [str(tmp_path / "in"), str(tmp_path / "out"), "--checkpoint", write_model(), "--device", "cpu"]
    with pytest.raises(SystemExit, match="2"):
        script.main(line)
    assert "it holds DICOM: python scripts/translate_dicom.py SERIES OUT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    write_volume(tmp_path / "in" / "a.nii.gz", 0)
    assert script.main(line) == 0
    assert "holds DICOM, too, which is left aside: python scripts/translate_dicom.py" in caplog.text


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_translates_all(script, write_model, tmp_path, cluster):
    source = tmp_path / "in"
    for index in range(200):
        write_volume(source / f"{index:03d}.nii", index, slices=12)
    model = write_model()
    address, [first, _] = cluster
    line = [str(source), str(tmp_path / "there"), "--checkpoint", model, "--device", "cpu", "--scheduler", address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "translate.py"), *line], env=environment)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "there").glob("*"))) < 60:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    assert started.wait(300) == 0
    assert script.main([*line[:1], str(tmp_path / "here"), *line[2:6]]) == 0
    results = sorted(path.name for path in (tmp_path / "here").glob("*.nii.gz"))
    assert len(results) == 200
    assert results == sorted(path.name for path in (tmp_path / "there").glob("*.nii.gz"))
    for name in results:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
