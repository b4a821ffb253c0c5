"""What an error says: its first cause, without what MONAI wraps around it."""

from __future__ import annotations

import traceback

# How the errors begin that MONAI wraps around what a config's part raises.
WRAPPERS = ("Failed to instantiate", "Failed to evaluate", "applying transform")
REPORT_LINES = 8


def first_cause(error: BaseException) -> BaseException:
    """The error that a config's part raised, out of those that MONAI wraps around it."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    return error


def innermost_cause(error: BaseException) -> BaseException:
    """The error at the end of the chain, whoever wrapped it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def cause(error: BaseException) -> str:
    """An error's first cause and what it says: "ValueError: ..."."""
    first = first_cause(error)
    return f"{type(first).__name__}: {first}"


def last_lines(error: BaseException) -> str:
    """The end of the report of an error's first cause."""
    lines = "".join(traceback.format_exception(first_cause(error))).rstrip().splitlines()
    return "\n".join(lines[-REPORT_LINES:])
