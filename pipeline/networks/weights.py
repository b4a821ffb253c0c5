"""Weights saved by the RegGAN authors' public code, turned into weights of this package.

The authors (github.com/Kid-Liet/Reg-GAN) save plain state dicts, one network each. Their tensors come in the same order
as ours under other names, so a network is recognised by its shapes alone and its tensors are taken over one by one. The
modules of this package therefore have to be defined in this order (each convolution has a weight, then a bias):

- generator: stem, stride-2 stages, two per residual block, transposed stages, output;
- discriminator: from the image to the score;
- registration network: per level one convolution and the two of its residual block, from fine to coarse; at the bottom
  a 1-wide one, two per residual block, a 1-wide one; one per decoder level from coarse to fine; two of the refining
  residual block, a 1-wide one; output.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks.patch_discriminator import PatchDiscriminator
from pipeline.networks.registration import RegistrationNet
from pipeline.networks.resnet_generator import ResNetGenerator

Shape = tuple[int, ...]

_SAVE_HINT = "save plain weights with torch.save(network.state_dict(), path)"


class WeightsError(ValueError):
    """A weights file or state dict cannot be used; the message says why."""


@dataclass(frozen=True)
class ImportedNetwork:
    """A network built for imported weights, with the weights in it.

    Attributes:
        role: "generator", "discriminator" or "registration", the attribute of the translator that holds such a network.
        settings: constructor arguments that were read from the shapes.
        network: the network, on the CPU, float32.
    """

    role: str
    settings: dict[str, Any]
    network: nn.Module

    @property
    def parameter_count(self) -> int:
        """Number of single weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def state_dict(
        self, target_window: tuple[float, float] = (-1.0, 1.0), image_size: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """Return the weights under the names that they have in a translator.

        Args:
            target_window: physical values (low, high) that a generator's -1 and 1 stand for; the default leaves the
                prediction in [-1, 1]. Unused for the other networks.
            image_size: size in pixels of the images that a generator was trained on, up to three axes; unknown by
                default.

        Returns:
            Tensors named `<role>.<name in the network>`; for a generator also `target_window`, two values, and
            `trained_size`, three with zeros for what is not known.

        Raises:
            WeightsError: the window is not finite or not increasing.
        """
        tensors = {f"{self.role}.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.role == "generator":
            window = torch.tensor(target_window, dtype=torch.float32)
            if not (torch.isfinite(window).all() and window[0] < window[1]):
                raise WeightsError(f"target window must be two finite values, low < high, got {target_window}")
            tensors["target_window"] = window
            tensors["trained_size"] = torch.tensor([*image_size, 0, 0, 0][:3])
        return tensors


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a plain state dict without running code from the file.

    Args:
        path: file written by `torch.save(network.state_dict(), path)`.

    Returns:
        The tensors by name, in the file's order, on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, holds Python objects, or something else than a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # whatever the bytes of an unknown file make the unpickler raise
        refused = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        if refused or "TorchScript" in str(error):
            raise WeightsError(
                f"{path} holds Python objects (a whole module or a script), which are refused because loading them "
                f"can run code; {_SAVE_HINT}"
            ) from error
        raise WeightsError(f"{path} is damaged or was not written by torch.save ({type(error).__name__})") from error
    if not isinstance(content, Mapping) or not content:
        kind = "an empty mapping" if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path} holds {kind}, expected a state dict of named tensors; {_SAVE_HINT}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(
                f"{path} is no state dict: its entry {name!r} holds {type(tensor).__name__}, expected a tensor; "
                f"{_SAVE_HINT}"
            )
    return dict(content)


def import_state_dict(tensors: Mapping[str, Tensor]) -> ImportedNetwork:
    """Recognise a network of the authors' code by its shapes and take over its weights.

    Widths, depth, channels and the number of spatial axes are read from the shapes, too. Names do not matter.

    Args:
        tensors: state dict of one generator, discriminator or registration network, in definition order.

    Returns:
        The network with these weights.

    Raises:
        WeightsError: the shapes belong to none of the three networks (the message names the first tensor that does not
            fit the nearest one), or a tensor is not of floating point or not finite.
    """
    role, network_class, settings = _recognise(tensors)
    with torch.device("meta"):
        network = network_class(**settings)
    expected = network.state_dict()
    _check_shapes(tensors, expected, f"{network_class.__name__} with {settings}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise WeightsError(f"tensor {name!r} ({tensor.dtype}) must hold finite floating-point values only")
    renamed = {name: tensor.detach().float() for name, tensor in zip(expected, tensors.values(), strict=True)}
    network.load_state_dict(renamed, strict=True, assign=True)
    return ImportedNetwork(role, settings, network)


def write_state_dict(tensors: Mapping[str, Tensor], path: str | Path, overwrite: bool = False) -> None:
    """Write a state dict beside its place, then rename it, so that the file is there whole or not at all.

    Args:
        tensors: the state dict.
        path: file to write; missing folders are made.
        overwrite: replace a file that is already there.

    Raises:
        FileExistsError: the file is there already and `overwrite` is off.
        WeightsError: the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, expected a file to write")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(tensors), file)
        partial.replace(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def _recognise(tensors: Mapping[str, Tensor]) -> tuple[str, Callable[..., nn.Module], dict[str, Any]]:
    """Tell the network apart by its first kernel, and guess its settings from the shapes."""
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    families: dict[int, tuple[str, Callable[..., nn.Module], Callable[[list[Shape]], dict[str, Any]]]] = {
        7: ("generator", ResNetGenerator, _generator_settings),
        4: ("discriminator", PatchDiscriminator, _discriminator_settings),
        3: ("registration", RegistrationNet, _registration_settings),
    }
    first = shapes[0] if shapes else ()
    kernel = set(first[2:])
    if len(first) not in (4, 5) or len(kernel) != 1 or not kernel <= families.keys() or 0 in first:
        raise WeightsError(
            f"no known network starts with a tensor of shape {first} ({next(iter(tensors), 'no tensor')!r}): expected "
            "a 7-wide convolution (generator), a 4-wide one (discriminator) or a 3-wide one (registration network)"
        )
    role, network_class, read_settings = families[kernel.pop()]
    # Each convolution has a weight and a bias, so every second shape is a weight's.
    return role, network_class, {"spatial_dims": len(first) - 2, **read_settings(shapes[::2])}


def _generator_settings(weights: list[Shape]) -> dict[str, Any]:
    filters, in_channels = weights[0][:2]
    downsamplings = 0
    for weight in weights[1:]:
        if weight[:2] != (filters * 2 ** (downsamplings + 1), filters * 2**downsamplings):
            break
        downsamplings += 1
    return {
        "in_channels": in_channels,
        "out_channels": _channels(weights[-1]),
        "filters": filters,
        "downsamplings": max(1, downsamplings),
        "residual_blocks": max(1, (len(weights) - 2 * downsamplings - 2) // 2),
    }


def _discriminator_settings(weights: list[Shape]) -> dict[str, Any]:
    filters = weights[0][0]
    # Count the doublings rather than the tensors: a long file of another network must not make the guess explode.
    layers = 0
    while layers + 1 < len(weights) and weights[layers + 1][:1] == (filters * 2 ** (layers + 1),):
        layers += 1
    return {"in_channels": weights[0][1], "filters": filters, "layers": max(1, layers)}


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


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], nearest: str) -> None:
    prefix = f"the shapes fit no known network; nearest is {nearest}, but "
    for number, ((name, tensor), (own, wanted)) in enumerate(zip(tensors.items(), expected.items(), strict=False), 1):
        if tensor.shape != wanted.shape:
            raise WeightsError(
                f"{prefix}tensor {number} of {len(tensors)}, {name!r}, has shape {tuple(tensor.shape)} where "
                f"{tuple(wanted.shape)} is expected ({own!r})"
            )
    if len(tensors) != len(expected):
        raise WeightsError(f"{prefix}there are {len(tensors)} tensors where {len(expected)} are expected")
