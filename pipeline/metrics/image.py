"""Image quality of a prediction against its target, one value per case.

Definitions of Kong et al., NeurIPS 2021 (arXiv 2110.06465), on intensities in [-1, 1], so that `data_range` is 2: NMAE
and PSNR over the target's foreground, SSIM over the whole image. All functions take batches in 2D or 3D, return one
value per image, stay on the device of their input, and never wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from transforms.scale import BACKGROUND

BACKGROUND_TOLERANCE = 1e-5  # resampling a constant background of -1 rounds to within this
SSIM_K1, SSIM_K2 = 0.01, 0.03  # stabilising constants of Wang et al., IEEE TIP 2004


def foreground_mask(target: torch.Tensor) -> torch.Tensor:
    """Tell where a target is above its background; up to `BACKGROUND_TOLERANCE` above it is background still.

    Args:
        target: (B, C, *spatial), in [-1, 1].

    Returns:
        Boolean mask, (B, C, *spatial).
    """
    return target > BACKGROUND + BACKGROUND_TOLERANCE


def mae(
    pred: torch.Tensor, target: torch.Tensor, *, data_range: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean absolute error.

    Args:
        pred: (B, C, *spatial).
        target: (B, C, *spatial).
        data_range: not used; here so that all scores are called alike.
        mask: True where to compare, (B, C, *spatial) or (B, 1, *spatial); everywhere if None.

    Returns:
        (B,), in units of the intensities, at best 0; nan where the mask is empty.

    Raises:
        ValueError: when the shapes do not fit or `data_range` is not above 0.
    """
    check_images(pred, target, data_range, mask)
    return _mean_over((pred - target).abs(), mask)


def nmae(
    pred: torch.Tensor, target: torch.Tensor, *, data_range: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean absolute error as a fraction of the data range.

    Args:
        pred: (B, C, *spatial).
        target: (B, C, *spatial).
        data_range: width of the range of intensities, 2 for [-1, 1].
        mask: True where to compare, (B, C, *spatial) or (B, 1, *spatial); everywhere if None.

    Returns:
        (B,), at best 0, at worst 1; nan where the mask is empty.

    Raises:
        ValueError: when the shapes do not fit or `data_range` is not above 0.
    """
    return mae(pred, target, data_range=data_range, mask=mask) / data_range


def psnr(
    pred: torch.Tensor, target: torch.Tensor, *, data_range: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio.

    Args:
        pred: (B, C, *spatial).
        target: (B, C, *spatial).
        data_range: width of the range of intensities, 2 for [-1, 1]; never that of the image at hand.
        mask: True where to compare, (B, C, *spatial) or (B, 1, *spatial); everywhere if None.

    Returns:
        (B,) in dB, `10 log10(data_range^2 / MSE)`; inf for a perfect prediction, nan where the mask is empty.

    Raises:
        ValueError: when the shapes do not fit or `data_range` is not above 0.
    """
    check_images(pred, target, data_range, mask)
    return -10 * torch.log10(_mean_over(((pred - target) / data_range).square(), mask))


def ssim(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    window: int | Sequence[int] = 7,
) -> torch.Tensor:
    """Structural similarity (Wang et al., IEEE TIP 2004), as `skimage.metrics.structural_similarity` computes it.

    Uniform window and sample covariance, in double precision; the mean over all windows that lie within the image.
    MONAI's `SSIMMetric` can use a uniform window too, but takes the population covariance in single precision.

    Args:
        pred: (B, C, *spatial).
        target: (B, C, *spatial).
        data_range: width of the range of intensities, 2 for [-1, 1].
        mask: True at the centres of the windows to average, (B, C, *spatial) or (B, 1, *spatial); all if None.
        window: odd width of the window in voxels, one for all axes or one for each; 1 along an axis leaves it alone.

    Returns:
        (B,), at best 1, averaged over the channels; nan where the mask holds no centre of a window.

    Raises:
        ValueError: when the shapes do not fit, `data_range` is not above 0, or the window is even or exceeds the image.
    """
    check_images(pred, target, data_range, mask)
    shape = tuple(pred.shape[2:])
    windows = (window,) * len(shape) if isinstance(window, int) else tuple(window)
    if len(windows) != len(shape) or any(width < 1 or width % 2 == 0 for width in windows) or max(windows) < 3:
        raise ValueError(f"window must be odd and at least 3, got {window}")
    if any(length < width for length, width in zip(shape, windows, strict=True)):
        raise ValueError(f"images must have at least {window} voxels along every axis, got {shape}")
    x, y = double(pred), double(target)
    mean_x, mean_y = _window_mean(x, windows), _window_mean(y, windows)
    samples = math.prod(windows)
    unbias = samples / (samples - 1)
    var_x = unbias * (_window_mean(x * x, windows) - mean_x * mean_x)
    var_y = unbias * (_window_mean(y * y, windows) - mean_y * mean_y)
    covariance = unbias * (_window_mean(x * y, windows) - mean_x * mean_y)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    if mask is not None:
        inner = (slice(width // 2, length - width // 2) for width, length in zip(windows, shape, strict=True))
        mask = mask[(slice(None), slice(None), *inner)]
    return _mean_over(luminance * structure, mask).to(torch.float32)


def check_images(pred: torch.Tensor, target: torch.Tensor, data_range: float, mask: torch.Tensor | None) -> None:
    """Refuse what no score takes.

    Raises:
        ValueError: when the shapes do not fit or `data_range` is not above 0.
    """
    if pred.shape != target.shape or pred.ndim not in (4, 5):
        raise ValueError(
            f"pred and target must have one shape (B, C, *spatial) in 2D or 3D, got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}"
        )
    if not data_range > 0:
        raise ValueError(f"data_range must be above 0, got {data_range}")
    if mask is not None:
        allowed = (tuple(target.shape), (target.shape[0], 1, *target.shape[2:]))
        if tuple(mask.shape) not in allowed or mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean of the shape {allowed[0]}, got {mask.dtype} of {tuple(mask.shape)}")


def _mean_over(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean per case over the mask; nan where it is empty. What lies outside has no say, be it infinite."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.expand_as(values)
    return torch.where(mask, values, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def double(image: torch.Tensor) -> torch.Tensor:
    """In double precision, which small differences of large numbers need; Apple's GPUs have none."""
    return image.to(torch.float32 if image.device.type == "mps" else torch.float64)


def _window_mean(image: torch.Tensor, windows: Sequence[int]) -> torch.Tensor:
    """Mean over each window that lies within the image, one axis after the other."""
    for axis, width in enumerate(windows, start=2):
        if width > 1:
            image = image.unfold(axis, width, 1).mean(-1)
    return image
