"""The UNIT backbone: a variational autoencoder per domain, with a latent space that both share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.translators.autoencoding import AutoencodingTranslator, in_one_pass
from pipeline.translators.base import NetworkFactory, Terms


class UNITTranslator(AutoencodingTranslator):
    """Translation by the source's encoder and the target's decoder.

    The method is that of UNIT (Liu et al., NIPS 2017, arXiv 1703.00848) in the form of RegGAN's comparison (Kong et
    al., NeurIPS 2021, arXiv 2110.06465), with the weights ``reconstruction`` 10 and ``kl`` 0.01 beside the mode's own.
    An encoder gives the mean of a latent of unit variance; in training Gaussian noise is added in front of every
    decoder, the same noise for all that is decoded from one latent; in use there is none.

    As in RegGAN's comparison, and unlike UNIT's own paper: the domains share no layers. KL is the mean square of the
    latent, without the usual factor 1/2. Unlike the comparison's code, which has the round trip of the source in every
    mode, the cycle is there in C and C+R only, as its paper's table of modes has it.

    Args:
        weights: weight of each loss term. Known are, beside those of the registration correction: ``adversarial``, over
            both directions where ``cycle`` has a weight; ``cycle``, the mean absolute differences of both round trips,
            summed; ``reconstruction``, those of both autoencoders within their domains; ``kl``, the mean squares of the
            latents of source and target, and of every translation encoded again, summed.
        generator: builds the autoencoder of one domain, such as ``UNITGenerator``; called for each domain with the
            ``parts`` that are needed.
        discriminator: see ``AutoencodingTranslator``.
        registration: see ``Translator``.

    Attributes:
        encoder: source images to latents.
        decoder: latents to target images.
        target_encoder: target images to latents; None unless ``reconstruction``, ``kl`` or ``cycle`` has a weight.
        source_decoder: latents to source images; None unless ``reconstruction`` or ``cycle`` has a weight.
    """

    known_terms: ClassVar[frozenset[str]] = AutoencodingTranslator.known_terms | {"kl"}

    def __init__(
        self,
        weights: Mapping[str, float],
        generator: NetworkFactory,
        discriminator: NetworkFactory | None = None,
        registration: NetworkFactory | None = None,
    ) -> None:
        super().__init__(weights, discriminator, registration)
        both = ("encoder", "decoder")
        source: Any = generator(parts=both if self.needs("reconstruction", "cycle") else ("encoder",))
        target: Any = generator(parts=both if self.needs("reconstruction", "cycle", "kl") else ("decoder",))
        self.encoder, self.source_decoder = source.encoder, source.decoder
        self.decoder, self.target_encoder = target.decoder, target.encoder

    def forward(self, source: Tensor) -> Tensor:
        """See ``Translator.forward``."""
        return self.decoder(self.encoder(source), source.shape[2:])

    def draw(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """See ``Translator.draw``: the noise of each latent that is decoded."""
        latents = ["source"]
        if self.target_encoder is not None:
            latents.append("target")
        if self.needs("cycle"):
            latents += ["pred", "source_pred"]
        images = batch["image"]
        shape = self.encoder.content_shape(images)
        return {f"{name}_noise": torch.randn(shape, device=images.device) for name in latents}

    def generator_terms(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """See ``Translator.generator_terms``; with the cycle, the outputs also hold ``source_pred``."""
        batch = batch if "source_noise" in batch else {**batch, **self.draw(batch)}
        source, target = batch["image"], batch["label"]
        size = source.shape[2:]
        latents = [self.encoder(source)]
        code = latents[0] + batch["source_noise"]
        pred = self.decoder(code, size)
        corrected, terms = self.correct(pred, batch)
        outputs = {"pred": pred, **corrected}

        # What one network makes of several, it makes in one pass, which is faster: nothing mixes the images of a batch.
        if self.target_encoder is not None:
            latents += in_one_pass(self.target_encoder, [target] + [pred] * self.needs("cycle", "kl"))
            target_code = latents[1] + batch["target_noise"]
        if self.needs("reconstruction", "cycle"):
            codes = [latents[2] + batch["pred_noise"], target_code] if self.needs("cycle") else []
            codes += [code] * self.needs("reconstruction")
            sources = in_one_pass(partial(self.source_decoder, size=size), codes)
            codes = [target_code] * self.needs("reconstruction")
            if self.needs("cycle"):
                outputs["source_pred"] = source_pred = sources[1]
                latents.append(self.encoder(source_pred))
                codes = [latents[-1] + batch["source_pred_noise"], *codes]
            targets = in_one_pass(partial(self.decoder, size=size), codes)
            if self.needs("cycle"):
                terms["cycle"] = F.l1_loss(sources[0], source) + F.l1_loss(targets[0], target)
            if self.needs("reconstruction"):
                terms["reconstruction"] = F.l1_loss(sources[-1], source) + F.l1_loss(targets[-1], target)
        if self.needs("kl"):
            terms["kl"] = torch.stack([latent.float().square().mean() for latent in latents]).sum()
        return outputs, terms | self.adversarial_terms(outputs)
