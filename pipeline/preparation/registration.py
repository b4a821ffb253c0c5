"""Rigid registration of a patient's two scans, with ITK: mutual information, several starts, coarse to fine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

BINS = 32
"""Bins of the joint histogram, as Mattes et al. (PET-CT image registration in the chest, IEEE TMI 2003) have them."""
TURN = 0.2
"""Turn of the additional starts about each axis, in radians."""
COARSE, MIDDLE, FINE = 4.0, 2.0, 1.0
"""Sides in mm of the voxels of the three levels."""
CLIPPED = (0.5, 99.8)
"""Percentiles within the mask that the histogram spans, so that a bright vessel does not leave all else in one bin."""
RIVAL = 0.9
"""Share of the best answer's information from which on another answer casts doubt on it."""
LEAST_OVERLAP = 0.3
"""Share of the mask that has to lie in the target's field of view for a start to be an answer."""
SAMPLES = {COARSE: 20_000, MIDDLE: 60_000, FINE: 150_000}
"""About how many points the metric is taken at."""
BLOCK = 32.0
"""Sides in mm of the blocks that are compared one by one."""
DEPTH = 8.0
"""How far in mm inside the mask blocks lie, at most: outlines are alike, whoever's they are."""
RANDOM_SAMPLING = 2  # ImageRegistrationMethodv4Enums.MetricSamplingStrategy, which Python has no name for
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class RegistrationError(ValueError):
    """Two scans cannot be registered; the message says why."""


