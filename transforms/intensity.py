"""Physical intensities to [-1, 1] and back: MR by percentiles of the foreground, CT by a fixed Hounsfield window."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import TraceKeys, TransformBackends, convert_to_tensor

from transforms.foreground import Background, find_background, foreground_mask, inside, sample
from transforms.resampling import UNMEASURED_KEY

__all__ = [
    "ABOVE_BACKGROUND",
    "FOREGROUND_RULES",
    "FOUND",
    "MASK_KEY",
    "REMARKS_KEY",
    "WINDOW_KEY",
    "RestoreIntensity",
    "RestoreIntensityd",
    "ScaleCTIntensity",
    "ScaleCTIntensityd",
    "ScaleMRIntensity",
    "ScaleMRIntensityd",
]

WINDOW_KEY = "intensity_window"
"""Entry of a scaled image's metadata: the physical values ``(low, high)`` that became -1 and 1."""

REMARKS_KEY = "intensity_remarks"
"""Entry of a scaled image's metadata: sentences on what is not as the scaling expects it, with the numbers."""

MASK_KEY = "foreground_given"
"""Entry of an image's metadata: a mask of the user's, boolean (X, Y, Z) on the image's grid, that is the foreground."""

FOUND, ABOVE_BACKGROUND = "found", "above-background"
FOREGROUND_RULES = (FOUND, ABOVE_BACKGROUND)
"""What counts as foreground: what `transforms.foreground_mask` finds, or all that is brighter than the background."""

DARKEST = 1e-3
"""How far above the background, in the range of -1 to 1, the darkest foreground lies."""
OFF = 0.05
"""From which share of the foreground's range on a background is another than the one expected."""
MANY = 0.05
"""From which share of voxels on it is worth a word that they are counted wrongly."""
HOUNSFIELD_WINDOW = -500.0
"""A window that begins below this is one of Hounsfield units, in which air has about -1000."""
AIR, DENSEST_AIR = -1000.0, -800.0


def _check_window(window: Sequence[float]) -> tuple[float, float]:
    """Return ``window`` as two floats, refusing anything but finite low < high."""
    if len(window) != 2:
        raise ValueError(f"window must be a pair (low, high), got {len(window)} values")
    low, high = float(window[0]), float(window[1])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"window must be finite with low < high, got ({low:g}, {high:g})")
    return low, high


