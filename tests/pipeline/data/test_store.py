"""Preprocessed volumes on disk: whole, found again, and made anew when anything that they are made of changes."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambdad, RandFlipd

from pipeline.data import SliceDataset, check_cases, inspection, pairs, store
from pipeline.data.store import VolumeStore, fingerprint, open_store
from pipeline.io import ReadImaged, read_image
from pipeline.metrics import IntensityMap
from pipeline.studies.stand_ins import InMemory
from transforms import DescribeVolumed, ResampleInPlaned, ScaleMRIntensityd

KEYS = ("image", "label")


def chain(size=16, percentile=99.5):
    return Compose(
        [
            ReadImaged(KEYS),
            DescribeVolumed(KEYS),
            ScaleMRIntensityd(KEYS, percentile),
            ResampleInPlaned(KEYS, (size, size), 0, spacing=1.0),
        ]
    )


@pytest.fixture
def data(tmp_path):
    items = []
    for seed in range(2):
        item = {"case": f"p{seed}"}
        for key in KEYS:
            voxels = np.random.default_rng([seed, len(key)]).random((5, 12, 20), dtype=np.float32)
            voxels[0] = 0
            item[key] = str(tmp_path / f"{seed}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), item[key])
        items.append(item)
    return items


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, wherever."""
    found = []

    def read(path):
        found.append(path)
        return read_image(path)

    for place in ("pipeline.data.inspection.read_image", "pipeline.io.reading.read_image"):
        monkeypatch.setattr(place, read)
    return found


def build(data, store, transform=None, **settings):
    return SliceDataset(data, transform or chain(), slice_axis=0, store=store, **settings)


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one["case"], one["slice"]) == (other["case"], other["slice"])
        for key in KEYS:
            assert torch.equal(one[key], other[key])
    for name in ("target_window", "descriptions", "patients", "channels", "spatial_size"):
        assert getattr(first, name) == getattr(second, name), name


def test_items_are_those_of_memory_whether_made_or_found(data, tmp_path):
    in_memory = build(data, None)
    made, found = (build(data, tmp_path / "store") for _ in range(2))
    assert_same(in_memory, made)
    assert_same(in_memory, found)
    assert len(found) == 8  # the first slice of each shows nothing
    found[0]["image"].zero_()  # an item is the caller's own
    assert_same(in_memory, found)


def test_a_second_start_reads_no_image(data, tmp_path, reads, monkeypatch):
    store = tmp_path / "store"
    cases = {"training": data[:1], "validation": data[1:]}
    digest = check_cases(cases, store)
    build(data, store)
    assert len(reads) == 8
    monkeypatch.setattr(inspection, "_KNOWN", {})  # what another process begins with
    reads.clear()
    assert check_cases(cases, store) == digest
    build(data, store)
    assert reads == []


def test_what_is_computed_of_all_items_is_computed_once(data, tmp_path, monkeypatch):
    in_memory = IntensityMap().fit(build(data, None))
    made = IntensityMap().fit_once(build(data, tmp_path / "store"))
    fits = []
    fit = IntensityMap.fit
    monkeypatch.setattr(IntensityMap, "fit", lambda self, pairs: (fits.append(self.bins), fit(self, pairs))[1])
    found = IntensityMap().fit_once(build(data, tmp_path / "store", slice_transform=RandFlipd(KEYS, 1.0)))
    assert torch.equal(found.values, in_memory.values)
    assert torch.equal(made.values, in_memory.values)
    assert found.fitted
    assert fits == []

    IntensityMap().fit_once(build(data[:1], tmp_path / "store"))  # of other pairs
    IntensityMap().fit_once(build(data, tmp_path / "store", min_foreground=0.3))  # of other slices
    IntensityMap(16).fit_once(build(data, tmp_path / "store"))
    IntensityMap().fit_once(build(data, None))
    IntensityMap().fit_once(InMemory.noise(8, 2))
    assert fits == [256, 256, 16, 256, 256]
    for path in (tmp_path / "store").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(IntensityMap().fit_once(build(data, tmp_path / "store")).values, in_memory.values)


class Mine(SliceDataset):
    """Of a module that nobody can tell the source of."""


