"""What similarity to the target misses: geometry that is not the source's, blur and noise; one value per case.

Like the scores of `pipeline.metrics.image`, these take batches in 2D or 3D, return one value per image, stay on the
device of their input, and never wait for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pipeline.metrics.image import check_images, double, psnr

BINS = 32  # of intensity, over the whole data range
HIGH_FREQUENCY = 0.25  # cycles per voxel, half of Nyquist's frequency
EDGE = 3  # voxels from the border of the mask to where a window is half open
LEAST_CONTRAST = 1e-6  # of the data range: what varies by less is constant but for rounding


def mutual_information(
    pred: torch.Tensor,
    source: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    bins: int = BINS,
) -> torch.Tensor:
    """Mutual information of the intensities of two images, from their joint histogram.

    A translation that keeps the source's geometry shares more with it than one that was shifted or bent. It is own code
    since MONAI's `GlobalMutualInformationLoss` takes no mask and smooths its histogram, and the functions of
    scikit-image and scikit-learn work on the host.

    The histogram of N voxels gives too much, about (occupied bins of `pred` - 1) (those of `source` - 1) / 2N for
    independent images: compare values only over one mask.

    Args:
        pred: (B, C, *spatial), intensities in [-data_range / 2, data_range / 2]; what lies outside takes the first or
            last bin.
        source: image of the same shape and range.
        data_range: width of the range of intensities, 2 for [-1, 1].
        mask: True where to compare, (B, C, *spatial) or (B, 1, *spatial); everywhere if None.
        bins: number of equal bins across the range of each image.

    Returns:
        (B,) in nats, from 0 (independent) to the entropy of either image's histogram; nan where the mask is empty or
        holds a nan.

    Raises:
        ValueError: when the shapes do not fit, `data_range` is not above 0 or `bins` is below 2.
    """
    check_images(pred, source, data_range, mask)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    counted = torch.ones_like(pred, dtype=torch.bool) if mask is None else mask.expand_as(pred)
    joint = _bin(source, data_range, bins) * bins + _bin(pred, data_range, bins)
    weights = double(counted.flatten(1))
    # Not torch.bincount, which waits for the device to tell it the largest index.
    count = weights.new_zeros(len(pred), bins * bins).scatter_add(1, joint.flatten(1), weights)
    share = (count / weights.sum(1, keepdim=True)).view(-1, bins, bins)
    separate = _entropy(share.sum(1)) + _entropy(share.sum(2))
    unknown = ((pred.isnan() | source.isnan()) & counted).flatten(1).any(1)
    return torch.where(unknown, math.nan, separate - _entropy(share.flatten(1))).to(torch.float32)


def linear_psnr(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Peak signal-to-noise ratio after the best linear map of the prediction's intensities, image by image.

    MR has no units: a prediction may be right in all but scale and offset, which differ from patient to patient. What
    this has above the plain score is that part of the error. Never below the plain score but for rounding; a prediction
    without any contrast has that of the target's mean.

    Args:
        pred: (B, C, *spatial).
        target: (B, C, *spatial).
        data_range: width of the range of intensities, 2 for [-1, 1].
        mask: True where to compare and to fit, (B, C, *spatial) or (B, 1, *spatial); everywhere if None.

    Returns:
        (B,) in dB, see `pipeline.metrics.image.psnr`.

    Raises:
        ValueError: when the shapes do not fit or `data_range` is not above 0.
    """
    check_images(pred, target, data_range, mask)
    x, y = double(pred.flatten(1)), double(target.flatten(1))
    counted = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(pred).flatten(1)
    count = counted.sum(1, keepdim=True)
    mean_x, mean_y = (torch.where(counted, one, 0).sum(1, keepdim=True) / count for one in (x, y))
    off_x = torch.where(counted, x - mean_x, 0)
    covariance = (off_x * torch.where(counted, y - mean_y, 0)).sum(1, keepdim=True)
    variance = off_x.square().sum(1, keepdim=True)
    flat = variance <= count * (LEAST_CONTRAST * data_range) ** 2
    slope = torch.where(flat, 0, covariance / torch.where(flat, 1, variance))
    fitted = (mean_y + slope * (x - mean_x)).unflatten(1, tuple(pred.shape[1:]))
    return psnr(fitted, double(target), data_range=data_range, mask=mask).to(torch.float32)


