"""Random brain anatomy for the digital phantom: MNI152 tissue maps, warped and segmented anew for each subject.

Coordinates are world millimetres in MNI space, axes pointing right, anterior, superior (RAS). Every random field is a
cubic B-spline over a control grid that is fixed in millimetres, so the voxel size does not change a subject's anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import expit

GRID_ORIGIN = (-90.0, -126.0, -72.0)  # centre of the first voxel, mm; field of view of the usual MNI152 grids
GRID_EXTENT = (182.0, 218.0, 182.0)  # mm; 91 x 109 x 91 voxels at 2 mm
TISSUES = ("white", "grey", "fluid", "lesion")

_STREAMS = ("shape", "tissue", "lesions", "contrast", "bias", "noise")  # one random generator each
_COEFFICIENT_LIMIT = 2.0  # bound on the standard normal B-spline coefficients: keeps the warp invertible
_SPLINE_SD = 0.33  # SD of a 3D cubic B-spline whose coefficients are independent standard normals

_HEAD_CENTRE = (0.0, -18.0, 8.0)  # fixed point of pose and head size, mm
_HEAD_SIZE = 0.95  # the MNI152 average is larger than a typical head
_WARP = ((45.0, 3.0), (18.0, 1.2), (9.0, 0.55))  # (control point spacing, SD of the displacement), mm
_VENTRICLES = ((0.0, -16.0, 14.0), (24.0, 34.0, 18.0))  # centre and SD of what grows and shrinks with them, mm
_DEEP_BRAIN = ((0.0, -12.0, 4.0), (34.0, 46.0, 26.0))  # centre and half axes of the ellipsoid without sulci, mm
_CEREBELLUM = ((0.0, -66.0, -36.0), (52.0, 34.0, 26.0))  # centre and half axes, mm
_FOLIA = ((0.0, -46.0, -28.0), 5.5)  # the point that the folia lie around, and their distance, mm

_ODDS_FLOOR = 0.02  # added to the tissue probabilities before the logarithm
_SHARPNESS = 2.2  # exponent that turns the blurred population average into the crisp tissue of one subject

# Deep grey nuclei of one side: centre and SD in mm (places read off the MNI152 average), iron relative to the globus
# pallidus after Hallgren and Sourander, J Neurochem 3:41 (1958).
_NUCLEI = (
    ((19.0, -4.0, -1.0), (4.5, 7.0, 4.5), 1.0),  # globus pallidus
    ((26.0, 3.0, 1.0), (4.5, 10.0, 7.0), 0.6),  # putamen
    ((13.0, 12.0, 10.0), (4.0, 8.0, 7.0), 0.4),  # caudate nucleus
    ((11.0, -17.0, -10.0), (4.5, 4.5, 3.0), 0.85),  # substantia nigra
    ((5.0, -20.0, -8.0), (2.5, 2.5, 3.0), 0.9),  # red nucleus
    ((15.0, -57.0, -34.0), (5.0, 5.0, 3.5), 0.5),  # dentate nucleus
    ((11.0, -19.0, 8.0), (7.0, 10.0, 6.5), 0.2),  # thalamus
)


def subject_rng(seed: int, subject: int, stream: str) -> np.random.Generator:
    """Random generator of one part of one subject: a fresh one at each call, the same for the same arguments.

    Args:
        seed: seed of the phantom, >= 0.
        subject: number of the subject, >= 0.
        stream: "shape", "tissue", "lesions", "contrast", "bias" or "noise".
    """
    return np.random.default_rng((seed, subject, _STREAMS.index(stream)))


class Grid:
    """Voxel grid of the phantom: axis-aligned, RAS, in MNI space.

    Args:
        resolution: edge of a voxel in mm.
    """

    def __init__(self, resolution: float) -> None:
        self.resolution = float(resolution)
        self.shape = tuple(int(np.ceil(extent / self.resolution)) for extent in GRID_EXTENT)
        self.affine = np.diag([self.resolution] * 3 + [1.0])
        self.affine[:3, 3] = GRID_ORIGIN
        self.axes = tuple(
            start + self.resolution * np.arange(size) for start, size in zip(GRID_ORIGIN, self.shape, strict=True)
        )

    def smooth_field(self, rng: np.random.Generator, spacing: float) -> np.ndarray:
        """Draw a smooth random field of about zero mean and unit SD.

        Args:
            rng: source of the B-spline coefficients.
            spacing: distance of the control points in mm; the field varies over about twice that length.

        Returns:
            Field of the grid's shape, float32. The same generator state gives the same field at any resolution.
        """
        counts = [int(np.ceil(extent / spacing)) + 3 for extent in GRID_EXTENT]
        field = np.clip(rng.standard_normal(counts), -_COEFFICIENT_LIMIT, _COEFFICIENT_LIMIT).astype(np.float32)
        for axis, start, count in zip(self.axes, GRID_ORIGIN, counts, strict=True):
            basis = _bspline_basis((axis - start) / spacing, count)
            field = np.tensordot(field, basis, axes=(0, 1))  # contracts the first axis, appends the sampled one
        return field / np.float32(_SPLINE_SD)


@dataclass(frozen=True)
class Anatomy:
    """What one subject is made of, at the N voxels inside the brain.

    Attributes:
        mask: brain, bool, of the grid's shape.
        fractions: (4, N) volume fractions of `TISSUES`, summing to 1.
        severity: (N,) damage in [0, 1] of the lesion that a voxel belongs to; 0 away from lesions.
        iron: (N,) iron of the deep grey nuclei relative to the globus pallidus, in [0, 1].
    """

    mask: np.ndarray
    fractions: np.ndarray
    severity: np.ndarray
    iron: np.ndarray


class BrainTemplate:
    """MNI152 ICBM 2009a maps at 1 mm as they ship inside `nilearn` (nothing is downloaded), prepared for sampling.

    Tissue becomes log-odds against white matter: they stay meaningful under interpolation, and adding to them thickens
    the cortex or widens the sulci. Source of the maps: Fonov et al., NeuroImage 54:313 (2011).
    """

    def __init__(self) -> None:
        from nilearn import datasets  # slow to import, and needed only where a phantom is made

        brain = datasets.load_mni152_template(resolution=1)
        inside = brain.get_fdata(dtype=np.float32) > 0
        crop = tuple(slice(max(where.min() - 4, 0), where.max() + 5) for where in np.nonzero(inside))
        inside = inside[crop]
        grey = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32)[crop]
        white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)[crop]
        fluid = np.clip(inside - grey - white, 0, 1)
        log_white = np.log(white + _ODDS_FLOOR)
        self._origin = brain.affine[:3, 3] + [part.start for part in crop]
        self.head = ndimage.gaussian_filter(inside.astype(np.float32), 2.0)
        self.grey_odds = np.log(grey + _ODDS_FLOOR) - log_white
        self.fluid_odds = np.log(fluid + _ODDS_FLOOR) - log_white
        self.lesion_sites, self.lesion_weights = self._find_lesion_sites(white, fluid)

    def sample(self, volume: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Interpolate `head`, `grey_odds` or `fluid_odds` at (3, N) points in mm; gives (N,) float32."""
        voxels = points - self._origin[:, None].astype(points.dtype)
        return ndimage.map_coordinates(volume, voxels, order=1, mode="nearest", prefilter=False)

    def _find_lesion_sites(self, white: np.ndarray, fluid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where lesions start, (M, 3) mm, and how likely, (M,): in white matter, mostly beside the ventricles."""
        white, fluid = white[::2, ::2, ::2], fluid[::2, ::2, ::2]
        points = self._origin[:, None] + 2.0 * np.indices(white.shape).reshape(3, -1)
        central = (_radius(points, *_VENTRICLES) < 1.8).reshape(white.shape)
        distance = 2.0 * ndimage.distance_transform_edt(~(central & (fluid > 0.6)))
        weight = np.where(white > 0.85, np.exp(-distance / 6.0) + 0.004, 0.0).reshape(-1)
        weight[points[2] < -5.0] = 0.0  # rare below the ventricles
        chosen = weight > 0
        return points[:, chosen].T, weight[chosen] / weight[chosen].sum()


def make_anatomy(template: BrainTemplate, grid: Grid, seed: int, subject: int, lesions: Sequence[int]) -> Anatomy:
    """Make the anatomy of one subject.

    Args:
        template: the maps that are warped.
        grid: voxel grid of the result.
        seed: seed of the phantom, >= 0.
        subject: number of the subject, >= 0.
        lesions: fewest and most white matter lesions.

    Returns:
        The subject's brain mask, tissue fractions, lesions and iron.
    """
    shape_rng, tissue_rng, lesion_rng = (subject_rng(seed, subject, part) for part in ("shape", "tissue", "lesions"))
    points = _warped_points(grid, shape_rng)
    head = template.sample(template.head, points.reshape(3, -1)).reshape(grid.shape)
    # brain extraction leaves more of the fluid at one place than at another
    mask = head > np.clip(0.78 + 0.1 * grid.smooth_field(shape_rng, 15.0), 0.5, 0.92)
    points = points[:, mask]
    iron = _iron_map(points)
    healthy = _tissue_fractions(template, grid, mask, points, iron, tissue_rng)
    lesion, severity = _lesion_maps(template, points, lesion_rng, lesions)
    lesion *= healthy[0] + 0.5 * healthy[1]  # lesions stay out of the fluid and touch grey matter less
    fractions = np.concatenate([healthy * (1 - lesion), lesion[None]])
    return Anatomy(mask, fractions, severity, iron)


def _bspline_basis(positions: np.ndarray, count: int) -> np.ndarray:
    """Cubic B-spline weights (len(positions), count) float32; positions in control-point units, 0 at the second one."""
    cell = np.floor(positions).astype(int)
    u = positions - cell
    weights = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    basis = np.zeros((len(positions), count), dtype=np.float32)
    for shift, weight in enumerate(weights):
        basis[np.arange(len(positions)), cell + shift] = weight / 6
    return basis


def _radius(points: np.ndarray, centre: Sequence[float], widths: Sequence[float]) -> np.ndarray:
    """Distance (N,) of (3, N) points from a centre, in units of the given widths along each axis."""
    scaled = [(points[axis] - centre[axis]) / widths[axis] for axis in range(3)]
    return np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)


def _warped_points(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Template position (3, *grid.shape), mm float32, of each voxel: pose, head size, smooth warp, ventricles."""
    angles = np.deg2rad(rng.normal(0.0, 2.0, 3))
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    scale = rng.normal(_HEAD_SIZE, 0.02) * rng.normal(1.0, 0.02, 3)
    growth = rng.uniform(-0.15, 0.45)  # of the ventricles
    rotation = (
        np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    )
    centre = np.reshape(_HEAD_CENTRE, (3, 1, 1, 1))
    where = np.stack(np.meshgrid(*grid.axes, indexing="ij")) - centre
    points = (np.tensordot(rotation / scale[:, None], where, axes=1) + centre).astype(np.float32)
    for spacing, amplitude in _WARP:
        for axis in range(3):
            points[axis] += amplitude * grid.smooth_field(rng, spacing)
    pull = np.float32(growth) * np.exp(-0.5 * _radius(points, *_VENTRICLES) ** 2)
    for axis in range(3):
        points[axis] -= pull * (points[axis] - np.float32(_VENTRICLES[0][axis]))
    return points


def _tissue_fractions(
    template: BrainTemplate,
    grid: Grid,
    mask: np.ndarray,
    points: np.ndarray,
    iron: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Volume fractions (3, N) of white matter, grey matter and fluid: shifted, sharpened odds, averaged over voxels."""
    # sheets where a random field crosses zero become the small sulci, which the population average has lost
    fold = grid.smooth_field(rng, 8.0)[mask]
    cortex = 1 - np.exp(-(_radius(points, *_DEEP_BRAIN) ** 4))
    nucleus = np.clip(2 * iron, 0, 1)
    grey_shift = rng.normal(-1.1, 0.15) + 0.4 * grid.smooth_field(rng, 7.0)[mask]
    grey_shift += 2.0 * cortex * np.exp(-((fold / 0.55) ** 2))
    fluid_shift = rng.uniform(0.3, 1.5) + 0.5 * grid.smooth_field(rng, 7.0)[mask]
    fluid_shift += 3.6 * cortex * np.exp(-((fold / 0.3) ** 2))
    # the nuclei really are mixtures of grey and white matter: do not push them to one side, nor open sulci there
    grey_shift, fluid_shift = (shift.astype(np.float32) * (1 - nucleus) for shift in (grey_shift, fluid_shift))
    sharpness = _SHARPNESS * (1 - 0.5 * nucleus)
    oversampling = 1 if grid.resolution < 1.5 else 2
    steps = (np.arange(oversampling) + 0.5) / oversampling - 0.5
    total = np.zeros((3, points.shape[1]), dtype=np.float32)
    for offset in np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3):
        inner = points + (grid.resolution * offset[:, None]).astype(np.float32)
        grey = np.exp(sharpness * template.sample(template.grey_odds, inner) + grey_shift)
        fluid = np.exp(sharpness * template.sample(template.fluid_odds, inner) + fluid_shift)
        white = 1 / (1 + grey + fluid)
        total += np.stack([white, grey * white, fluid * white])
    fractions = total / total.sum(axis=0)
    _add_folia(fractions, points, grid.smooth_field(rng, 20.0)[mask])
    return fractions


def _add_folia(fractions: np.ndarray, points: np.ndarray, phase: np.ndarray) -> None:
    """Turn some grey matter of the cerebellum into thin sheets of fluid and white matter, in place.

    Args:
        fractions: (3, N) volume fractions of white matter, grey matter and fluid.
        points: (3, N) template positions in mm.
        phase: (N,) smooth field that bends the sheets.
    """
    centre, distance = _FOLIA
    inside = expit(6 - 6 * _radius(points, *_CEREBELLUM) ** 2) * fractions[1]
    wave = np.cos(2 * np.pi * _radius(points, centre, (1.7 * distance, distance, 0.8 * distance)) + 1.5 * phase)
    fluid = 0.22 * inside * np.maximum(wave, 0) ** 2
    white = 0.6 * inside * np.maximum(-wave, 0) ** 2
    fractions += np.stack([white, -white - fluid, fluid])


def _iron_map(points: np.ndarray) -> np.ndarray:
    """Iron (N,) of the deep grey nuclei at (3, N) template points, relative to the globus pallidus, in [0, 1]."""
    iron = np.zeros(points.shape[1], dtype=np.float32)
    one_side = np.stack([np.abs(points[0]), points[1], points[2]])
    for centre, widths, amount in _NUCLEI:
        near = np.flatnonzero(np.abs(one_side[2] - centre[2]) < 3 * widths[2])
        iron[near] = np.maximum(iron[near], amount * np.exp(-0.5 * _radius(one_side[:, near], centre, widths) ** 2))
    return iron


def _lesion_maps(
    template: BrainTemplate, points: np.ndarray, rng: np.random.Generator, lesions: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lesion fraction in [0, 1] and severity in [0, 1], each (N,), at (3, N) template points."""
    fraction = np.zeros(points.shape[1], dtype=np.float32)
    severity = np.zeros_like(fraction)
    for _ in range(rng.integers(lesions[0], lesions[1] + 1)):
        centre = rng.choice(template.lesion_sites, p=template.lesion_weights)
        radii = np.clip(rng.lognormal(np.log(3.0), 0.45), 1.5, 8.0) * rng.uniform(0.7, 1.4, 3)  # mm
        damage = rng.uniform(0.1, 1.0)
        near = np.flatnonzero((np.abs(points - centre[:, None]) < 2 * radii.max()).all(axis=0))
        edge = (_radius(points[:, near], centre, radii) - 1) * radii.min() / 0.6  # about 0.6 mm wide
        profile = expit(-edge)
        stronger = profile > fraction[near]
        fraction[near[stronger]] = profile[stronger]
        severity[near[stronger]] = damage
    return fraction, severity
