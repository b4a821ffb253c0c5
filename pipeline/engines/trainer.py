"""The one trainer of all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.workflow import Workflow
from monai.utils import CommonKeys
from torch import Tensor
from torch.optim import Optimizer

from pipeline.engines.acceleration import Compiled, check_compile
from pipeline.engines.batch import PrepareBatch
from pipeline.engines.memory import kept_memory
from pipeline.engines.processes import average_gradients, draw_for_all
from pipeline.losses import WeightedSum
from pipeline.translators import Translator

Tensors = dict[str, Tensor]


class TranslationTrainer(Trainer):
    """Adversarial training of a translator, one Ignite iteration per batch.

    A step minimises the weighted sum of the generator's terms, then that of the discriminator's (paper, equation 7).
    The generator runs once: the discriminator is trained on the same prediction, detached. The discriminator's
    parameters take no part in the generator's graph. Nothing is copied to the host: ``engine.state.output["losses"]``
    holds scalars on the device, which handlers fetch together when they need them: the loss terms, and what a
    registration tells of itself.

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: yields dictionaries with ``image`` and ``label``, (B, C, *spatial) in [-1, 1].
        network: the translator, on ``device``.
        generator_optimizer: owns ``network.generator_parameters()``.
        discriminator_optimizer: owns ``network.discriminator_parameters()``; None where the translator has none.
        weights: weight of each loss term, as given to the translator.
        prepare_batch: moves and transforms a batch, see ``PrepareBatch``.
        inferer: kept for MONAI's workflow properties; a training step always runs on the whole input.
        train_handlers: Ignite handlers.
        epoch_length: iterations per epoch, default all of the loader's.
        amp: run the networks under ``torch.autocast`` in bfloat16, which needs no loss scaling.
        compile: how a step is run, see `pipeline.engines.acceleration.COMPILE`; "off" as it is written. What cannot be
            done here is said with the reason, and left out.
        channels_last: keep the weights and images of two-dimensional networks with the channels last.
        accumulation: batches of one step of both optimisers, which is then that of one batch with all their samples
            (where terms are means over a batch, as all here are). The last step of an epoch has the batches that are
            left. What is drawn at random is drawn for each batch.

    Attributes:
        stepped: whether the last iteration ended in a step of the optimisers.

    Raises:
        ValueError: if the translator has a discriminator and no optimiser for it, or the reverse; if accumulation is
            below 1, or above it with CUDA graphs, which write gradients over those of the batch before.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Mapping[str, Any]],
        network: Translator,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer | None,
        weights: Mapping[str, float],
        prepare_batch: Callable[..., dict[str, Any]] | None = None,
        inferer: Callable[..., Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
        epoch_length: int | None = None,
        amp: bool = False,
        compile: str = "off",  # noqa: A002 - the setting's name
        channels_last: bool = False,
        accumulation: int = 1,
    ) -> None:
        self.network = network
        self.compile = check_compile(compile)
        if accumulation < 1:
            raise ValueError(f"accumulation must be at least 1 batch, got {accumulation}")
        if accumulation > 1 and self.compile == "reduce-overhead":
            raise ValueError(f"accumulation must be 1 where compile is reduce-overhead, got {accumulation}")
        self.accumulation = accumulation
        self.stepped = False
        self.channels_last = channels_last
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.weighted_sum = WeightedSum(dict(weights))
        self.inferer = inferer
        self._discriminator_parameters = list(network.discriminator_parameters())
        if bool(self._discriminator_parameters) != (discriminator_optimizer is not None):
            has, given = bool(self._discriminator_parameters), discriminator_optimizer is not None
            raise ValueError(f"translator has a discriminator: {has}; discriminator_optimizer given: {given}")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            non_blocking=True,
            prepare_batch=prepare_batch or PrepareBatch(),
            handlers=train_handlers,
            amp=amp,
            decollate=False,
        )
        terms = _Terms(network, torch.device(device), amp)
        self._generator_terms: Callable[..., Any] = terms.of_generator
        self._discriminator_terms: Callable[..., Any] = terms.of_discriminator
        self._begun = False

    def run(self) -> None:
        """Train until ``max_epochs``."""
        # Not Trainer.run: it makes a gradient scaler, which bfloat16 does not need.
        with kept_memory(self.state.device):
            Workflow.run(self)

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        self.network.train()
        if not self._begun:
            self._begin()
        if self.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # what the step before gave back may be overwritten now
        tensors = {name: self._laid_out(value) for name, value in batch.items() if isinstance(value, Tensor)}

        self._first, self.stepped, self._share = self._place_in_step()
        self._train_discriminator(False)
        outputs, generator_terms = self._generator_terms(tensors | draw_for_all(self.network.draw, tensors))
        self._update(self.generator_optimizer, generator_terms)

        outputs = {name: output.detach() for name, output in outputs.items()}
        discriminator_terms: Tensors = {}
        if self.discriminator_optimizer is not None:
            self._train_discriminator(True)
            discriminator_terms = self._discriminator_terms(tensors, dict(self.network.shown(outputs)))
            self._update(self.discriminator_optimizer, discriminator_terms)

        facts = {name: outputs.pop(name) for name in list(outputs) if name.startswith("registration/")}
        losses = {f"generator/{name}": term.detach() for name, term in generator_terms.items()}
        losses |= {f"discriminator/{name}": term.detach() for name, term in discriminator_terms.items()} | facts
        return {CommonKeys.IMAGE: batch["image"], CommonKeys.LABEL: batch["label"], **outputs, "losses": losses}

    def _begin(self) -> None:
        """Before the first step, when a run that is resumed has its state."""
        self._begun = True
        if self.channels_last:
            self._lay_out_weights()
        if self.compile != "off":
            self._generator_terms = Compiled(self._generator_terms, self.compile)
            self._discriminator_terms = Compiled(self._discriminator_terms, self.compile)

    def _lay_out_weights(self) -> None:
        """Weights with channels last, and what an optimiser that was resumed keeps of them likewise."""
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        for module in self.network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.to(**layout)
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            for parameter, kept in () if optimizer is None else optimizer.state.items():
                kept |= {
                    name: torch.empty_like(parameter).copy_(value)
                    for name, value in kept.items()
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                }

    def _laid_out(self, tensor: Tensor) -> Tensor:
        as_images = self.channels_last and tensor.ndim == 4
        return tensor.contiguous(memory_format=torch.channels_last) if as_images else tensor

    def _train_discriminator(self, on: bool) -> None:
        for parameter in self._discriminator_parameters:
            parameter.requires_grad_(on)

    def _place_in_step(self) -> tuple[bool, bool, float]:
        """Whether this batch is the first and the last one of a step, and its share of the step's loss."""
        if self.accumulation == 1:
            return True, True, 1.0
        length = self.state.epoch_length or self.state.iteration
        place = (self.state.iteration - 1) % length
        within = place % self.accumulation
        count = min(self.accumulation, length - place + within)
        return within == 0, within + 1 == count, 1 / count

    def _update(self, optimizer: Optimizer, terms: Mapping[str, Tensor]) -> None:
        if self._first:
            optimizer.zero_grad(set_to_none=True)
        loss = self.weighted_sum(terms)
        (loss if self._share == 1 else self._share * loss).backward()
        if self.stepped:
            average_gradients(optimizer)
            optimizer.step()


class _Terms:
    """Both sides' loss terms, in the trainer's precision: what of a step can be compiled."""

    def __init__(self, network: Translator, device: torch.device, amp: bool) -> None:
        self.network, self.device_type, self.amp = network, device.type, amp

    def of_generator(self, batch: Tensors) -> tuple[Tensors, Tensors]:
        with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.amp):
            return self.network.generator_terms(batch)

    def of_discriminator(self, batch: Tensors, outputs: Tensors) -> Tensors:
        with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.amp):
            return self.network.discriminator_terms(batch, outputs)
