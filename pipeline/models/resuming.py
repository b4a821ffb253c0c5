"""Whether a training that is resumed is the one that was begun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.models.reading import CheckpointError

MAY_CHANGE = frozenset({"max_epochs", "decay_epochs", "learning_rate"})
"""Settings of a training that may be others when it is resumed; they are told, not refused."""
_FOLLOWS = frozenset({"format", "version", "method", "network_size", "data"})  # from the rest, or from the data
_OF_THE_MOMENT = frozenset({"commit", "epoch", "iteration"})
_NAMES = {"data_digest": "data (SHA-256)", "lists_digest": "which patients train, validate and test (SHA-256)"}
_SHOWN = 60  # characters of a value

Change = tuple[str, Any, Any]


class ResumeError(CheckpointError):
    """A training that is resumed with something else than it was begun with.

    Args:
        path: the checkpoint.
        changes: (what, its value then, its value now) of each.
    """

    def __init__(self, path: object, changes: Sequence[Change]) -> None:
        told = "; ".join(f"{name} was {_told(then)}, now {_told(now)}" for name, then, now in changes)
        super().__init__(
            f"resume: {path} is of another training: {told}. Give what it was begun with; or --resume_changed true, to "
            "go on all the same; or leave resume out, to start a new one"
        )
        self.changes = list(changes)


def recipe_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[Change], list[Change]]:
    """Compare the recipes of a training, as its checkpoint has it and as it is now.

    Args:
        then: content of a recipe.
        now: likewise.

    Returns:
        What makes it another training, and what may change (see `MAY_CHANGE`).
    """
    # Which networks there are follows from the weights, which are compared; older recipes name some that never were.
    both = then["networks"].keys() & now["networks"].keys()
    before, after = (
        dict(_leaves({**recipe, "networks": {name: recipe["networks"][name] for name in both}}))
        for recipe in (then, now)
    )
    names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    found = [(name, before.get(name), after.get(name)) for name in names]
    changed = [(_NAMES.get(name, name), old, new) for name, old, new in found if name not in MAY_CHANGE]
    return changed, [change for change in found if change[0] in MAY_CHANGE]


def _leaves(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, content in recipe.items():
        if section == "training":
            settings = {**content, **content.get("settings", {})}
            del settings["settings"]
            yield from ((name, value) for name, value in settings.items() if name not in _OF_THE_MOMENT)
        elif section not in _FOLLOWS:
            yield from _below(section, content)


def _below(name: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _below(f"{name}#{key}", value)
    else:
        yield _setting(name), content


def _setting(name: str) -> str:
    """The setting that an entry of a recipe comes from."""
    name = name.replace("#arguments", "").replace("#scaling", "_intensity")
    section, _, rest = name.partition("#")
    return f"network_def#{rest}" if section == "networks" else rest if section in ("grid", "foreground") else name


def _told(value: Any) -> str:
    text = "nothing of the kind" if value is None else str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):  # SHA-256: enough to see that two differ
        return text[:16]
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
