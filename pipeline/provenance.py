"""Where a run comes from: software, source code and settings, as plain strings."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = {"torch": "torch", "monai": "monai", "mlflow": "mlflow", "ignite": "pytorch-ignite", "numpy": "numpy"}
GIT_TIMEOUT = 10.0  # seconds


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Names the software and the machine.

    Args:
        device: where the networks are; the CPU if None.

    Returns:
        Versions of Python and the main packages, the operating system, the device and the command line.
    """
    device = device or torch.device("cpu")
    found = {name: _version(package) for name, package in PACKAGES.items()}
    found |= {"python": platform.python_version(), "os": platform.platform(), "device": str(device)}
    if device.type == "cuda":
        found |= {"device_name": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    found["command"] = shlex.join(Path(word).name if n == 0 else word for n, word in enumerate(sys.orig_argv))
    return found


def git_state(source: Path) -> tuple[str, bool] | None:
    """Finds the git commit that a source file belongs to.

    Args:
        source: a file that the repository tracks. A package that merely lies below somebody's checkout does not count.

    Returns:
        The commit and whether files differ from it; None outside a checkout or without git.
    """
    try:
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        return _git(source.parent, "rev-parse", "HEAD"), bool(_git(source.parent, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None


def source_name() -> str:
    """What this process runs, to read: the configs of a bundle, or the script."""
    words = sys.orig_argv
    at = next((n for n, word in enumerate(words) if word.startswith("--config_file")), None)
    if at is not None:
        text = words[at].partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
        names = [Path(part.strip("[]'\" ")).name for part in text.split(",")]
        return " + ".join(name for name in names if name)
    return Path(sys.argv[0]).name or "python"


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flattens nested settings to strings.

    Args:
        settings: for instance a resolved configuration.

    Returns:
        Keys of nested values are joined by dots, positions in lists included; lists of plain values stay whole. An
        object that is no plain value is told by its class.
    """
    return {key: redact(_text(value)) for name in settings for key, value in _leaves(str(name), settings[name])}


_USER_INFO = re.compile(r"(\w://)(?!/)[^\s'\"]*@")
_SECRETS = re.compile(
    r"([?&;]\w*(?:token|passw|pwd|secret|api_?key|access_?key|sig|auth|credential)\w*=)[^&;\s'\"]+", re.IGNORECASE
)


def redact(text: str) -> str:
    """Takes user names, passwords and tokens out of the addresses in a text.

    Whatever stands between ``://`` and the last ``@`` of an address goes, so that no password is taken for its end.
    """
    return _SECRETS.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "--no-optional-locks", "-C", str(folder), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=GIT_TIMEOUT,
    ).stdout.strip()


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        children: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)) and not all(_is_plain(item) for item in value):
        children = enumerate(value)
    else:
        yield key, value
        return
    for name, child in children:
        yield from _leaves(f"{key}.{name}", child)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, Path, torch.device, torch.dtype))


def _text(value: Any) -> str:
    if _is_plain(value):
        return str(value)
    if isinstance(value, (list, tuple, Mapping)):
        return str(list(value) if isinstance(value, tuple) else value)
    return f"{type(value).__module__}.{type(value).__qualname__}"