@dataclass(frozen=True)
class Scan:
    """A volume with its place in space.

    Attributes:
        voxels: (X, Y, Z).
        affine: 4x4, voxels to mm in R, A and S.
    """

    voxels: np.ndarray
    affine: np.ndarray

    @cached_property
    def spacing(self) -> np.ndarray:
        """Sides of a voxel in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def through(self) -> np.ndarray:
        """Unit vector through the slices, which are those across the thickest voxels, in R, A and S."""
        axis = int(self.spacing.argmax()) if np.ptp(self.spacing) > 0.05 * self.spacing.max() else 2
        first, second = (self.affine[:3, other] for other in range(3) if other != axis)
        normal = np.cross(first, second)
        return normal / np.linalg.norm(normal)

    def shrunk(self, side: float) -> Scan:
        """The volume at voxels of about this side in mm, smoothed before; axes of coarser voxels stay."""
        steps = np.maximum(np.floor(side / self.spacing + 1e-3), 1).astype(int)
        steps = np.minimum(steps, np.maximum(np.array(self.voxels.shape) // 8, 1))
        if (steps == 1).all():
            return self
        smooth = ndimage.gaussian_filter(self.voxels.astype(np.float32), 0.5 * np.sqrt(steps**2 - 1.0))
        first = [(length - 1) % step // 2 for length, step in zip(self.voxels.shape, steps, strict=True)]
        part = tuple(slice(start, None, step) for start, step in zip(first, steps, strict=True))
        affine = self.affine @ np.diag([*steps.astype(float), 1.0])
        affine[:3, 3] = (self.affine @ [*first, 1.0])[:3]
        return Scan(np.ascontiguousarray(smooth[part]), affine)


@dataclass(frozen=True)
class Registration:
    """What came of a registration.

    Attributes:
        matrix: 4x4, in mm in R, A and S: takes a point of the source to the point of the target's header that shows it.
        before, after: mutual information in nats inside the mask, at voxels of 2 mm.
        spread: mean distance in mm over the mask between the best start's answer and the runner-up's, both refined; 0
            where the runner-up is no rival, with less than `RIVAL` of the information.
        agreeing: share of the starts that ended within 4 mm of the best.
        halves: largest mean distance in mm between the answer and that of a half of the mask alone: left, right, front,
            back, top, bottom. Large where the scans do not show the same thing, or not in one rigid position.
        blocks: share of the blocks of `BLOCK` mm inside the mask whose own mutual information is greatest at the
            answer, among it and the 26 places 4 mm beside it; NaN where there is no block to compare. Two scans of one
            patient agree in nearly every block. Another patient's does not: that outlines and large structures were
            brought onto each other makes no pair of what lies between them.
        overlap: share of the mask that lies in the target's field of view.
        mean, largest, through_plane: displacement over the mask in mm, against the header's alignment; the last is the
            mean of its part through the source's slices, without sign.
    """

    matrix: np.ndarray = field(repr=False)
    before: float
    after: float
    spread: float
    agreeing: float
    halves: float
    blocks: float
    overlap: float
    mean: float
    largest: float
    through_plane: float


def displacement(matrix: np.ndarray, points: np.ndarray, normal: np.ndarray) -> tuple[float, float, float]:
    """Mean, largest and through-plane displacement in mm.

    Args:
        matrix: 4x4, in mm.
        points: (N, 3), in mm, in the same directions.
        normal: unit vector through the slices.
    """
    moved = points @ matrix[:3, :3].T + matrix[:3, 3] - points
    lengths = np.linalg.norm(moved, axis=1)
    return float(lengths.mean()), float(lengths.max()), float(np.abs(moved @ normal).mean())


def distance(first: np.ndarray, second: np.ndarray, points: np.ndarray) -> float:
    """Mean distance in mm between where two matrices take points (N, 3)."""
    difference = first - second
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def points_of(mask: Scan, most: int = 20_000) -> np.ndarray:
    """Voxels of a mask in mm, (N, 3), in R, A and S; evenly thinned out to about ``most``."""
    at = np.argwhere(mask.voxels)
    at = at[:: max(1, len(at) // most)]
    return at @ mask.affine[:3, :3].T + mask.affine[:3, 3]


class Level:
    """The two scans at one resolution, with what ITK needs to compare them.

    Args:
        source, target: the scans; ``mask`` on the source's grid.
        side: of the voxels in mm.
    """

    def __init__(self, source: Scan, target: Scan, mask: Scan, side: float) -> None:
        import itk  # seconds

        self._itk = itk
        self.kind = itk.Image[itk.F, 3]
        self.source, self.target = source.shrunk(side), target.shrunk(side)
        share = mask.shrunk(side).voxels
        inside = share > 0 if share.dtype == bool else share > 0.5
        self.inside = inside
        # One voxel more, for the skin against the air.
        self.mask = Scan(ndimage.binary_dilation(inside, np.ones((3, 3, 3), bool)), self.source.affine)
        self.side = side
        self.fixed = self._image(_clipped(self.source.voxels, inside))
        self.moving = self._image(_clipped(self.target.voxels, None), self.target.affine)
        self.sampling = min(1.0, SAMPLES[side] / max(int(self.mask.voxels.sum()), 1))

    def _image(self, voxels: np.ndarray, affine: np.ndarray | None = None, kind: Any = np.float32) -> Any:
        itk = self._itk
        placed = LPS @ (self.source.affine if affine is None else affine)
        image = itk.image_from_array(np.ascontiguousarray(voxels.T, dtype=kind))
        spacing = np.linalg.norm(placed[:3, :3], axis=0)
        image.SetSpacing([float(size) for size in spacing])
        image.SetOrigin([float(value) for value in placed[:3, 3]])
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(placed[:3, :3] / spacing)))
        return image

    def _spatial(self, mask: np.ndarray) -> Any:
        spatial = self._itk.ImageMaskSpatialObject[3].New()
        spatial.SetImage(self._image(mask, kind=np.uint8))
        spatial.Update()
        return spatial

    @cached_property
    def whole(self) -> Any:
        """The mask as ITK has it."""
        return self._spatial(self.mask.voxels)

    def _metric(self, mask: Any) -> Any:
        metric = self._itk.MattesMutualInformationImageToImageMetricv4[self.kind, self.kind].New()
        metric.SetNumberOfHistogramBins(BINS)
        metric.SetUseMovingImageGradientFilter(False)
        metric.SetUseFixedImageGradientFilter(False)
        metric.SetFixedImageMask(mask)
        return metric

    def information(self, matrix: np.ndarray) -> float:
        """Mutual information in nats at all voxels of the mask that lie in the target's field of view."""
        metric = self._metric(self.whole)
        metric.SetFixedImage(self.fixed)
        metric.SetMovingImage(self.moving)
        metric.SetTransform(transform_of(matrix, np.zeros(3)))
        try:
            metric.Initialize()
            return float(-metric.GetValue())
        except RuntimeError:  # not a point of the one lies in the other
            return 0.0

    def refine(self, matrix: np.ndarray, step: float, iterations: int, half: np.ndarray | None = None) -> np.ndarray:
        """Go uphill from one position.

        Args:
            matrix: the start, see `Registration.matrix`.
            step: the first step in mm.
            iterations: at most so many steps.
            half: boolean, of the shape of the level's mask: the part of it that counts.
        """
        itk = self._itk
        counted = self.mask.voxels if half is None else self.mask.voxels & half
        points = points_of(Scan(counted, self.mask.affine), 2000)
        centre = points.mean(0)
        radius = float(np.sqrt(((points - centre) ** 2).sum(1).mean()))
        transform = transform_of(matrix, centre)
        optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
        optimizer.SetScales(itk.OptimizerParameters[itk.D]([radius**2] * 3 + [1.0] * 3))
        optimizer.SetLearningRate(step)
        optimizer.SetRelaxationFactor(0.6)
        optimizer.SetMinimumStepLength(step * 0.005)
        optimizer.SetGradientMagnitudeTolerance(1e-9)
        optimizer.SetNumberOfIterations(iterations)
        registration = itk.ImageRegistrationMethodv4[self.kind, self.kind].New()
        registration.SetFixedImage(self.fixed)
        registration.SetMovingImage(self.moving)
        registration.SetMetric(self._metric(self.whole if half is None else self._spatial(counted)))
        registration.SetOptimizer(optimizer)
        registration.SetInitialTransform(transform)
        registration.SetNumberOfLevels(1)
        registration.SetShrinkFactorsPerLevel([1])
        registration.SetSmoothingSigmasPerLevel([0.0])
        registration.SetMetricSamplingStrategy(RANDOM_SAMPLING)
        registration.SetMetricSamplingPercentage(self.sampling)
        registration.MetricSamplingReinitializeSeed(121)
        try:
            registration.Update()
        except RuntimeError:  # it left the target's field of view
            return matrix
        return matrix_of(transform)


