"""Export a trained network as TorchScript, ONNX or a torch.export program, and compare each with the network."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.utils import set_determinism

from pipeline.ending import command
from pipeline.errors import first_cause
from pipeline.inference.export import FORMATS, TOLERANCE, Exporter
from pipeline.workflow import ConfigWorkflow

CONFIGS = Path(__file__).resolve().parent.parent / "bundles" / "reggan" / "configs"
EPILOG = f"""\
The suffix of OUT says what is written: {", ".join(f"{suffix} {name}" for suffix, name in FORMATS.items())}.
Batch size, height and width stay free in all of them. Each is read back and compared with the network, on random
images of several sizes and on slices of a real volume; it is put in its place only if it differs by at most
{TOLERANCE:g}, of intensities in [-1, 1].

Beside the network a file holds the bundle's name and version, the recipe (how the model was made and is to be used, see
scripts/describe_model.py) and minimum_size, as JSON: in metadata.json within TorchScript and torch.export files, in the
metadata properties of an ONNX file. ONNX needs pip install -e '.[export]'.

examples:
  python scripts/export.py outputs/reggan/model.pt outputs/reggan/model.onnx
  python scripts/export.py big/model.pt big/model.ts big/model.pt2 --image T1.nii.gz
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="MODEL", type=Path, help="model.pt, best.pt or last.pt of a training")
    parser.add_argument("outputs", metavar="OUT", type=Path, nargs="+", help="files to write")
    parser.add_argument("--image", type=Path, help="volume to take real slices from (default: the phantom's first)")
    parser.add_argument("--overlays", nargs="+", default=[], metavar="JSON", help="what inference.json is stacked with")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further setting of the config, such as style_image=T2.nii.gz; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    return parser


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read settings of the form NAME=VALUE, the value as JSON or else as text.

    Raises:
        ValueError: one has no "=".
    """
    settings = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found:
            raise ValueError(f"--set expects NAME=VALUE, got {pair!r}")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


def find_config(name: str) -> Path:
    """A config file as given, or the bundle's of that name.

    Raises:
        FileNotFoundError: there is neither.
    """
    for path in (Path(name), CONFIGS / name):
        if path.is_file():
            return path.resolve()
    raise FileNotFoundError(f"config {name} is neither a file nor in {CONFIGS}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = build_parser().parse_args(arguments)
    try:
        set_determinism(0)
        settings = parse_settings(options.set)
        if options.image is not None:
            settings["image"] = str(options.image)
        chain = [find_config(name) for name in ("inference.json", *options.overlays)]
        fixed = {"checkpoint": str(options.checkpoint), "device": "cpu"}
        exporter = Exporter(ConfigWorkflow(chain, **{**settings, **fixed}))
        slices = exporter.slices()
        for path in options.outputs:
            differences = exporter.export(path, slices, options.force)
            told = ", ".join(f"{value:.1e} on {kind} images" for kind, value in differences.items())
            print(f"{path}: {FORMATS[path.suffix]}, greatest difference from the network {told}")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"export.py: error: {first_cause(error)}")


if __name__ == "__main__":
    sys.exit(command(main))
