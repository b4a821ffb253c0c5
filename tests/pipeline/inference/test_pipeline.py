"""Translation as a pipeline: what is read ahead and written behind is whole, and what fails is said."""

from __future__ import annotations

import threading

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pipeline.inference import FlipAveragingInferer, ForegroundSliceInferer, ReadAhead
from pipeline.io import WriteImaged, read_image


def test_the_next_item_is_made_while_the_last_is_worked_on():
    made, second = [], threading.Event()

    def make(item):
        made.append((item, threading.current_thread().name))
        if item == 1:
            second.set()
        return 10 * item

    data = ReadAhead([0, 1, 2], make)
    assert data[0] == 0
    assert second.wait(10)  # nobody has asked for it
    assert [data[1], data[2], data[0]] == [10, 20, 0]
    assert [item for item, _ in made] == [0, 1, 2, 0, 1] or [item for item, _ in made] == [0, 1, 2, 0]
    assert all(name.startswith("reading") for _, name in made)


def test_what_cannot_be_made_is_an_error_where_it_is_asked_for():
    data = ReadAhead([1, 0, 2], lambda item: 1 / item)
    assert data[0] == 1
    with pytest.raises(RuntimeError, match="applying transform"):
        data[1]
    assert data[2] == 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_background_are_not_translated(axis):
    volume = torch.full((2, 1, 6, 7, 8), -1.0)
    volume[0, 0, 2:4, 2:5, 3:7] = 0.5
    seen = []

    def network(slices):
        seen.append(len(slices))
        return (slices + 1).to(torch.bfloat16)

    result = ForegroundSliceInferer(axis, slices_at_once=2)(MetaTensor(volume), network)
    filled = {0: 2, 1: 3, 2: 4}[axis]
    assert seen == [2] * (filled // 2) + [1] * (filled % 2)
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.float32
    expected = torch.full_like(volume, -1.0)
    index = [0, 0, slice(None), slice(None), slice(None)]
    index[2 + axis] = {0: slice(2, 4), 1: slice(2, 5), 2: slice(3, 7)}[axis]
    expected[tuple(index)] = volume[tuple(index)] + 1
    torch.testing.assert_close(result.as_tensor(), expected)


def test_a_shift_of_the_network_averages_out_over_mirror_images():
    volume = torch.full((1, 1, 8, 7, 2), -1.0)
    volume[:, :, 2:6, 2:5] = torch.rand(4, 3, 2)

    def network(slices):
        return torch.roll(slices, 1, dims=2)

    one = ForegroundSliceInferer(2, flips=[0])(volume, network)
    torch.testing.assert_close(one, (volume.roll(1, 2) + volume.roll(-1, 2)) / 2)
    both = ForegroundSliceInferer(2, flips=[1, 0])(volume, network)
    torch.testing.assert_close(both, one)
    torch.testing.assert_close(ForegroundSliceInferer(2)(volume, network), volume.roll(1, 2))


@pytest.mark.parametrize("axes", [[2], [0, 0], [-1], [True], ["0"], [0.0]])
def test_axes_that_no_slice_has_are_not_mirrored(axes):
    with pytest.raises(ValueError, match="test_time_flips must be axes of a slice, 0 or 1, each once, got"):
        FlipAveragingInferer(axes)


def source(path):
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)), path)
    return read_image(path)


def test_an_image_is_written_in_the_background(tmp_path):
    image = source(tmp_path / "a.nii.gz")
    write = WriteImaged("pred", "image", tmp_path / "out", background=True)
    write({"image": image, "pred": image + 0.5})
    write.finish()
    written = nib.load(tmp_path / "out" / "a_translated.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(), np.arange(24).reshape(2, 3, 4) + 0.5)


def test_what_goes_wrong_in_the_background_is_raised(tmp_path):
    image = source(tmp_path / "a.nii.gz")
    (tmp_path / "out").write_text("a file where the folder should be")
    write = WriteImaged("pred", "image", tmp_path / "out", background=True)
    write({"image": image, "pred": image})
    with pytest.raises(OSError, match="out"):
        write.finish()
    write.finish()  # said once


def test_the_level_of_compression_is_a_setting(tmp_path):
    image = source(tmp_path / "a.nii.gz")
    flat = MetaTensor(torch.zeros(1, 64, 64, 16), meta={**image.meta, "file_shape": np.array([64, 64, 16])})
    sizes = []
    for level in (0, 3):
        WriteImaged("pred", "image", tmp_path / str(level), compression=level)({"image": flat, "pred": flat})
        sizes.append((tmp_path / str(level) / "a_translated.nii.gz").stat().st_size)
    assert sizes[0] > sizes[1]
    with pytest.raises(ValueError, match="compression must be 0"):
        WriteImaged("pred", "image", tmp_path, compression=6)
