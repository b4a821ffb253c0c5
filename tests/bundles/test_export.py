"""Exports of a trained network: they do what it does, say what they are, and translate volumes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run as run_bundle
from monai.data import load_net_with_metadata

import pipeline.inference.export as export_module
from pipeline.errors import first_cause
from pipeline.inference import Exporter, ExportError, OnnxError, OnnxNetwork
from pipeline.inference.seal import PLACEHOLDER, SEAL, seal, verify_seal
from pipeline.models import ContradictionError, Model, ModelError, Recipe
from pipeline.workflow import ConfigWorkflow

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
FILES = ("model.ts", "model.onnx", "model.pt2")
SHAPES = [(1, 1, 32, 32), (3, 1, 31, 45), (2, 1, 5, 6)]


@pytest.fixture(scope="session")
def main():
    spec = importlib.util.spec_from_file_location("export", ROOT / "scripts" / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def exporter_of(checkpoint, settings):
    return Exporter(ConfigWorkflow(["inference.json"], checkpoint=str(checkpoint), device="cpu", **settings))


@pytest.fixture(scope="session")
def settings(dataset_dir):
    return {"image": str(dataset_dir / "images" / "d.nii.gz")}


@pytest.fixture(scope="session")
def exporter(trained_run, settings):
    return exporter_of(trained_run / "model.pt", settings)


@pytest.fixture(scope="session")
def exports(main, trained_run, settings, tmp_path_factory):
    """Folder with the three files that the command line makes of the trained run."""
    folder = tmp_path_factory.mktemp("exports")
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    main([str(trained_run / "model.pt"), *(str(folder / name) for name in FILES), *words])
    return folder


def opened(path):
    """The export as a function of images, and its metadata, by other ways than the exporter's."""
    if path.suffix == ".ts":
        network, metadata, _ = load_net_with_metadata(str(path))
        return network, metadata
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path))
        metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
        return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0]), metadata
    files = {"metadata.json": ""}
    network = torch.export.load(path, extra_files=files).module()
    return network, json.loads(files["metadata.json"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("shape", SHAPES)
def test_exports_equal_the_network_at_any_size(exporter, exports, name, shape):
    images = torch.rand(shape) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(opened(exports / name)[0](images), exporter.network(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FILES)
def test_exports_equal_the_network_on_real_slices(exporter, exports, name):
    slices = exporter.slices()
    assert slices.shape == (6, 1, 32, 32)
    assert slices.min() == -1 < slices.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(opened(exports / name)[0](slices), exporter.network(slices), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FILES)
def test_exports_say_what_inference_has_to_know(exports, trained_run, name):
    metadata = opened(exports / name)[1]
    bundle = json.loads((CONFIGS / "metadata.json").read_text())
    assert {key: metadata[key] for key in ("name", "version")} == {key: bundle[key] for key in ("name", "version")}
    assert set(metadata) - {SEAL, "__meta__", "timestamp"} >= {"name", "version", "recipe", "minimum_size"}
    recipe = Model(trained_run / "model.pt").recipe
    assert Recipe(metadata["recipe"]).content == recipe.content
    assert recipe["training"]["epoch"] == 15
    assert metadata["minimum_size"] == 5


@pytest.fixture(scope="module", params=["unit", pytest.param("munit", marks=pytest.mark.slow), "nicegan"])
def other_backbone(request, settings, dataset_dir, tmp_path_factory):
    """An exporter of untrained weights of another backbone."""
    folder = tmp_path_factory.mktemp(request.param)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", f"{request.param}.json")])
    parser.update({"network_size": "small", "dataset_dir": str(dataset_dir), "spatial_size": [32, 32]})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    parser.get_parsed_content("recipe").travel_with(network)
    torch.save(network.inference_state_dict(), folder / "model.pt")
    return exporter_of(folder / "model.pt", settings)


@pytest.mark.parametrize("name", FILES)
def test_other_backbones_are_exported_or_refused(other_backbone, tmp_path, name):
    path = tmp_path / name
    if name == "model.pt2" and type(other_backbone.network).__name__ == "NICETranslator":
        with pytest.raises(ExportError, match=r"this NICETranslator cannot be exported as torch\.export"):
            other_backbone.export(path, other_backbone.slices())
        assert not list(tmp_path.iterdir())
        return
    other_backbone.export(path, other_backbone.slices())
    network, metadata = opened(path)
    for shape in ((1, 1, 32, 32), (3, 1, 31, 45), (2, 1, metadata["minimum_size"], 18)):
        images = torch.rand(shape) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(network(images), other_backbone.network(images), atol=1e-4, rtol=0)


def test_onnx_file_is_valid_and_its_axes_are_free(exports):
    verify_seal(exports / "model.onnx")
    model = onnx.load(exports / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,) = onnxruntime.InferenceSession(str(exports / "model.onnx")).get_inputs()
    assert image.shape == ["batch", 1, "height", "width"]


def test_slices_that_hardly_vary_are_as_good_in_onnx(exporter, exports):
    """ONNX Runtime's own instance norm fails here."""
    slices = torch.full((1, 1, 96, 96), -1.0)
    slices[..., 40:43, 50:54] = 0.5
    with torch.no_grad():
        difference = (opened(exports / "model.onnx")[0](slices) - exporter.network(slices)).abs().max()
    assert difference < 2e-4


def test_command_line_reports_and_refuses(main, exports, trained_run, settings, tmp_path, capsys):
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    model, out = str(trained_run / "model.pt"), tmp_path / "new" / "model.ts"
    main([model, str(out), *words])
    assert f"{out}: TorchScript, greatest difference from the network" in capsys.readouterr().out
    before = out.read_bytes()
    for arguments, message in (
        ([model, str(out), *words], f"{out} exists already"),
        ([model, "model.tensorrt", *words], "must end in .ts, .onnx, .pt2, got 'model.tensorrt'"),
        ([str(tmp_path / "typo.pt"), "model.ts", *words], "typo.pt does not exist"),
        (
            [model, "model.ts", *words, "--set", "network_def#generator#filters=8"],
            "- network_def#generator#filters: given 8, the model has 4",
        ),
        ([model, "model.ts", *words, "--overlays", "unit.json"], "- backbone: given 'unit', the model has 'cyclegan'"),
        (
            [str(exports / "model.onnx"), "model.ts", *words],
            "is an export already; give the model.pt that it was made of",
        ),
        ([model, "model.ts", "--set", "filters"], "--set expects NAME=VALUE, got 'filters'"),
        ([model, "model.ts", "--overlays", "typo.json"], "config typo.json is neither a file nor in"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert "export.py: error: " in str(caught.value)
        assert message in str(caught.value)
    assert [path.name for path in out.parent.iterdir()] == ["model.ts"]
    assert out.read_bytes() == before
    main([model, str(out), *words, "--force"])


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_an_export_that_differs_is_not_written(exporter, tmp_path, monkeypatch, wrong):
    class Off(torch.nn.Module):
        def forward(self, images):
            return exporter.network(images) + wrong

    monkeypatch.setattr(export_module.torch.jit, "load", lambda path: Off())
    (tmp_path / "model.ts").write_text("before")
    with pytest.raises(ExportError, match=r"TorchScript differs from the network by more than 0.0001: random .*, real"):
        exporter.export(tmp_path / "model.ts", exporter.slices(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]
    assert (tmp_path / "model.ts").read_text() == "before"


def run_onnx(**settings):
    run_bundle(run_id="run", config_file=str(CONFIGS / "inference.json"), logging_file=False, device="cpu", **settings)


def test_inference_from_the_onnx_file(run_config, exports, trained_run, dataset_dir, tmp_path):
    """Also where slices at the end of the volume are blank, which used to become noise."""
    before = nib.load(dataset_dir / "images" / "d.nii.gz")
    voxels = np.pad(np.asarray(before.dataobj), ((0, 0), (0, 0), (0, 3)))
    nib.save(nib.Nifti1Image(voxels, before.affine), tmp_path / "head.nii.gz")
    image = str(tmp_path / "head.nii.gz")
    model = trained_run / "model.pt"
    run_config("inference.json", image=image, checkpoint=str(model), output_dir=str(tmp_path / "eager"))
    run_onnx(image=image, checkpoint=str(exports / "model.onnx"), output_dir=str(tmp_path / "onnx"))
    eager, result = (nib.load(tmp_path / name / "head_translated.nii.gz") for name in ("eager", "onnx"))
    low, high = Model(model).recipe.target_window
    assert result.shape == eager.shape == (40, 34, 9)
    np.testing.assert_array_equal(result.affine, eager.affine)
    np.testing.assert_allclose(result.get_fdata(), eager.get_fdata(), atol=1e-4 * (high - low) / 2)
    np.testing.assert_array_equal(eager.get_fdata()[..., 6:], low)


def save_sealed(model, path):
    """As whoever changes a file on purpose has to."""
    kept = [entry for entry in model.metadata_props if entry.key != SEAL]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=SEAL, value=PLACEHOLDER)])
    onnx.save(model, path)
    seal(path)


def renamed_input(path, folder):
    model = onnx.load(path)
    for node in [model.graph.input[0], *model.graph.node]:
        if isinstance(node, onnx.NodeProto):
            node.input[:] = ["x" if name == "image" else name for name in node.input]
        else:
            node.name = "x"
    save_sealed(model, folder / "model.onnx")


def without_metadata(path, folder):
    model = onnx.load(path)
    del model.metadata_props[:]
    save_sealed(model, folder / "model.onnx")


def without_seal(path, folder):
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")


def with_a_flipped_bit(path, folder):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def without_recipe(path, folder):
    model = onnx.load(path)
    [entry] = [entry for entry in model.metadata_props if entry.key == "recipe"]
    model.metadata_props.remove(entry)
    save_sealed(model, folder / "model.onnx")


def with_recipe(change):
    def spoil(path, folder):
        model = onnx.load(path)
        [entry] = [entry for entry in model.metadata_props if entry.key == "recipe"]
        recipe = json.loads(entry.value)
        change(recipe)
        entry.value = json.dumps(recipe)
        save_sealed(model, folder / "model.onnx")

    return spoil


def with_recipe_text(path, folder):
    model = onnx.load(path)
    [entry] = [entry for entry in model.metadata_props if entry.key == "recipe"]
    entry.value = "{not json"
    save_sealed(model, folder / "model.onnx")


def with_minimum_size(path, folder):
    model = onnx.load(path)
    [entry] = [entry for entry in model.metadata_props if entry.key == "minimum_size"]
    entry.value = "small"
    save_sealed(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path, folder: None, "does not exist: train first"),
        (
            lambda path, folder: (folder / "model.onnx").write_bytes(path.read_bytes()[:5000]),
            "is no ONNX file, or it is damaged or cut short",
        ),
        (lambda path, folder: shutil.copy(path.with_name("model.ts"), folder / "model.onnx"), "is no ONNX file"),
        (with_a_flipped_bit, r"model\.onnx is damaged: .* SHA-256"),
        (without_seal, r"model\.onnx has no checksum"),
        (without_metadata, "was not written by scripts/export.py: its metadata lacks recipe, minimum_size"),
        (without_recipe, "was not written by scripts/export.py: its metadata lacks recipe"),
        (with_minimum_size, r"model\.onnx: minimum_size must be a number, got 'small'"),
        (with_recipe_text, r"the recipe of .*model\.onnx is no JSON"),
        (
            with_recipe(lambda recipe: recipe["target"].update(window=[5, 1])),
            r"target#window must be \(low, high\) with low < high, got \(5, 1\)",
        ),
        (
            with_recipe(lambda recipe: recipe.update(version=0)),
            r"model\.onnx is of version 0, this project reads version 1",
        ),
    ],
)
def test_what_is_said_of_bad_onnx_files(exports, dataset_dir, tmp_path, spoil, says):
    spoil(exports / "model.onnx", tmp_path)
    image, out = str(dataset_dir / "images" / "d.nii.gz"), tmp_path / "out"
    with pytest.raises(RuntimeError) as caught:
        run_onnx(image=image, checkpoint=str(tmp_path / "model.onnx"), output_dir=str(out))
    cause = first_cause(caught.value)
    assert isinstance(cause, ModelError)
    with pytest.raises(ModelError, match=says):
        raise cause
    assert not out.exists()


def test_other_names_in_an_onnx_file_are_refused(exports, tmp_path):
    renamed_input(exports / "model.onnx", tmp_path)
    with pytest.raises(OnnxError, match=r"expected input 'image' and output 'pred', got .'x'. and .'pred'."):
        OnnxNetwork(tmp_path / "model.onnx")


def test_an_onnx_file_refuses_what_contradicts_it(exports, dataset_dir, tmp_path):
    settings = {"image": str(dataset_dir / "images" / "d.nii.gz"), "checkpoint": str(exports / "model.onnx")}
    for given, says in (
        ({"slice_axis": 0}, "- slice_axis: given 0, the model has 2"),
        ({"network_def#generator#filters": 8}, "- network_def#generator#filters: given 8, the model has 4"),
    ):
        with pytest.raises(RuntimeError) as caught:
            run_onnx(**settings, **given, output_dir=str(tmp_path / "out"))
        assert isinstance(first_cause(caught.value), ContradictionError)
        assert says in str(first_cause(caught.value))
    with pytest.raises(RuntimeError) as caught:
        run_onnx(**settings, style=[1, 2], output_dir=str(tmp_path / "out"))
    assert "model.onnx has its style fixed; give style when it is exported" in str(first_cause(caught.value))
    assert not (tmp_path / "out").exists()


def test_the_overlay_looks_for_the_onnx_file_of_the_run(exports, dataset_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.bundle.project_dir", lambda: tmp_path)
    run = tmp_path / "outputs" / "reggan"
    run.mkdir(parents=True)
    shutil.copy(exports / "model.onnx", run)
    files = [str(CONFIGS / name) for name in ("inference.json", "onnx.json")]
    image, out = str(dataset_dir / "images" / "d.nii.gz"), str(tmp_path / "out")
    run_bundle(run_id="run", config_file=files, logging_file=False, device="cpu", image=image, output_dir=out)
    assert (tmp_path / "out" / "d_translated.nii.gz").is_file()


def test_evaluation_of_the_onnx_file(exports, trained_run, dataset_dir, tmp_path):
    """Its scores are the model's."""
    for name, checkpoint in (("onnx", exports / "model.onnx"), ("eager", trained_run / "model.pt")):
        run_bundle(
            run_id="run",
            config_file=str(CONFIGS / "evaluate.json"),
            logging_file=False,
            device="cpu",
            checkpoint=str(checkpoint),
            dataset_dir=str(dataset_dir),
            output_dir=str(tmp_path / name),
            tracking_uri="none",
        )
    summaries = [
        json.loads((tmp_path / name / "evaluation" / "summary.json").read_text()) for name in ("onnx", "eager")
    ]
    for part in ("slices", "volumes"):
        first, second = (summary[part].get("over_patients", summary[part]) for summary in summaries)
        for score in ("psnr", "ssim"):
            assert first[score]["mean"] == pytest.approx(second[score]["mean"], abs=2e-3)
