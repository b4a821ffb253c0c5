"""A trained bundle as one zip file that needs nothing of this project but the packages that it requires."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from pipeline.bundle import CONFIG_FILE, all_references, first_cause
from pipeline.files import replacing
from pipeline.models import BEST, MODEL, load_checkpoint
from pipeline.provenance import environment, git_state, redact
from pipeline.translators import Translator

CODE = ("pipeline", "transforms")
NOT_TAKEN = ("pipeline/label_app/",)  # an application beside the bundle, with an environment of its own
PROVENANCE_FILE = "provenance.json"
SCORES = ("nmae", "psnr", "ssim")


class PackagingError(ValueError):
    """A run that cannot be packaged; the message says why."""


def package_bundle(
    output: str | Path,
    run_dir: str | Path,
    checkout: str | Path,
    data_source: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a self-contained bundle with a run's weights.

    The zip file holds one folder, ``reggan``: the bundle, whose inference config builds the run's networks; the
    packages ``pipeline`` and ``transforms``; ``requirements.txt`` and ``constraints.txt``; and in ``models`` the
    weights, the run's resolved config and ``provenance.json``. The same input gives the same bytes.

    Args:
        output: the zip file.
        run_dir: folder of a finished training.
        checkout: folder of this project's source code.
        data_source: what the run was trained on; may be left out for the phantom.
        overwrite: replace the file if it exists.

    Returns:
        What ``provenance.json`` says.

    Raises:
        FileExistsError: the file exists and may not be overwritten.
        PackagingError: the run is incomplete, its weights do not fit its config, or its data must be named.
    """
    output, run_dir, checkout = Path(output), Path(run_dir), Path(checkout)
    if output.suffix != ".zip":
        raise PackagingError(f"the name of the package must end in .zip, got {output.name!r}")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already")
    bundle = checkout / "bundles" / "reggan"
    weights = run_dir / MODEL
    for path in (weights, run_dir / CONFIG_FILE):
        if not path.is_file():
            raise PackagingError(f"{run_dir} holds no finished training: {path.name} is missing; train first")
    config = _read_json(run_dir / CONFIG_FILE)
    files = {str(path.relative_to(bundle)): path.read_bytes() for path in _source_files(bundle, ("configs", "docs"))}
    files["LICENSE"] = (bundle / "LICENSE").read_bytes()
    for path in _source_files(checkout, CODE):
        name = path.relative_to(checkout).as_posix()
        if not name.startswith(NOT_TAKEN):
            files[name] = path.read_bytes()
    files["requirements.txt"] = _requirements(checkout)
    files["constraints.txt"] = (checkout / "constraints.txt").read_bytes()

    inference = with_networks_of(config, _read_json(bundle / "configs" / "inference.json"))
    network = _check_weights(inference, weights)
    metadata = _read_json(bundle / "configs" / "metadata.json")
    if data_source is None and _is_own_data(config, _read_json(bundle / "configs" / "train.json")):
        raise PackagingError(
            f"the run was trained on data of its own (dataset_dir {config.get('dataset_dir')!r}): say in data_source "
            "which they are"
        )
    provenance = _provenance(run_dir, network, data_source or metadata["data_source"], metadata["version"], checkout)
    metadata["data_source"] = provenance["data_source"]
    metadata["eval_metrics"] = provenance["scores"]
    files["configs/inference.json"] = _json(inference)
    files["configs/metadata.json"] = _json(metadata)
    files[f"models/{MODEL}"] = weights.read_bytes()
    files[f"models/{CONFIG_FILE}"] = redact((run_dir / CONFIG_FILE).read_text()).encode()
    files[f"models/{PROVENANCE_FILE}"] = _json(provenance)
    with replacing(output) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as package:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{bundle.name}/{name}")  # always of the same date
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            package.writestr(entry, files[name])
    return provenance


def with_networks_of(training: Mapping[str, Any], inference: Mapping[str, Any]) -> dict[str, Any]:
    """An inference config that builds the networks of a training, and sees images as it did.

    Args:
        training: the resolved config of the run.
        inference: ``inference.json``; its empty ``weights`` stay, so that only what translation needs is built.
    """
    config = dict(inference)
    taken = ["network_def", "source_intensity", "slice_axis"]
    while taken:
        name = taken.pop()
        if name not in training or name == "weights":
            continue
        config[name] = training[name]
        taken += [ReferenceResolver.split_id(reference)[0] for reference in all_references(training[name])]
    return config


def _check_weights(inference: Mapping[str, Any], weights: Path) -> Translator:
    """Build the network from the packaged config, load the weights strictly, and translate something."""
    parser = ConfigParser({**inference, "checkpoint": str(weights), "device": "cpu"})
    try:
        network = parser.get_parsed_content("network").eval()
        with torch.no_grad():
            finite = bool(torch.isfinite(network(network.example_input())).all())
    except (RuntimeError, ValueError) as error:
        raise PackagingError(f"the weights do not fit the run's config: {first_cause(error)}") from error
    if not finite:
        raise PackagingError(f"{weights} translates into NaN or infinite values: the training has diverged")
    return network


def _provenance(run_dir: Path, network: Translator, data_source: str, version: str, checkout: Path) -> dict[str, Any]:
    weights = run_dir / MODEL
    state = git_state(checkout / "pipeline" / "__init__.py")
    software = environment()
    provenance: dict[str, Any] = {
        "file": MODEL,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bundle_version": version,
        "trained_as": network.signature,
        "trained_size": [size for size in network.trained_size.tolist() if size > 0],
        "target_window": network.target_window.tolist(),
        "data_source": data_source,
        "config": CONFIG_FILE,
        "scores": {},
        "packaged_with": {name: software[name] for name in ("python", "torch", "monai", "ignite", "numpy")},
        "packaged_at_commit": None if state is None else {"commit": state[0], "files_differ": state[1]},
    }
    best = run_dir / "checkpoints" / BEST
    if best.is_file():
        position = load_checkpoint(best)["trainer"]
        provenance["training"] = {key: position[key] for key in ("epoch", "iteration")}
        provenance["scores"] |= {f"validation_{name}": position["best_metrics"].get(name) for name in SCORES}
    summary = run_dir / "evaluation" / "summary.json"
    if summary.is_file():
        slices = _read_json(summary)["slices"]
        provenance["scores"] |= {f"test_{name}": slices[name]["mean"] for name in SCORES if name in slices}
    tracked = run_dir / "mlflow_run.json"
    if tracked.is_file():
        provenance["mlflow_run_id"] = _read_json(tracked)["run_id"]
    return provenance


def _is_own_data(config: Mapping[str, Any], default: Mapping[str, Any]) -> bool:
    return any(config.get(name) != default[name] for name in ("dataset_dir", "datalist"))


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
