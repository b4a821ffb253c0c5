"""Physical intensities to [-1, 1] and back: MR by percentiles of the foreground, CT by a fixed Hounsfield window."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import TraceKeys, TransformBackends, convert_to_tensor

__all__ = [
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


class _ScaleIntensity(InvertibleTransform):
    """Clip a volume to a window and map that window linearly onto [-1, 1]; subclasses say which window."""

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's convention)

    @abstractmethod
    def find_window(self, image: torch.Tensor) -> tuple[float, float]:
        """Return the physical values ``(low, high)`` that become -1 and 1."""

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Scale one image.

        Args:
            img: image ``(C, *spatial)`` in physical units; all channels share one window.

        Returns:
            The same shape as float32 in [-1, 1]; ``meta["intensity_window"]`` holds the window as two floats.

        Raises:
            ValueError: the image contains NaN or infinite values, or no window can be found in it.
        """
        image = convert_to_tensor(img, dtype=torch.float32, track_meta=get_track_meta())
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        if not all(map(math.isfinite, torch.stack(torch.aminmax(values)).tolist())):  # they pass NaN on
            raise ValueError(f"{_name_of(image)} contains NaN or infinite values and cannot be scaled")
        low, high = self.find_window(image)
        # Clipping first makes the lower end exactly -1, whatever lies below it (the undershoot of a cubic spline, say).
        scaled = values.clamp(low, high).sub_(low).mul_(2.0 / (high - low)).sub_(1.0).clamp_(-1.0, 1.0)
        if not isinstance(image, MetaTensor):
            return scaled
        result = MetaTensor(scaled, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        result.meta[WINDOW_KEY] = (low, high)
        return self.push_transform(result, extra_info={"window": (low, high)})

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Map [-1, 1] back to physical units with the window that ``data`` was scaled with."""
        window = self.pop_transform(data)[TraceKeys.EXTRA_INFO]["window"]
        restored = _restore(data, _check_window(window))
        if isinstance(restored, MetaTensor):
            restored.meta.pop(WINDOW_KEY, None)
        return restored


class ScaleMRIntensity(_ScaleIntensity):
    """Scale an MR volume, whose units are arbitrary, to [-1, 1] by its own foreground.

    The window runs from the background value to a percentile of the voxels above it, so that a few bright vessels do
    not decide over the contrast. Every value at or below ``background`` becomes exactly -1.

    Args:
        upper_percentile: percentile of the foreground that becomes 1, in (0, 100].
        background: value of the background in the image's own units, 0 for most volumes.

    Raises:
        ValueError: an argument out of range; when called: no voxel above ``background``, or all of them equal.
    """

    def __init__(self, upper_percentile: float = 99.5, background: float = 0.0) -> None:
        if not 0 < upper_percentile <= 100:
            raise ValueError(f"upper_percentile must lie in (0, 100], got {upper_percentile}")
        if not math.isfinite(background):
            raise ValueError(f"background must be finite, got {background}")
        self.upper_percentile = float(upper_percentile)
        self.background = float(background)

    def find_window(self, image: torch.Tensor) -> tuple[float, float]:
        """Return the background and the upper percentile of the voxels above it."""
        values = convert_to_tensor(image, track_meta=False).detach().cpu().numpy()
        foreground = values[values > self.background]
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
        return self.background, float(np.percentile(foreground, self.upper_percentile))


class ScaleCTIntensity(_ScaleIntensity):
    """Scale a CT volume in Hounsfield units to [-1, 1] by a fixed window, the same for every patient.

    Args:
        window: Hounsfield units ``(low, high)`` that become -1 and 1; values outside are clipped.

    Raises:
        ValueError: ``window`` is not a finite pair with low < high.
    """

    def __init__(self, window: Sequence[float] = (-1000.0, 2000.0)) -> None:
        self.window = _check_window(window)

    def find_window(self, image: torch.Tensor) -> tuple[float, float]:
        """Return the fixed window."""
        return self.window


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
            restored.meta = {key: value for key, value in restored.meta.items() if key != WINDOW_KEY}
        return restored


class ScaleMRIntensityd(MapTransform, InvertibleTransform):
    """Dictionary form of `ScaleMRIntensity`; each key is scaled by its own foreground.

    Args:
        keys: keys of the images to scale.
        upper_percentile: see `ScaleMRIntensity`.
        background: see `ScaleMRIntensity`.
        allow_missing_keys: whether keys may be missing.
    """

    backend = ScaleMRIntensity.backend

    def __init__(
        self,
        keys: KeysCollection,
        upper_percentile: float = 99.5,
        background: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.scaler: _ScaleIntensity = ScaleMRIntensity(upper_percentile, background)

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
    """

    backend = ScaleCTIntensity.backend

    def __init__(
        self,
        keys: KeysCollection,
        window: Sequence[float] = (-1000.0, 2000.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.scaler = ScaleCTIntensity(window)


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
