"""What a derived DICOM series says of the model that made it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.files import file_digest
from pipeline.inference.onnx import OnnxModel
from pipeline.io import Derivation
from pipeline.models import Model, Recipe
from pipeline.provenance import git_state

METADATA = Path("configs") / "metadata.json"


def derivation_of(model: Model | OnnxModel, bundle_root: str | Path) -> Derivation:
    """How volumes come out of a model, for `pipeline.io.write_series`.

    Args:
        model: that translates.
        bundle_root: folder of the bundle, whose ``metadata.json`` says its version.
    """
    return derivation(model.recipe, file_digest(model.path), bundle_root)


def derivation(recipe: Recipe, sha256: str, bundle_root: str | Path) -> Derivation:
    """How volumes come out of a model of which only the recipe is at hand.

    Args:
        recipe: of the model.
        sha256: of the model's file, in hexadecimal.
        bundle_root: see `derivation_of`.
    """
    target = str(recipe["target"]["modality"] or "")
    scaling = str(recipe["target"]["scaling"]["class"])
    ct = scaling.rpartition(".")[2].startswith("ScaleCT") or target.upper().startswith(("CT", "SCT"))
    name = str(recipe["method"] or recipe["backbone"])
    top = None if ct else recipe.target_window[1]
    return Derivation(name, _version(Path(bundle_root)), sha256, target, "CT" if ct else "MR", top)


def _version(bundle_root: Path) -> str:
    """Version of the bundle and, from a checkout, its commit."""
    try:
        version = str(json.loads((bundle_root / METADATA).read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        version = "unknown"
    state = git_state(Path(__file__))
    return version if state is None else f"{version}+{state[0][:10]}{'.changed' if state[1] else ''}"
