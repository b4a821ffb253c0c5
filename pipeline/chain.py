"""The chain of configs that a command line names: read as MONAI reads it, with words for what is wrong with it.

MONAI reads the configs before anything of this project is imported, and knows neither which file a fault lies in nor
how configs are stacked; `pipeline.early` lets this room speak all the same.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".yaml", ".yml")
MONAI_WORDS = (
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
    "help",
)
"""What MONAI's command takes for itself."""
BUNDLE = Path(__file__).resolve().parent.parent / "bundles" / "reggan" / "configs"
BEGIN = "initialize"  # the entry that a config has which others are stacked on
HOW = "such as: python -m monai.bundle run training --config_file bundles/reggan/configs/train.json"
LIST_FORM = "several configs are a list in quotes: --config_file \"['{}','{}']\""


def command_line(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """The settings of a command line as they were typed, in order; None for a value that is not there."""
    return _split(words)[0]


def _split(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Settings, and the words that belong to none."""
    found: list[tuple[str, str | None]] = []
    others = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not re.match(r"--?[A-Za-z]", word):
            others.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and index < len(words) and not re.match(r"--?[A-Za-z]|--$", words[index]):
            value, equals = words[index], "="
            index += 1
        found.append((name.replace("-", "_"), value if equals else None))
    return found, others


def as_fire(text: str) -> Any:
    """What MONAI's command makes of a text."""
    from fire.parser import DefaultParseValue

    try:
        return DefaultParseValue(text)
    except Exception:  # what Fire cannot parse stays text
        return text


def named_files(words: Sequence[str]) -> list[str] | None:
    """The configs that a command line names, None if it names none."""
    given = dict(command_line(words)).get("config_file")
    if given is None:
        return None
    files = as_fire(given)
    return [str(name) for name in files] if isinstance(files, list | tuple) else [str(given)]


def read_chain(names: Sequence[str]) -> dict[str, Any]:
    """The configs, merged as MONAI merges them.

    Raises:
        ValueError: a file is missing, cannot be read or has a name twice, or stands in front of what it changes.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    contents = {name: _content(name, names) for name in names}
    bases = [name for name in names if BEGIN in contents[name]]
    if bases and bases[0] != names[0]:
        ordered = [bases[0], *(name for name in names if name != bases[0])]
        raise ValueError(
            f"{names[0]} is an overlay and stands in front of {bases[0]}, which sets again what it changes; put it "
            f"behind: --config_file {_listed(ordered)}"
        )
    parser = ConfigParser({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                for key, value in contents[name].items():
                    merge_kv(parser, key, value)
            except (KeyError, ValueError) as error:
                raise ValueError(_unfit(name, names, error)) from error
    return dict(parser.config)


def _unfit(name: str, names: Sequence[str], error: Exception) -> str:
    if not isinstance(error, KeyError):
        return f"config_file: {name}: {error}"
    what = str(error.args[0]).removeprefix("query key: ")
    if name == names[0]:
        return (
            f"{name} is an overlay: it changes {what!r}, which it does not have. It stands behind the config that has, "
            f"such as --config_file {_listed([str(Path(name).with_name('train.json')), name])}"
        )
    return f"{name} changes {what!r}, which none of the configs in front of it has ({', '.join(names)})"


def _listed(names: Sequence[str]) -> str:
    return '"[' + ",".join(f"'{name}'" for name in names) + ']"'


def _content(name: str, names: Sequence[str]) -> dict[str, Any]:
    """One config."""
    from monai.bundle import ConfigParser

    path = Path(name)
    if path.is_dir():
        raise ValueError(f"config_file: {name} is a folder, expected a file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise ValueError(_missing(name, names))
    if not name.lower().endswith(SUFFIXES):
        raise ValueError(f"config_file: {name} has the suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # MONAI warns of a name that stands there twice
            content = ConfigParser.load_config_file(name)
    except json.JSONDecodeError as error:
        what = "is empty" if not path.read_text(encoding="utf-8").strip() else "is not JSON"
        raise ValueError(f"config_file: {name} {what}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"config_file: {name} is not text in UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"config_file: {name} cannot be read: {error.strerror}") from error
    except UserWarning as error:
        raise ValueError(f"config_file: {name} has a name twice: {str(error).partition(': ')[2]}") from error
    except Exception as error:  # a parser of YAML has its own
        reason = " ".join(str(error).split())
        raise ValueError(f"config_file: {name} cannot be read: {reason}") from error
    if not isinstance(content, Mapping):
        got = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"config_file: {name} must hold a dictionary of settings, got {got}")
    return dict(content)


def _missing(name: str, names: Sequence[str]) -> str:
    parts = name.strip("[]()").split(",")
    if len(parts) > 1:
        return f"config_file: {name} is no file; " + LIST_FORM.format(*(part.strip(" '\"") for part in parts[:2]))
    folder = Path(name).parent
    if not folder.is_dir():
        own = BUNDLE / Path(name).name
        hint = f"; there is {own}" if own.is_file() else f": there is no folder {folder}"
        return f"config_file: {name} does not exist{hint}{_list_hint(names)}"
    there = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES))
    close = difflib.get_close_matches(Path(name).name, there, n=1)
    hint = f": did you mean {folder / close[0]}?" if close else f"; {folder} has {', '.join(there) or 'no configs'}"
    return f"config_file: {name} does not exist{hint}{_list_hint(names)}"


def _list_hint(names: Sequence[str]) -> str:
    return "" if len(names) > 1 else " (" + LIST_FORM.format("train.json", "cycle.json") + ")"


def fault(words: Sequence[str]) -> str | None:
    """What is wrong with the configs that a command line of MONAI names, or with its words; None if nothing is.

    Args:
        words: of the command line, without the program: ``run training --config_file ...``.
    """
    settings, others = _split(words)
    if others[:1] != ["run"]:
        return None
    given = dict(settings)
    for name in ("args_file", "meta_file", "logging_file"):
        text = given.get(name)
        files = [] if text is None else as_fire(text)
        for file in files if isinstance(files, list | tuple) else [text]:
            if not Path(str(file)).is_file():
                return f"{name}: {file} does not exist"
    if "tracking" in given:
        return (
            f"--tracking {given['tracking']} is MONAI's own tracking, which this bundle has no need of; the store is "
            "named with --tracking_uri"
        )
    names = named_files(words)
    if not names:
        if "args_file" in given:
            return None
        if "config_file" in given:
            return f"--config_file {given['config_file'] or ''} names no config; {HOW}"
        close = difflib.get_close_matches("config_file", given, n=1, cutoff=0.5)
        instead = f" (there is --{close[0]})" if close else ""
        return f"no --config_file was given{instead}; {HOW}"
    stray = [word for word in others[1:] if word.lower().endswith(SUFFIXES)]
    if stray:
        return f"{stray[0]} belongs to no setting; {LIST_FORM.format(names[0], stray[0])}"
    try:
        config = read_chain(names)
    except ValueError as error:
        return str(error)
    run_id = given.get("run_id") or (others[1] if len(others) > 1 else "run")
    if run_id not in config:
        can = [name for name in ("run", "training") if name in config]
        return (
            f"there is no {run_id!r} to run in {', '.join(names)}, "
            f"which {'has ' + ' and '.join(map(repr, can)) if can else 'has nothing to run'}"
        )
    if len(others) > 2:
        return f"{others[2]!r} belongs to nothing, behind 'run {run_id}'; a setting is given as --NAME VALUE"
    return None


def missing_part(words: Sequence[str]) -> str | None:
    """What a value beginning with '%' means, where MONAI's command could not begin; None if there is no such value."""
    for name, value in command_line(words):
        if value is not None and value.startswith("%") and name not in MONAI_WORDS:
            return (
                f"--{name} {value}: what begins with '%' is a part of another file to MONAI's command, and "
                f"there is none of that name; a file is named ./{value}"
            )
    return None


def is_monai_command() -> bool:
    """Whether this process is ``python -m monai.bundle``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What nobody caught, in one line where the configs' files are its reason: a ``sys.excepthook``."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by Ctrl-C; the same command starts again", file=sys.stderr)
        raise SystemExit(130)
    try:
        why = fault(sys.argv[1:]) or missing_part(sys.argv[1:])
    except Exception:  # never in place of the error that is explained
        why = None
    if why is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: {why}", file=sys.stderr)
    raise SystemExit(1)
