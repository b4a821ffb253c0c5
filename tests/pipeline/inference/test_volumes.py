"""Which files are translated, and which kind is written."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data import DataError
from pipeline.inference import find_volumes


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.arange(20.0).reshape(4, 5))
    return path


def names(path):
    return [item["image"].rsplit("/", 1)[-1] for item in find_volumes(path)]


def test_one_file(tmp_path):
    path = write(tmp_path / "a.npy")
    assert find_volumes(path) == [{"image": str(path)}]


def test_images_of_a_folder_in_the_order_of_their_names(tmp_path):
    for name in ("b.npy", "a.npy", "._a.npy"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    write(tmp_path / "deeper" / "c.npy")
    assert names(tmp_path) == ["a.npy", "b.npy"]


def test_test_images_of_a_data_set(tmp_path):
    write(tmp_path / "imagesTr" / "a.npy")
    write(tmp_path / "imagesTs" / "b.npy")
    assert names(tmp_path) == ["b.npy"]


def test_every_bad_image_is_named(tmp_path):
    write(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((4, 5)))
    np.save(tmp_path / "c.npy", np.full((4, 5), np.nan))
    with pytest.raises(DataError, match=r"(?s)2 faults.*b\.npy: is constant.*c\.npy: holds 20 NaN"):
        find_volumes(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image: .*typo does not exist"):
        find_volumes(tmp_path / "typo")
    with pytest.raises(FileNotFoundError, match=r"image: no file ending in \.nii\.gz, .* in "):
        find_volumes(tmp_path)
