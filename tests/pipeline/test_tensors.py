"""Tensors on disk: what was saved is loaded, and what is said of damaged files."""

from __future__ import annotations

import io
import random
import struct
import zipfile

import pytest
import torch

from pipeline.tensors import UnreadableFileError, check_finite, load_tensors, verify_zip


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{n}.weight": torch.randn(3 + n, 5, generator=generator) for n in range(4)}
    return {**tensors, "empty": torch.empty(0), "steps": torch.tensor(7), "epoch": 3}


@pytest.fixture
def saved(state, tmp_path):
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def saved_script(folder):
    """A TorchScript file; its code is compressed."""
    path = folder / "model.ts"
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())), path)
    return path


def saved_program(folder):
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 4), (torch.zeros(2, 3),)), path)
    return path


def regions(path):
    """Where the parts of a zip file of PyTorch lie, by kind: lists of (start, end) in bytes."""
    found = {name: [] for name in ("header", "name", "padding", "tensors", "other data", "descriptor")}
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    for entry, end in zip(entries, [*(entry.header_offset for entry in entries[1:]), directory], strict=True):
        lengths = struct.unpack_from("<2H", content, entry.header_offset + 26)
        kinds = ("header", "name", "padding", "tensors" if "/data/" in entry.filename else "other data", "descriptor")
        at = entry.header_offset
        for kind, length in zip(kinds, (30, *lengths, entry.compress_size, end), strict=True):
            found[kind].append((at, min(at + length, end)))
            at += length
    length = len(content)
    found |= {"directory": [(directory, length - 98)], "end in 64 bits": [(length - 98, length - 42)]}
    return found | {"locator": [(length - 42, length - 22)], "end": [(length - 22, length)]}


def flipped(content, place, bit):
    content = bytearray(content)
    content[place] ^= 1 << bit
    return bytes(content)


def draws(parts, count, seed=0):
    """Places and bits in the parts of a region, drawn evenly."""
    draw = random.Random(seed)
    places = [place for start, end in parts for place in range(start, end)]
    return [(draw.choice(places), draw.randrange(8)) for _ in range(count)]


def fault(path):
    """What is said of a zip file, or nothing."""
    try:
        verify_zip(path)
    except UnreadableFileError as error:
        return str(error)
    return ""


def test_what_was_saved_is_loaded(saved, state, assert_same):
    verify_zip(saved)
    assert_same(load_tensors(saved), state)


@pytest.mark.parametrize("write", [saved_script, saved_program])
def test_scripts_and_programs_are_verified(write, tmp_path):
    verify_zip(write(tmp_path))


def test_any_flipped_bit_in_a_tensor_is_refused(saved):
    content = saved.read_bytes()
    for place, bit in draws(regions(saved)["tensors"], 20):
        saved.write_bytes(flipped(content, place, bit))
        with pytest.raises(
            UnreadableFileError, match=r"model\.pt is damaged: its record model/data/. does not have the"
        ):
            load_tensors(saved)


REGIONS = ("header", "name", "padding", "other data", "descriptor", "directory", "end in 64 bits", "locator", "end")


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_elsewhere_is_refused_or_changes_nothing(saved, state, assert_same, region):
    content = saved.read_bytes()
    told = []
    for place, bit in draws(regions(saved)[region], 80):
        saved.write_bytes(flipped(content, place, bit))
        told.append(fault(saved))
        try:
            assert_same(load_tensors(saved), state)
        except UnreadableFileError as error:
            told[-1] = str(error)
    assert all("is damaged: " in text or "it may be cut short" in text for text in told if text)
    # The padding is of no meaning, nor is which version wrote the directory.
    assert told.count("") <= {"padding": 80, "directory": 10, "end in 64 bits": 10}.get(region, 0)


@pytest.mark.parametrize("write", [saved_script, saved_program])
def test_flipped_bits_in_scripts_and_programs_are_refused(write, tmp_path):
    path = write(tmp_path)
    content = path.read_bytes()
    for region, parts in regions(path).items():
        told = []
        for place, bit in draws(parts, 40):
            path.write_bytes(flipped(content, place, bit))
            told.append(fault(path))
        # Nor are up to seven bits after the end of what is packed.
        assert told.count("") <= {"padding": 40, "directory": 5, "end in 64 bits": 5, "other data": 1}.get(region, 0), (
            region
        )


def test_a_record_made_a_folder_is_refused(saved):
    """Of such a record PyTorch's reader gives back memory as it happens to be."""
    content = saved.read_bytes()
    place = content.rindex(b"model/data/1") - 8
    assert content[place - 38 : place - 34] == b"PK\x01\x02"
    saved.write_bytes(flipped(content, place, 4))
    with pytest.raises(UnreadableFileError, match="entry for its record model/data/1 has what PyTorch does not write"):
        load_tensors(saved)


