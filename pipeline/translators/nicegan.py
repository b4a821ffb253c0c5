"""The NICE-GAN backbone: discriminators whose first layers encode for the generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.translators.base import ADVERSARIAL, NetworkFactory, Terms, Translator


class NICETranslator(Translator):
    """Translation by a generator on features of the source, in the modes NC, NC+R, C and C+R.

    A discriminator is an encoder and heads on its features. Who trains the encoder of the source depends on the mode:

    - C and C+R, as in NICE-GAN's paper (Chen et al., CVPR 2020): there is a discriminator of source images, and its
      encoder is the one that the generator reads. The discriminators' optimiser owns both encoders, and no step of the
      generators moves them ("decoupled training"); the generators learn through them, though.
    - NC and NC+R, as in the comparison of RegGAN (Kong et al., NeurIPS 2021): nothing judges source images, so the
      encoder is the generator's own, of the same form, and the generator's optimiser owns it. The discriminators'
      optimiser owns the discriminator of target images alone.

    With a cycle but no adversarial term, there are no heads, and both encoders belong to the generators.

    What RegGAN's authors have otherwise: seven residual blocks in place of NICE-GAN's six and its full variant (see
    ``NICEGenerator``), replication padding in part of mode NC, and D's step before G's.

    Weights of NICE-GAN's paper in the C modes: ``{"adversarial": 1, "cycle": 10, "identity": 10}``.

    Args:
        weights: weight of each loss term. Known are, beside those of the registration correction: ``adversarial``, the
            sum over both scales of patches and the encoder's attention logit, over both directions where ``cycle`` has
            a weight; ``cycle``, the mean absolute differences of both round trips, summed; ``identity``, those of each
            image and what the generator of its own domain makes of its features, summed.
        encoder: builds an encoder, ``forward(images) -> features, logits``; called a second time, for target images,
            if ``adversarial`` or ``cycle`` has a weight.
        generator: builds a generator, ``forward(features, size) -> images``; called a second time, for target into
            source, if ``cycle`` has a weight.
        discriminator: builds the heads, ``forward(features) -> list of logits``; called only for ``adversarial``, once
            per direction.
        registration: see ``Translator``.

    Attributes:
        encoder: reads source images; with ``generator``, all that ``forward`` uses.
        generator: makes target images.
        target_encoder: reads target images; part of their discriminator, and in the C modes the other direction's
            encoder.
        source_generator: makes source images.
        discriminator: the heads that judge target images, on features of ``target_encoder``.
        source_discriminator: the heads that judge source images, on features of ``encoder``.

    Raises:
        ValueError: see ``Translator``; also if ``identity`` has a weight and ``cycle`` none, or the networks are of
            different widths.
    """

    known_terms: ClassVar[frozenset[str]] = Translator.registration_terms | {"adversarial", "cycle", "identity"}
    training_only: ClassVar[tuple[str, ...]] = (
        *Translator.training_only,
        "target_encoder",
        "source_generator",
        "source_discriminator",
    )

    def __init__(
        self,
        weights: Mapping[str, float],
        encoder: NetworkFactory,
        generator: NetworkFactory,
        discriminator: NetworkFactory | None = None,
        registration: NetworkFactory | None = None,
    ) -> None:
        super().__init__(weights, registration)
        if "identity" in self.terms and "cycle" not in self.terms:
            raise ValueError(
                "the loss term 'identity' needs both directions: weights must also name 'cycle', "
                f"got {sorted(self.terms)}"
            )
        both_ways = "cycle" in self.terms
        self.encoder = encoder()
        self.generator = generator()
        self.discriminator = self._build_if_needed("discriminator", discriminator, ADVERSARIAL)
        self.target_encoder = encoder() if both_ways or self.discriminator is not None else None
        self.source_generator = generator() if both_ways else None
        self.source_discriminator = (
            self._build_if_needed("discriminator", discriminator, ADVERSARIAL) if both_ways else None
        )
        _check_widths(encoder=self.encoder, generator=self.generator, discriminator=self.discriminator)

    def forward(self, source: Tensor) -> Tensor:
        """See ``Translator.forward``."""
        return self.generator(self.encoder(source)[0], source.shape[2:])

    def discriminator_networks(self) -> tuple[nn.Module, ...]:
        """See ``Translator.discriminator_networks``; the source's encoder is among them in the C modes."""
        networks = [self.target_encoder, self.discriminator] if self.discriminator is not None else []
        if self.source_discriminator is not None:
            networks += [self.encoder, self.source_discriminator]
        return tuple(network for network in networks if network is not None)

    def generator_terms(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """See ``Translator.generator_terms``; with the cycle, the outputs also hold ``source_pred``."""
        source, target = batch["image"], batch["label"]
        size = source.shape[2:]
        features, _ = self.encoder(source)
        pred = self.generator(features, size)
        outputs = {"pred": pred}
        corrected, terms = self.correct(pred, batch)
        outputs |= corrected
        if self.target_encoder is None:
            return outputs, terms
        # Features of a prediction serve twice: the heads judge them, and the other generator translates them back.
        pred_features, logit = self.target_encoder(pred)
        if self.discriminator is not None:
            terms["adversarial"] = self.adversarial_loss([*self.discriminator(pred_features), logit], real=True)
        if self.source_generator is None:
            return outputs, terms

        target_features, _ = self.target_encoder(target)
        outputs["source_pred"] = source_pred = self.source_generator(target_features, size)
        source_pred_features, logit = self.encoder(source_pred)
        if self.source_discriminator is not None:
            logits = [*self.source_discriminator(source_pred_features), logit]
            terms["adversarial"] = terms["adversarial"] + self.adversarial_loss(logits, real=True)
        back = self.source_generator(pred_features, size), self.generator(source_pred_features, size)
        terms["cycle"] = F.l1_loss(back[0], source) + F.l1_loss(back[1], target)
        if "identity" in self.terms:
            same = self.source_generator(features, size), self.generator(target_features, size)
            terms["identity"] = F.l1_loss(same[0], source) + F.l1_loss(same[1], target)
        return outputs, terms

    def discriminator_terms(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Terms:
        """See ``Translator.discriminator_terms``."""
        if self.discriminator is None or self.target_encoder is None:
            return {}
        adversarial = self._judge(self.target_encoder, self.discriminator, outputs["pred"], batch["label"])
        if self.source_discriminator is not None:
            fake, real = outputs["source_pred"], batch["image"]
            adversarial = adversarial + self._judge(self.encoder, self.source_discriminator, fake, real)
        return {"adversarial": adversarial}

    def _judge(self, encoder: nn.Module, heads: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
        # One pass over fakes and reals together: nothing in a discriminator mixes the images of a batch.
        features, logit = encoder(torch.cat([fake, real]))
        judged = [logits.chunk(2) for logits in (*heads(features), logit)]
        fakes, reals = [pair[0] for pair in judged], [pair[1] for pair in judged]
        return self.adversarial_loss(fakes, real=False) + self.adversarial_loss(reals, real=True)


def _check_widths(encoder: nn.Module, **readers: nn.Module | None) -> None:
    for name, reader in readers.items():
        if reader is not None and reader.in_channels != encoder.out_channels:
            raise ValueError(
                f"encoder makes features of {encoder.out_channels} channels, but {name} takes {reader.in_channels}; "
                "give all three networks the same filters"
            )
