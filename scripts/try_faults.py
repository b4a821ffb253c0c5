"""Try every kind of fault that data and users bring, and count what is survived and what is silent.

Each cause is a small input and a command. It is survived where the result is right, or where it was warned of or
refused in words that say what is wrong; all else is silent. A cause runs in a fork of this process, in its own folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ignite.engine
import matplotlib.figure
import mlflow
import monai.bundle
import monai.engines
import torch

import pipeline.bundle
import pipeline.data
import pipeline.engines
import pipeline.evaluation
import pipeline.handlers
import pipeline.inference
import pipeline.packaging
import pipeline.translators
import transforms
from pipeline.ending import command

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the causes lie
from faults import causes, kills, slips, written
from faults.kinds import CAUSES, KINDS, Tried, prepare, table, try_all

# Imported for those that are forked.
WARM = (ignite.engine, matplotlib.figure, mlflow, monai.bundle, monai.engines, transforms, pipeline, causes)


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the causes, and stop")
    parser.add_argument("--kind", nargs="+", choices=KINDS, metavar="KIND", help=f"only these: {', '.join(KINDS)}")
    parser.add_argument("--only", metavar="TEXT", help="only causes with this in their name")
    parser.add_argument("--sample", action="store_true", help="only the second of each kind")
    parser.add_argument(
        "--kills", action="store_true", help="instead: kill -9 trainings at random moments and inside their writing"
    )
    parser.add_argument(
        "--slips", action="store_true", help="instead: a newcomer's ten slips, and what is said of them"
    )
    parser.add_argument("--disks", action="store_true", help="instead: each command on a full disk and a read-only one")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page, docs/faults.md")
    parser.add_argument(
        "--moments", type=int, default=20, help="with --kills: at random moments (default: %(default)s)"
    )
    parser.add_argument("--inside", type=int, default=10, help="with --kills: inside a write (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="causes at a time (default: %(default)s)")
    parser.add_argument("--output-dir", type=Path, help="keep the folders of silent causes here; it has to be empty")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where nothing was silent."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.kills:
        return report_kills(options)
    if options.slips or options.disks:
        return report_table("disks" if options.disks else "slips", options)
    chosen = []
    for kind in options.kind or KINDS:
        named = [cause for cause in CAUSES if cause.kind == kind and (options.only or "") in cause.name]
        chosen += named[1:2] if options.sample else named
    if not chosen:
        parser.error("no cause is left to try")
    if options.list:
        print("\n".join(f"{cause.kind}: {cause.name}" for cause in chosen))
        return 0
    begun = time.monotonic()
    results: list[Tried] = []

    def report(tried: Tried) -> None:
        results.append(tried)
        said = f"[{len(results)}/{len(chosen)}] {tried.outcome:8}{tried.cause}"
        print(f"{said} ({tried.seconds:.1f} s){': ' if tried.why else ''}{tried.why}", flush=True)

    if options.output_dir is None:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            tried = try_all(chosen, Path(folder), options.jobs, report)
    else:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        tried = try_all(chosen, options.output_dir.resolve(), options.jobs, report)
    write(options.write, "kinds", f"{table(tried)}\n\n{len(tried)} causes in {time.monotonic() - begun:.0f} s.")
    silent = [str(result.cause) for result in tried if result.outcome == "silent"]
    if silent:
        print("\nsilent:\n" + "\n".join(silent))
    return 1 if silent else 0


def write(page: Path | None, name: str, text: str) -> None:
    """Put a table between its marks in a page, and print it."""
    print(f"\n{text}")
    if page is not None:
        before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
        _, mark, after = rest.partition("<!-- end -->")
        page.write_text(f"{before}<!-- {name} -->\n{text}\n{mark}{after}", encoding="utf-8")


def report_table(name: str, options: argparse.Namespace) -> int:
    """A newcomer's slips, or disks that are full; 0 where each is refused in a clear last line."""
    make, all_of_them = (
        (written.table, 2 * len(written.WRITERS)) if name == "disks" else (slips.table, len(slips.SLIPS))
    )
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        text, good = make(prepare(Path(folder) / "shared"), Path(folder))
    write(options.write, name, f"{text}\n\n{good} of {all_of_them} end as they should.")
    return 0 if good == all_of_them else 1


def report_kills(options: argparse.Namespace) -> int:
    """Kill trainings; 0 where all that were gone on with equal the one that was not stopped."""
    results = []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        for number, name in enumerate(kills.CONFIGURATIONS):
            if (options.only or "") in name:
                result = kills.try_configuration(name, Path(folder) / str(number), options.moments, options.inside)
                results.append(result)
                print(result, flush=True)
    write(options.write, "kills", kills.table(results))
    return 1 if any(result.different for result in results) else 0


if __name__ == "__main__":
    sys.exit(command(main))
