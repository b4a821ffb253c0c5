"""The CycleGAN backbone: one ResNet generator, one patch discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.losses import LeastSquaresAdversarialLoss
from pipeline.translators.base import NetworkFactory, Terms, Translator


class CycleGANTranslator(Translator):
    """Translation by one generator, trained against one discriminator and, in mode NC+R, the registration correction.

    RegGAN (Kong et al., NeurIPS 2021) is this translator with the weights
    ``{"adversarial": 1, "correction": 20, "smoothness": 10}``.

    Args:
        weights: weight of each loss term; known are ``adversarial``, ``correction`` and ``smoothness``.
        generator: builds the generator, ``forward(source) -> prediction``.
        discriminator: builds the discriminator, ``forward(image) -> logits``; called only if ``adversarial`` has a
            weight.
        registration: see ``Translator``.
    """

    known_terms: ClassVar[frozenset[str]] = Translator.registration_terms | {"adversarial"}

    def __init__(
        self,
        weights: Mapping[str, float],
        generator: NetworkFactory,
        discriminator: NetworkFactory | None = None,
        registration: NetworkFactory | None = None,
    ) -> None:
        super().__init__(weights, registration)
        self.generator = generator()
        self.discriminator = self._build_if_needed("discriminator", discriminator, frozenset({"adversarial"}))
        self.adversarial_loss = LeastSquaresAdversarialLoss()

    def forward(self, source: Tensor) -> Tensor:
        """See ``Translator.forward``."""
        return self.generator(source)

    def discriminator_networks(self) -> tuple[nn.Module, ...]:
        """See ``Translator.discriminator_networks``."""
        return () if self.discriminator is None else (self.discriminator,)

    def generator_terms(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """See ``Translator.generator_terms``."""
        pred = self.generator(batch["image"])
        outputs, terms = self.correct(pred, batch["label"])
        if self.discriminator is not None:
            terms["adversarial"] = self.adversarial_loss(self.discriminator(pred), real=True)
        return {"pred": pred, **outputs}, terms

    def discriminator_terms(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Terms:
        """See ``Translator.discriminator_terms``."""
        if self.discriminator is None:
            return {}
        # One pass over fakes and reals together: the norm is per image, so nothing leaks between them.
        fake, real = self.discriminator(torch.cat([outputs["pred"], batch["label"]])).chunk(2)
        return {"adversarial": self.adversarial_loss(fake, real=False) + self.adversarial_loss(real, real=True)}
