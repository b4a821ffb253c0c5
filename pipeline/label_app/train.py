"""Training on the pairs of the studies, with the bundle's own `train.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list

from pipeline.bundle import CONFIG_FILE
from pipeline.errors import first_cause
from pipeline.files import replacing
from pipeline.io import name_of
from pipeline.label_app.infer import WEIGHTS, keep_previous, request_device
from pipeline.label_app.uploads import DEFAULT_LIMIT, check_volume
from pipeline.metrics.catalogue import names_in
from pipeline.models import MODEL, Model, file_digest
from pipeline.packaging import PROVENANCE_FILE
from pipeline.provenance import redact
from pipeline.settings import SETTINGS

STATS_FILE = "label_stats.json"
DEFAULTS: dict[str, Any] = {"max_epochs": 11, "val_split": 0.2, "noise_level": 0, "pretrained": True}
"""Settings of a training that a client may give, beside ``device`` and ``tracking``."""

CHECKED = (
    replace(SETTINGS["max_epochs"], most=100_000),
    replace(SETTINGS["noise_level"], kind="whole", none=False),
)
"""Settings that a client may give in a narrower range than a command line."""


def training_settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training out of a client's request; what else is in there is left aside.

    Raises:
        ValueError: naming the first setting that is out of its range, its value and what was expected.
    """
    settings = {name: request.get(name, default) for name, default in DEFAULTS.items()}
    for setting in CHECKED:
        fault = setting.fault(settings[setting.name])
        if fault:
            raise ValueError(fault)
    split = settings["val_split"]
    if isinstance(split, bool) or not isinstance(split, int | float) or not 0 < split < 1:
        raise ValueError(f"val_split must lie in (0, 1), got {split!r}")
    if not isinstance(settings["pretrained"], bool):
        raise ValueError(f"pretrained must be true or false, got {settings['pretrained']!r}")
    tracking = request.get("tracking", "mlflow")
    tracking = tracking[0] if isinstance(tracking, list) and tracking else tracking
    if str(tracking).lower() not in ("mlflow", "none", ""):
        raise ValueError(f"tracking must be 'mlflow' or 'None', got {tracking!r}")
    settings["tracking"] = str(tracking).lower() == "mlflow"
    settings["device"] = request_device(request.get("device"))
    return settings


class Publisher:
    """Hand each epoch's weights over to the server when they are the best so far, and keep count of the epochs.

    The server may kill a training at any time; what was best until then is in use by then. Beside the weights lie the
    config of the run and ``provenance.json``, which says what they are, in place of those of a packaged bundle. What
    was there before the training is kept in ``previous/``.

    Args:
        source: ``model.pt`` of the run, written by `pipeline.handlers.CheckpointHandler`; attach behind that.
        target: the bundle's weights.
        stats: file for the state of the training, which the server shows.
        pairs: how many pairs of the studies it trains on, validation included.
    """

    def __init__(self, source: str | Path, target: str | Path, stats: str | Path, pairs: int) -> None:
        self.source, self.target, self.stats = Path(source), Path(target), Path(stats)
        self.pairs = pairs
        self._started_from: str | None = None
        self._set_aside = False

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._publish)

    def _publish(self, engine: Engine) -> None:
        state = engine.state
        metrics = {name: float(value) for name, value in state.best_metrics.items()}
        if state.best_epoch == state.epoch:
            if not self._set_aside and self.target.is_file():
                self._started_from = file_digest(self.target)
                keep_previous(self.target, CONFIG_FILE, PROVENANCE_FILE)
            self._set_aside = True
            provenance = {
                "file": self.target.name,
                "sha256": file_digest(self.source),
                "trained_by": f"MONAI Label {metadata.version('monailabel')}",
                "data_source": f"{self.pairs} pairs of the server's studies, validation included",
                "started_from_sha256": self._started_from,
                "config": CONFIG_FILE,
                "training": {"epoch": state.epoch, "iteration": state.iteration},
                "scores": {f"validation_{name}": metrics.get(name) for name in names_in("quality")},
            }
            with replacing(self.target) as path:
                shutil.copyfile(self.source, path)
            with replacing(self.target.with_name(CONFIG_FILE)) as path:
                path.write_text(redact(self.source.with_name(CONFIG_FILE).read_text()))
            with replacing(self.target.with_name(PROVENANCE_FILE)) as path:
                path.write_text(json.dumps(provenance, indent=4) + "\n")
        with replacing(self.stats) as path:
            content = {
                "epoch": state.epoch,
                "max_epochs": state.max_epochs,
                "best_epoch": state.best_epoch,
                "best_metrics": metrics,
            }
            path.write_text(json.dumps(content) + "\n")


