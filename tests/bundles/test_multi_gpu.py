"""One training in several processes, for real: the weights, scores and files of one process with the whole batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.engines import own_part, part_of_batch
from pipeline.models import load_checkpoint

from .conftest import CONFIGS, ROOT, TINY

# In double precision, in which sums in another order are the same to the last digits.
IN_DOUBLE = (
    "$lambda batch, device, non_blocking, **options: {part}({{name: value.double() if hasattr(value, 'double') and "
    "value.is_floating_point() else value for name, value in batch.items()}}, device, non_blocking)"
)
HANDLERS = json.loads((CONFIGS / "train.json").read_text())["train"]["handlers"]
[PICTURES] = [number for number, part in enumerate(HANDLERS) if part["_target_"].endswith("PictureHandler")]
SETTINGS = {
    f"train#handlers#{PICTURES}#_disabled_": True,  # draws slices as they are, in single precision
    "network": "$@network_def.to(@torch_device).double()",
    "train#trainer#prepare_batch": IN_DOUBLE.format(part="pipeline.engines.PrepareBatch(@train#noise)"),
    "validate#evaluator#prepare_batch": IN_DOUBLE.format(part="pipeline.engines.PrepareBatch()"),
    "batch_size": 4,
    "max_epochs": 2,
}


def start(processes, output_dir, dataset_dir, *chain, **settings):
    """The mission's command, by torchrun where there are several processes."""
    chain = [str(CONFIGS / name) for name in ("train.json", *chain, *(["multi_gpu.json"] if processes > 1 else []))]
    options = {
        **TINY,
        "tracking_uri": "none",
        **SETTINGS,
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        **settings,
    }
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", str(chain)]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(*arguments, **settings):
    process = start(*arguments, **settings)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    return said


def state(folder):
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def assert_same(first, second, tolerance=1e-10):
    assert set(first["network"]) == set(second["network"])
    for name, value in first["network"].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            difference, scale = (value - second["network"][name]).abs().max(), value.abs().max()
            # A bias that the normalisation behind it cancels has no gradient, and is moved by rounding alone.
            allowed = max(tolerance * scale, 1e-9 if tolerance and name.endswith("bias") else 0)
            assert difference <= allowed, (name, difference, scale)
    for name, value in first["trainer"]["best_metrics"].items():
        assert second["trainer"]["best_metrics"][name] == pytest.approx(value, rel=1e-9), name


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(dataset_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(1, folder, dataset_dir)
    return folder


def test_two_processes_train_what_one_does(alone, dataset_dir, tmp_path):
    said = train(2, tmp_path / "run", dataset_dir)
    assert_same(state(alone), state(tmp_path / "run"))
    assert files(tmp_path / "run") == files(alone)
    assert said.count("Validation after epoch") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "chain", "settings"),
    [
        (4, (), {"store": "here"}),
        (2, ("augmentation.json",), {"noise_kind": "nonaffine", "num_workers": 1}),
        (4, ("pix2pix.json",), {"noise_level": 5}),
        (2, ("munit.json",), {"spatial_size": 64}),
        (2, ("unit.json",), {"spatial_size": 64}),
        (2, ("nicegan.json",), {"spatial_size": 64}),
        (2, (), {"batch_size": 2, "accumulation": 3, "ema_decay": 0.5}),
    ],
)
def test_methods_are_the_same_in_several_processes(dataset_dir, tmp_path, processes, chain, settings):
    for count in (1, processes):
        own = {name: str(tmp_path / "store") if value == "here" else value for name, value in settings.items()}
        train(count, tmp_path / str(count), dataset_dir, *chain, **own)
    assert_same(state(tmp_path / "1"), state(tmp_path / str(processes)))


@pytest.mark.slow(minutes=2)
def test_it_goes_on_with_another_number_of_processes(dataset_dir, tmp_path):
    train(1, tmp_path / "alone", dataset_dir, max_epochs=4, decay_epochs=0)
    for epoch, processes in enumerate((2, 1, 4, 2), 1):
        train(processes, tmp_path / "run", dataset_dir, max_epochs=epoch, decay_epochs=0, resume=epoch > 1)
    assert_same(state(tmp_path / "alone"), state(tmp_path / "run"))
    # With as many as before, to the bit; also where steps have two batches each.
    for name, epochs in (("whole", [2]), ("parts", [1, 2])):
        for epoch in epochs:
            options = {"max_epochs": epoch, "decay_epochs": 0, "resume": epoch != epochs[0], "accumulation": 2}
            train(2, tmp_path / name, dataset_dir, **options)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"), tolerance=0)


@pytest.mark.slow
def test_the_end_of_one_process_is_that_of_all(dataset_dir, tmp_path):
    process = start(2, tmp_path / "run", dataset_dir, max_epochs=500)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.pt").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
    second = int(" ".join(children).split()[-1])
    os.kill(second, signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL) received" in said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: part_of_batch(3, 2), "batch_size must be a multiple of the 2 processes, got 3"),
        (lambda: own_part(3, 4, 0), "4 processes need at least 4 slices to validate on, got 3"),
    ],
)
def test_what_cannot_be_shared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_validation_slices_are_shared_in_order():
    assert [*own_part(7, 3, 0), *own_part(7, 3, 1), *own_part(7, 3, 2)] == list(range(7))


def test_the_overlay_without_torchrun_says_so(assert_refused):
    says = ["multi_gpu.json is for processes that torchrun starts"]
    assert_refused(["train.json", "multi_gpu.json"], None, {}, says)