def _restore(image: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """Map [-1, 1] linearly onto ``window`` as float32; values outside [-1, 1] are clipped first."""
    low, high = window
    return image.to(torch.float32).clamp(-1.0, 1.0).add_(1.0).mul_((high - low) / 2.0).add_(low)


def _name_of(image: torch.Tensor) -> str:
    """File name of an image for error messages, as far as it is known."""
    name = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    return str(name) if name else "image"


def _look(image: torch.Tensor, values: np.ndarray) -> tuple[np.ndarray, Background]:
    """The foreground of all channels (C, *spatial), and what lies around it in the first."""
    spacing = [1.0] * (values.ndim - 1)
    if isinstance(image, MetaTensor) and not image.meta.get(UNMEASURED_KEY, False):
        measured = image.affine[:3, :3].norm(dim=0).tolist()
        if all(math.isfinite(size) and size > 0 for size in measured):
            spacing = measured[: values.ndim - 1] + spacing[len(measured) :]
    if values.ndim not in (3, 4):
        return values > values.min(), Background(None, None, float(values.min()))
    backgrounds = [find_background(channel, spacing) for channel in values]
    given = _given_mask(image)
    if given is not None:
        return np.broadcast_to(given, values.shape), backgrounds[0]
    masks = [foreground_mask(channel, spacing, found) for channel, found in zip(values, backgrounds, strict=True)]
    return masks[0][None] if len(masks) == 1 else np.stack(masks), backgrounds[0]


def _given_mask(image: torch.Tensor) -> np.ndarray | None:
    """The user's mask of an image, if it has one."""
    mask = image.meta.get(MASK_KEY) if isinstance(image, MetaTensor) else None
    return None if mask is None else np.asarray(mask, bool)


def _check_rule(foreground: str) -> str:
    if foreground not in FOREGROUND_RULES:
        raise ValueError(f"foreground must be one of {', '.join(FOREGROUND_RULES)}, got {foreground!r}")
    return foreground


class _ScaleIntensity(InvertibleTransform):
    """Clip a volume to a window and map that window linearly onto [-1, 1]; subclasses say which window."""

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's convention)
    foreground = ABOVE_BACKGROUND

    @abstractmethod
    def find_window(
        self, image: torch.Tensor, mask: np.ndarray | None = None, background: Background | None = None
    ) -> tuple[float, float]:
        """Return the physical values ``(low, high)`` that become -1 and 1.

        Args:
            image: (C, *spatial).
            mask: True in the foreground, of the same shape; None for whatever is brighter than the background.
            background: what lies around it.
        """

    @abstractmethod
    def remark(self, values: np.ndarray, mask: np.ndarray, background: Background) -> Iterator[str]:
        """Say what in an image is not as this scaling expects it, with the numbers.

        Args:
            values: (C, *spatial), in the image's own units.
            mask: True in the foreground, of the same shape.
            background: what lies around it.
        """

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Scale one image.

        Args:
            img: image ``(C, *spatial)`` in physical units; all channels share one window.

        Returns:
            The same shape as float32 in [-1, 1]; ``meta["intensity_window"]`` holds the window as two floats.

            A mask of the user's, in ``meta["foreground_given"]``, is the foreground whatever the rule.

        Raises:
            ValueError: the image contains NaN or infinite values, or no window can be found in it.
        """
        image = convert_to_tensor(img, dtype=torch.float32, track_meta=get_track_meta())
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        numbers = values.detach().cpu().numpy()
        if not (np.isfinite(numbers.min()) and np.isfinite(numbers.max())):  # they pass NaN on
            raise ValueError(f"{_name_of(image)} contains NaN or infinite values and cannot be scaled")
        mask, background = _look(image, numbers)
        found = self.foreground == FOUND or _given_mask(image) is not None
        low, high = self.find_window(image, mask if found else None, background)
        # Clipping first makes the lower end exactly -1, whatever lies below it (the undershoot of a cubic spline, say).
        scaled = values.clamp(low, high).sub_(low).mul_(2.0 / (high - low)).sub_(1.0)
        scaled.clamp_(DARKEST - 1.0 if found else -1.0, 1.0)
        if found:
            # The mask is in the values: what is above -1 is foreground, for whoever chooses slices, scores or trains.
            outside = torch.from_numpy(~mask).to(scaled.device)
            scaled.masked_fill_(outside, -1.0)
        if not isinstance(image, MetaTensor):
            return scaled
        result = MetaTensor(scaled, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        result.meta.pop(MASK_KEY, None)  # it is in the values now
        result.meta[WINDOW_KEY] = (low, high)
        result.meta[REMARKS_KEY] = list(self.remark(numbers, mask, background))
        return self.push_transform(result, extra_info={"window": (low, high)})

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Map [-1, 1] back to physical units with the window that ``data`` was scaled with."""
        window = self.pop_transform(data)[TraceKeys.EXTRA_INFO]["window"]
        restored = _restore(data, _check_window(window))
        if isinstance(restored, MetaTensor):
            restored.meta.pop(WINDOW_KEY, None)
            restored.meta.pop(REMARKS_KEY, None)
        return restored


class ScaleMRIntensity(_ScaleIntensity):
    """Scale an MR volume, whose units are arbitrary, to [-1, 1] by its own foreground.

    The window runs from the background to a percentile of the foreground, so that a few bright vessels do not decide
    over the contrast. What counts as foreground says ``foreground``:

    - "above-background": every value above ``background``. Everything else becomes exactly -1.
    - "found": what `transforms.foreground_mask` finds. Everything else becomes exactly -1, and nothing in it does. The
      window begins at the background that is found, or, where that does not lie below the foreground, as in a z-scored
      brain, at the percentile of the foreground that lies as far from its lower end.

    Args:
        upper_percentile: percentile of the foreground that becomes 1, in (0, 100].
        background: value of the background in the image's own units, 0 for most volumes. With "found", another one is
            only told of.
        foreground: one of `FOREGROUND_RULES`.

    Raises:
        ValueError: an argument out of range; when called: no voxel in the foreground, or all of them equal.
    """

    def __init__(
        self, upper_percentile: float = 99.5, background: float = 0.0, foreground: str = ABOVE_BACKGROUND
    ) -> None:
        if not 0 < upper_percentile <= 100:
            raise ValueError(f"upper_percentile must lie in (0, 100], got {upper_percentile}")
        if not math.isfinite(background):
            raise ValueError(f"background must be finite, got {background}")
        self.upper_percentile = float(upper_percentile)
        self.background = float(background)
        self.foreground = _check_rule(foreground)

    def find_window(
        self, image: torch.Tensor, mask: np.ndarray | None = None, background: Background | None = None
    ) -> tuple[float, float]:
        """Return the background and the upper percentile of the foreground."""
        values = convert_to_tensor(image, track_meta=False).detach().cpu().numpy()
        foreground = inside(values, values > self.background if mask is None else mask)
        if foreground.size == 0:
            raise ValueError(
                f"{_name_of(image)} has no voxel above the background value {self.background:g} "
                f"(greatest value {values.max():g}): there is nothing to scale by"
            )
        if foreground.min() == foreground.max():
            raise ValueError(
                f"{_name_of(image)} has a constant foreground (all {foreground.size} voxels above the background value "
                f"{self.background:g} are {foreground.max():g}): expected an image with contrast"
            )
        # torch.quantile refuses more than 2^24 values, which a head at 1 mm exceeds.
        high = float(np.percentile(foreground, self.upper_percentile))
        if mask is None or background is None:
            return self.background, high
        least = float(np.percentile(foreground, 100 - self.upper_percentile))
        low = background.level if background.level < least else least
        return low, high if high > low else float(foreground.max())

    def remark(self, values: np.ndarray, mask: np.ndarray, background: Background) -> Iterator[str]:
        """Say where the background is another than expected, and where it and the foreground mix."""
        shown = inside(values, mask)
        if shown.size == 0 or mask.all():
            return
        level = background.level if background.air_level is None else background.air_level
        least, most = np.percentile(sample(shown), (0.5, 99.5))
        extent = float(most) - min(level, float(least))
        if background.bright:
            yield f"its air is brighter than the patient, about {level:.4g}: is the image inverted?"
        elif abs(level - self.background) > OFF * extent:
            yield f"its background is about {level:.4g}, expected {self.background:g}"
        below = float((shown <= self.background).mean())
        if below >= MANY:
            yield (
                f"{below:.0%} of its foreground lies at or below the background value {self.background:g} (least value "
                f"{shown.min():.4g}): is it z-scored?"
            )
        if self.foreground == ABOVE_BACKGROUND:
            air = float((values[~mask] > self.background).sum() / max((values > self.background).sum(), 1))
            if air >= MANY:
                yield (
                    f"{air:.0%} of what lies above the background value {self.background:g} is air or couch, and "
                    f"counts as foreground all the same; --foreground {FOUND} leaves it out"
                )


class ScaleCTIntensity(_ScaleIntensity):
    """Scale a CT volume in Hounsfield units to [-1, 1] by a fixed window, the same for every patient.

    Args:
        window: Hounsfield units ``(low, high)`` that become -1 and 1; values outside are clipped.
        foreground: one of `FOREGROUND_RULES`. With "found" air and couch become exactly -1, and nothing in the body
            does; with "above-background" what is at or below the window does.

    Raises:
        ValueError: ``window`` is not a finite pair with low < high, or ``foreground`` no such rule.
    """

    def __init__(self, window: Sequence[float] = (-1000.0, 2000.0), foreground: str = ABOVE_BACKGROUND) -> None:
        self.window = _check_window(window)
        self.foreground = _check_rule(foreground)

    def find_window(
        self, image: torch.Tensor, mask: np.ndarray | None = None, background: Background | None = None
    ) -> tuple[float, float]:
        """Return the fixed window."""
        return self.window

    def remark(self, values: np.ndarray, mask: np.ndarray, background: Background) -> Iterator[str]:
        """Say where air has no -1000 HU under a window of Hounsfield units."""
        if self.window[0] > HOUNSFIELD_WINDOW:
            return
        level = background.level if background.air_level is None else background.air_level
        if level > DENSEST_AIR:
            yield (
                f"it does not look like Hounsfield units: its air is at about {level:.4g}, expected about {AIR:g} HU "
                f"(values from {values.min():.4g} to {values.max():.4g}, window {self.window[0]:g} to "
                f"{self.window[1]:g})"
            )


class RestoreIntensity(Transform):
    """Map an image in [-1, 1] to physical units by a window that is given, not taken from the image.

    A translated image is in the *target's* contrast, so the source's own window cannot restore it; the window comes
    from training (the median over the training targets, say).

    Args:
        window: physical values ``(low, high)`` of -1 and 1, as a pair or as a tensor of two elements. A tensor is read
            at each call, so that values copied into it later (from a checkpoint) count.

    Raises:
        ValueError: ``window`` has not two values, or (at construction for a pair, at the call for a tensor) they are
            not finite with low < high.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's convention)

    def __init__(self, window: Sequence[float] | torch.Tensor) -> None:
        if isinstance(window, torch.Tensor):
            if window.numel() != 2:
                raise ValueError(f"window must hold two values (low, high), got shape {tuple(window.shape)}")
            self.window: tuple[float, float] | torch.Tensor = window
        else:
            self.window = _check_window(window)

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Restore one image or batch of any shape; values are clipped to [-1, 1] first. Returns float32."""
        image = convert_to_tensor(img, track_meta=get_track_meta())
        window = self.window
        if isinstance(window, torch.Tensor):
            window = _check_window(window.detach().flatten().tolist())
        restored = _restore(image, window)
        if isinstance(restored, MetaTensor):
            restored.meta = {key: value for key, value in restored.meta.items() if key not in (WINDOW_KEY, REMARKS_KEY)}
        return restored


class ScaleMRIntensityd(MapTransform, InvertibleTransform):
    """Dictionary form of `ScaleMRIntensity`; each key is scaled by its own foreground.

    Args:
        keys: keys of the images to scale.
        upper_percentile: see `ScaleMRIntensity`.
        background: see `ScaleMRIntensity`.
        allow_missing_keys: whether keys may be missing.
        foreground: see `ScaleMRIntensity`.
    """

    backend = ScaleMRIntensity.backend

    def __init__(
        self,
        keys: KeysCollection,
        upper_percentile: float = 99.5,
        background: float = 0.0,
        allow_missing_keys: bool = False,
        foreground: str = ABOVE_BACKGROUND,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.scaler: _ScaleIntensity = ScaleMRIntensity(upper_percentile, background, foreground)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Scale every key of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.scaler(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Map every key of ``data`` back to its physical units."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.scaler.inverse(d[key])
        return d


class ScaleCTIntensityd(ScaleMRIntensityd):
    """Dictionary form of `ScaleCTIntensity`.

    Args:
        keys: keys of the images to scale.
        window: see `ScaleCTIntensity`.
        allow_missing_keys: whether keys may be missing.
        foreground: see `ScaleCTIntensity`.
    """

    backend = ScaleCTIntensity.backend

    def __init__(
        self,
        keys: KeysCollection,
        window: Sequence[float] = (-1000.0, 2000.0),
        allow_missing_keys: bool = False,
        foreground: str = ABOVE_BACKGROUND,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.scaler = ScaleCTIntensity(window, foreground)


class RestoreIntensityd(MapTransform):
    """Dictionary form of `RestoreIntensity`.

    Args:
        keys: keys of the images to restore.
        window: see `RestoreIntensity`.
        allow_missing_keys: whether keys may be missing.
    """

    backend = RestoreIntensity.backend

    def __init__(
        self, keys: KeysCollection, window: Sequence[float] | torch.Tensor, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.restorer = RestoreIntensity(window)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Restore every key of ``data``."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.restorer(d[key])
        return d
