"""Pictures for tests."""

from __future__ import annotations

import pytest

from pipeline.reporting import panels


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the files is most of the time."""
    monkeypatch.setattr(panels, "DPI", 40)
