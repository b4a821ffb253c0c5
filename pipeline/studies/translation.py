"""What the translation of a volume costs beside its network, here and at an earlier commit, in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.bundle import project_dir
from pipeline.reporting.tables import markdown_table
from pipeline.studies.stand_ins import write_volume

ONCE = Path(__file__).with_name("translation_once.py")
FIRST = (40, 40, 8)
CT_VOXEL = (0.8, 0.8, 1.5)  # mm


def unpack_commit(commit: str, folder: Path) -> Path:
    """The files of a commit of this repository, in a folder of their own.

    Raises:
        ValueError: there is no such commit, or this is no repository.
    """
    done = subprocess.run(["git", "archive", commit], cwd=project_dir(), capture_output=True)
    if done.returncode:
        raise ValueError(f"commit {commit}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def write_ct(path: Path, shape: Sequence[int]) -> Path:
    """A body of noise in air, in Hounsfield units, 16-bit whole numbers, on a couch.

    Args:
        path: of the file, NIfTI.
        shape: voxels along the three axes.
    """
    random = np.random.default_rng(0)
    x, y = np.ix_(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]))
    slice_ = np.where((x / 0.8) ** 2 + (y / 0.55) ** 2 < 1, 40.0, -1000.0)
    slice_[((abs(x) - 0.35) / 0.25) ** 2 + (y / 0.35) ** 2 < 1] = -800
    slice_[(x / 0.1) ** 2 + ((y + 0.4) / 0.1) ** 2 < 1] = 700
    slice_[(abs(x) < 0.9) & (abs(y + 0.75) < 0.015)] = 0
    voxels = np.empty(shape, np.int16)
    noise = random.normal(0, 15, (shape[0], shape[1]))
    for index in range(shape[2]):
        voxels[..., index] = slice_ + np.roll(noise.ravel(), 7919 * index).reshape(noise.shape)
    nib.save(nib.Nifti1Image(voxels, np.diag([*CT_VOXEL, 1.0])), path)
    return path


def once(tree: Path, folder: Path, image: Path, first: Path, ct: bool, size: int = 96) -> dict[str, float]:
    """CPU seconds of one translation by the project in a folder, see `pipeline.studies.translation_once`.

    Raises:
        RuntimeError: it failed; the message has its last lines.
    """
    shape, spacing = nib.load(image).shape, nib.load(image).header.get_zooms()
    pixel = max(length * voxel for length, voxel in zip(shape[:2], spacing[:2], strict=True)) / size
    folder.mkdir(exist_ok=True)
    wanted = {
        "folder": str(folder),
        "image": str(image),
        "first": str(first),
        "ct": ct,
        "size": size,
        "pixel": float(pixel),
    }
    (folder / "wanted.json").write_text(json.dumps(wanted), encoding="utf-8")
    # Not by its path, whose folder would be searched for modules.
    line = [sys.executable, "-c", f"import runpy, sys; runpy.run_path({str(ONCE)!r}, run_name='__main__')"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, str(folder / "wanted.json")], cwd=tree, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-15:]))
    return json.loads(done.stdout.strip().splitlines()[-1])


def report_translation(
    folder: Path, commit: str, shapes: Mapping[str, Sequence[int]], rounds: int = 3
) -> dict[str, float]:
    """Measure translations of a head and of a CT, here and at a commit, and print a table.

    Args:
        folder: for all that is written.
        commit: to compare with.
        shapes: of the volumes by what they are, ``head`` or ``ct``.
        rounds: processes of each commit for each volume.

    Returns:
        By volume, the CPU seconds outside of the network as a share of the commit's: the median of the rounds.
    """
    trees = {"now": project_dir(), commit: unpack_commit(commit, folder / "then")}
    rows, ratios = [("volume", "commit", "CPU seconds", "in the network", "outside", "ratio")], {}
    for kind, shape in shapes.items():
        write = write_ct if kind == "ct" else write_volume
        images = [write(folder / f"{kind}{number}.nii.gz", size) for number, size in enumerate((FIRST, shape))]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(rounds):
            for name, tree in trees.items():
                found[name].append(once(tree, folder / "run", images[1], images[0], kind == "ct"))
        outside = {name: [one["all"] - one["network"] for one in runs] for name, runs in found.items()}
        ratios[kind] = statistics.median(now / then for now, then in zip(*outside.values(), strict=True))
        for name, runs in found.items():
            whole, network = (statistics.median(one[part] for one in runs) for part in ("all", "network"))
            own = f"{min(outside[name]):.2f} to {max(outside[name]):.2f}"
            ratio = f"**{ratios[kind]:.2f}**" if name == "now" else ""
            rows.append((f"{kind} {'x'.join(map(str, shape))}", name, f"{whole:.2f}", f"{network:.2f}", own, ratio))
    print(markdown_table(rows))
    return ratios