def test_a_file_cut_anywhere_or_with_more_at_its_end_is_refused(saved):
    content = saved.read_bytes()
    for damaged in (*(content[:length] for length in range(0, len(content), 37)), content[:-1], content + b"\0"):
        saved.write_bytes(damaged)
        with pytest.raises(
            UnreadableFileError, match=r"model\.pt cannot be read, it may be cut short or not written by"
        ):
            load_tensors(saved)
    saved.write_bytes(content[:100] + content[101:])
    with pytest.raises(UnreadableFileError, match="is damaged"):
        load_tensors(saved)


def test_swapped_records_are_refused(state, tmp_path):
    """Of the same length, so that each is where it was."""
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(16), "b": torch.ones(16)}, path)
    content = path.read_bytes()
    first, second = (slice(content.index(value), content.index(value) + 64) for value in (bytes(64), b"\0\0\x80?" * 16))
    swapped = bytearray(content)
    swapped[first], swapped[second] = content[second], content[first]
    path.write_bytes(swapped)
    with pytest.raises(UnreadableFileError, match="its record model/data/0 does not have the checksum"):
        load_tensors(path)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = {entry.filename: entry.header_offset for entry in archive.infolist()}
    length = starts["model/data/1"] - starts["model/data/0"]
    first, second = (slice(starts[f"model/data/{n}"], starts[f"model/data/{n}"] + length) for n in (0, 1))
    swapped = bytearray(content)
    swapped[first], swapped[second] = content[second], content[first]
    path.write_bytes(swapped)
    with pytest.raises(UnreadableFileError, match="its record model/data/0 has another name in the directory"):
        load_tensors(path)


@pytest.mark.parametrize("which", [0, 1])
def test_a_renamed_record_is_refused(saved, which):
    """In front of the data, and in the directory."""
    parts = saved.read_bytes().split(b"model/data/1")
    assert len(parts) == 3
    parts[which] += b"model/data/1" if which else b"model/data/8"
    parts[1 - which] += b"model/data/8" if which else b"model/data/1"
    saved.write_bytes(b"".join(parts))
    with pytest.raises(UnreadableFileError, match=r"its record model/data/. has another name in the directory"):
        load_tensors(saved)


def rewritten(path, method=zipfile.ZIP_STORED, twice=""):
    """The same records, as Python writes them."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, record in records.items():
            archive.writestr(zipfile.ZipInfo(name), record, method)
        if twice:
            archive.writestr(zipfile.ZipInfo(twice), records[twice])
        for entry in archive.infolist():
            entry.external_attr = 0


def test_compressed_tensors_are_refused(saved, state, assert_same):
    rewritten(saved)
    assert_same(load_tensors(saved), state)
    rewritten(saved, zipfile.ZIP_DEFLATED)
    verify_zip(saved)
    with pytest.raises(
        UnreadableFileError, match=r"not written by torch\.save: its record model/data\.pkl is compressed"
    ):
        load_tensors(saved)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_is_there_twice_is_refused(saved):
    rewritten(saved, twice="model/data/2")
    with pytest.raises(UnreadableFileError, match="its record model/data/2 is there twice"):
        load_tensors(saved)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_script_holds_objects(tmp_path, damaged):
    path = saved_script(tmp_path)
    if damaged:
        place, _ = regions(path)["tensors"][0]
        path.write_bytes(flipped(path.read_bytes(), place, 0))
    with pytest.raises(
        UnreadableFileError, match="is damaged" if damaged else "holds objects .* could run code"
    ) as caught:
        load_tensors(path)
    assert caught.value.holds_objects is not damaged


def test_the_format_without_checksums_is_read_only_when_told(state, tmp_path, assert_same):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(load_tensors(path, allow_legacy=True), state)
    with pytest.raises(
        UnreadableFileError, match=r"old\.pth is in the format of PyTorch before 1\.6, which has no checks"
    ):
        load_tensors(path)
    with pytest.raises(UnreadableFileError, match=r"old\.pth cannot be read, it may be cut short"):
        verify_zip(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnreadableFileError, match=r"old\.pth cannot be read, it may be cut short"):
        load_tensors(path, allow_legacy=True)


@pytest.mark.parametrize("read", [load_tensors, verify_zip])
@pytest.mark.parametrize(("name", "says"), [("none.pt", "does not exist"), ("", "is not a file")])
def test_missing_files_are_named(tmp_path, read, name, says):
    with pytest.raises(UnreadableFileError, match=says):
        read(tmp_path / name)


def test_values_that_are_not_finite_are_named(state, tmp_path):
    path = tmp_path / "model.pt"
    check_finite({**state, "nested": {"a": torch.tensor(float("nan"))}, "none": None}, path)
    state["1.weight"][2, 3] = float("inf")
    state["2.weight"][:2, 0] = float("nan")
    with pytest.raises(
        UnreadableFileError,
        match=r"model\.pt holds .*infinite, in 1\.weight \(1 of 20 values\), 2\.weight \(2 of 25 values\); the",
    ):
        check_finite(state, path)
    spoiled = {str(n): torch.full((2,), complex(0, float("inf"))) for n in range(5)}
    with pytest.raises(UnreadableFileError, match=r"2 \(2 of 2 values\) and 2 more tensors; the"):
        check_finite(spoiled, path)
