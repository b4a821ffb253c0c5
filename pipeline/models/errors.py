"""What can be wrong with a model file, or with the settings that it is used with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ModelError(ValueError):
    """A model file, or its recipe, that cannot be used; the message says which and why."""


class ContradictionError(ModelError):
    """Settings that are not those that a model was made with.

    Args:
        path: the model.
        found: (setting, given, in the model) of each.
    """

    def __init__(self, path: object, found: Sequence[tuple[str, Any, Any]]) -> None:
        super().__init__(path, found)
        self.path, self.found = path, list(found)

    def __str__(self) -> str:
        lines = [f"- {name}: given {_told(given)}, the model has {_told(known)}" for name, given, known in self.found]
        settings = "setting contradicts" if len(lines) == 1 else "settings contradict"
        head = f"{len(lines)} {settings} the recipe of {self.path}; leave out what the model knows by itself:"
        return "\n".join([head, *lines])


def _told(value: Any) -> str:
    return "nothing of the kind" if value is None else repr(value)
