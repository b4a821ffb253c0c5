"""What the import of every family needs: the outcome, the checks, and networks filled with foreign tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.models import load_strictly

Shape = tuple[int, ...]
Backbone = Literal["cyclegan", "unit", "munit", "nicegan"]
Role = Literal["generator", "discriminator", "registration", "autoencoder", "encoder"]


class WeightsError(ValueError):
    """A weights file or state dict cannot be used; the message says why."""


@dataclass(frozen=True)
class ImportedFile:
    """What one file of the authors' code holds.

    Attributes:
        backbone: whose it is. Discriminators and registration networks that several backbones share say "cyclegan" or
            "unit".
        role: what it does; "autoencoder" is a generator of UNIT or MUNIT, which serves one domain, and "encoder" the
            part of a NICE-GAN discriminator that its generator reads.
        networks: the networks with the weights in them, on the CPU, float32, by the name of the translator's argument
            that builds them.
        settings: their constructor arguments, which were read from the shapes.
    """

    backbone: Backbone
    role: Role
    networks: dict[str, nn.Module]
    settings: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return f"{' and '.join(type(network).__name__ for network in self.networks.values())} ({self.role})"

    @property
    def parameter_count(self) -> int:
        """Number of single weights."""
        return sum(parameter.numel() for network in self.networks.values() for parameter in network.parameters())


def on_meta(network_class: Callable[..., nn.Module], settings: Mapping[str, Any]) -> nn.Module:
    """Build a network without memory for its weights.

    Raises:
        WeightsError: no such network can be built.
    """
    try:
        with torch.device("meta"):
            return network_class(**settings)
    except (ValueError, RuntimeError) as error:
        raise WeightsError(f"the shapes lead to no network that can be built: {error}") from error


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape], nearest: str) -> None:
    """Compare tensors with what a network expects, one by one in order.

    Args:
        tensors: the file's, by their names.
        expected: shapes in the file's order, by our names.
        nearest: the network, for the message.

    Raises:
        WeightsError: naming the first tensor that differs.
    """
    prefix = f"the shapes fit no known network; nearest is {nearest}, but "
    for number, ((name, tensor), (own, shape)) in enumerate(zip(tensors.items(), expected.items(), strict=False), 1):
        if tuple(tensor.shape) != tuple(shape):
            raise WeightsError(
                f"{prefix}tensor {number} of {len(tensors)}, {name!r}, has shape {tuple(tensor.shape)} where "
                f"{tuple(shape)} is expected ({own!r})"
            )
    if len(tensors) != len(expected):
        raise WeightsError(f"{prefix}there are {len(tensors)} tensors where {len(expected)} are expected")


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise WeightsError unless all tensors are of floating point and finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise WeightsError(f"tensor {name!r} ({tensor.dtype}) must hold finite floating-point values only")


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network that was built by `on_meta` its weights, in single precision."""
    plain = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    load_strictly(network, plain, "the file", assign=True)


def in_order(
    network_class: type[nn.Module],
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shapes_of: Callable[[nn.Module], dict[str, Shape]] | None = None,
    converted: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> nn.Module:
    """A network with tensors that are told by their order alone.

    Args:
        network_class: of the network.
        settings: its constructor arguments, as the shapes say them.
        tensors: the file's.
        shapes_of: gives their shapes in their order by our names; None where these are our own.
        converted: makes ours of a tensor, by our name.

    Raises:
        WeightsError: the shapes are others, or a value is not finite.
    """
    network = on_meta(network_class, settings)
    expected = own_shapes(network) if shapes_of is None else shapes_of(network)
    check_shapes(tensors, expected, f"{network_class.__name__} with {settings}")
    check_values(tensors)
    fill(network, {name: converted(name, tensor) for name, tensor in zip(expected, tensors.values(), strict=True)})
    return network


def own_shapes(network: nn.Module) -> dict[str, Shape]:
    """The shapes of a network's tensors by their names, in order."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def kernel_width(tensor: Tensor) -> int:
    """Width of a convolution's square or cubic kernel; 0 for all other tensors."""
    kernel = set(tensor.shape[2:]) if tensor.ndim in (4, 5) else set()
    return kernel.pop() if len(kernel) == 1 else 0


def count_doublings(weights: list[Shape], filters: int) -> int:
    """How many of these convolutions, from the first on, double their input's channels, beginning with `filters`.

    To count the doublings rather than the tensors keeps the guess small for a long file of another network.
    """
    count = 0
    while count < len(weights) and weights[count][:2] == (filters * 2 ** (count + 1), filters * 2**count):
        count += 1
    return count
