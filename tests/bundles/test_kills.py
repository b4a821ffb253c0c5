"""kill -9 at any moment costs nothing but time; what is renamed into place is on the disk before."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "try_faults.py"
CONFIGURATIONS = ("default", "two loader workers", "cycle.json", "munit.json", "nicegan.json + augmentation.json")


def kills(python, *arguments):
    code, said = python(SCRIPT, "--kills", *arguments, cwd=ROOT)
    assert code == 0, said[-6000:]
    return [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")][2:]


def test_a_run_that_is_killed_and_goes_on_equals_one_that_is_not(python):
    [row] = kills(python, "--only", "default", "--moments", "2", "--inside", "2")
    assert row[0] == "default"
    assert row[1:3] == ["2", "2"]
    assert row[-1] == "yes"


@pytest.mark.slow(minutes=8)
def test_twenty_moments_and_ten_writes_of_each_configuration(python):
    rows = kills(python)
    assert [row[0] for row in rows] == list(CONFIGURATIONS)
    assert all(int(row[1]) >= 20 and int(row[2]) >= 10 and row[-1] == "yes" for row in rows), rows


OPENED = re.compile(r'openat\(AT_FDCWD, "([^"]+)", [^)]*O_CREAT[^)]*\) = (\d+)')
SYNCED = re.compile(r"f(?:data)?sync\((\d+)")
RENAMED = re.compile(r'rename(?:at2?)?\((?:AT_FDCWD, )?"([^"]+)", (?:AT_FDCWD, )?"([^"]+)"')


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which sees the system calls")
def test_what_is_renamed_into_place_was_synced(dataset_dir, tmp_path):
    """Or a power cut could leave an empty file under the final name."""
    trace = tmp_path / "trace"
    words = ["--device", "cpu", "--spatial_size", "32", "--max_epochs", "1", "--decay_epochs", "0", "--store", "none"]
    words += ["--network_def#generator#filters", "4", "--network_def#discriminator#filters", "4"]
    words += ["--network_def#registration#channels", "[4,4]", "--dataset_dir", str(dataset_dir)]
    words += ["--tracking_uri", "none", "--output_dir", str(tmp_path / "run")]
    config = "bundles/reggan/configs/train.json"
    train = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", config, *words]
    command = ["strace", "-f", "-qq", "-e", "trace=openat,fsync,fdatasync,rename,renameat,renameat2,close", "-o", trace]
    subprocess.run([*map(str, command), *train], cwd=ROOT, check=True, capture_output=True)
    opened, synced, renamed = {}, set(), []
    for line in trace.read_text(errors="replace").splitlines():
        if found := OPENED.search(line):
            opened[found.group(2)] = found.group(1)
        elif found := SYNCED.search(line):
            synced.add(opened.get(found.group(1), ""))
        elif (found := RENAMED.search(line)) and str(tmp_path / "run") in found.group(2):
            renamed.append((Path(found.group(2)).name, found.group(1) in synced))
    names = {name for name, _ in renamed}
    assert {"model.pt", "last.pt", "best.pt", "config.json"} <= names
    assert [name for name, on_disk in renamed if not on_disk] == []
