"""Turn weights saved by the RegGAN authors' code into a model of this project."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.compat import (
    ImportedFile,
    ImportedModel,
    Known,
    WeightsError,
    combine,
    import_state_dict,
    read_state_dict,
    write_state_dict,
)
from pipeline.ending import command
from pipeline.methods import METHODS
from pipeline.models import Recipe

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

OUT is a model that carries its recipe: networks, scaling, grid. inference.json needs nothing else; the command is
printed. What no file tells is yours to say; what you leave out is assumed, and said in the output:

  --target-window   what -1 and 1 stand for in a prediction; without it predictions stay in [-1, 1]
  --source-window   if the source was scaled by a fixed window, as CT is; without it every volume is scaled by its own
                    foreground, as MR is
  --image-size      in pixels; without it inference asks for spatial_size, unless the weights fit one size only
  --slice-axis, --orientation   how slices were cut: along which axis of volumes turned to where (2 of RAS)

A discriminator or a registration network alone is converted, too, without a recipe: discriminator.*, registration.*.

examples:
  python scripts/import_weights.py netG_A2B.pth models/reggan.pt --target-window -1000 2000 --target-modality CT \\
      --image-size 256
  python scripts/import_weights.py netG_A2B.pth netG_B2A.pth models/unit.pt --image-size 256
"""
INFERENCE = "bundles/reggan/configs/inference.json"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="import_weights.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", metavar="IN", type=Path, nargs="+", help="state dict saved by the authors' code")
    parser.add_argument("destination", metavar="OUT", type=Path, help="model to write")
    parser.add_argument(
        "--target-window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="physical values (HU for CT) that -1 and 1 stand for in the target (default: -1 1)",
    )
    parser.add_argument(
        "--source-window",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="physical values (HU for CT) that became -1 and 1 in the source (default: scaled as MR)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="width and height of the images that were trained on (default: unknown)",
    )
    parser.add_argument(
        "--slice-axis", type=int, choices=(0, 1, 2), help="axis of the oriented volume that counts slices (default: 2)"
    )
    parser.add_argument("--orientation", metavar="CODE", help="where the axes of volumes point (default: RAS)")
    parser.add_argument("--source-modality", metavar="NAME", help="such as T1 (default: unknown)")
    parser.add_argument("--target-modality", metavar="NAME", help="such as T2 or CT (default: unknown)")
    parser.add_argument("--method", metavar="NAME", help=f"one of {', '.join(METHODS)} (default: unknown)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def convert(
    sources: Sequence[Path], destination: Path, given: Mapping[str, Any] | None = None, force: bool = False
) -> list[str]:
    """Convert the files of one model.

    Args:
        sources: state dicts saved by the authors' code, see `pipeline.compat.combine`.
        destination: model to write.
        given: what the files do not tell, by the attributes of `pipeline.compat.Known`; None is not given.
            ``image_size`` is one number of pixels.
        force: replace `destination` if it exists.

    Returns:
        Lines that say what was found, assumed and written, and how to use it.

    Raises:
        WeightsError: a source cannot be used, they do not belong together, something given does not fit, or the
            destination cannot be written.
    """
    for source in sources:
        if destination.exists() and source.exists() and destination.samefile(source):
            raise WeightsError(f"IN and OUT are the same file, {source}")
    files = [_import(source) for source in sources]
    model = combine(files)
    _check_names(sources, files)
    given = {name: value for name, value in (given or {}).items() if value is not None}
    recipe = None
    if model.translates:
        recipe = model.recipe(_known(model, given))
    elif given:
        option = _option(next(iter(given)))
        raise WeightsError(f"{option} belongs to a generator, but {sources[0]} holds a {files[0].role} network")
    try:
        write_state_dict(model.state_dict(recipe), destination, overwrite=force)
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
    if recipe is not None:
        lines += _told(recipe, given)
    lines.append(f"written to {destination}")
    if model.spatial_dims == 3 and recipe is not None:
        lines.append("note: it takes volumes, and inference.json translates slices: use it from Python")
    elif recipe is not None:
        lines += ["to translate with it:", f"  {_command(recipe, destination)}"]
    return lines


def _known(model: ImportedModel, given: Mapping[str, Any]) -> Known:
    known = dict(given)
    size = known.pop("image_size", None)
    if size is not None:
        if size < 1:
            raise WeightsError(f"--image-size takes a positive number of pixels, got {size}")
        known["image_size"] = (size,) * model.spatial_dims
    method = known.get("method")
    if method is not None and (method not in METHODS or METHODS[method].backbone != model.backbone):
        fitting = [name for name, entry in METHODS.items() if entry.backbone == model.backbone]
        raise WeightsError(f"--method must be one of this backbone's, {', '.join(fitting)}; got {method!r}")
    return Known(**known)


def _told(recipe: Recipe, given: Mapping[str, Any]) -> list[str]:
    """What the recipe says that is not in the files, and what of it nobody has said."""

    def assumed(name: str) -> str:
        return "" if name in given else f" (assumed; {_option(name)} says otherwise)"

    grid, scaling = recipe["grid"], recipe["source"]["scaling"]["arguments"]
    if "window" in scaling:
        low, high = scaling["window"]
        scaled = f"by the fixed window from {low:g} to {high:g}"
    else:
        scaled = f"as MR, from {scaling['background']:g} to percentile {scaling['upper_percentile']:g} of what is above"
    low, high = recipe.target_window
    unit = "" if "target_window" in given else ": predictions stay in [-1, 1]"
    size = "not known" if grid["spatial_size"] is None else "x".join(map(str, grid["spatial_size"])) + " pixels"
    modalities = [f"{domain} {recipe[domain]['modality'] or 'not known'}" for domain in ("source", "target")]
    return [
        f"source is scaled {scaled}{assumed('source_window')}",
        f"-1 and 1 stand for {low:g} and {high:g}{unit}{assumed('target_window')}",
        f"volumes are turned to {grid['orientation']}{assumed('orientation')}",
        f"slices are counted along axis {grid['slice_axis']}{assumed('slice_axis')}",
        f"size of images: {size}",
        f"modalities: {', '.join(modalities)}; method: {recipe['method'] or 'not known'}",
    ]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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


def _command(recipe: Recipe, path: Path) -> str:
    words = ["python", "-m", "monai.bundle", "run", "--config_file", INFERENCE, "--checkpoint", shlex.quote(str(path))]
    if recipe["grid"]["spatial_size"] is None:
        words += ["--spatial_size", "PIXELS"]
    return " ".join([*words, "--image", "T1.nii.gz", "--output_dir", "out"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = build_parser().parse_intermixed_args(arguments)
    try:
        given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Known)}
        lines = convert(options.sources, options.destination, given, options.force)
    except WeightsError as error:
        sys.exit(f"import_weights.py: error: {error}")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(command(main))
