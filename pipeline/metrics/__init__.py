"""Image and registration metrics, one value per case."""

from pipeline.metrics.baselines import IntensityMap
from pipeline.metrics.catalogue import CATALOGUE, Metric, is_better
from pipeline.metrics.content import high_frequency_ratio, linear_psnr, mutual_information
from pipeline.metrics.ignite import CaseMetric, DriftMetric, RegistrationMetric, ValuePerCase, case_metrics
from pipeline.metrics.image import foreground_mask, mae, nmae, psnr, ssim
from pipeline.metrics.registration import endpoint_error, folded_fraction, jacobian_determinant, points_inside

__all__ = [
    "CATALOGUE",
    "CaseMetric",
    "DriftMetric",
    "IntensityMap",
    "Metric",
    "RegistrationMetric",
    "ValuePerCase",
    "case_metrics",
    "endpoint_error",
    "folded_fraction",
    "foreground_mask",
    "high_frequency_ratio",
    "is_better",
    "jacobian_determinant",
    "linear_psnr",
    "mae",
    "mutual_information",
    "nmae",
    "points_inside",
    "psnr",
    "ssim",
]
