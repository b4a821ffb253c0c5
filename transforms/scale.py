"""The scale of intensities that the networks see."""

from __future__ import annotations

INTENSITY_RANGE = (-1.0, 1.0)
DATA_RANGE = 2.0
"""Width of that range."""
BACKGROUND = -1.0
"""What lies outside the patient."""