def transform_of(matrix: np.ndarray, centre: np.ndarray) -> Any:
    """A rigid matrix in R, A and S as ITK's transform about a centre, in L, P and S."""
    import itk

    turned = LPS @ matrix @ LPS
    middle = LPS[:3, :3] @ centre
    transform = itk.Euler3DTransform[itk.D].New()
    transform.SetCenter([float(value) for value in middle])
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(turned[:3, :3])), 1e-6)
    offset = turned[:3, 3] + turned[:3, :3] @ middle - middle
    transform.SetTranslation([float(value) for value in offset])
    return transform


def matrix_of(transform: Any) -> np.ndarray:
    """The inverse of `transform_of`."""
    import itk

    found = np.eye(4)
    found[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    found[:3, 3] = list(transform.GetOffset())
    return LPS @ found @ LPS


def _clipped(voxels: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    shown = voxels if inside is None or not inside.any() else voxels[inside]
    low, high = np.percentile(shown, CLIPPED)
    if low == high:
        low, high = float(voxels.min()), float(voxels.max())
    return voxels.clip(low, high)


def rotation(axis: int, angle: float) -> np.ndarray:
    """3x3 turn about one of the axes R, A and S by an angle in radians."""
    found = np.eye(3)
    first, second = (other for other in range(3) if other != axis)
    found[first, first] = found[second, second] = np.cos(angle)
    found[first, second], found[second, first] = -np.sin(angle), np.sin(angle)
    return found


def about(turn: np.ndarray, centre: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """4x4: a turn about a centre, and then a shift."""
    found = np.eye(4)
    found[:3, :3] = turn
    found[:3, 3] = centre - turn @ centre + shift
    return found


def _starts(points: np.ndarray, target_points: np.ndarray) -> list[np.ndarray]:
    """The header's alignment, that of the centres of mass, and turns of the latter both ways about each axis."""
    centre, shift = points.mean(0), target_points.mean(0) - points.mean(0)
    straight = np.eye(3)
    turns = [rotation(axis, sign * TURN) for axis, sign in itertools.product(range(3), (-1, 1))]
    shifts = [np.zeros(3), shift] if np.linalg.norm(shift) > COARSE else [shift]
    starts = [about(straight, centre, each) for each in ([np.zeros(3), shift])]
    return starts + [about(turn, centre, each) for each in shifts for turn in turns]


def _overlap(matrix: np.ndarray, points: np.ndarray, target: Scan) -> float:
    at = np.linalg.inv(target.affine) @ matrix @ np.vstack([points.T, np.ones(len(points))])
    inside = (at[:3] >= -0.5) & (at[:3] <= np.array(target.voxels.shape)[:, None] - 0.5)
    return float(inside.all(0).mean())


def _halves(level: Level, matrix: np.ndarray) -> float:
    """See `Registration.halves`."""
    at = np.argwhere(level.mask.voxels)
    place = at @ level.mask.affine[:3, :3].T + level.mask.affine[:3, 3]
    found = []
    for axis, upper in itertools.product(range(3), (False, True)):
        chosen = (place[:, axis] > np.median(place[:, axis])) == upper
        half = np.zeros(level.mask.voxels.shape, bool)
        half[tuple(at[chosen].T)] = True
        if _overlap(matrix, place[chosen], level.target) < LEAST_OVERLAP:
            continue
        found.append(distance(level.refine(matrix, 1.0, 40, half), matrix, place[chosen]))
    return max(found, default=float("inf"))


def _information(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information in nats of a few values, (N,) each, by their ranks."""
    bins = int(np.clip(np.sqrt(first.size / 5), 4, 12))
    steps = np.linspace(0, 100, bins + 1)[1:-1]
    one, other = (np.searchsorted(np.percentile(values, steps), values) for values in (first, second))
    joint = np.bincount(one * bins + other, minlength=bins * bins).reshape(bins, bins) / first.size

    def entropy(share: np.ndarray) -> float:
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())

    return entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)


def _blocks(level: Level, matrix: np.ndarray) -> float:
    """See `Registration.blocks`."""
    source, target = level.source, level.target
    depth = ndimage.distance_transform_edt(np.pad(level.inside, 1), source.spacing)[1:-1, 1:-1, 1:-1]
    least = max(100.0, 0.1 * BLOCK**3 / float(source.spacing.prod()))
    deep = next((depth > DEPTH / part for part in (1, 2, 4, 8) if (depth > DEPTH / part).sum() > 10 * least), depth > 0)
    at = np.argwhere(deep)
    points = at @ source.affine[:3, :3].T + source.affine[:3, 3]
    numbers = np.unique(((points - points.min(0)) // BLOCK).astype(int), axis=0, return_inverse=True)[1].ravel()
    to_voxels = np.linalg.inv(target.affine) @ matrix
    shifts = [np.array(steps) * COARSE for steps in itertools.product((0, -1, 1), repeat=3)]
    won = []
    for number in range(int(numbers.max()) + 1):
        chosen = np.flatnonzero(numbers == number)
        chosen = chosen[:: max(1, chosen.size // 1000)]
        places = [(points[chosen] + shift) @ to_voxels[:3, :3].T + to_voxels[:3, 3] for shift in shifts]
        seen = np.all([((each >= 0) & (each <= np.array(target.voxels.shape) - 1)).all(1) for each in places], axis=0)
        if seen.sum() < min(least, 1000):
            continue
        own = source.voxels[tuple(at[chosen[seen]].T)]
        found = [
            _information(own, ndimage.map_coordinates(target.voxels, each[seen].T, order=1, output=np.float32))
            for each in places
        ]
        won.append(max(found) <= found[0])
    return float(np.mean(won)) if won else float("nan")


def register(source: Scan, target: Scan, mask: np.ndarray, target_mask: np.ndarray, move: bool = True) -> Registration:
    """Find how the target has to be moved rigidly to lie on the source.

    Args:
        source: the scan that stays.
        target: the scan that moves, on any grid.
        mask: boolean, of the source's shape: its foreground, where mutual information is taken.
        target_mask: the same of the target; its centre of mass is one of the starts.
        move: False leaves the answer at the header's alignment; the displacement that was found is told all the same.

    Raises:
        RegistrationError: a mask is empty, or the scans do not overlap from any start.
    """
    for name, scan, given in (("source", source, mask), ("target", target, target_mask)):
        if not given.any():
            raise RegistrationError(f"the {name} has no foreground")
        if min(scan.voxels.shape) < 4:
            raise RegistrationError(f"the {name} has shape {scan.voxels.shape}, expected at least 4 voxels each way")
    region = Scan(mask.astype(np.float32), source.affine)
    points = points_of(region)
    coarse = Level(source, target, region, COARSE)
    ends = []
    for start in _starts(points, points_of(Scan(target_mask, target.affine))):
        if _overlap(start, points, target) < LEAST_OVERLAP:
            continue
        end = coarse.refine(start, COARSE, 60)
        share = _overlap(end, points, target)
        if share >= LEAST_OVERLAP:
            ends.append((coarse.information(end) * share, end))
    if not ends:
        raise RegistrationError("the two fields of view do not overlap from any start")
    ends.sort(key=lambda item: -item[0])
    best = ends[0][1]
    agreeing = sum(distance(end, best, points) < COARSE for _, end in ends) / len(ends)
    middle = Level(source, target, region, MIDDLE)
    finished = [(middle.information(end), end) for end in (middle.refine(end, 1.0, 60) for _, end in ends[:2])]
    finished.sort(key=lambda item: -item[0] * _overlap(item[1], points, target))
    (most, best), (second, rival) = finished[0], finished[-1]
    spread = distance(best, rival, points) if second > RIVAL * most else 0.0
    if min(*source.spacing, *target.spacing) < 0.75 * MIDDLE:
        best = Level(source, target, region, FINE).refine(best, 0.5, 60)
    kept = best if move else np.eye(4)
    mean, largest, through = displacement(best, points, source.through)
    return Registration(
        matrix=kept,
        before=middle.information(np.eye(4)),
        after=middle.information(best),
        spread=spread,
        agreeing=agreeing,
        halves=_halves(middle, best),
        blocks=_blocks(middle, best),
        overlap=_overlap(kept, points, target),
        mean=mean,
        largest=largest,
        through_plane=through,
    )


def residual(source: Scan, target: Scan, mask: np.ndarray, steps: Sequence[float] = (COARSE,)) -> Registration:
    """A quick look, from the header's alignment only: how far the two scans seem to lie apart."""
    region = Scan(mask.astype(np.float32), source.affine)
    points = points_of(region)
    found = np.eye(4)
    for side in steps:
        level = Level(source, target, region, side)
        found = level.refine(found, side / 2, 60)
    mean, largest, through = displacement(found, points, source.through)
    return Registration(
        found, level.information(np.eye(4)), level.information(found), 0.0, 1.0, 0.0, 1.0,
        _overlap(found, points, target), mean, largest, through,
    )  # fmt: skip