def test_a_sampler_of_somebody_else_has_its_own_values_computed_each_time(data, tmp_path):
    Mine.__module__ = "mine"
    calls = []

    def total(items):
        calls.append(len(items))
        return sum(item["image"].double().sum() for item in items)

    for _ in range(2):
        Mine(data, chain(), slice_axis=0, store=tmp_path / "store").once(IntensityMap(), total)
    assert calls == [8, 8]


def test_as_many_threads_as_are_asked_for(data, tmp_path, monkeypatch):
    asked = []

    def pool(max_workers):
        asked.append(max_workers)
        return ThreadPoolExecutor(max_workers)

    for place in (inspection, pairs):
        monkeypatch.setattr(place, "ThreadPoolExecutor", pool)
        monkeypatch.setattr(place, "cores", lambda: 7)
    paths = [item[key] for item in data for key in KEYS]
    inspection.inspect_all(paths, num_workers=1)
    inspection.inspect_all(paths)
    assert asked == [1, 7]
    asked.clear()
    build(data, None, num_workers=1)
    build(data, None)
    assert asked == [1, 2]  # no more than there are pairs


def test_what_a_pair_is_made_of_makes_its_key(data, tmp_path):
    store = tmp_path / "store"

    def count_pairs():
        return len([path for path in store.iterdir() if path.is_dir()])

    build(data, store)
    assert count_pairs() == 2
    build(data, store, min_foreground=0.5, slice_transform=lambda item: item)
    assert count_pairs() == 2
    for count, settings in enumerate(({"size": 12}, {"percentile": 90.0}), 2):
        build(data, store, chain(**settings))
        assert count_pairs() == 2 * count
    nib.save(nib.Nifti1Image(np.random.default_rng(5).random((5, 12, 20)), np.eye(4)), data[0]["image"])
    build(data, store)
    assert count_pairs() == 7


def test_a_transform_that_was_used_is_the_same(data, tmp_path):
    transform = chain()
    before = fingerprint(transform)
    transform(dict(data[0]), threading=True)
    assert fingerprint(transform) == before is not None


def test_what_nobody_can_tell_is_kept_in_memory(data, tmp_path):
    for step in (Lambdad(KEYS, lambda image: image * 1), RandFlipd(KEYS)):
        transform = Compose([*chain().transforms, step])
        assert fingerprint(transform) is None
        assert len(build(data, tmp_path / "store", transform)) == 8
    assert not (tmp_path / "store").exists()
    assert fingerprint(chain()) == fingerprint(chain()) != fingerprint(chain(12))


def test_a_damaged_pair_is_made_anew(data, tmp_path):
    store = tmp_path / "store"
    build(data, store)
    for path in store.glob("*/about.json"):
        path.write_text("{")
    assert_same(build(data, None), build(data, store))
    for path in store.glob("*/about.json"):
        json.loads(path.read_text())


def test_a_pair_that_was_cut_off_is_made_anew(data, tmp_path):
    store = tmp_path / "store"
    build(data, store)
    for path in store.glob("*/label.npy"):
        path.write_bytes(path.read_bytes()[:-7])
    assert_same(build(data, None), build(data, store))


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux' list of what a process maps")
def test_memory_does_not_grow_with_what_was_looked_at(data, tmp_path):
    """Pages of a file that is mapped count as the process's memory."""
    dataset = build(data, tmp_path / "store")
    items = [dataset[index] for index in range(len(dataset))]
    assert items
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_what_killed_processes_left_is_removed(data, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    old, new = (tmp_path / "store" / f".key.{process}.abc.part" for process in (dead.pid, os.getppid()))
    for path in (old, new):
        (path / "key").mkdir(parents=True)
        os.utime(path, (0, 0))
    build(data, tmp_path / "store")
    assert not old.exists()
    assert new.exists()  # another process may be at it


def test_a_failed_write_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = VolumeStore(tmp_path)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"the disk is full.*--store"):
        store.put("key", torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), {})
    assert list(tmp_path.iterdir()) == []


def test_no_store():
    assert open_store(None) is open_store("none") is None


def test_a_changed_neighbour_of_a_transform_counts(tmp_path):
    """A transform calls the functions of other files in its folder."""
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "helper.py").write_text("y = 1\n")
    before = store.source_of_room.__wrapped__(str(tmp_path / "mine.py"))
    (tmp_path / "helper.py").write_text("y = 2\n")
    assert store.source_of_room.__wrapped__(str(tmp_path / "mine.py")) != before
