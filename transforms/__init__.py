"""MONAI dictionary transforms of the bundle: intensity, resampling and synthetic deformation noise."""

from transforms.intensity import (
    WINDOW_KEY,
    RestoreIntensity,
    RestoreIntensityd,
    ScaleCTIntensity,
    ScaleCTIntensityd,
    ScaleMRIntensity,
    ScaleMRIntensityd,
)
from transforms.resampling import (
    ResampleInPlane,
    ResampleInPlaned,
    ToVolume,
    ToVolumed,
    extract_slices,
    nonempty_slices,
    stack_slices,
)

__all__ = [
    "WINDOW_KEY",
    "ResampleInPlane",
    "ResampleInPlaned",
    "RestoreIntensity",
    "RestoreIntensityd",
    "ScaleCTIntensity",
    "ScaleCTIntensityd",
    "ScaleMRIntensity",
    "ScaleMRIntensityd",
    "ToVolume",
    "ToVolumed",
    "extract_slices",
    "nonempty_slices",
    "stack_slices",
]
