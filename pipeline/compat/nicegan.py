"""Import of NICE-GAN's networks: a generator on features, and the discriminator whose first layers make them.

Here tensors go by their names. In the modes with a cycle, a model is the generator and the discriminator of source
images; of the latter, only the encoder is used. In the others the generator has its own encoder, in one file.

Three things differ from ours:

- Their attention scales the features with the weight of the linear layer as it is, ours with the spectrally normalised
  one. The quotient of the two is moved into the 1-wide convolution behind, so that the outcome is the same.
- Their norms divide by unbiased deviations. That is a relative difference of 1 / (2 x voxels) of a feature map at most,
  1.2e-4 for images of 256 x 256.
- Their generator with its own encoder pads by replication in the encoder, the first and the last convolution, see
  `OWN_ENCODER_NOTE`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compat.common import ImportedFile, Shape, WeightsError, check_values, fill, on_meta
from pipeline.networks.nicegan import NICEEncoder, NICEGenerator

OWN_ENCODER_NOTE = (
    "the authors' generator of the modes NC and NC+R repeats the outermost pixels where this project reflects them: "
    "where images have a border of one value, the outermost 3 pixels of a prediction differ, otherwise all do a little"
)
_SPECTRAL = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}
_NORM = {"rho": "mixture", "gamma": "weight", "beta": "bias"}
_HEADS = ("conv0.", "conv1.", "Dis0_0.", "Dis0_1.", "Dis1_0.", "Dis1_1.")
_BLOCK = re.compile(r"UpBlock1_\d+\.conv1\.weight")


def is_known(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has names that only NICE-GAN's networks have."""
    return any(name.startswith(("UpBlock0.", "UpBlock1_", "UpBlock2.", *_HEADS[2:])) for name in tensors)


def import_file(tensors: Mapping[str, Tensor]) -> ImportedFile:
    """Take over a generator, a generator with its own encoder, or a discriminator's encoder.

    Args:
        tensors: state dict for which `is_known`; two-dimensional.

    Raises:
        WeightsError: tensors are missing, not known, or of other shapes.
    """
    judged = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS)}
    makes_images = any(name.startswith("UpBlock") for name in judged)
    encodes = any(name.startswith(("model.", "fc.")) for name in judged)
    networks: dict[str, nn.Module] = {}
    settings: dict[str, dict[str, Any]] = {}
    tables: dict[str, dict[str, str]] = {}
    if encodes or not makes_images:
        settings["encoder"] = _encoder_settings(judged)
        networks["encoder"], tables["encoder"] = on_meta(NICEEncoder, settings["encoder"]), _encoder_names()
    if makes_images:
        settings["generator"] = _generator_settings(judged)
        networks["generator"] = on_meta(NICEGenerator, settings["generator"])
        tables["generator"] = _generator_names(settings["generator"]["residual_blocks"])
    unknown = [name for name in judged if not any(name in table for table in tables.values())]
    if unknown:
        raise WeightsError(f"unknown tensor {unknown[0]!r} among those of a NICE-GAN network")
    check_values(judged)
    for part, network in networks.items():
        fill(network, _converted(part, network, tables[part], judged))
    return ImportedFile("nicegan", "generator" if makes_images else "encoder", networks, settings)


def _converted(
    part: str, network: nn.Module, table: dict[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    state = network.state_dict()
    converted = {}
    for name, own in table.items():
        tensor, expected = _tensor(tensors, name), _their_shape(name, tuple(state[own].shape))
        if tuple(tensor.shape) != expected:
            raise WeightsError(
                f"tensor {name!r} of a NICE-GAN {part} has shape {tuple(tensor.shape)} where {expected} is expected"
            )
        converted[own] = tensor[0].T if name.endswith(".rho") else tensor.reshape(state[own].shape)
    if part == "encoder":
        weight, u, v = (_tensor(tensors, f"fc.{name}").double() for name in _SPECTRAL)
        converted["combine.weight"] = converted["combine.weight"] * torch.dot(u, weight @ v).to(torch.float32)
    return converted


def _their_shape(name: str, own: Shape) -> Shape:
    if name.endswith(".rho"):
        return (1, *reversed(own))
    if name.endswith((".gamma", ".beta")):
        return (1, *own, 1, 1)
    return own


def _encoder_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    filters, in_channels = _shape(tensors, "model.1.weight_orig", 4)[:2]
    return {"in_channels": in_channels, "filters": filters}


def _generator_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    wide = _shape(tensors, "UpBlock0.1.weight", 4)[0]
    seen = _shape(tensors, "FC.0.weight", 2)[1]
    image_size = None
    if seen != wide:  # the full variant, which sees all voxels of the features, a quarter of the image's size
        side = math.isqrt(seen // wide)
        if side**2 * wide != seen:
            raise WeightsError(f"'FC.0.weight' takes {seen} values, which is no square of {wide} channels each")
        image_size = (4 * side, 4 * side)
    return {
        "out_channels": _shape(tensors, "UpBlock2.17.weight", 4)[0],
        "filters": max(1, wide // 4),
        "residual_blocks": max(1, sum(map(bool, map(_BLOCK.fullmatch, tensors)))),
        "image_size": image_size,
    }


def _encoder_names() -> dict[str, str]:
    """Our names by theirs."""
    names = {"lamda": "proportion", "conv1x1.weight": "combine.weight", "conv1x1.bias": "combine.bias"}
    for theirs, ours in (("model.1", "convolutions.0.layer"), ("model.4", "convolutions.2.layer"), ("fc", "score")):
        names |= {f"{theirs}.{name}": f"{ours}.{own}" for name, own in _SPECTRAL.items()}
        if theirs != "fc":
            names[f"{theirs}.bias"] = f"{ours}.bias"
    return names


def _generator_names(residual_blocks: int) -> dict[str, str]:
    """Our names by theirs."""
    names = {
        "UpBlock0.1.weight": "stem.0.weight",
        "UpBlock0.1.bias": "stem.0.bias",
        **_norm_names("UpBlock0.2", "stem.1"),
        "FC.0.weight": "style.0.weight",
        "FC.2.weight": "style.2.weight",
        "gamma.weight": "scale.weight",
        "beta.weight": "shift.weight",
        "UpBlock2.17.weight": "head.0.weight",
    }
    for block in range(residual_blocks):
        for number, own in (("1", "first"), ("2", "second")):
            names[f"UpBlock1_{block + 1}.conv{number}.weight"] = f"residual.{block}.{own}.weight"
            names[f"UpBlock1_{block + 1}.norm{number}.rho"] = f"residual.{block}.{own}_norm.mixture"
    for stage in range(2):  # each has eight layers: padding, convolution, norm, ReLU, convolution, shuffle, norm, ReLU
        layer = 8 * stage
        names[f"UpBlock2.{layer + 1}.weight"] = f"up.{stage}.0.weight"
        names |= _norm_names(f"UpBlock2.{layer + 2}", f"up.{stage}.1")
        names |= {f"UpBlock2.{layer + 4}.{name}": f"up.{stage}.3.conv_block.{name}" for name in ("weight", "bias")}
        names |= _norm_names(f"UpBlock2.{layer + 6}", f"up.{stage}.4")
    return names


def _norm_names(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{name}": f"{ours}.{own}" for name, own in _NORM.items()}


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise WeightsError(f"there is no tensor {name!r}, which NICE-GAN's networks have: the file is not whole")
    return tensors[name]


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> Shape:
    shape = tuple(_tensor(tensors, name).shape)
    if len(shape) != axes or 0 in shape:
        raise WeightsError(f"tensor {name!r} has shape {shape}, expected {axes} axes, none of them empty")
    return shape
