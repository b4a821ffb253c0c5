"""Pictures of translations, during training and of an evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from pipeline.handlers.seeding import own_random_state
from pipeline.metrics import foreground_mask, psnr
from pipeline.reporting.drawing import draw_translation
from pipeline.reporting.samples import Sample, batch_samples, evenly_spread, write_samples
from pipeline.translators import Translator
from transforms.scale import DATA_RANGE

SEED = 0  # of the pictures' own randomness
# What the evaluator's output holds for a picture.
SHOWN = ("image", "label", "pred", "intensity_map", "case", "slice")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module has its own mode again, frozen ones too."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class PictureHandler:
    """Draw the same few validation slices every few epochs, to watch a translator learn.

    Writes ``output_dir/pictures/epoch_0005.png`` each ``interval`` epochs and after the last. Training is not
    disturbed: the network keeps its mode, and every random state is what it was.

    Args:
        output_dir: the run's folder.
        dataset: of aligned pairs, items ``image`` and ``label`` (C, X, Y) in [-1, 1], ``case`` and ``slice``.
            The slices are spread evenly over it.
        network: the translator. Where it has a registration network, misaligned targets are shown, and how it warps the
            predictions onto them.
        interval: epochs between pictures.
        rows: number of slices.
        noise: transform that misaligns a batch, as in training; works on a copy with its own fixed seed, so that all
            pictures of a run show the same misalignment. None shows the registration with the aligned targets.
        device: of the network, default where its parameters are.
        error_limit: end of the error scale, the same in all pictures, see ``draw_translation``.

    Raises:
        ValueError: if ``interval`` or ``rows`` is not positive.
    """

    def __init__(
        self,
        output_dir: str | Path,
        dataset: Any,
        network: Translator,
        interval: int = 1,
        rows: int = 4,
        noise: Any | None = None,
        device: torch.device | str | None = None,
        error_limit: float = 0.5,
    ) -> None:
        for name, value in (("interval", interval), ("rows", rows)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.folder = Path(output_dir) / "pictures"
        self.dataset = dataset
        self.network = network
        self.interval = interval
        self.rows = rows
        self.noise = copy.deepcopy(noise)
        self.device = torch.device(device) if device is not None else next(network.parameters()).device
        self.error_limit = error_limit
        self._batch: dict[str, Any] = {}
        self._last_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
            # Also where training was stopped early.
            engine.add_event_handler(Events.COMPLETED, self._after_training)

    def _after_epoch(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self(engine)

    def _after_training(self, engine: Engine) -> None:
        if engine.state.epoch > self._last_epoch:
            self(engine)

    def __call__(self, engine: Engine) -> None:
        """Draw the picture of ``engine.state.epoch``.

        Raises:
            ValueError: if the dataset is empty.
        """
        epoch = engine.state.epoch
        title = f"Validation after epoch {epoch}, iteration {engine.state.iteration}"
        with own_random_state(SEED, self.device), _evaluating(self.network):
            samples = batch_samples(self._translate())
        draw_translation(samples, self.folder / f"epoch_{epoch:04d}.png", title, self.error_limit)
        self._last_epoch = epoch

    def _translate(self) -> dict[str, Any]:
        if not self._batch:
            self._batch = self._load()
        batch = {
            key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in self._batch.items()
        }
        batch["pred"] = self.network(batch["image"])
        batch["psnr"] = psnr(batch["pred"], batch["label"], data_range=DATA_RANGE, mask=foreground_mask(batch["label"]))
        if getattr(self.network, "registration", None) is not None:
            fixed = batch["label"]
            if self.noise is not None:
                self.noise.set_random_state(seed=SEED)
                fixed = batch["misaligned"] = self.noise({"image": batch["image"], "label": batch["label"]})["label"]
            batch["warped"], batch["ddf"] = self.network.register(batch["pred"], fixed)
        return batch

    def _load(self) -> dict[str, Any]:
        if not len(self.dataset):
            raise ValueError("the dataset to draw pictures of is empty")
        items = [self.dataset[index] for index in evenly_spread(len(self.dataset), self.rows)]
        return {
            "image": torch.stack([torch.as_tensor(item["image"]) for item in items]),
            "label": torch.stack([torch.as_tensor(item["label"]) for item in items]),
            "case": [item["case"] for item in items],
            "slice": [item["slice"] for item in items],
        }


class EvaluationPictures:
    """Draw error maps of some of an evaluation's cases, beside those of the intensity map, and keep what they show.

    When an evaluation is over it writes ``output_dir/pictures/error_maps.png``, with the PSNR that it measured, and
    ``output_dir/samples.npz``, from which other pictures of the same N slices can be drawn: ``image``, ``label`` and
    ``pred``, (N, X, Y) float32 in [-1, 1], ``case`` (N,) text, ``slice`` (N,) whole numbers, and ``psnr`` (N,), nan
    where it was not measured.

    Args:
        output_dir: the run's folder.
        count: at most so many cases, spread evenly over those evaluated.

    Raises:
        ValueError: if ``count`` is not positive.
    """

    def __init__(self, output_dir: str | Path, count: int = 8) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.path = Path(output_dir) / "pictures" / "error_maps.png"
        self.samples_path = Path(output_dir) / "samples.npz"
        self.count = count
        self._forget()

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._forget)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
            engine.add_event_handler(Events.COMPLETED, self)

    def _forget(self) -> None:
        self._samples: list[tuple[int, Sample]] = []
        self._seen, self._stride = 0, 1

    def _collect(self, engine: Engine) -> None:
        # How many will come is not known: keep each stride-th, and thin out by half whenever they become too many.
        output = engine.state.output
        for index in range(len(output["case"])):
            if self._seen % self._stride == 0:
                item = {key: output[key][index : index + 1] for key in SHOWN if key in output}
                self._samples += [(self._seen, sample) for sample in batch_samples(item)]
            self._seen += 1
            if len(self._samples) > 4 * self.count:
                self._samples, self._stride = self._samples[::2], 2 * self._stride

    def __call__(self, engine: Engine) -> None:
        """Draw and write what was collected; nothing where nothing was evaluated."""
        details = engine.state.metric_details
        scores = {"psnr": details.get("psnr"), "baseline_psnr": details.get("intensity_map_psnr")}
        known = {name: values for name, values in scores.items() if values is not None}
        samples = []
        for chosen in evenly_spread(len(self._samples), self.count):
            number, sample = self._samples[chosen]
            measured: dict[str, Any] = {name: float(values[number]) for name, values in known.items()}
            samples.append(replace(sample, **measured))
        if samples:
            draw_translation(samples, self.path, f"{len(samples)} of {self._seen} evaluated slices")
            write_samples(samples, self.samples_path)
