"""What ``--conf NAME VALUE`` says to the server at its start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ALL", "SETTINGS", "find_bundles", "is_on", "number"]

SETTINGS = (
    *("models", "bundles", "output_dir", "token_file", "auth", "auth_issuer", "auth_audience"),
    *("queue", "min_free_gb", "max_volume_mb", "tracking_uri", "store_derived"),
)
"""What ``--conf NAME VALUE`` can set."""

ALL = "all"
"""In place of names of models: whatever bundles lie in the folder, those that come later, too."""


def find_bundles(names: str, folder: Path) -> dict[str, Path]:
    """Find the bundles to serve.

    Args:
        names: of the bundles, separated by commas; or ``all`` for every bundle of the folder.
        folder: that they lie in.

    Raises:
        ValueError: if no name is given, or one is of no bundle in the folder.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    there = sorted(path.parent.parent.name for path in folder.glob("*/configs/inference.json"))
    if asked == [ALL]:
        asked = there
    elif not asked:
        raise ValueError(
            f"--conf models must name the bundles to serve, separated by commas, or be '{ALL}'; in {folder}: {there}"
        )
    unknown = [name for name in asked if name not in there]
    if unknown:
        raise ValueError(f"--conf models names {unknown}, expected bundles in {folder}: {there}")
    return {name: (folder / name).resolve() for name in asked}


def is_on(name: str, conf: Mapping[str, str]) -> bool:
    """Whether a switch is on; it is off unless given.

    Args:
        name: of the setting.
        conf: what was given.

    Raises:
        ValueError: it is neither ``on`` nor ``off``.
    """
    if conf.get(name, "off") not in ("on", "off"):
        raise ValueError(f"--conf {name} must be on or off, got {conf[name]!r}")
    return conf.get(name) == "on"


def number(name: str, conf: Mapping[str, str], default: float, kind: type, least: float) -> Any:
    """Read a number.

    Args:
        name: of the setting.
        conf: what was given.
        default: for a setting that was not given.
        kind: int or float.
        least: it must be at least this.

    Raises:
        ValueError: it is no such number.
    """
    try:
        value = kind(conf.get(name) or default)
    except ValueError:
        value = None
    if value is None or not least <= value < math.inf:
        words = "a whole number" if kind is int else "a number"
        raise ValueError(f"--conf {name} must be {words} of at least {least}, got {conf[name]!r}")
    return value
