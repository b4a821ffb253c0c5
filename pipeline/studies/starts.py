"""What a start costs and what a training keeps in memory, by how many pairs it has: the README's command, for real."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from isal import igzip
from scipy import ndimage

from pipeline.bundle import bundle_dir, project_dir
from pipeline.reporting.tables import markdown_table

MARKS = "marks.jsonl"
INTERVAL = 25  # iterations
SAMPLING = 0.3  # seconds
COARSE = 8  # voxels of the texture
MEBI = 2**20


def write_pairs(folder: Path, count: int, shape: Sequence[int], first: int = 0) -> None:
    """Write pairs of heads in noise, 16-bit ``.nii.gz`` of 1 mm, each another one, into ``imagesTr`` and ``labelsTr``.

    Args:
        folder: of the data set.
        count: how many there are in the end; those that lie there stay.
        shape: voxels along the three axes.
        first: number of the first that is written.
    """
    places = [folder / name for name in ("imagesTr", "labelsTr")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    coarse = random.random([-(-length // COARSE) + 1 for length in shape])
    texture = ndimage.zoom(coarse, COARSE, order=1)[tuple(slice(length) for length in shape)].astype(np.float32)
    axes = [np.linspace(-1, 1, length, dtype=np.float32) for length in shape]
    radius = sum((axis / 0.85) ** 2 for axis in np.ix_(*axes))
    head, scalp = radius < 1, (radius > 0.8) & (radius < 1)
    contrasts = [head * (300 + 400 * texture) + 300 * scalp, head * (900 - 500 * texture) + 100 * scalp]
    noise = np.abs(random.normal(0, 8, shape)).astype(np.float32)
    for number in range(first, count):
        gain = 1 + 0.1 * np.sin(number)
        for place, contrast, shift in zip(places, contrasts, (0, 1), strict=True):
            voxels = (gain * contrast + np.roll(noise.ravel(), 7919 * (2 * number + shift)).reshape(shape)).astype("i2")
            image = nib.Nifti1Image(voxels, np.eye(4))
            with (place / f"p{number:04d}.nii.gz").open("wb") as file, igzip.IGzipFile(fileobj=file, mode="wb") as out:
                image.to_stream(out)


class Marks:
    """Handler that notes, from the first step on, what its process has used and what it keeps in memory.

    Args:
        folder: for the notes, one file for each process.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        steps = Events.ITERATION_COMPLETED(event_filter=lambda _, step: step == 1 or step % INTERVAL == 0)
        engine.add_event_handler(steps | Events.COMPLETED, self.note)

    def note(self, engine: Engine) -> None:
        """Add a line."""
        line = {"step": engine.state.iteration, "time": time.time(), "cpu": _cpu_seconds(), **_memory()}
        with (self.folder / f"{idist.get_rank()}.{MARKS}").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _memory() -> dict[str, float]:
    """Memory of this process in MiB: resident; its fair share of it; its own alone; the most it ever was."""
    found = {}
    for file, names in (("smaps_rollup", ("Rss", "Pss", "Private_Dirty")), ("status", ("VmHWM",))):
        for line in Path(f"/proc/self/{file}").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in names:
                found[name] = int(value.split()[0]) / 1024
    return found


@dataclass(frozen=True)
class Start:
    """What one process of a training says of itself.

    Attributes:
        seconds: from the command to the end of the first step.
        cpu: seconds that it computed until then.
        ready: seconds that its threads computed, or could have but for other programs; 0 where Linux does not tell.
        first: its memory then, see `Marks`.
        last: its memory at the end of the training.
        shared: its share of resident memory in MiB, at most, while all processes of the measurement were training.
    """

    seconds: float
    cpu: float
    ready: float
    first: dict[str, float]
    last: dict[str, float]
    shared: float


def start(
    folder: Path, data: Path, steps: int, together: int = 1, ranks: int = 1, settings: Sequence[str] = ()
) -> list[Start]:
    """Run the command for training, and what its processes note.

    Args:
        folder: for all that it writes; the store in it stays for the next start.
        data: the data set.
        steps: of the training; as many slices are validated on.
        together: trainings at the same time, on one store.
        ranks: processes of each.
        settings: more words of the command line.

    Raises:
        RuntimeError: a training failed; the message has its last lines.
    """
    shutil.rmtree(folder / "runs", ignore_errors=True)
    began, processes, logs = time.time(), [], []
    for number in range(together):
        run = folder / "runs" / str(number)
        run.mkdir(parents=True)
        logs.append(run / "log.txt")
        line = [*_command(folder, run, data, steps, ranks), *settings]
        environment = {**os.environ, "PYTHONPATH": str(project_dir())}
        with logs[-1].open("wb") as stream:
            processes.append(subprocess.Popen(line, stdout=stream, stderr=subprocess.STDOUT, cwd=run, env=environment))
    ready = (
        [_ready(process, log.parent) for process, log in zip(processes, logs, strict=True)]
        if ranks == 1
        else [0.0] * ranks
    )
    for log, process in zip(logs, processes, strict=True):
        if process.wait():
            raise RuntimeError("\n".join(log.read_text(errors="replace").strip().splitlines()[-20:]))
    notes = [
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted((folder / "runs").glob(f"*/*.{MARKS}"))
    ]
    since, until = max(lines[0]["time"] for lines in notes), min(lines[-1]["time"] for lines in notes)
    found = []
    for number, lines in enumerate(notes):
        # A training of a few steps may have ended before the next has begun; it then shared with none.
        shares = [line["Pss"] for line in lines if since <= line["time"] <= until] or [line["Pss"] for line in lines]
        first, last = lines[0], lines[-1]
        found.append(Start(first["time"] - began, first["cpu"], ready[number], first, last, max(shares)))
    return found


