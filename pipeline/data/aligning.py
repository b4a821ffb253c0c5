"""Registration of one slice with another of another contrast, before any training: mutual information, by ITK."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 24
LEVELS = (4, 2, 1)
"""Shrink factors, from coarse to fine."""
ITERATIONS = 60  # of each level
SMALLEST = 16  # pixels along the shorter axis, below which a level is left out


def align(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Find the affine map that carries one slice onto another, by their mutual information.

    Mattes' mutual information (IEEE TMI 2003) over all pixels, regular step gradient descent, coarse to fine. The same
    two slices have the same answer on one machine.

    Args:
        fixed: (H, W), the slice that stays.
        moving: (H, W), the slice that moves, of any contrast.

    Returns:
        (2, 3), the displacement at p, in pixels from the image's centre, is ``map[:, :2] @ p + map[:, 2]``, pull-back:
        the moved slice at p is ``moving`` at p plus that. Zeros where ITK finds no answer.
    """
    import itk  # seconds

    kind = itk.Image[itk.F, 2]
    centre = [(size - 1) / 2 for size in fixed.shape]

    def image(values: np.ndarray) -> Any:
        # ITK's first axis is the array's last: transposed, axis i is axis i.
        made = itk.image_from_array(np.ascontiguousarray(values.T, dtype=np.float32))
        made.SetOrigin([-place for place in centre])
        return made

    fixed_image, moving_image = image(fixed), image(moving)
    transform = itk.AffineTransform[itk.D, 2].New()
    transform.SetIdentity()
    metric = itk.MattesMutualInformationImageToImageMetricv4[kind, kind].New()
    metric.SetNumberOfHistogramBins(BINS)
    metric.SetMaximumNumberOfWorkUnits(1)  # sums in one order
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
    radius = min(fixed.shape) / 4
    optimizer.SetScales(itk.OptimizerParameters[itk.D]([radius**2] * 4 + [1.0] * 2))
    optimizer.SetLearningRate(1.0)
    optimizer.SetMinimumStepLength(0.002)
    optimizer.SetRelaxationFactor(0.6)
    optimizer.SetGradientMagnitudeTolerance(1e-9)
    optimizer.SetNumberOfIterations(ITERATIONS)
    optimizer.SetNumberOfWorkUnits(1)
    levels = [factor for factor in LEVELS if factor == 1 or min(fixed.shape) // factor >= SMALLEST]
    registration = itk.ImageRegistrationMethodv4[kind, kind].New()
    registration.SetNumberOfWorkUnits(1)
    registration.SetFixedImage(fixed_image)
    registration.SetMovingImage(moving_image)
    registration.SetMetric(metric)
    registration.SetOptimizer(optimizer)
    registration.SetInitialTransform(transform)
    registration.SetNumberOfLevels(len(levels))
    registration.SetShrinkFactorsPerLevel(levels)
    registration.SetSmoothingSigmasPerLevel([factor / 2 if factor > 1 else 0.0 for factor in levels])
    try:
        registration.Update()
    except RuntimeError:  # nothing of the one lies in the other
        return np.zeros((2, 3))
    found = np.zeros((2, 3))
    found[:, :2] = itk.array_from_matrix(transform.GetMatrix()) - np.eye(2)
    found[:, 2] = list(transform.GetOffset())
    return found
