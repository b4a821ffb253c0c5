"""What an evaluation is of: a run or a model file, its data and its noise, and the settings that it must agree with."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from pipeline.bundle import CONFIG_FILE, bundle_dir, project_dir
from pipeline.data import Cases, ensure_phantom, load_cases
from pipeline.data.checks import DataError
from pipeline.inference import open_model
from pipeline.models import BEST, ModelError, Recipe
from pipeline.settings import calling_parser
from transforms.deformation import DEFAULT_AMPLITUDE

DEFAULT_RUN = "reggan"
LOADER = "pipeline.data.load_cases"
# Settings that a model knows: where a config has a plain value for one, somebody has given it.
KNOWN = (
    "backbone",
    "translator",
    "network_size",
    "spatial_dims",
    "spatial_size",
    "slice_axis",
    "orientation",
    "spacing",
    "fit",
    "foreground",
    "min_foreground",
    "source_modality",
    "target_modality",
    "source_intensity",
    "target_intensity",
)
READ = (*KNOWN, "output_dir", "run_name", "trusted_modules")
"""What is looked up in the config without a reference to it."""
NETWORKS = ("encoder", "generator", "discriminator", "registration")
logger = logging.getLogger(__name__)


class Evaluated:
    """The run that is evaluated, which says all that is not given.

    ``evaluate.json`` stands alone, or behind the chain of configs of a training, whose own defaults then count for
    nothing: only plain values that an overlay or the command line gives do, and they have to agree with the model.

    Args:
        checkpoint: file to evaluate; None for ``checkpoints/best.pt`` of the run.

    Attributes:
        checkpoint: the file.
        run_dir: the folder of the training that it is of; None where it lies elsewhere.
        output_dir: where the evaluation is written by default.
        model: the opened file.

    Raises:
        ModelError: the file cannot be used.
        ContradictionError: a setting is another than the model's.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        parser = calling_parser()
        config: Mapping[str, Any] = {} if parser is None else parser.config
        given_dir = config.get("output_dir")
        asked = Path(str(given_dir)).expanduser().absolute() if _is_given(given_dir) else None
        if checkpoint is None:
            folder = asked or project_dir() / "outputs" / _run_name(parser)
            self.checkpoint = folder / "checkpoints" / BEST
            if not self.checkpoint.is_file():
                raise ModelError(f"{folder} holds no finished training: {self.checkpoint} is missing; train first")
        else:
            self.checkpoint = Path(str(checkpoint)).expanduser().absolute()
        folder = self.checkpoint.parent
        folder = folder.parent if folder.name == "checkpoints" else folder
        # A packaged bundle keeps the config beside the weights, too, but is no run: its data are not there.
        is_run = (folder / CONFIG_FILE).is_file() and (folder / "checkpoints").is_dir()
        self.run_dir = folder if is_run else None
        self.output_dir = asked or (folder if self.run_dir is not None else project_dir() / "outputs")
        self.model = open_model(self.checkpoint, given_settings(config), config.get("trusted_modules"))

    @property
    def recipe(self) -> Recipe:
        """How the model was made."""
        return self.model.recipe

    def cases(
        self,
        dataset_dir: str | Path | None = None,
        datalist: str | Path | None = None,
        split: str = "test",
        **settings: Any,
    ) -> Cases:
        """The data set: the one that is named, or the run's own.

        Args:
            dataset_dir: folder of another data set.
            datalist: JSON file of another data set.
            split: list that is needed.
            settings: further ones of `pipeline.data.load_cases`, such as ``patient_pattern``.

        Raises:
            DataError: neither is there, or its files cannot be used.
        """
        settings = {name: value for name, value in settings.items() if value is not None}
        if dataset_dir is not None or datalist is not None:
            folder = dataset_dir if dataset_dir is not None else Path(str(datalist)).expanduser().parent
            return load_cases(folder, datalist, needed=(split,), **settings)
        if self.run_dir is None:
            raise DataError(
                [f"{self.checkpoint} lies in no folder of a run, so its data are not known: name some by --dataset_dir"]
            )
        cases = load_cases(**{**_data_of_run(self.run_dir), **settings})
        trained_on = self.recipe["training"]["data_digest"]
        if trained_on is not None and cases.digest not in (None, trained_on):
            logger.warning(
                "the data of %s have changed since the training: digest %s now, %s then",
                self.run_dir,
                cases.digest,
                trained_on,
            )
        return cases

    def noise(
        self, level: float | None = None, kind: str | None = None, amplitude: float | None = None
    ) -> dict[str, Any]:
        """The misalignment at which registration is measured: what is given, or else the training's."""
        known = self.recipe["training"]
        known = known.get("settings", {}) | known
        found = {"level": level, "kind": kind, "amplitude": amplitude}
        fallback: dict[str, Any] = {"level": 0, "kind": "affine", "amplitude": DEFAULT_AMPLITUDE}
        for name in found:
            if found[name] is None:
                of_training = known.get(f"noise_{name}")
                found[name] = fallback[name] if of_training is None else of_training
        return found


def _data_of_run(run_dir: Path) -> dict[str, Any]:
    """The settings of `load_cases` that a run's config has; as data, since the config of a run from elsewhere is code.

    Raises:
        DataError: the config cannot be read, or has expressions or a function of its own in the place.
    """
    path = run_dir / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        entries = dict(config["cases"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            [f"{path} does not say what the run was trained on ({error}): name data by --dataset_dir"]
        ) from error
    kind = entries.pop("_target_", None)
    found = {name: config.get(value[1:]) if _is_reference(value) else value for name, value in entries.items()}
    # The defaults of train.json are ours, so that what they mean is known without running what a file says.
    defaults = json.loads((bundle_dir() / "configs" / "train.json").read_text(encoding="utf-8"))
    if found.get("dataset_dir") == defaults["dataset_dir"]:
        found["dataset_dir"] = ensure_phantom(project_dir() / "data" / "phantom")
    if found.get("store") == defaults["store"]:
        found["store"] = str(project_dir() / "outputs" / "store")
    code = [f"{name} {value!r}" for name, value in found.items() if value is not None and not _is_given(value)]
    if kind != LOADER:
        code.append(f"cases#_target_ {kind!r}")
    if code:
        raise DataError([f"{path} has code for {', '.join(code)}, which is not run here: name data by --dataset_dir"])
    return {name: value for name, value in found.items() if value is not None}


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("@")


def given_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that a model knows and that somebody has given: plain values, not expressions.

    Args:
        config: as it is written, overlays and command line merged in.
    """
    found: dict[str, Any] = {name: _plain(config[name]) for name in KNOWN if name in config and _is_given(config[name])}
    networks = config.get("network_def")
    if isinstance(networks, Mapping):
        parts = {name: _plain(networks[name]) for name in NETWORKS if isinstance(networks.get(name), Mapping)}
        found["network_def"] = {name: part for name, part in parts.items() if part}
        for part in found["network_def"].values():
            part.pop("_target_", None)  # goes with the backbone
    return found


def _plain(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = {key: entry for key, entry in value.items() if _is_given(entry)}
    return {key: entry for key, entry in kept.items() if key == "_target_" or not key.startswith("_")}


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and value.startswith(("$", "@", "%")))


def _run_name(parser: ConfigParser | None) -> str:
    """Name of the run that a config means; that of a chain for training may follow from its method."""
    if parser is None or "run_name" not in parser.config:
        return DEFAULT_RUN
    return str(parser.get_parsed_content("run_name"))
