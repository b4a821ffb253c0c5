"""Whether drift that is measured without aligned pairs is the displacement that aligned pairs show: many checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from pipeline.files import save_tensors
from pipeline.workflow import ConfigWorkflow

# What moves and what does not: by name, the overlay, and the adversarial weight, which holds the geometry.
VARIANTS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "affine-free": (("affine.json",), 0.0),
    "reggan-free": ((), 0.0),
    "affine-held": (("affine.json",), 1.0),
    "reggan-held": ((), 1.0),
}
# Those of the noise study's preset "cpu".
SETTINGS: Mapping[str, Any] = {
    "fit": "resize",
    "foreground": "above-background",
    "spatial_size": [64, 64],
    "batch_size": 4,
    "learning_rate": 0.001,
    "network_def#registration#channels": [16, 32, 32, 32],
    "noise_level": 5,
    "tracking_uri": "none",
}


@dataclass(frozen=True)
class Run:
    """One training of which checkpoints are kept."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant}-seed{self.seed}"

    def workflow(self, folder: Path, epochs: int, settings: Mapping[str, Any]) -> ConfigWorkflow:
        """The training, and what belongs to it."""
        overlays, adversarial = VARIANTS[self.variant]
        return ConfigWorkflow(
            ["train.json", *overlays, "augmentation.json"],
            **{
                **SETTINGS,
                "max_epochs": epochs,
                "val_interval": epochs,
                "picture_interval": epochs,
                "weights#adversarial": adversarial,
                "seed": self.seed,
                "output_dir": str(folder / self.name),
                **settings,
            },
        )


def train(run: Run, folder: Path, epochs: int, every: int, settings: Mapping[str, Any]) -> None:
    """Train, and keep the weights that inference uses every so many epochs; nothing is done for what is there."""
    if kept(run, folder, epochs).is_file():
        return
    workflow = run.workflow(folder, epochs, settings)
    workflow.initialize()
    trainer: Engine = workflow.part("train#trainer")
    network = workflow.part("network")

    @trainer.on(Events.EPOCH_COMPLETED(every=every))
    def keep(engine: Engine) -> None:
        save_tensors(network.inference_state_dict(), kept(run, folder, engine.state.epoch))

    workflow.run()


def kept(run: Run, folder: Path, epoch: int) -> Path:
    """Where the weights of an epoch are."""
    return folder / run.name / f"epoch{epoch}.pt"
