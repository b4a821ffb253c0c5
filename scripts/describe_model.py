"""Say what a model is: the recipe that it carries, in short or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ending import command
from pipeline.inference import open_model
from pipeline.models import SCHEMA, Recipe
from pipeline.models.recipe import pixel_size

EPILOG = """\
MODEL is model.pt, best.pt or last.pt of a training, what scripts/import_weights.py wrote, or an ONNX file. Its
checksums are verified, and no code in it is run. docs/recipe.md explains the entries.

examples:
  python scripts/describe_model.py outputs/reggan/model.pt
  python scripts/describe_model.py outputs/reggan/model.pt --json > recipe.json
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="describe_model.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, nargs="?", help="file to look at")
    parser.add_argument("--json", action="store_true", help="print the whole recipe as JSON")
    parser.add_argument("--schema", action="store_true", help="print the entries of a recipe as a Markdown table")
    return parser


def summary(recipe: Recipe) -> str:
    """The recipe in a few lines."""
    content = recipe.content
    grid, training, data = content["grid"], content["training"], content["data"]
    names = [content[domain]["modality"] or f"unknown {domain}" for domain in ("source", "target")]
    window = "{:g} to {:g}".format(*content["target"]["window"])
    size = "x".join(map(str, grid["spatial_size"] or [])) or "unknown size"
    pixel = pixel_size(grid)
    pixels = "each resized to fill it" if pixel is None else f"pixels of {pixel:.4g} mm"
    lines = [
        f"method      {content['method'] or 'unknown'}, backbone {content['backbone']}",
        f"translates  {names[0]} into {names[1]}, predictions from {window}",
        *(f"{domain:<11} {_call(content[domain]['scaling'])}" for domain in ("source", "target")),
        f"grid        {grid['orientation']}, slices of {size} along axis {grid['slice_axis']}, {pixels}",
        *(f"network     {name}: {_call(network)}" for name, network in content["networks"].items()),
        f"training    {training['origin']}, epoch {training['epoch']}, step {training['iteration']}, noise level "
        f"{training['noise_level']} ({training['noise_kind']}), seed {training['seed']}, commit {training['commit']}",
    ]
    if data is not None:
        spacings = " x ".join(_span(pair) for pair in data["spacing"])
        lines.append(f"data        {data['patients']} patients, {data['volumes']} pairs, voxels of {spacings} mm")
    return "\n".join(lines)


def schema_table(schema: Mapping[str, Any] = SCHEMA) -> str:
    """The entries of a recipe as a Markdown table."""
    rows = ["| entry | what it is |", "| --- | --- |"]
    rows += [f"| `{name}` | {text} |" for name, text in _entries(schema, "")]
    return "\n".join(rows)


def _entries(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, entry in schema.get("properties", {}).items():
        options = [option for option in entry.get("anyOf", [entry]) if option.get("type") != "null"]
        yield f"{prefix}{name}", entry.get("description", "")
        if entry.get("properties", {}).keys() != {"class", "arguments"}:
            for option in options:
                yield from _entries(option, f"{prefix}{name}.")


def _call(built: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in built["arguments"].items())
    return f"{built['class'].rpartition('.')[2]}({arguments})"


def _span(pair: Sequence[float]) -> str:
    low, high = pair
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.schema:
        print(schema_table())
        return
    if options.model is None:
        parser.error("name a model file")
    try:
        recipe = open_model(options.model).recipe
    except (ValueError, OSError) as error:
        sys.exit(f"describe_model.py: error: {error}")
    print(json.dumps(recipe.content, indent=2) if options.json else summary(recipe))


if __name__ == "__main__":
    sys.exit(command(main))
