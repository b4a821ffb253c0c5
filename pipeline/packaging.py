"""A trained bundle as one zip file that needs nothing of this project but the packages that it requires."""

from __future__ import annotations

import copy
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.bundle import CONFIG_FILE, check_image_size
from pipeline.errors import first_cause
from pipeline.files import replacing
from pipeline.inference import Translation
from pipeline.metrics.catalogue import names_in
from pipeline.models import BEST, MODEL, Model, ModelError, Recipe, file_digest
from pipeline.provenance import environment, git_state, redact
from pipeline.workflow import ConfigWorkflow
from transforms import RestoreIntensity

CODE = ("pipeline", "transforms")
NOT_TAKEN = ("pipeline/label_app/",)  # an application beside the bundle, with an environment of its own
PROVENANCE_FILE = "provenance.json"
RECIPE_FILE = "recipe.json"
# DICOM's names of modalities, which metadata.json has, by words of ours.
MODALITIES = {
    "CT": ("CT", "CBCT"),
    "MR": ("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T2", "T2W", "FLAIR", "PD", "PDW", "DWI", "ADC", "SWI"),
    "PT": ("PT", "PET"),
    "NM": ("NM", "SPECT"),
    "US": ("US", "ULTRASOUND"),
}
logger = logging.getLogger(__name__)


class PackagingError(ValueError):
    """A model that cannot be packaged; the message says why."""


