"""What the UNIT and MUNIT backbones share: a discriminator for each domain, and the adversarial terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.translators.base import ADVERSARIAL, NetworkFactory, Terms, Translator


def in_one_pass(network: Callable[..., Tensor], *arguments: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a network makes of several batches, one by one but in one pass, which is faster.

    Args:
        network: does not mix the images of a batch.
        arguments: for each of the network's arguments the batches, all of as many images.
    """
    count = len(arguments[0])
    return network(*(torch.cat(list(batches)) for batches in arguments)).chunk(count) if count else ()


class AutoencodingTranslator(Translator):
    """Base of the backbones that have an autoencoder for each domain and a multi-scale discriminator for each.

    Args:
        weights: weight of each loss term.
        discriminator: builds a discriminator, ``forward(images) -> logits at each scale``; called only if
            ``adversarial`` has a weight, a second time if ``cycle`` has one, too.
        registration: see ``Translator``.
    """

    known_terms: ClassVar[frozenset[str]] = Translator.registration_terms | {"adversarial", "cycle", "reconstruction"}
    training_only: ClassVar[tuple[str, ...]] = (
        *Translator.training_only,
        "source_discriminator",
        "source_decoder",
        "target_encoder",
    )

    def __init__(
        self,
        weights: Mapping[str, float],
        discriminator: NetworkFactory | None = None,
        registration: NetworkFactory | None = None,
    ) -> None:
        super().__init__(weights, registration)
        self.discriminator = self._build_if_needed("discriminator", discriminator, ADVERSARIAL)
        self.source_discriminator: nn.Module | None = None
        if "cycle" in self.terms:
            self.source_discriminator = self._build_if_needed("discriminator", discriminator, ADVERSARIAL)

    def needs(self, *terms: str) -> bool:
        """Whether any of these terms has a weight."""
        return not set(terms).isdisjoint(self.terms)

    def discriminator_networks(self) -> tuple[nn.Module, ...]:
        """See ``Translator.discriminator_networks``."""
        return tuple(network for network in (self.discriminator, self.source_discriminator) if network is not None)

    def adversarial_terms(self, outputs: Mapping[str, Tensor]) -> Terms:
        """The generator's adversarial term over ``pred`` and, with the cycle, ``source_pred``; empty without weight."""
        if self.discriminator is None:
            return {}
        loss = self.adversarial_loss(self.discriminator(outputs["pred"]), real=True)
        if self.source_discriminator is not None:
            loss = loss + self.adversarial_loss(self.source_discriminator(outputs["source_pred"]), real=True)
        return {"adversarial": loss}

    def discriminator_terms(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Terms:
        """See ``Translator.discriminator_terms``."""
        if self.discriminator is None:
            return {}
        loss = self._judge(self.discriminator, outputs["pred"], batch["label"])
        if self.source_discriminator is not None:
            loss = loss + self._judge(self.source_discriminator, outputs["source_pred"], batch["image"])
        return {"adversarial": loss}

    def _judge(self, discriminator: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
        # One pass over fakes and reals together: there is no norm, so nothing leaks between them.
        scales = [logits.chunk(2) for logits in discriminator(torch.cat([fake, real]))]
        return self.adversarial_loss([logits for logits, _ in scales], real=False) + self.adversarial_loss(
            [logits for _, logits in scales], real=True
        )
