"""The MUNIT backbone: content that both domains share, and a style of each domain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.translators.autoencoding import AutoencodingTranslator, in_one_pass
from pipeline.translators.base import NetworkFactory, Terms


class MUNITTranslator(AutoencodingTranslator):
    """Translation by decoding the source's content in a style of the target domain.

    The method is that of MUNIT (Huang et al., ECCV 2018, arXiv 1804.04732) in the form of RegGAN's comparison (Kong et
    al., NeurIPS 2021, arXiv 2110.06465), with the weights ``reconstruction`` 10, ``content`` 1 and ``style`` 1 beside
    the mode's own. In training the style of a translation is drawn from a standard normal distribution, another for
    each image of each step.

    In use the style is one for all images, so that a translation can be repeated: the zero code, which is the middle of
    that distribution, unless ``style`` or ``reference`` says otherwise. The style is no part of the weights. RegGAN's
    comparison draws a style at random for its tests.

    The cycle of C and C+R goes back with the image's own encoded style, MUNIT's "style-augmented" cycle; the
    comparison's code computes it, but leaves it out of the sum, against its paper's table of modes. In the modes of one
    direction ``content`` and ``style`` are those of source into target, where the comparison's code takes the style of
    the direction that it does not train.

    Args:
        weights: weight of each loss term. Known are, beside those of the registration correction: ``adversarial``, over
            both directions where ``cycle`` has a weight; ``cycle``, the mean absolute differences of both round trips,
            summed; ``reconstruction``, those of both autoencoders within their domains; ``content`` and ``style``, the
            mean absolute difference of a translation's content and style from those it was decoded from, summed over
            the directions in use.
        generator: builds the autoencoder of one domain, such as ``MUNITGenerator``; called for each domain with the
            ``parts`` that are needed.
        discriminator: see ``AutoencodingTranslator``.
        registration: see ``Translator``.
        style: style code to translate with, as many numbers as the style encoder gives.
        reference: images of the target modality, (N, C, *spatial) in [-1, 1], to translate in the style of: the mean
            of their codes.

    Attributes:
        encoder: source images to content.
        decoder: content and style to target images.
        style_encoder: target images to style codes; always there, for the style of a reference.
        source_style_encoder: source images to style codes; None unless ``reconstruction`` or ``cycle`` has a weight.
        source_decoder: content and style to source images; None unless ``reconstruction`` or ``cycle`` has a weight.
        target_encoder: target images to content; None unless ``reconstruction``, ``cycle`` or ``content`` has a weight.

    Raises:
        ValueError: see ``Translator``; also if ``style`` or ``reference`` is not what is expected, or both are given.
    """

    known_terms: ClassVar[frozenset[str]] = AutoencodingTranslator.known_terms | {"content", "style"}
    training_only: ClassVar[tuple[str, ...]] = (*AutoencodingTranslator.training_only, "source_style_encoder")
    settings_of_use: ClassVar[tuple[str, ...]] = ("style", "reference")
    style_code: Tensor
    reference: Tensor | None

    def __init__(
        self,
        weights: Mapping[str, float],
        generator: NetworkFactory,
        discriminator: NetworkFactory | None = None,
        registration: NetworkFactory | None = None,
        style: Sequence[float] | None = None,
        reference: Tensor | None = None,
    ) -> None:
        super().__init__(weights, discriminator, registration)
        autoencoding = self.needs("reconstruction", "cycle")
        with_content = autoencoding or self.needs("content")
        source: Any = generator(
            parts=("content_encoder", *(("style_encoder", "decoder") if autoencoding else ())),
        )
        target: Any = generator(parts=("style_encoder", "decoder", *(("content_encoder",) if with_content else ())))
        self.encoder, self.decoder, self.style_encoder = source.content_encoder, target.decoder, target.style_encoder
        self.source_style_encoder, self.source_decoder = source.style_encoder, source.decoder
        self.target_encoder = target.content_encoder
        self._set_style(style, reference)

    def forward(self, source: Tensor) -> Tensor:
        """See ``Translator.forward``."""
        style = self.style_code if self.reference is None else self.encode_style(self.reference).mean(0, keepdim=True)
        return self.decoder(self.encoder(source), style.expand(source.shape[0], -1), source.shape[2:])

    def encode_style(self, images: Tensor) -> Tensor:
        """Style codes of images of the target modality.

        Args:
            images: (B, C, *spatial) in [-1, 1].

        Returns:
            One code per image, (B, style_dim).
        """
        return self.style_encoder(images)

    def draw(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """See ``Translator.draw``: the styles of the translations."""
        images = batch["image"]
        names = ("style", "source_style") if self.needs("cycle") else ("style",)
        shape = images.shape[0], self.style_encoder.style_dim
        return {name: torch.randn(shape, device=images.device, dtype=images.dtype) for name in names}

    def generator_terms(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Terms]:
        """See ``Translator.generator_terms``; with the cycle, the outputs also hold ``source_pred``."""
        batch = batch if "style" in batch else {**batch, **self.draw(batch)}
        source, target = batch["image"], batch["label"]
        size = source.shape[2:]
        content, style = self.encoder(source), batch["style"]
        pred = self.decoder(content, style, size)
        corrected, terms = self.correct(pred, batch)
        outputs = {"pred": pred, **corrected}

        # What a translation was decoded from, and what it is encoded to; for both directions where both are in use.
        contents, styles = [], []
        if self.needs("content", "cycle"):
            contents.append((content, self.target_encoder(pred)))
        if self.needs("style"):
            styles.append((style, self.style_encoder(pred)))
        if self.needs("reconstruction", "cycle"):
            own_style, target_style = self.source_style_encoder(source), self.style_encoder(target)
            target_content = self.target_encoder(target)
            # Each decoder makes in one pass what it makes of several, which is faster.
            cycle = self.needs("cycle")
            decoded = [(contents[0][1], own_style), (target_content, batch["source_style"])] if cycle else []
            decoded += [(content, own_style)] * self.needs("reconstruction")
            sources = in_one_pass(partial(self.source_decoder, size=size), *zip(*decoded, strict=True))
            decoded = [(target_content, target_style)] * self.needs("reconstruction")
            if cycle:
                outputs["source_pred"] = source_pred = sources[1]
                contents.append((target_content, self.encoder(source_pred)))
                if self.needs("style"):
                    styles.append((batch["source_style"], self.source_style_encoder(source_pred)))
                decoded = [(contents[1][1], target_style), *decoded]
            targets = in_one_pass(partial(self.decoder, size=size), *zip(*decoded, strict=True))
            if cycle:
                terms["cycle"] = F.l1_loss(sources[0], source) + F.l1_loss(targets[0], target)
            if self.needs("reconstruction"):
                terms["reconstruction"] = F.l1_loss(sources[-1], source) + F.l1_loss(targets[-1], target)
        if self.needs("content"):
            terms["content"] = _sum_of_differences(contents)
        if self.needs("style"):
            terms["style"] = _sum_of_differences(styles)
        return outputs, terms | self.adversarial_terms(outputs)

    def _set_style(self, style: Sequence[float] | None, reference: Tensor | None) -> None:
        length = self.style_encoder.style_dim
        if style is not None and reference is not None:
            raise ValueError("style and reference are both given; translate in the style of one or the other")
        code = [0.0] * length if style is None else style
        if not isinstance(code, Sequence) or len(code) != length or not all(_is_finite_number(value) for value in code):
            raise ValueError(f"style must be a code of {length} finite numbers, got {style!r}")
        if reference is not None:
            if not isinstance(reference, Tensor) or reference.ndim < 4 or len(reference) == 0:
                got = tuple(reference.shape) if isinstance(reference, Tensor) else repr(reference)
                raise ValueError(f"reference must be images of shape (N, C, *spatial), got {got}")
            if not reference.abs().max() <= 1:
                low, high = reference.min().item(), reference.max().item()
                raise ValueError(f"reference must lie in [-1, 1], got values from {low:g} to {high:g}")
        self.register_buffer("style_code", torch.tensor([code], dtype=torch.float32), persistent=False)
        self.register_buffer("reference", reference, persistent=False)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sum_of_differences(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([F.l1_loss(encoded, decoded) for decoded, encoded in pairs]).sum()
