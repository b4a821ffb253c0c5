"""Whether drift measured without aligned pairs is the displacement that aligned pairs show: many checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from pipeline.engines.drift import drift, mean_displacement
from pipeline.files import replacing
from pipeline.metrics.catalogue import names_in
from pipeline.models import Model
from pipeline.networks.affine import register_affine
from pipeline.tensors import save_tensors
from pipeline.workflow import ConfigWorkflow

# By name, the overlays, and the adversarial weight: without that term nothing holds the geometry of G.
VARIANTS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "affine-free": (("affine.json",), 0.0),
    "reggan-free": ((), 0.0),
    "affine-held": (("affine.json",), 1.0),
    "reggan-held": ((), 1.0),
}
TITLES = {
    "affine-free": "reggan-affine, no adversarial term",
    "reggan-free": "reggan, no adversarial term",
    "affine-held": "reggan-affine",
    "reggan-held": "reggan",
}
# Those of the noise study's preset "cpu", at its highest level.
SETTINGS: Mapping[str, Any] = {
    "fit": "resize",
    "foreground": "above-background",
    "spatial_size": [64, 64],
    "batch_size": 4,
    "learning_rate": 0.001,
    "network_def#registration#channels": [16, 32, 32, 32],
    "noise_level": 5,
    "weights#correction": 20,
    "weights#smoothness": 10,
    "tracking_uri": "none",
}
TABLE, PICTURE = "checkpoints.csv", "drift.png"
DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Run:
    """One training of which the weights of every epoch are kept.

    Attributes:
        variant: among ``VARIANTS``.
        seed: of the training.
    """

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

    def kept(self, folder: Path, epoch: int) -> Path:
        """Where the weights of an epoch are."""
        return folder / self.name / f"epoch{epoch}.pt"


def train(run: Run, folder: Path, epochs: int, settings: Mapping[str, Any]) -> None:
    """Train, and keep the weights of every epoch that inference uses; nothing is done where all are there."""
    if run.kept(folder, epochs).is_file():
        return
    workflow = run.workflow(folder, epochs, settings)
    workflow.initialize()
    trainer: Engine = workflow.part("train#trainer")
    network = workflow.part("network")

    def keep(engine: Engine) -> None:
        save_tensors(network.inference_state_dict(), run.kept(folder, engine.state.epoch))

    trainer.add_event_handler(Events.EPOCH_COMPLETED, keep)
    workflow.run()


def measure(
    run: Run, folder: Path, epochs: int, settings: Mapping[str, Any], every: int = 1
) -> Iterator[dict[str, Any]]:
    """For every so many epochs, drift without the targets and displacement by them; means over the validation slices.

    Yields:
        ``run``, ``variant``, ``seed``, ``epoch``; what `pipeline.engines.drift.drift` finds; ``displacement`` in
        pixels, by the affine map that carries G(x) onto the aligned target, their contrast being the same.
    """
    data = run.workflow(folder, epochs, settings).part("validate#dataset")
    for epoch in range(every, epochs + 1, every):
        network = Model(run.kept(folder, epoch)).build().eval()
        found: dict[str, list[torch.Tensor]] = {name: [] for name in (*names_in("drift"), "displacement")}
        with torch.no_grad():
            for batch in DataLoader(data, batch_size=16):
                source, pred = batch["image"], network(batch["image"])
                values = drift(network, source, pred)
                # Where G puts what should be at p: its output at p plus this is the target at p.
                values["displacement"] = mean_displacement(register_affine(pred, batch["label"])[0], source)
                for name, value in values.items():
                    found[name].append(value)
        means = {name: float(torch.cat(values).nanmean()) for name, values in found.items()}
        yield {"run": run.name, "variant": run.variant, "seed": run.seed, "epoch": epoch, **means}


def agreement(table: pd.DataFrame, name: str = "drift") -> tuple[float, float, float]:
    """Pearson's r of a measure and the displacement over all checkpoints, with a 95 % interval.

    Checkpoints of one run are like each other: the bootstrap draws runs, with all their checkpoints.

    Args:
        table: rows of `measure`.
        name: the measure's column.

    Returns:
        r, and the ends of its interval; nan where it has none.
    """
    runs = [part[[name, "displacement"]].to_numpy() for _, part in table.groupby("run")]
    draw = np.random.default_rng(0)

    def r(pairs: np.ndarray) -> float:
        return float(np.corrcoef(pairs.T)[0, 1])

    drawn = [r(np.concatenate([runs[at] for at in draw.integers(len(runs), size=len(runs))])) for _ in range(DRAWS)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return r(np.concatenate(runs)), float(low), float(high)


def run_study(
    folder: Path, seeds: Sequence[int], epochs: int, settings: Mapping[str, Any], every: int = 1
) -> pd.DataFrame:
    """Train what is not trained, measure all, and write the table and the picture; returns the table."""
    runs = [Run(variant, seed) for seed in seeds for variant in VARIANTS]
    for run in runs:
        train(run, folder, epochs, settings)
    table = pd.DataFrame([row for run in runs for row in measure(run, folder, epochs, settings, every)])
    with replacing(folder / TABLE) as path:
        table.to_csv(path, index=False, float_format="%.6g")
    with replacing(folder / PICTURE) as path:
        draw(table).savefig(path, dpi=120, format="png")
    return table


def draw(table: pd.DataFrame) -> Figure:
    """Drift against displacement, one point for each checkpoint, on logarithmic axes."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    for number, (variant, part) in enumerate(table.groupby("variant", sort=False)):
        axes.scatter(part["displacement"], part["drift"], s=22, color=f"C{number}", label=TITLES[str(variant)])
    both = table[["displacement", "drift"]].to_numpy()
    ends = [0.8 * both.min(), 1.25 * both.max()]
    axes.plot(ends, ends, color="grey", linewidth=0.8, label="equal")
    r, low, high = agreement(table)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=ends,
        ylim=ends,
        xlabel="displacement by the aligned targets (pixels)",
        ylabel="drift, without targets (pixels)",
        title=f"{len(table)} checkpoints of {table['run'].nunique()} runs: r {r:.2f} ({low:.2f} to {high:.2f})",
    )
    axes.legend()
    return figure