def _ready(process: subprocess.Popen[bytes], run: Path) -> float:
    """Seconds that a process's threads computed or waited for a core, until its first step or its end."""
    seconds: dict[str, float] = {}
    while process.poll() is None and not (run / f"0.{MARKS}").exists():
        for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with suppress(OSError, ValueError):
                computed, waited, _ = path.read_text().split()
                seconds[path.parent.name] = (int(computed) + int(waited)) / 1e9
        time.sleep(SAMPLING)
    return sum(seconds.values())


def _command(folder: Path, run: Path, data: Path, steps: int, ranks: int) -> list[str]:
    """The README's command, with the marks, and with as many slices to validate on as there are steps."""
    few = f"min({steps}, len(@validate#dataset))"
    overlay = {
        "+train#handlers": [{"_target_": "pipeline.studies.starts.Marks", "folder": str(run)}],
        "validate#dataloader#sampler": f"$pipeline.engines.own_part({few}, @processes.count, @processes.rank)",
    }
    (run / "marks.json").write_text(json.dumps(overlay), encoding="utf-8")
    configs = [str(bundle_dir() / "configs" / "train.json"), str(run / "marks.json")]
    configs += [str(bundle_dir() / "configs" / "multi_gpu.json")] if ranks > 1 else []
    begin = ["-m"] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "-m"]
    words = {
        "dataset_dir": data,
        "store": folder / "store",
        "output_dir": run / "out",
        "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
        "device": "cpu",
        "max_epochs": 1,
        "decay_epochs": 0,
        "train#trainer#epoch_length": steps,
    }
    line = [sys.executable, *begin, "monai.bundle", "run", "training", "--config_file", str(configs)]
    return line + [word for name, value in words.items() for word in (f"--{name}", str(value))]


def report_starts(
    folder: Path,
    counts: Sequence[int],
    shape: Sequence[int],
    steps: int = 100,
    alone: bool = False,
    settings: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measure first and second starts on more and more pairs, and print tables.

    Args:
        folder: for data, stores and runs; all of it is deleted at the end.
        counts: numbers of pairs, ascending; the first is what the others are compared with.
        shape: voxels of a volume along its axes.
        steps: see `start`.
        alone: leave out trainings at the same time, of which there are otherwise two with the fewest and the most
            pairs, and then one of two processes.
        settings: see `start`.

    Returns:
        A row for each count.
    """
    rows: list[dict[str, Any]] = []
    data, made = folder / "data", 0
    try:
        for count in counts:
            write_pairs(data, count, shape, made)
            if not made:
                start(folder / "warm", data, 1, settings=settings)  # so that imports are in the system's memory
            made, place = count, folder / str(count)
            [first], [second] = (start(place, data, steps, settings=settings) for _ in range(2))
            row: dict[str, Any] = {"pairs": count, "first": first, "second": second}
            row |= {"data": _size(data), "store": _size(place / "store")}
            if not alone and count in (counts[0], counts[-1]):
                for name, how in (("together", {"together": 2}), ("ranks", {"ranks": 2})):
                    row[name] = [one.shared for one in start(place, data, steps, settings=settings, **how)]
            rows.append(row)
            print(
                f"{count} pairs: first start {first.seconds:.0f} s, {first.cpu:.1f} s of CPU, "
                f"{first.ready:.1f} with waiting; second {second.seconds:.0f} s, {second.cpu:.1f} s of CPU",
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(_said(rows))
    return rows


def _size(folder: Path) -> float:
    """Of its files, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MEBI


STARTS = ("pairs", "files", "store", "first start", "CPU", "CPU a pair", "cores", "second start", "CPU", "more")
MEMORY = ("pairs", "first start: most", "at the first step", "at the end", "second start: most", "at the first step",
          "at the end", "two trainings", "two processes of one")  # fmt: skip


def _said(rows: Sequence[dict[str, Any]]) -> str:
    """The table of starts and that of memory."""
    starts: list[tuple[str, ...]] = [STARTS]
    memory: list[tuple[str, ...]] = [MEMORY]
    least = rows[0]
    for row in rows:
        first, second, pairs = row["first"], row["second"], row["pairs"] - least["pairs"]
        beyond = ["-"] * 3
        if pairs:
            cpu, seconds = first.cpu - least["first"].cpu, first.seconds - least["first"].seconds
            more = second.seconds - least["second"].seconds, second.cpu - least["second"].cpu
            cores = (first.ready - least["first"].ready) / seconds
            beyond = [
                f"{cpu / pairs:.3f}",
                f"{cpu / seconds:.2f} of {cores:.2f}",
                "{:.1f} ({:.1f} of CPU)".format(*more),
            ]
        sizes = [f"{row[name]:.0f}" for name in ("data", "store")]
        times = [[f"{one.seconds:.1f}", f"{one.cpu:.1f}"] for one in (first, second)]
        starts.append((str(row["pairs"]), *sizes, *times[0], *beyond[:2], *times[1], beyond[2]))
        resident = [(one.first["VmHWM"], one.first["Rss"], one.last["Rss"]) for one in (first, second)]
        both = [" + ".join(f"{share:.0f}" for share in row.get(name, [])) or "-" for name in ("together", "ranks")]
        memory.append((str(row["pairs"]), *(f"{size:.0f}" for sizes in resident for size in sizes), *both))
    about = "Sizes in MiB, times in seconds; cores that computed, of those that were wanted:"
    shares = "Resident memory in MiB, of two at a time each one's share:"
    return f"{about}\n\n{markdown_table(starts)}\n\n{shares}\n\n{markdown_table(memory)}\n"
