"""The CycleGAN backbone: ResNet generators and patch discriminators, one of each per direction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.losses import StructureLoss
from pipeline.networks import affine_field, random_symmetries, warp
from pipeline.translators.base import ADVERSARIAL, NetworkFactory, Terms, Translator
from pipeline.translators.image_pool import ImagePool


class CycleGANTranslator(Translator):
    """Translation by one generator, in the modes NC, NC+R, C and C+R, and Pix2Pix.

    The weights make the method (Kong et al., NeurIPS 2021, arXiv 2110.06465):

    - RegGAN (NC+R): ``{"adversarial": 1, "correction": 20, "smoothness": 10}``
    - CycleGAN (C): ``{"adversarial": 1, "cycle": 10}``; its discriminators see fakes through a pool of 50 earlier ones
      (Zhu et al., ICCV 2017), as in the RegGAN authors' C and C+R.
    - Pix2Pix (Isola et al., CVPR 2017): ``{"conditional_adversarial": 1, "pixel": 100}``; the discriminator sees the
      source beside the image. Generator and patch discriminator are those of the other methods, as in the RegGAN
      authors' comparison; Pix2Pix's own paper has a U-Net with dropout.

    Args:
        weights: weight of each loss term. Known are, beside those of the registration correction: ``adversarial``, over
            both directions where ``cycle`` has a weight; ``conditional_adversarial``, of the translation into the
            target alone; ``cycle``, the mean absolute differences of both round trips, summed; ``equivariance``,
            the mean absolute difference between the translation of a source that was flipped, turned by quarters and
            scaled a little at random, and the translation that was; ``pixel``, the mean absolute difference of
            prediction and target; ``structure``, that of descriptors of source and prediction, see ``StructureLoss``.
        generator: builds a generator, ``forward(images) -> images``; called a second time, for target into source, if
            ``cycle`` has a weight. Its ``in_channels`` and ``out_channels`` tell the discriminators theirs.
        discriminator: builds a discriminator, ``forward(images) -> logits``; called only for adversarial terms, with
            ``in_channels`` if that is not one image's.
        registration: see ``Translator``.

    Raises:
        ValueError: see ``Translator``; also if both adversarial terms have a weight.
    """

    known_terms: ClassVar[frozenset[str]] = (
        Translator.registration_terms | ADVERSARIAL | {"cycle", "equivariance", "pixel", "structure"}
    )
    training_only: ClassVar[tuple[str, ...]] = (
        *Translator.training_only,
        "source_generator",
        "source_discriminator",
        "pool",
        "source_pool",
    )

    def __init__(
        self,
        weights: Mapping[str, float],
        generator: NetworkFactory,
        discriminator: NetworkFactory | None = None,
        registration: NetworkFactory | None = None,
    ) -> None:
        super().__init__(weights, registration)
        if ADVERSARIAL.issubset(self.terms):
            raise ValueError(f"weights must name one of {sorted(ADVERSARIAL)}, got both: there is one discriminator")
        self.conditional = "conditional_adversarial" in self.terms
        self.structure_loss = StructureLoss()
        self.generator = generator()
        if self.conditional and discriminator is not None:
            channels = cast(int, self.generator.in_channels) + cast(int, self.generator.out_channels)
            discriminator = partial(discriminator, in_channels=channels)
        self.discriminator = self._build_if_needed("discriminator", discriminator, ADVERSARIAL)
        self.source_generator: nn.Module | None = None
        self.source_discriminator: nn.Module | None = None
        if "cycle" in self.terms:
            self.source_generator = generator()
            if "adversarial" in self.terms:
                self.source_discriminator = self._build_if_needed("discriminator", discriminator, ADVERSARIAL)
                self.pool, self.source_pool = ImagePool(), ImagePool()

    def forward(self, source: Tensor) -> Tensor:
        """See ``Translator.forward``."""
        return self.generator(source)

    def discriminator_networks(self) -> tuple[nn.Module, ...]:
        """See ``Translator.discriminator_networks``."""
        return tuple(network for network in (self.discriminator, self.source_discriminator) if network is not None)

    def draw(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """See ``Translator.draw``: what moves the images for the term ``equivariance``."""
        return {"symmetry": random_symmetries(batch["image"])} if "equivariance" in self.terms else {}

    def shown(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See ``Translator.shown``; earlier predictions now and then, where there is a pool."""
        if self.source_discriminator is None:
            return outputs
        pools = {"pred": self.pool, "source_pred": self.source_pool}
        return {**outputs, **{name: pool(outputs[name]) for name, pool in pools.items()}}

    def generator_terms(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """See ``Translator.generator_terms``; with the cycle, the outputs also hold ``source_pred``."""
        source, target = batch["image"], batch["label"]
        pred = self.generator(source)
        outputs = {"pred": pred}
        corrected, terms = self.correct(pred, batch)
        outputs |= corrected
        if "pixel" in self.terms:
            terms["pixel"] = F.l1_loss(pred, target)
        if "equivariance" in self.terms:
            maps = batch["symmetry"] if "symmetry" in batch else self.draw(batch)["symmetry"]
            field = affine_field(maps, maps.new_zeros(len(maps), maps.shape[1], *source.shape[2:]))
            terms["equivariance"] = F.l1_loss(self.generator(warp(source, field)), warp(pred, field))
        if "structure" in self.terms:
            terms["structure"] = self.structure_loss(pred, source)
        if self.source_generator is not None:
            # One pass over both, which is faster: nothing in a generator mixes the images of a batch.
            source_pred, source_back = self.source_generator(torch.cat([target, pred])).chunk(2)
            outputs["source_pred"] = source_pred
            terms["cycle"] = F.l1_loss(source_back, source) + F.l1_loss(self.generator(source_pred), target)
        if self.discriminator is not None:
            name = "conditional_adversarial" if self.conditional else "adversarial"
            terms[name] = self.adversarial_loss(self.discriminator(self._seen(pred, source)), real=True)
            if self.source_discriminator is not None:
                terms[name] = terms[name] + self.adversarial_loss(self.source_discriminator(source_pred), real=True)
        return outputs, terms

    def discriminator_terms(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Terms:
        """See ``Translator.discriminator_terms``."""
        if self.discriminator is None:
            return {}
        source, target, pred = batch["image"], batch["label"], outputs["pred"]
        if self.conditional:
            fake, real = self._seen(pred, source), self._seen(target, source)
            return {"conditional_adversarial": self._judge(self.discriminator, fake, real)}
        if self.source_discriminator is None:
            return {"adversarial": self._judge(self.discriminator, pred, target)}
        both = (
            self._judge(self.discriminator, pred, target),
            self._judge(self.source_discriminator, outputs["source_pred"], source),
        )
        return {"adversarial": both[0] + both[1]}

    def _seen(self, image: Tensor, source: Tensor) -> Tensor:
        """What the target's discriminator looks at."""
        return torch.cat([source, image], dim=1) if self.conditional else image

    def _judge(self, discriminator: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
        # One pass over fakes and reals together: the norm is per image, so nothing leaks between them.
        fake_logits, real_logits = discriminator(torch.cat([fake, real])).chunk(2)
        return self.adversarial_loss(fake_logits, real=False) + self.adversarial_loss(real_logits, real=True)
