"""Import of the CycleGAN backbone's networks, and of the registration network that all backbones share.

Their tensors come in the same order as ours under other names, so a network is recognised by its shapes alone and its
tensors are taken over one by one. Our modules therefore have to be defined in this order (each convolution has a
weight, then a bias):

- generator: stem, stride-2 stages, two per residual block, transposed stages, output;
- discriminator: from the image to the score;
- registration network: per level one convolution and the two of its residual block, from fine to coarse; at the bottom
  a 1-wide one, two per residual block, a 1-wide one; one per decoder level from coarse to fine; two of the refining
  residual block, a 1-wide one; output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.compat.common import ImportedFile, Role, Shape, WeightsError, count_doublings, in_order, kernel_width
from pipeline.networks.patch_discriminator import PatchDiscriminator
from pipeline.networks.registration import RegistrationNet
from pipeline.networks.resnet_generator import ResNetGenerator


def import_in_order(tensors: Mapping[str, Tensor]) -> ImportedFile:
    """Recognise a generator, discriminator or registration network by its first kernel, and take over its weights.

    Raises:
        WeightsError: it is none of them.
    """
    families: dict[int, tuple[Role, type[nn.Module], Callable[[list[Shape]], dict[str, Any]]]] = {
        7: ("generator", ResNetGenerator, _generator_settings),
        4: ("discriminator", PatchDiscriminator, _discriminator_settings),
        3: ("registration", RegistrationNet, _registration_settings),
    }
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    first = shapes[0] if shapes else ()
    width = kernel_width(next(iter(tensors.values()))) if shapes else 0
    if width not in families or 0 in first:
        raise WeightsError(
            f"no known network starts with a tensor of shape {first} ({next(iter(tensors), 'no tensor')!r}): expected "
            "a 7-wide convolution (generator), a 4-wide one (discriminator) or a 3-wide one (registration network)"
        )
    role, network_class, read_settings = families[width]
    # Each convolution has a weight and a bias, so every second shape is a weight's.
    settings = {"spatial_dims": len(first) - 2, **read_settings(shapes[::2])}
    return ImportedFile("cyclegan", role, {role: in_order(network_class, settings, tensors)}, {role: settings})


def _generator_settings(weights: list[Shape]) -> dict[str, Any]:
    filters, in_channels = weights[0][:2]
    downsamplings = count_doublings(weights[1:], filters)
    return {
        "in_channels": in_channels,
        "out_channels": _channels(weights[-1]),
        "filters": filters,
        "downsamplings": max(1, downsamplings),
        "residual_blocks": max(1, (len(weights) - 2 * downsamplings - 2) // 2),
    }


def _discriminator_settings(weights: list[Shape]) -> dict[str, Any]:
    filters = weights[0][0]
    return {
        "in_channels": weights[0][1],
        "filters": filters,
        "layers": max(1, count_doublings(weights[1:], filters)),
    }


def _registration_settings(weights: list[Shape]) -> dict[str, Any]:
    # Three convolutions per level stand before the first 1-wide one.
    before_bottom = next((i for i, weight in enumerate(weights) if set(weight[2:]) == {1}), 3)
    levels = max(1, before_bottom // 3)
    return {
        "in_channels": max(1, weights[0][1] // 2),
        "channels": tuple(_channels(weight) for weight in weights[: 3 * levels : 3]),
        "bottom_blocks": max(1, (len(weights) - 4 * levels - 6) // 2),
    }


def _channels(weight: Shape) -> int:
    return max(1, weight[0]) if weight else 1
