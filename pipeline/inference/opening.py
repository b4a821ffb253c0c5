"""A model file of whatever kind, opened for use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.inference.onnx import OnnxModel
from pipeline.inference.reference import load_reference
from pipeline.models import Model, ModelError
from pipeline.models.describing import unfold


def open_model(
    path: str | Path, given: Mapping[str, Any] | None = None, trusted_modules: Collection[str] | None = None
) -> Model | OnnxModel:
    """Open a model, whose recipe says all that its use needs.

    Args:
        path: ``model.pt``, ``best.pt`` or ``last.pt`` of a training, or an ONNX file that ``scripts/export.py`` wrote.
        given: settings that have to agree with the recipe, see `pipeline.models.Recipe.agree`.
        trusted_modules: modules beside the project's whose classes the recipe may name.

    Raises:
        ModelError: the file cannot be used.
        ContradictionError: a setting is another than the recipe's; the message names each, with both values.
    """
    path = Path(str(path)).expanduser()
    trusted = [trusted_modules] if isinstance(trusted_modules, str) else list(trusted_modules or ())
    translator = (given or {}).get("translator")
    if isinstance(translator, str) and "." in translator:
        trusted.append(translator.rpartition(".")[0])  # whoever names a class vouches for it
    if not path.exists():
        raise ModelError(
            f"checkpoint {path} does not exist: train first (python -m monai.bundle run training --config_file "
            "bundles/reggan/configs/train.json), or name a model with --checkpoint"
        )
    kind = OnnxModel if path.suffix == ".onnx" else Model
    model = kind(path, trusted)
    model.recipe = model.recipe.agree(given or {})
    return model


def build_network(
    model: Model | OnnxModel,
    registration_network: bool = False,
    style: Any = None,
    style_image: str | Path | None = None,
    **given: Any,
) -> nn.Module:
    """The network of a model, on the CPU.

    Args:
        model: see `open_model`.
        registration_network: whether to build the registration network, too, where the file has one.
        style: of MUNIT, the style code to translate with.
        style_image: of MUNIT, an image of the target modality to translate in the style of.
        given: networks by the translator's argument, which have to agree with the recipe: a dictionary with some of
            the arguments, or what builds it.

    Raises:
        ModelError: the network cannot be built, or has no style.
        ContradictionError: see `open_model`.
    """
    model.recipe = model.recipe.agree({"network_def": given})
    named = [unfold(factory)[0].__module__ for factory in given.values() if callable(factory)]
    model.recipe.trusted = (*model.recipe.trusted, *named)
    settings = {} if style is None else {"style": style}
    if style_image is not None:
        settings["reference"] = load_reference(style_image, model.recipe)
    return model.build(registration=registration_network, **settings)
