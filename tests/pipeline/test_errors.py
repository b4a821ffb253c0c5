"""What an error says."""

from __future__ import annotations

import pytest

from pipeline.errors import cause, last_lines, said


def test_an_error_is_told_by_its_first_cause():
    try:
        try:
            raise ValueError("filters must be 1,\ngot 3")
        except ValueError as first:
            raise RuntimeError("Failed to instantiate part") from first
    except RuntimeError as caught:
        error = caught
    assert cause(error) == "ValueError: filters must be 1,\ngot 3"
    assert last_lines(error).endswith("ValueError: filters must be 1,\ngot 3")
    assert "Failed to instantiate" not in last_lines(error)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (AssertionError(), ["AssertionError"]),
        (KeyError("one"), ["KeyError: one"]),
        (ValueError("1 fault:\n- a is 3"), ["1 fault: a is 3"]),
        (
            ValueError("2 faults:\n- a is 3\n- b is 4"),
            ["2 faults:", "- a is 3", "- b is 4", "2 faults: a is 3 (the first of 2, see above)"],
        ),
        (MemoryError(), ["there is too little memory: MemoryError; a smaller batch_size or spatial_size needs less"]),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            ["/a/b could not be written: writing in /a is not permitted: choose another folder, or ask for permission"],
        ),
        (FileNotFoundError(2, "No such file", "/a/b"), ["[Errno 2] No such file: '/a/b'"]),
    ],
)
def test_the_last_line_says_what_is_wrong(error, lines):
    assert said(error) == lines
