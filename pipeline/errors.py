"""What an error says: its first cause, without what MONAI wraps around it."""

from __future__ import annotations

import difflib
import inspect
import re
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
    while error.__cause__ is not None and error.__cause__ is not error:  # as "raise error from error" makes it
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
    if isinstance(error, TypeError) and (hint := _known_arguments(error)):
        return f"{error}: {hint}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, ValueError | OSError | RuntimeError) and text.strip():
        return text
    return f"{kind}: {text}" if text.strip() else kind


def _known_arguments(error: TypeError) -> str | None:
    """What a class that was given an unknown argument takes, with the one that may have been meant."""
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return None
    # The class is in the frames that the call came through, by itself or as that of the object being made.
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in list(frame.f_locals.values()):
            for kind in value.__mro__ if isinstance(value, type) else type(value).__mro__:
                parameters = inspect.signature(kind).parameters if kind.__name__ == match[1] else {}
                known = [name for name in parameters if name != "self"]
                # One that hands unknown arguments on has a base of its name that does not.
                if known and all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
                    close = difflib.get_close_matches(match[2], known, n=1, cutoff=0.6)
                    return (f"did you mean '{close[0]}'? " if close else "") + f"it takes {', '.join(known)}"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def last_lines(error: BaseException) -> str:
    """The end of the report of an error's first cause."""
    lines = "".join(traceback.format_exception(first_cause(error))).rstrip().splitlines()
    return "\n".join(lines[-REPORT_LINES:])
