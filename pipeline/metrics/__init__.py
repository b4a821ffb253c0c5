"""Image and registration metrics, one value per case."""

from pipeline.metrics.baselines import IntensityMap
from pipeline.metrics.ignite import CaseMetric, case_metrics
from pipeline.metrics.image import foreground_mask, mae, nmae, psnr, ssim
from pipeline.metrics.registration import endpoint_error, folded_fraction, jacobian_determinant

__all__ = [
    "CaseMetric",
    "IntensityMap",
    "case_metrics",
    "endpoint_error",
    "folded_fraction",
    "foreground_mask",
    "jacobian_determinant",
    "mae",
    "nmae",
    "psnr",
    "ssim",
]
