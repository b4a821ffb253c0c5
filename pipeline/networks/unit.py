"""Autoencoder of one domain of the UNIT backbone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from pipeline.networks.blocks import ResidualBlock
from pipeline.networks.content_blocks import ContentEncoder, ImageDecoder, built, check_autoencoder

PARTS = ("encoder", "decoder")


class UNITGenerator(nn.Module):
    """Encode the images of one domain into a latent space that all domains share, and decode latents into images.

    The mean of a variational autoencoder's latent of unit variance (UNIT, Liu et al., NIPS 2017, arXiv 1703.00848);
    drawing from it is the translator's part. To translate is to decode with another domain's decoder. The defaults are
    the generator of one domain in Kong et al. (NeurIPS 2021, arXiv 2110.06465) with its 11,127,937 parameters: as
    there, no layers are shared between domains, and weights start from PyTorch's own distribution. UNIT's own paper
    shares the layers next to the latent.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the domain's images.
        filters: channels at full resolution.
        downsamplings: how often the resolution is halved.
        residual_blocks: number of residual blocks in the encoder and as many in the decoder.
        parts: which of `encoder` and `decoder` to build; the other is None.

    Attributes:
        encoder: maps images (B, channels, *spatial) to latents (B, filters * 2 ** downsamplings, *spatial), each axis
            divided by `2 ** downsamplings` and rounded up.
        decoder: maps latents, and the size to crop to, to images in [-1, 1].

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        channels: int = 1,
        filters: int = 64,
        downsamplings: int = 2,
        residual_blocks: int = 4,
        parts: Collection[str] = PARTS,
    ) -> None:
        super().__init__()
        check_autoencoder(
            type(self).__name__,
            spatial_dims,
            parts,
            PARTS,
            channels=channels,
            filters=filters,
            downsamplings=downsamplings,
            residual_blocks=residual_blocks,
        )
        self.encoder: ContentEncoder | None = None
        self.decoder: LatentDecoder | None = None
        if "encoder" in parts:
            self.encoder = ContentEncoder(spatial_dims, channels, filters, downsamplings, residual_blocks)
        if "decoder" in parts:
            self.decoder = LatentDecoder(spatial_dims, channels, filters, downsamplings, residual_blocks)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, channels, *spatial) in [-1, 1]; see `encoder`."""
        return built(self, "encoder")(images)

    def decode(self, latent: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Decode latents into images of spatial `size`, default the largest that has such a latent; see `decoder`."""
        return built(self, "decoder")(latent, size)

    def forward(self, images: Tensor) -> Tensor:
        """Decode what images (B, channels, *spatial) are encoded to, without noise; the result has their shape."""
        return self.decode(self.encode(images), images.shape[2:])


class LatentDecoder(nn.Module):
    """Residual blocks, then `ImageDecoder`; arguments are those of `UNITGenerator`."""

    def __init__(
        self, spatial_dims: int, channels: int, filters: int, downsamplings: int, residual_blocks: int
    ) -> None:
        super().__init__()
        width = filters * 2**downsamplings
        self.residual = nn.Sequential(*(ResidualBlock(spatial_dims, width) for _ in range(residual_blocks)))
        self.image = ImageDecoder(spatial_dims, channels, filters, downsamplings)

    def forward(self, latent: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Map latents (B, filters * 2 ** downsamplings, *spatial) to images (B, channels, *size) in [-1, 1]."""
        return self.image(self.residual(latent), size)