class TranslationTrainTask(BundleTrainTask):
    """MONAI Label's bundle training, set up the way `train.json` wants it.

    The pairs go in as a datalist, so that every fault of theirs is found and said before training, and the number of
    epochs as the knob that the schedules follow too.

    Args:
        name: of the bundle.
        path: folder of the bundle.
        conf: what ``--conf`` gave.
        output_dir: of the run.
        tracking_uri: MLflow store; None for that of the bundle.
    """

    def __init__(
        self, name: str, path: str | Path, conf: dict[str, str], output_dir: Path, tracking_uri: str | None = None
    ) -> None:
        self.name = name
        self.output_dir = output_dir
        self.tracking_uri = tracking_uri
        self.weights = Path(path) / WEIGHTS
        self._limit = int(conf.get("max_volume_mb") or DEFAULT_LIMIT)
        super().__init__(str(path), conf, enable_tracking=True, load_strict=True)

    def config(self) -> dict[str, Any]:
        """The settings that a client can give, with their defaults."""
        return {"device": device_list(), **DEFAULTS, "tracking": ["mlflow", "None"]}

    def stats(self) -> dict[str, Any]:
        """How far the training is, or how the last one ended."""
        try:
            return json.loads((self.output_dir / STATS_FILE).read_text())
        except (OSError, ValueError):
            return {}

    def check_start(self, settings: Mapping[str, Any]) -> None:
        """Check that the weights which a training would start from can be used.

        Args:
            settings: see `training_settings`.

        Raises:
            ModelError: if they cannot.
        """
        if self._goes_on(settings):
            Model(self.weights).build()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train on all pairs of the datastore, and use the new weights from then on.

        Raises:
            ValueError: if a setting cannot be used.
            RuntimeError: if the training failed; its message is the first cause.
        """
        self._settings = training_settings(request)
        (self.output_dir / STATS_FILE).unlink(missing_ok=True)
        try:
            return super().__call__({"model": self.name, "device": self._settings["device"]}, datastore)
        except Exception as error:
            # The server shows the last lines of the log: say what matters behind MONAI's trace.
            raise RuntimeError(f"training failed: {first_cause(error)}") from error

    def _partition_datalist(
        self, datalist: list[dict[str, str]], request: Any, shuffle: bool = False
    ) -> tuple[list[dict[str, str]], None]:
        return datalist, None  # train.json draws the validation pairs

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        """The bundle's `train.json` loads them itself, see ``start_from`` there."""

    def _goes_on(self, settings: Mapping[str, Any]) -> bool:
        return settings["pretrained"] and self.weights.is_file()

    def _starting_point(self) -> Path:
        """The weights in use; where they are of the last training here, its own copy of them.

        Beside that lies the checkpoint with the networks that only training has, such as the discriminator.
        """
        own = self.output_dir / MODEL
        return own if own.is_file() and file_digest(own) == file_digest(self.weights) else self.weights

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        settings = self._settings
        self.output_dir.mkdir(parents=True, exist_ok=True)
        pairs = [{**pair, "patient": name_of(pair["image"])} for pair in overrides["train#dataset#data"]]
        for pair in pairs:  # before a library opens them, as with what is translated
            for kind in ("image", "label"):
                check_volume(pair[kind], self._limit)
        datalist = self.output_dir / "label_datalist.json"
        datalist.write_text(json.dumps({"training": pairs}, indent=2) + "\n")
        publisher = {
            "_target_": f"{__name__}.{Publisher.__name__}",
            "source": "$@run_folder.output_dir / 'model.pt'",
            "target": str(self.weights),
            "stats": str(self.output_dir / STATS_FILE),
            "pairs": len(pairs),
        }
        ours: dict[str, Any] = {
            "bundle_root": self.bundle_path,
            "dataset_dir": str(self.output_dir),
            "datalist": str(datalist),
            "cases#validation_fraction": settings["val_split"],
            "output_dir": str(self.output_dir),
            "run_name": f"{self.name}-label",
            "experiment_name": self.name,
            "device": settings["device"],
            "max_epochs": settings["max_epochs"],
            "noise_level": settings["noise_level"],
            "train#handlers": [*self.bundle_config["train"]["handlers"], publisher],
        }
        if not settings["tracking"]:
            ours["tracking_uri"] = "none"
        elif self.tracking_uri:
            ours["tracking_uri"] = self.tracking_uri
        if self._goes_on(settings):
            ours["start_from"] = str(self._starting_point())
        overrides.clear()
        overrides.update(ours)
        return overrides
