"""Turn weights saved by the RegGAN authors' code into weights of this project."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.compat import (
    ImportedFile,
    ImportedModel,
    WeightsError,
    combine,
    import_state_dict,
    read_state_dict,
    write_state_dict,
)

EPILOG = """\
IN is what torch.save(network.state_dict(), path) wrote in the authors' code (github.com/Kid-Liet/Reg-GAN). What each
file is, and its widths and depth, is read from its shapes and names. Files are loaded with weights_only=True, so they
cannot run code.

  CycleGAN, Pix2Pix, RegGAN                  netG_A2B.pth
  UNIT, MUNIT: the autoencoder of the        netG_A2B.pth netG_B2A.pth
    source, then that of the target
  NICE-GAN with a cycle (C, C+R): generator  netG_A2B.pth netD_A.pth
    and discriminator of source images
  NICE-GAN without (NC, NC+R)                netG_A2B.pth

OUT is a state dict with the names of the translator, such as generator.*, which inference loads; the command for that
is printed. With the weights go target_window, the physical values that -1 and 1 stand for (without --target-window
predictions stay in [-1, 1]), and the size of the training images (inference asks for spatial_size where neither
--image-size nor the weights say it). A discriminator or a registration network alone is converted, too:
discriminator.*, registration.*.

examples:
  python scripts/import_weights.py netG_A2B.pth models/reggan.pt --target-window -1000 2000 --image-size 256
  python scripts/import_weights.py netG_A2B.pth netG_B2A.pth models/unit.pt --image-size 256
"""
OVERLAYS = {"cyclegan": (), "unit": ("unit.json",), "munit": ("munit.json",), "nicegan": ("nicegan.json",)}
CONFIGS = "bundles/reggan/configs"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="import_weights.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", metavar="IN", type=Path, nargs="+", help="state dict saved by the authors' code")
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
    sources: Sequence[Path],
    destination: Path,
    target_window: Sequence[float] | None = None,
    image_size: int | None = None,
    force: bool = False,
) -> list[str]:
    """Convert the files of one model.

    Args:
        sources: state dicts saved by the authors' code, see `pipeline.compat.combine`.
        destination: state dict to write.
        target_window: physical values of -1 and 1; None means that predictions stay in [-1, 1].
        image_size: width and height in pixels that the model was trained at; None where unknown.
        force: replace `destination` if it exists.

    Returns:
        Lines that say what was found and written, and how to use it.

    Raises:
        WeightsError: a source cannot be used, they do not belong together, or the destination cannot be written.
    """
    for source in sources:
        if destination.exists() and source.exists() and destination.samefile(source):
            raise WeightsError(f"IN and OUT are the same file, {source}")
    files = [_import(source) for source in sources]
    model = combine(files)
    _check_names(sources, files)
    if not model.translates and (target_window is not None or image_size is not None):
        option = "--image-size" if target_window is None else "--target-window"
        raise WeightsError(f"{option} belongs to a generator, but {sources[0]} holds a {files[0].role} network")
    if image_size is not None and image_size < 1:
        raise WeightsError(f"--image-size takes a positive number of pixels, got {image_size}")
    low, high = target_window or (-1.0, 1.0)
    size = model.image_size if image_size is None else (image_size,) * model.spatial_dims
    try:
        write_state_dict(model.state_dict((low, high), size), destination, overwrite=force)
    except FileExistsError as error:
        raise WeightsError(f"{error}; --force replaces it") from error
    names = [f"{source.name}: " if len(sources) > 1 else "" for source in sources]
    lines = [f"{name}{file}: {file.parameter_count:,} parameters" for name, file in zip(names, files, strict=True)]
    settings = model.settings if len(model.settings) > 1 else next(iter(model.settings.values()))
    lines.append(f"settings: {json.dumps(settings)}")
    if files[0].role == "autoencoder":
        lines.append(f"translates from the domain of {sources[0].name} into that of {sources[1].name}")
    if model.note:
        lines.append(f"note: {model.note}")
    if model.translates:
        lines.append(f"-1 and 1 stand for {low:g} and {high:g}")
    lines.append(f"written to {destination}")
    if model.translates:
        lines += ["to translate with it:", f"  {_command(model, files, destination, known_size=bool(size))}"]
    return lines


def _import(path: Path) -> ImportedFile:
    tensors = read_state_dict(path)
    try:
        return import_state_dict(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _check_names(sources: Sequence[Path], files: Sequence[ImportedFile]) -> None:
    """Refuse what only the names of files tell: two autoencoders of one domain, or the other domain's discriminator."""
    domains = []
    for source, file in zip(sources, files, strict=True):
        found = re.search(r"netD_([AB])" if file.role == "encoder" else r"netG_(A)2B|netG_(B)2A", source.name)
        domains.append(found and (found.group(1) or found.group(2)))
    if len(files) < 2 or None in domains:
        return
    same = domains[0] == domains[1]
    if files[0].role == "autoencoder" and same:
        raise WeightsError(
            f"{sources[0]} and {sources[1]} are both named after domain {domains[0]}; "
            "give the source's autoencoder, then the target's"
        )
    if files[0].role != "autoencoder" and not same:
        raise WeightsError(
            f"{sources[0]} and {sources[1]} do not belong together: a generator reads the features of its source, "
            "netG_A2B those of netD_A and netG_B2A those of netD_B"
        )


def _command(model: ImportedModel, files: Sequence[ImportedFile], path: Path, known_size: bool) -> str:
    configs = ",".join(f"'{CONFIGS}/{name}'" for name in ("inference.json", *OVERLAYS[model.backbone]))
    words = ["python", "-m", "monai.bundle", "run", "--config_file", f'"[{configs}]"']
    words += ["--checkpoint", shlex.quote(str(path)), "--network_size", "paper"]
    for name, value in overrides(files).items():
        words += [f"--{name}", shlex.quote(json.dumps(value))]
    if not known_size:
        words += ["--spatial_size", "PIXELS"]
    return " ".join([*words, "--image", "T1.nii.gz", "--output_dir", "out"])


def overrides(files: Sequence[ImportedFile]) -> dict[str, object]:
    """Settings, by their path in the config, that are not those of the paper's networks, the constructors' defaults."""
    found: dict[str, object] = {}
    for file in files:
        for part, settings in file.settings.items():
            defaults = inspect.signature(type(file.networks[part])).parameters
            for name, value in settings.items():
                if value == defaults[name].default or (
                    part == "encoder" and name == "filters"
                ):  # takes the generator's
                    continue
                found["spatial_dims" if name == "spatial_dims" else f"network_def#{part}#{name}"] = value
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = build_parser().parse_intermixed_args(arguments)
    try:
        lines = convert(options.sources, options.destination, options.target_window, options.image_size, options.force)
    except WeightsError as error:
        sys.exit(f"import_weights.py: error: {error}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
