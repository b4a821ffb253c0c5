"""What PyTorch does on a GPU in another order each time, in an order that is the same each time.

The backward passes of reflection padding and of linear sampling add with atomic operations there, and refuse under
``torch.use_deterministic_algorithms(True)``. The functions here take the fast way unless that is set.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def must_repeat(tensor: Tensor) -> bool:
    """Whether what is computed from this tensor has to be the same each time, and would not be by itself."""
    return tensor.is_cuda and torch.are_deterministic_algorithms_enabled()


def reflect(images: Tensor, widths: Sequence[int]) -> Tensor:
    """Pad images by reflection.

    Args:
        images: (B, C, *spatial).
        widths: as of ``torch.nn.functional.pad``, the last axis first: before, after, before, ...
    """
    return reflect_by_index(images, widths) if must_repeat(images) else F.pad(images, list(widths), mode="reflect")


def reflect_by_index(images: Tensor, widths: Sequence[int]) -> Tensor:
    """`reflect`, by looking up pixels along one axis after the other."""
    for number in range(len(widths) // 2):
        axis, (before, after) = images.ndim - 1 - number, widths[2 * number : 2 * number + 2]
        if before or after:
            length = images.shape[axis]
            position = torch.arange(-before, length + after, device=images.device).abs()
            images = images.index_select(axis, length - 1 - (length - 1 - position).abs())
    return images


def sample(image: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """Sample images linearly; beyond the border they go on with their border values.

    Args:
        image: (B, C, *spatial).
        positions: in voxels along each spatial axis, (B, *spatial) each.

    Returns:
        (B, C, *spatial), in the type of ``image``.
    """
    shape = image.shape[2:]
    nearest = [position.clamp(0, size - 1) for position, size in zip(positions, shape, strict=True)]
    lower = [position.detach().floor() for position in nearest]
    result = torch.zeros_like(image)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index = torch.zeros_like(lower[0], dtype=torch.long)
        weight = torch.ones_like(lower[0])
        for size, position, low, upper in zip(shape, nearest, lower, corner, strict=True):
            index = index * size + (low.long() + upper).clamp(max=size - 1)
            weight = weight * ((position - low) if upper else (1 - (position - low)))
        flat = index.flatten(1)[:, None].expand(-1, image.shape[1], -1)
        values = image.flatten(2).gather(2, flat).reshape(image.shape)
        result = result + values * weight[:, None].to(image.dtype)
    return result


class ReflectConv2d(nn.Conv2d):
    """A convolution with reflection padding; see `reflect`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 - PyTorch's name
        if not must_repeat(input):
            return super()._conv_forward(input, weight, bias)
        padded = reflect(input, self._reversed_padding_repeated_twice)
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


class ReflectConv3d(nn.Conv3d):
    """A convolution with reflection padding; see `reflect`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 - PyTorch's name
        if not must_repeat(input):
            return super()._conv_forward(input, weight, bias)
        padded = reflect(input, self._reversed_padding_repeated_twice)
        return F.conv3d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
