"""What an error says."""

from __future__ import annotations

from pipeline.errors import cause, last_lines


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
