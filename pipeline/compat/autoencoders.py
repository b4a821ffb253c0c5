"""Import of the networks of UNIT and MUNIT: the autoencoder of one domain, and the discriminator.

A file holds its tensors in this order (each convolution has a weight, then a bias):

- MUNIT's style encoder: stem, stride-2 convolutions, a 1-wide convolution, which is a linear layer in ours;
- content encoder: stem, stride-2 convolutions, two per residual block;
- decoder: two per residual block; per upsampling the scale and shift of the layer norm, which stands before the
  convolution that it follows; output;
- MUNIT's perceptron: three linear layers. What it gives is, for each adaptive norm, first all shifts, then all scales;
  ours has the scales first.

Running means and variances, which MUNIT's adaptive norms and older files of instance norms carry, are not used by their
networks and left out. Their layer norm divides by the unbiased deviation; to ours, that is a relative difference of
1 / (2 x channels x voxels).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from pipeline.compat.common import Backbone, ImportedFile, Shape, count_doublings, in_order, kernel_width, own_shapes
from pipeline.networks.multiscale_discriminator import MultiScaleDiscriminator
from pipeline.networks.munit import AdaptiveResidualBlock, MUNITGenerator
from pipeline.networks.unit import UNITGenerator

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Parts of ours in the order of theirs; UNIT's encoder is MUNIT's content encoder.
_ORDER = ("style_encoder.", "content_encoder.", "encoder.", "decoder.residual.", "decoder.image.", "decoder.mlp.")
_STYLE_CODE, _LAST_LINEAR = "style_encoder.code.weight", "decoder.mlp.4."


def without_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are no running statistics of a norm."""
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in _BUFFERS}


def import_autoencoder(tensors: Mapping[str, Tensor]) -> ImportedFile:
    """Take over the weights of one domain's autoencoder, `UNITGenerator` or `MUNITGenerator`.

    Args:
        tensors: state dict without buffers that begins with a 7-wide convolution and a 4-wide one.

    Raises:
        WeightsError: the shapes fit neither.
    """
    convolutions = [tensor for tensor in tensors.values() if kernel_width(tensor)]
    widths = [kernel_width(tensor) for tensor in convolutions]
    shapes = [tuple(tensor.shape) for tensor in convolutions]
    styled = 1 in widths
    backbone: Backbone = "munit" if styled else "unit"
    network_class = MUNITGenerator if styled else UNITGenerator
    settings: dict[str, Any] = {
        "spatial_dims": len(shapes[0]) - 2,
        "channels": max(1, shapes[0][1]),
        "filters": max(1, shapes[0][0]),
    }
    style_end = widths.index(1) + 1 if styled else 0
    content = shapes[style_end:]
    settings["downsamplings"] = max(1, count_doublings(content[1:], settings["filters"]))
    settings["residual_blocks"] = max(1, widths.count(3) // 4)
    if styled:
        linear = next((tuple(tensor.shape) for tensor in tensors.values() if tensor.ndim == 2), (1,))
        settings["style_dim"] = max(1, shapes[style_end - 1][0])
        settings["style_downsamplings"] = max(1, style_end - 2)
        settings["mlp_width"] = max(1, linear[0])
    shapes_of = partial(_their_shapes, spatial_dims=settings["spatial_dims"])
    network = in_order(network_class, settings, tensors, shapes_of, partial(_converted, settings=settings))
    return ImportedFile(backbone, "autoencoder", {"generator": network}, {"generator": settings})


def import_discriminator(tensors: Mapping[str, Tensor]) -> ImportedFile:
    """Take over the weights of a `MultiScaleDiscriminator`, whose tensors come in the same order as ours.

    Args:
        tensors: state dict that begins with a 4-wide convolution and has 1-wide ones.

    Raises:
        WeightsError: the shapes do not fit.
    """
    weights = [tuple(tensor.shape) for tensor in tensors.values() if kernel_width(tensor)]
    layers = 1 + count_doublings(weights[1:], weights[0][0])
    settings = {
        "spatial_dims": len(weights[0]) - 2,
        "in_channels": max(1, weights[0][1]),
        "filters": max(1, weights[0][0]),
        "layers": layers,
        "scales": max(1, len(weights) // (layers + 1)),
    }
    network = in_order(MultiScaleDiscriminator, settings, tensors)
    return ImportedFile("unit", "discriminator", {"discriminator": network}, {"discriminator": settings})


def _their_shapes(network: nn.Module, spatial_dims: int) -> dict[str, Shape]:
    """Our names and their shapes, in their order."""
    shapes = own_shapes(network)
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
    order: list[str] = []
    for name in sorted(shapes, key=lambda name: next(i for i, part in enumerate(_ORDER) if name.startswith(part))):
        # Their norm stands before the two tensors of its convolution, ours behind them.
        order.insert(len(order) - 2 if name.rpartition(".")[0] in norms else len(order), name)
    if _STYLE_CODE in shapes:
        shapes[_STYLE_CODE] += (1,) * spatial_dims
    return {name: shapes[name] for name in order}


def _converted(name: str, tensor: Tensor, settings: Mapping[str, Any]) -> Tensor:
    if name == _STYLE_CODE:
        return tensor.flatten(1)
    if name.startswith(_LAST_LINEAR):
        norms = settings["residual_blocks"] * AdaptiveResidualBlock.modulations // 2
        shifts_and_scales = tensor.unflatten(0, (norms, 2, -1))
        return shifts_and_scales.flip(1).flatten(0, 2)
    return tensor
