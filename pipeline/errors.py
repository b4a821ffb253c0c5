"""What an error says: its first cause, without what MONAI wraps around it."""

from __future__ import annotations

import traceback

from pipeline.files import NotWrittenError, not_written

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


def said(error: BaseException) -> list[str]:
    """What to tell a user of an error: its first cause in one line, the last; what else it lists in the lines above."""
    first = first_cause(error)
    lines = [line.strip() for line in _words(first).splitlines() if line.strip()]
    if len(lines) < 2:
        return lines
    head, *listed = lines
    one = f"{head} {listed[0].removeprefix('- ')}"
    return [one] if len(listed) == 1 else [*lines, f"{one} (the first of {len(listed)}, see above)"]


def _words(error: BaseException) -> str:
    """What an error says, with its class where that says more."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return (
            f"there is too little memory: {_first_line(error) or kind}; a smaller batch_size or spatial_size needs less"
        )
    if isinstance(error, OSError) and not isinstance(error, NotWrittenError) and error.filename is not None:
        told = not_written(error.filename, error)
        if told is not None:
            return str(told)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, ValueError | OSError | RuntimeError) and text.strip():
        return text
    return f"{kind}: {text}" if text.strip() else kind


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def last_lines(error: BaseException) -> str:
    """The end of the report of an error's first cause."""
    lines = "".join(traceback.format_exception(first_cause(error))).rstrip().splitlines()
    return "\n".join(lines[-REPORT_LINES:])
