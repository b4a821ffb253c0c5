"""MONAI dictionary transforms of the bundle: intensity, resampling and synthetic deformation noise."""

from transforms.deformation import MAX_NOISE_LEVEL, NOISE_KINDS, DeformationNoise, RandDeformationNoised
from transforms.description import (
    DESCRIPTION_KEY,
    DescribeVolumed,
    describe_volume,
    find_slice_axis,
    measure_axes,
    orientation_axes,
)
from transforms.displacement import Deformation, deform, true_displacement
from transforms.foreground import Background, find_background, foreground_mask, outline
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
    CROPPED_KEY,
    UNMEASURED_KEY,
    ResampleInPlane,
    ResampleInPlaned,
    extract_slices,
    foreground_shares,
    nonempty_slices,
    stack_slices,
)

__all__ = [
    "CROPPED_KEY",
    "DESCRIPTION_KEY",
    "MAX_NOISE_LEVEL",
    "NOISE_KINDS",
    "UNMEASURED_KEY",
    "WINDOW_KEY",
    "Background",
    "Deformation",
    "DeformationNoise",
    "DescribeVolumed",
    "RandDeformationNoised",
    "ResampleInPlane",
    "ResampleInPlaned",
    "RestoreIntensity",
    "RestoreIntensityd",
    "ScaleCTIntensity",
    "ScaleCTIntensityd",
    "ScaleMRIntensity",
    "ScaleMRIntensityd",
    "deform",
    "describe_volume",
    "extract_slices",
    "find_background",
    "find_slice_axis",
    "foreground_mask",
    "foreground_shares",
    "measure_axes",
    "nonempty_slices",
    "orientation_axes",
    "outline",
    "stack_slices",
    "true_displacement",
]
