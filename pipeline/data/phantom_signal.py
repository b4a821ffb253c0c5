"""T1- and T2-weighted images of a phantom anatomy, from the MR signal equations.

Relaxation times at 3 T: T1 of white and grey matter and T2 of white matter from Wansapura et al., J Magn Reson Imaging
9:531 (1999), T2 of grey matter from Stanisz et al., Magn Reson Med 54:507 (2005), T1 of fluid from Lin et al., Proc
ISMRM 9:1391 (2001), T2 of fluid a round figure. Proton densities after Tofts, Quantitative MRI of the Brain (2003).
Lesions span what multiple sclerosis shows, from mild damage to black holes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.phantom_anatomy import TISSUES, Anatomy, Grid, subject_rng

INVERSION_RECOVERY = {"repetition_time": 2500.0, "inversion_time": 1150.0, "echo_time": 10.0}  # ms, T1-weighted
SPIN_ECHO = {"repetition_time": 6000.0, "echo_time": 100.0}  # ms, T2-weighted

_VARIATION_SPACING = 25.0  # mm, within-tissue variation of the relaxation times
_BETWEEN_SD = {"t1": 0.03, "t2": 0.015, "density": 0.01}  # of the logarithms, between subjects
_WITHIN_SD = {"t1": 0.04, "t2": 0.02}  # of the logarithms, within a tissue
_BIAS_SPACING = 75.0  # mm, coil sensitivity
_TRANSMIT_BIAS = 0.3  # SD of a contrast's own bias field relative to the shared one of the receiver coil
_IRON_R2 = 6.0e-3  # 1/ms, extra transverse relaxation of the globus pallidus at 3 T
_GAIN = 2000.0  # receiver gain: puts white matter at several hundred, as scanners do
_SMALLEST_INTENSITY = 1e-3  # of a brain voxel, so that it is never taken for background


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms and proton density relative to water."""

    t1: float
    t2: float
    density: float


TISSUE_PARAMETERS = {
    "white": Tissue(t1=832.0, t2=79.6, density=0.70),
    "grey": Tissue(t1=1331.0, t2=99.0, density=0.81),
    "fluid": Tissue(t1=4163.0, t2=1500.0, density=1.0),
}
MILD_LESION = Tissue(t1=1050.0, t2=110.0, density=0.76)
SEVERE_LESION = Tissue(t1=1900.0, t2=220.0, density=0.88)


def inversion_recovery_signal(
    t1: np.ndarray | float,
    t2: np.ndarray | float,
    density: np.ndarray | float,
    repetition_time: float,
    inversion_time: float,
    echo_time: float,
) -> np.ndarray:
    """Signed signal of an inversion recovery spin echo sequence (TE << TR); all times in ms.

    Source: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), section 14.2.
    """
    recovered = 1 - 2 * np.exp(-inversion_time / t1) + np.exp(-repetition_time / t1)
    return np.asarray(density * recovered * np.exp(-echo_time / t2))


def spin_echo_signal(
    t1: np.ndarray | float,
    t2: np.ndarray | float,
    density: np.ndarray | float,
    repetition_time: float,
    echo_time: float,
) -> np.ndarray:
    """Signal of a spin echo sequence (TE << TR); all times in ms.

    Source: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), section 14.3.
    """
    return np.asarray(density * (1 - np.exp(-repetition_time / t1)) * np.exp(-echo_time / t2))


def make_images(
    anatomy: Anatomy, grid: Grid, seed: int, subject: int, noise: float, bias: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scan one anatomy with both sequences.

    Args:
        anatomy: the subject's anatomy.
        grid: the grid that the anatomy was made on.
        seed: seed of the phantom, >= 0.
        subject: number of the subject, >= 0.
        noise: SD of the noise of each of the two receiver channels, relative to the mean white matter signal.
        bias: SD of the logarithm of the receiver's smooth sensitivity, which both contrasts share; each contrast adds a
            weaker field of its own.

    Returns:
        T1-weighted and T2-weighted volume of the grid's shape, float32: positive in the brain, exactly 0 around it.
    """
    tissue_rng, bias_rng, noise_rng = (subject_rng(seed, subject, part) for part in ("contrast", "bias", "noise"))
    t1_map, t2_map, density = _parameter_maps(anatomy, grid, tissue_rng)
    by_tissue = (
        inversion_recovery_signal(t1_map, t2_map, density, **INVERSION_RECOVERY),
        spin_echo_signal(t1_map, t2_map, density, **SPIN_ECHO),
    )
    receive = grid.smooth_field(bias_rng, _BIAS_SPACING)[anatomy.mask]
    images = []
    for tissue_signal in by_tissue:
        gain = _GAIN * np.exp(tissue_rng.normal(0.0, 0.15))
        transmit = _TRANSMIT_BIAS * grid.smooth_field(bias_rng, _BIAS_SPACING)[anatomy.mask]
        sensitivity = np.exp(bias * (receive + transmit))
        signal = (anatomy.fractions * tissue_signal).sum(axis=0) * sensitivity
        white = np.average(tissue_signal[0], weights=anatomy.fractions[0])
        channels = noise * white * noise_rng.standard_normal((2, signal.size), dtype=np.float32)
        magnitude = gain * np.hypot(
            signal + channels[0], channels[1]
        )  # Rician: Gudbjartsson and Patz, MRM 34:910 (1995)
        image = np.zeros(grid.shape, dtype=np.float32)
        image[anatomy.mask] = np.maximum(magnitude, _SMALLEST_INTENSITY)
        images.append(image)
    return images[0], images[1]


def _parameter_maps(
    anatomy: Anatomy, grid: Grid, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1 and T2 in ms and proton density, each (4, N): by tissue, varying between subjects and within them."""
    t1_map, t2_map, density = (np.empty_like(anatomy.fractions) for _ in range(3))
    within = {part: _WITHIN_SD[part] * grid.smooth_field(rng, _VARIATION_SPACING)[anatomy.mask] for part in _WITHIN_SD}
    for row, name in enumerate(TISSUES[:3]):
        mean = TISSUE_PARAMETERS[name]
        t1_map[row] = mean.t1 * np.exp(rng.normal(0.0, _BETWEEN_SD["t1"]) + within["t1"])
        t2_map[row] = mean.t2 * np.exp(rng.normal(0.0, _BETWEEN_SD["t2"]) + within["t2"])
        density[row] = mean.density * np.exp(rng.normal(0.0, _BETWEEN_SD["density"]))
    t2_map[:2] = 1 / (1 / t2_map[:2] + _IRON_R2 * rng.uniform(0.6, 1.3) * anatomy.iron)
    for target, part in ((t1_map, "t1"), (t2_map, "t2"), (density, "density")):
        mild, severe = getattr(MILD_LESION, part), getattr(SEVERE_LESION, part)
        target[3] = mild * (severe / mild) ** anatomy.severity
    return t1_map, t2_map, density