def package_bundle(
    output: str | Path,
    checkout: str | Path,
    *,
    run_dir: str | Path | None = None,
    model: str | Path | None = None,
    data_source: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a self-contained bundle with the weights of a run, or of a model file.

    The zip file holds one folder, ``reggan``: the bundle; the packages ``pipeline`` and ``transforms``;
    ``requirements.txt`` and ``constraints.txt``; and in ``models`` the weights as they are, their recipe to read
    (``recipe.json``; the one in the weights counts), the run's resolved config, and ``provenance.json``. The same input
    gives the same bytes. Before anything is written, the weights are verified, built by the bundle's own
    ``inference.json``, and translate something.

    Args:
        output: the zip file.
        checkout: folder of this project's source code.
        run_dir: folder of a finished training.
        model: in place of a run, a model file such as ``scripts/import_weights.py`` writes; no config goes with it.
        data_source: what it was trained on; may be left out for a run on the phantom.
        overwrite: replace the file if it exists.

    Returns:
        What ``provenance.json`` says.

    Raises:
        FileExistsError: the file exists and may not be overwritten.
        PackagingError: the run is incomplete, its weights cannot be used, or its data must be named.
    """
    output, checkout = Path(output), Path(checkout)
    if (run_dir is None) == (model is None):
        raise PackagingError(f"either a run or a model is packaged, got run_dir {run_dir!r} and model {model!r}")
    if output.suffix != ".zip":
        raise PackagingError(f"the name of the package must end in .zip, got {output.name!r}")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already")
    bundle = checkout / "bundles" / "reggan"
    metadata = _read_json(bundle / "configs" / "metadata.json")
    run = None if run_dir is None else Path(run_dir)
    if run is not None:
        own_data = _is_own_data(run, _read_json(bundle / "configs" / "train.json"))
        data_source = data_source or (None if own_data else metadata["data_source"])
    if not data_source:
        raise PackagingError(f"say in data_source what {run or model} was trained on: the phantom it was not")
    opened = _open(Path(str(model)) if run is None else run / MODEL)
    _check_translation(opened, bundle / "configs" / "inference.json")

    files = {str(path.relative_to(bundle)): path.read_bytes() for path in _source_files(bundle, ("configs", "docs"))}
    files["LICENSE"] = (bundle / "LICENSE").read_bytes()
    for path in _source_files(checkout, CODE):
        name = path.relative_to(checkout).as_posix()
        if not name.startswith(NOT_TAKEN):
            files[name] = path.read_bytes()
    files["requirements.txt"] = _requirements(checkout)
    files["constraints.txt"] = (checkout / "constraints.txt").read_bytes()
    provenance = _provenance(opened, run, data_source, metadata["version"], checkout)
    files["configs/metadata.json"] = _json(_described(metadata, opened.recipe, provenance))
    files[f"models/{RECIPE_FILE}"] = _json(opened.recipe.content)
    files[f"models/{PROVENANCE_FILE}"] = _json(provenance)
    if run is not None:
        files[f"models/{CONFIG_FILE}"] = redact((run / CONFIG_FILE).read_text()).encode()
    weights = {f"models/{MODEL}": opened.path.read_bytes()}
    with replacing(output) as beside, zipfile.ZipFile(beside, "w") as package:
        # The weights come last: where they are damaged and unpacking stops at them, all the rest is there to say so.
        for names, method in ((files, zipfile.ZIP_DEFLATED), (weights, zipfile.ZIP_STORED)):
            for name in sorted(names):
                entry = zipfile.ZipInfo(f"{bundle.name}/{name}")  # always of the same date
                entry.compress_type = method
                entry.external_attr = 0o644 << 16
                package.writestr(entry, names[name])
    return provenance


def _is_own_data(run: Path, default: Mapping[str, Any]) -> bool:
    """Whether a run was trained on other data than the phantom; refuses runs that are not finished."""
    for path in (run / MODEL, run / CONFIG_FILE):
        if not path.is_file():
            raise PackagingError(f"{run} holds no finished training: {path.name} is missing; train first")
    config = _read_json(run / CONFIG_FILE)
    return any(config.get(name) != default[name] for name in ("dataset_dir", "datalist"))


def _open(path: Path) -> Model:
    """Read a model file, its checksums, values and recipe verified."""
    try:
        model = Model(path)
    except ModelError as error:
        raise PackagingError(f"the weights cannot be packaged: {error}") from error
    if "network" in model.content:
        raise PackagingError(
            f"{path} holds the whole state of a training, optimisers included; expected its {MODEL}, which has what "
            "translation needs"
        )
    if model.recipe["grid"]["spatial_size"] is None:
        raise PackagingError(
            f"{path} does not say at which image size it was trained, so that nobody could use the package as it is; "
            "import it again with --image-size"
        )
    return model


def _check_translation(model: Model, inference: Path) -> None:
    """Build what translates from the packaged config, and translate two slices of the size of the training."""
    recipe = model.recipe
    workflow = ConfigWorkflow([inference.resolve()], checkpoint=str(model.path), device="cpu")
    try:
        network = workflow.part("network").eval()
        translation: Translation = workflow.part("translation")
        check_image_size(recipe.spatial_size, network)
        shape = list(recipe.spatial_size)
        shape.insert(recipe.slice_axis, 2)
        noise = torch.rand(1, recipe["source"]["channels"], *shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            pred = translation.inferer(noise * 2 - 1, network)
        finite = bool(torch.isfinite(RestoreIntensity(recipe.target_window)(pred)).all())
    except (RuntimeError, ValueError) as error:
        raise PackagingError(f"the weights do not translate: {first_cause(error)}") from error
    if not finite:
        raise PackagingError(f"{model.path} translates into NaN or infinite values: the training has diverged")


def _described(metadata: Mapping[str, Any], recipe: Recipe, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's metadata, of this model."""
    described = copy.deepcopy(dict(metadata))
    described["data_source"] = provenance["data_source"]
    described["eval_metrics"] = provenance["scores"]
    source, target = (_class_of(recipe[domain], domain) for domain in ("source", "target"))
    described |= {"image_classes": source, "label_classes": f"{target}; need not be aligned with the image"}
    described["pred_classes"] = f"{target.partition(', scaled')[0]}, on the grid of the image"
    data = described["network_data_format"]
    size = list(recipe.spatial_size)
    for section, name, domain in (
        ("inputs", "image", "source"),
        ("outputs", "pred", "target"),
        ("post_processed_outputs", "pred", "target"),
    ):
        entry = data[section][name]
        entry["num_channels"] = recipe[domain]["channels"]
        if recipe[domain]["modality"] is not None:
            entry["modality"] = dicom_modality(recipe[domain]["modality"])
        if section != "post_processed_outputs":
            entry["spatial_shape"] = size
    data["inputs"]["image"]["channel_def"] = {str(channel): "image" for channel in range(recipe["source"]["channels"])}
    data["post_processed_outputs"]["pred"]["value_range"] = list(recipe.target_window)
    return described


def dicom_modality(name: str) -> str:
    """DICOM's name of a modality, which servers of images are asked for; the name itself where it is none that we know.

    Args:
        name: such as "T1-weighted MR", "CT" or "PET".
    """
    words = set(re.findall("[A-Z0-9]+", name.upper()))
    return next((modality for modality, known in MODALITIES.items() if words.intersection(known)), name)


def _class_of(domain: Mapping[str, Any], name: str) -> str:
    channels = "one channel" if domain["channels"] == 1 else f"{domain['channels']} channels"
    modality = f"{name} modality" + ("" if domain["modality"] is None else f" ({domain['modality']})")
    kind = domain["scaling"]["class"].rpartition(".")[2]
    arguments = ", ".join(f"{key} {value}" for key, value in domain["scaling"]["arguments"].items())
    return f"{channels}, {modality}, physical intensities, scaled to [-1, 1] by {kind} ({arguments})"


def _provenance(model: Model, run: Path | None, data_source: str, version: str, checkout: Path) -> dict[str, Any]:
    """Where the weights come from, as far as their recipe does not say it."""
    state = git_state(checkout / "pipeline" / "__init__.py")
    software = environment()
    provenance: dict[str, Any] = {
        "file": MODEL,
        "sha256": file_digest(model.path),
        "bundle_version": version,
        "data_source": data_source,
        "recipe": RECIPE_FILE,
        "scores": {},
        "packaged_with": {name: software[name] for name in ("python", "torch", "monai", "ignite", "numpy")},
        "packaged_at_commit": None if state is None else {"commit": state[0], "files_differ": state[1]},
    }
    if run is None:
        return provenance
    provenance["config"] = CONFIG_FILE
    provenance["scores"] |= _validation_scores(model, run / "checkpoints" / BEST)
    summary = run / "evaluation" / "summary.json"
    if summary.is_file():
        slices = _read_json(summary)["slices"]
        provenance["scores"] |= {f"test_{name}": slices[name]["mean"] for name in names_in("quality") if name in slices}
    tracked = run / "mlflow_run.json"
    if tracked.is_file():
        provenance["mlflow_run_id"] = _read_json(tracked)["run_id"]
    return provenance


def _validation_scores(model: Model, path: Path) -> dict[str, Any]:
    """The scores that the checkpoint of the same weights has; none where it is missing or of others."""
    if not path.is_file():
        return {}
    try:
        best = Model(path)
    except ModelError as error:
        raise PackagingError(f"the scores of the weights cannot be read: {error}") from error
    if best.recipe.content != model.recipe.content:
        logger.warning("%s is not of the weights in %s: the package says no validation scores", path, model.path)
        return {}
    metrics = best.content["trainer"]["best_metrics"]
    return {f"validation_{name}": metrics.get(name) for name in names_in("quality")}


def _source_files(root: Path, folders: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                yield path


def _requirements(checkout: Path) -> bytes:
    """The packages that the bundle needs: those of environment.yml, which are those of pyproject.toml."""
    entries = yaml.safe_load((checkout / "environment.yml").read_text())["dependencies"]
    [lines] = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    return "".join(f"{line}\n" for line in lines if not line.startswith("-")).encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise PackagingError(f"{path} is no JSON: {error}") from error


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()
