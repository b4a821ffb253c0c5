"""Turn weights saved by the RegGAN authors' code into weights of this project."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.networks.weights import WeightsError, import_state_dict, read_state_dict, write_state_dict

EPILOG = """\
IN is what torch.save(network.state_dict(), path) wrote in the authors' code (github.com/Kid-Liet/Reg-GAN): a
generator, a discriminator or a registration network. Which one it is, and its widths and depth, is read from the
shapes. The file is loaded with weights_only=True, so it cannot run code.

OUT is a state dict with the names of the translator: generator.*, discriminator.* or registration.*. With a
generator goes target_window, the physical values that its -1 and 1 stand for; without --target-window predictions
stay in [-1, 1]. --image-size says at which size the generator was trained; inference then resamples to it, and asks
for spatial_size otherwise.

examples:
  python scripts/import_weights.py netG_A2B.pth models/generator.pt
  python scripts/import_weights.py netG_A2B.pth models/generator.pt --target-window -1000 2000 --image-size 256
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="import_weights.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="state dict saved by the authors' code")
    parser.add_argument("destination", metavar="OUT", type=Path, help="state dict to write")
    parser.add_argument(
        "--target-window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="physical values (HU for CT) that a generator's -1 and 1 stand for (default: -1 1)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="width and height of the images that a generator was trained on (default: unknown)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def convert(
    source: Path,
    destination: Path,
    target_window: Sequence[float] | None = None,
    image_size: int | None = None,
    force: bool = False,
) -> list[str]:
    """Convert one file.

    Args:
        source: state dict saved by the authors' code.
        destination: state dict to write.
        target_window: physical values of a generator's -1 and 1; None means that predictions stay in [-1, 1].
        image_size: width and height in pixels that a generator was trained at; None where unknown.
        force: replace `destination` if it exists.

    Returns:
        Lines that say what was found and written.

    Raises:
        WeightsError: the source cannot be used, or the destination cannot be written.
    """
    if destination.exists() and destination.resolve() == source.resolve():
        raise WeightsError(f"IN and OUT are the same file, {source}")
    imported = import_state_dict(read_state_dict(source))
    if target_window is not None and imported.role != "generator":
        raise WeightsError(f"--target-window belongs to a generator, but {source} holds a {imported.role} network")
    if image_size is not None and (imported.role != "generator" or image_size < 1):
        raise WeightsError(f"--image-size takes a positive number for a generator, got {image_size} ({imported.role})")
    low, high = target_window or (-1.0, 1.0)
    sizes = () if image_size is None else (image_size,) * imported.settings["spatial_dims"]
    try:
        write_state_dict(imported.state_dict((low, high), sizes), destination, overwrite=force)
    except FileExistsError as error:
        raise WeightsError(f"{error}; --force replaces it") from error
    lines = [
        f"{type(imported.network).__name__} ({imported.role}): {imported.parameter_count:,} parameters",
        f"settings: {json.dumps(imported.settings)}",
    ]
    if imported.role == "generator":
        lines.append(f"-1 and 1 stand for {low:g} and {high:g}")
    return [*lines, f"written to {destination}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = build_parser().parse_args(arguments)
    try:
        lines = convert(options.source, options.destination, options.target_window, options.image_size, options.force)
    except WeightsError as error:
        sys.exit(f"import_weights.py: error: {error}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
