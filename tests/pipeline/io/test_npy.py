"""NumPy's files: as NumPy reads them, by several threads at a time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.io.npy import read_npy, read_npy_header


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.zeros((0, 5), np.float32),
        np.array(3.5),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_it_reads_what_numpy_reads(tmp_path, array, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    found = read_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy"))
    assert found.dtype == array.dtype


@pytest.mark.parametrize("length", [0, 3, 40, 100, 130, 500])
def test_a_part_of_a_file_is_refused(tmp_path, length):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((10, 10)))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"EOF|cut off: it holds (130|500) bytes, its header speaks of 928"):
        read_npy(path)


def test_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects, expected numbers"):
        read_npy_header(tmp_path / "a.npy")


def test_headers_are_parsed_one_at_a_time(tmp_path, monkeypatch):
    """Python's parser fails now and then where another thread comes in between."""
    parse, inside, most = np.lib.format.read_array_header_1_0, [], []

    def watched(file):
        inside.append(file)
        most.append(len(inside))
        time.sleep(0.005)
        inside.remove(file)
        return parse(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", watched)
    for index in range(8):
        np.save(tmp_path / f"{index}.npy", np.zeros((4, 5)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_npy_header, sorted(tmp_path.iterdir())))
    assert [header.shape for header in found] == [(4, 5)] * 8
    assert most == [1] * 8
