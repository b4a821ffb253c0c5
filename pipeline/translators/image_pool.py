"""A pool of earlier fakes for a discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Hand a discriminator earlier fakes now and then, so that it does not chase the generator's last step.

    Until the pool is full every fake is kept and returned. Afterwards each fake is, with even odds, either returned or
    exchanged for a stored one drawn at random (Shrivastava et al., CVPR 2017; the CycleGAN paper and the RegGAN
    authors' C modes have 50). The pool draws from a random state of its own on the host, so that it waits for no
    device; that state and the images are part of ``state_dict()``.

    Args:
        size: number of images to keep.

    Raises:
        ValueError: if size is not positive.
    """

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size of the pool must be at least 1, got {size}")
        self.size = size
        self._images: list[Tensor] = []
        self._random = torch.Generator().manual_seed(int(torch.randint(2**31, (), device="cpu")))

    def __len__(self) -> int:
        """Number of images kept."""
        return len(self._images)

    def forward(self, images: Tensor) -> Tensor:
        """Exchange fakes.

        Args:
            images: (B, C, *spatial), detached.

        Returns:
            As many images, some of them earlier ones.
        """
        return torch.stack([self._exchange(image) for image in images])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self._images) < self.size:
            self._images.append(image.clone())
            return image
        if torch.rand((), generator=self._random) < 0.5:
            return image
        index = int(torch.randint(self.size, (), generator=self._random))
        earlier, self._images[index] = self._images[index], image.clone()
        return earlier.to(image.device)  # a checkpoint is read on the host

    def get_extra_state(self) -> dict[str, Any]:
        """The images kept, (N, C, *spatial) or empty, and the random state."""
        images = torch.stack(self._images) if self._images else torch.empty(0)
        return {"images": images, "random": self._random.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved pool."""
        self._images = [image.clone() for image in state["images"]]
        self._random.set_state(state["random"].cpu())
