"""Networks, translators and scalings as plain values, and built again from them."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from pipeline.models.errors import ModelError
from pipeline.translators import Translator
from transforms.intensity import ScaleMRIntensityd

TRUSTED = ("pipeline.networks", "pipeline.translators", "monai.networks.nets", "transforms")
"""Packages whose classes a model file may name; others have to be named by whoever loads it."""

Description = dict[str, Any]


def describe_class(kind: type) -> str:
    """The shortest path that a class can be imported by, so that files of a package may move within it."""
    parts = kind.__module__.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if getattr(sys.modules.get(package), kind.__name__, None) is kind:
            return f"{package}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def describe_factory(factory: Callable[..., nn.Module]) -> Description:
    """What builds a network: its class, and all arguments, defaults included.

    Args:
        factory: a class, or a `functools.partial` of one, as ``"_mode_": "callable"`` makes it in a config.

    Raises:
        ModelError: it is neither, or an argument is no plain value.
    """
    kind, given = unfold(factory)
    return {"class": describe_class(kind), "arguments": plain({**defaults_of(kind), **given}, kind.__name__)}


def describe_scaling(transform: Any) -> Description:
    """The class of a scaling's dictionary form, and its arguments.

    Args:
        transform: such as `transforms.ScaleMRIntensityd`; its ``scaler`` keeps each argument as an attribute.

    Raises:
        ModelError: it is no scaling.
    """
    scaler = getattr(transform, "scaler", None)
    if scaler is None:
        raise ModelError(
            "a scaling must be the dictionary form of a transform like transforms.ScaleMRIntensityd, "
            f"got {type(transform).__name__}"
        )
    names = [name for name in inspect.signature(type(scaler).__init__).parameters if name != "self"]
    arguments = {name: getattr(scaler, name) for name in names}
    return {"class": describe_class(type(transform)), "arguments": plain(arguments, type(scaler).__name__)}


def described(part: Any) -> str | None:
    """What a part is and how it is set, to compare and to read; None for None.

    Args:
        part: such as a random transform, or a chain of them, before it was used.
    """
    if part is None:
        return None
    if isinstance(part, Sequence) and not isinstance(part, str):
        return f"[{', '.join(map(str, map(described, part)))}]"
    if isinstance(part, str | int | float | bool | Mapping):
        return str(part)
    settings = {
        name: value
        for name, value in sorted(getattr(part, "__dict__", {}).items())
        if not name.startswith("_") and name != "R"
    }
    told = [
        f"{name}={described(value)}"
        for name, value in settings.items()
        if isinstance(value, str | int | float | bool | Sequence) or hasattr(value, "set_random_state")
    ]
    return f"{type(part).__name__}({', '.join(told)})"


def describe_translator(translator: Translator) -> tuple[Description, dict[str, Description]]:
    """A translator's class with its own arguments, and what builds its networks, by the argument that takes it.

    Networks that none of its loss terms needs are not built, and not described.

    Raises:
        ModelError: an argument is neither a plain value nor builds a network.
    """
    own: dict[str, Any] = {}
    networks = {}
    for name, value in translator.arguments.items():
        if name == "weights" or name in translator.settings_of_use:
            continue
        if callable(value):
            if getattr(translator, name, value) is not None:
                networks[name] = describe_factory(value)
        elif value is not None:
            own[name] = value
    kind = type(translator)
    return {"class": describe_class(kind), "arguments": plain(own, kind.__name__)}, networks


def build_factory(description: Mapping[str, Any], trusted: Collection[str] = ()) -> Callable[..., nn.Module]:
    """What `describe_factory` described.

    Raises:
        ModelError: see `find_class`.
    """
    return functools.partial(find_class(description["class"], nn.Module, trusted), **description["arguments"])


def build_scaling(description: Mapping[str, Any], keys: str | Sequence[str], trusted: Collection[str] = ()) -> Any:
    """What `describe_scaling` described, for these keys.

    Raises:
        ModelError: see `find_class`; or the arguments are refused.
    """
    kind = find_class(description["class"], ScaleMRIntensityd, trusted)
    try:
        return kind(keys=keys, **description["arguments"])
    except (TypeError, ValueError) as error:
        raise ModelError(f"the scaling {description} cannot be built: {error}") from error


def find_class(path: str, base: type, trusted: Collection[str] = ()) -> Any:
    """The class of that path, without importing what nobody has vouched for.

    A model file is data; what it names must not become code. So only classes of this project and of MONAI's networks
    are taken, and those of modules that the one who loads it has named.

    Args:
        path: such as "pipeline.networks.ResNetGenerator".
        base: class that it must derive from.
        trusted: further modules and packages.

    Raises:
        ModelError: it lies elsewhere, or there is no such class.
    """
    module_name, _, name = path.rpartition(".")
    allowed = (*TRUSTED, *trusted)
    if not any(module_name == package or module_name.startswith(f"{package}.") for package in allowed):
        raise ModelError(
            f"the model names {path}, which is not of this project: nothing is imported that only a file names. If you "
            f"know where it is from, name its modules yourself: --trusted_modules \"['{module_name}']\""
        )
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the model names {path}, which cannot be found here: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ModelError(f"the model names {path}, expected a class derived from {base.__name__}")
    return kind


def unfold(factory: Callable[..., Any]) -> tuple[type, dict[str, Any]]:
    """The class that a factory builds, and the arguments that it gives.

    Raises:
        ModelError: it is neither a class nor a partial of one.
    """
    given: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        given = {**factory.keywords, **given}
        factory = factory.func
    if not isinstance(factory, type):
        raise ModelError(
            f'a network must be given by its class (in a config with "_mode_": "callable"), got {factory!r}'
        )
    return factory, given


def defaults_of(kind: type) -> dict[str, Any]:
    """The arguments that a class has defaults for."""
    parameters = inspect.signature(kind).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def plain(value: Any, owner: str) -> Any:
    """A value as JSON has it: tuples and sets become lists.

    Args:
        value: the value.
        owner: whose it is, for the message.

    Raises:
        ModelError: it is no number, text, list or dictionary.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, owner) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item, owner) for item in value]
    raise ModelError(f"{owner} has the argument {value!r}, which a model file cannot hold; expected a plain value")


def differences(given: Any, known: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, given, known) for all that is given and is not the same; None is not given.

    Args:
        given: a plain value, or a dictionary of such, at any depth.
        known: what to compare it with.
        name: of the setting.
    """
    if given is None:
        return
    if isinstance(given, Mapping) and isinstance(known, Mapping):
        for key, value in given.items():
            yield from differences(value, known.get(key), f"{name}#{key}")
    elif not _same(given, known):
        yield name, given, known


def _same(given: Any, known: Any) -> bool:
    if isinstance(given, Sequence) and not isinstance(given, str) and isinstance(known, list):
        return len(given) == len(known) and all(map(_same, given, known))
    if isinstance(given, bool) or isinstance(known, bool):
        return given is known
    return given == known