def high_frequency_ratio(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    data_range: float,
    mask: torch.Tensor | None = None,
    cut: float = HIGH_FREQUENCY,
) -> torch.Tensor:
    """Share of fine detail in a prediction's power spectrum, divided by that in the target's.

    The share is the power at radial frequencies above `cut`, divided by that at all frequencies but zero, so that
    brightness and contrast have no say. The hard edge between patient and background would dominate the spectra of
    both images. Therefore, with a mask, both are multiplied by one window that rises smoothly from 0 at the border of
    the mask to 1 at a depth of `2 * EDGE` voxels, after the mean under that window was taken away.

    Args:
        pred: (B, C, *spatial).
        target: (B, C, *spatial).
        data_range: width of the range of intensities, 2 for [-1, 1].
        mask: True inside the patient, (B, C, *spatial) or (B, 1, *spatial). If None, the whole image as it is.
        cut: frequency in cycles per voxel, in (0, 0.5).

    Returns:
        (B,): 1 is ideal, below 1 the prediction is blurred, above 1 it has noise or artefacts. nan where either image
        is constant (or the target has nothing above `cut`), and where the mask is nowhere `2 * EDGE + 1` voxels wide.

    Raises:
        ValueError: when the shapes do not fit, `data_range` is not above 0 or `cut` is out of range.
    """
    check_images(pred, target, data_range, mask)
    if not 0 < cut < 0.5:
        raise ValueError(f"cut must lie between 0 and 0.5 cycles per voxel, got {cut}")
    window = torch.ones_like(target) if mask is None else _window(mask.expand_as(target))
    shares = [_high_share(image, double(window), data_range, cut) for image in (pred, target)]
    ratio = shares[0] / shares[1]
    return torch.where(shares[1] > 0, ratio, math.nan).to(torch.float32)


def _bin(image: torch.Tensor, data_range: float, bins: int) -> torch.Tensor:
    position = (image / data_range + 0.5) * bins
    return position.nan_to_num().clamp(0, bins - 1).long()


def _entropy(share: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(share).sum(1)


def _window(mask: torch.Tensor) -> torch.Tensor:
    """0 outside the mask, rising to 1 over `2 * EDGE` voxels within it along a B-spline, which leaks little."""
    dims = mask.ndim - 2
    largest, mean = (F.max_pool2d, F.avg_pool2d) if dims == 2 else (F.max_pool3d, F.avg_pool3d)
    outside = F.pad(1 - mask.float(), (EDGE,) * (2 * dims), value=1.0)
    window = 1 - largest(outside, 2 * EDGE + 1, stride=1)
    for _ in range(EDGE):
        window = mean(window, 3, stride=1, padding=1)
    return window


def _high_share(image: torch.Tensor, window: torch.Tensor, data_range: float, cut: float) -> torch.Tensor:
    axes = tuple(range(2, image.ndim))
    image = torch.where(window > 0, double(image), 0.0)  # what lies outside has no say, be it infinite
    mean = (window * image).sum(axes, keepdim=True) / window.sum(axes, keepdim=True)
    deviation = window * (image - mean)
    power = torch.fft.fftn(deviation, dim=axes).abs().square()
    frequencies = [torch.fft.fftfreq(size, device=image.device) for size in image.shape[2:]]
    radius = torch.stack(torch.meshgrid(*frequencies, indexing="ij")).square().sum(0).sqrt()
    share = torch.where(radius > cut, power, 0.0).flatten(1).sum(1) / power.flatten(1).sum(1)
    variance = deviation.square().flatten(1).sum(1) / window.square().flatten(1).sum(1)
    return torch.where(variance <= (LEAST_CONTRAST * data_range) ** 2, math.nan, share)
