"""Translate a DICOM series, and write the result as a derived DICOM series: one file per slice, whole or not at all.

The result keeps patient, study and position, and says that it is synthetic, by which model, and not for clinical use;
docs/dicom.md has what is kept, checked and refused. With NIfTI besides, and with more settings: inference.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.bundle import bundle_dir, default_weights, device
from pipeline.ending import command
from pipeline.errors import cause
from pipeline.inference import Translation, build_network, derivation_of, find_volumes, open_model
from pipeline.inference.scoring import translate
from pipeline.io import DICOM_KEY, Pseudonyms, write_series
from pipeline.io.dicom import check_free


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SERIES", help="a folder or study with the series, a file, or a DICOMDIR")
    parser.add_argument("output_dir", metavar="OUT", help="folder for the slices: new, empty, or an earlier result")
    parser.add_argument(
        "--series", help="which one is meant: SeriesInstanceUID, pattern of SeriesDescription, modality"
    )
    parser.add_argument("--checkpoint", help="model file (default: outputs/reggan/model.pt, or the bundle's)")
    parser.add_argument("--deidentify", action="store_true", help="by the basic profile of DICOM PS3.15")
    parser.add_argument(
        "--key-file", metavar="FILE", help="secret of the pseudonyms, made where missing: equal ones from run to run"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    parser.add_argument("--slices-at-once", type=int, default=8, help="slices in a batch (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where the series is written."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if options.slices_at_once < 1:
        parser.error(f"--slices-at-once must be at least 1, got {options.slices_at_once}")
    if options.key_file and not options.deidentify:
        parser.error("--key-file is of no use without --deidentify")
    try:
        check_free(Path(options.output_dir))
        found = find_volumes(options.source, options.series)
        pseudonyms = None
        if options.deidentify:
            pseudonyms = Pseudonyms.of_file(options.key_file) if options.key_file else Pseudonyms()
        model = open_model(options.checkpoint or default_weights(bundle_dir(), "reggan"))
        where = device(options.device)
        network = build_network(model).to(where).eval()
        translation = Translation(model.recipe, options.slices_at_once)
        if len(found) != 1:
            parser.error(f"{options.source} holds {len(found)} volumes that are no DICOM; use scripts/translate.py")
        source = translation.preprocessing(found[0])["image"]
        if DICOM_KEY not in source.meta:
            parser.error(f"{options.source} is no DICOM; use scripts/translate.py")
        pred = translate(source, translation, network, where)
        written = write_series(options.output_dir, pred, source, derivation_of(model, bundle_dir()), pseudonyms)
    except (OSError, ValueError, RuntimeError) as error:
        parser.error(cause(error))
    print(f"{written}: {len(list(written.iterdir()))} slices")
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
