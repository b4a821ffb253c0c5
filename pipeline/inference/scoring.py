"""Scores of whole volumes: translated on the very way that users take, compared in the patient's space and units."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from pipeline.data.pairs import is_other_unit
from pipeline.inference.translation import Translation
from pipeline.io import AFFINE_KEY, name_of, read_image
from pipeline.metrics import foreground_mask, mae, nmae, psnr, ssim
from transforms import REMARKS_KEY, WINDOW_KEY

SSIM_WINDOW = 7
"""Width of the structural similarity's window in voxels; along a shorter axis, the greatest odd number that fits."""

logger = logging.getLogger(__name__)


def score_volumes(
    cases: Iterable[Mapping[str, str]],
    translation: Translation,
    network: nn.Module,
    baselines: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    device: torch.device | str = "cpu",
    amp: bool = False,
) -> Iterator[dict[str, Any]]:
    """Translate volumes and compare them with their targets, one after the other.

    Nothing is left out: every slice is translated, and compared over the target's foreground (what its scaling places
    above the background) at the voxels of the source's file. The range is the model's target window.

    Args:
        cases: ``{"image": path, "label": path, "case": patient}`` each, on one grid.
        translation: the way of a volume.
        network: translates slices (B, C, *spatial) in [-1, 1]; on ``device``, in evaluation mode.
        baselines: by name, what to score beside it, in the network's place.
        device: where to compute.
        amp: translate under ``torch.autocast`` in bfloat16.

    Yields:
        By volume: ``case``; ``volume``, the file's name without suffix; and for the prediction ``mae`` in units of the
        target, ``nmae`` as a share of the range, ``psnr`` in dB, both over the foreground, and ``ssim`` of the whole
        volume; the same with a baseline's name in front, as in ``source_psnr``.
    """
    scale_target = translation.recipe.scaling("target", "label")
    data_range = translation.recipe.data_range
    candidates: dict[str, Callable[[Tensor], Tensor]] = {"": network, **(baselines or {})}
    for case in cases:
        # The scaling needs the metadata, the scores plain tensors; what is unlike the training is warned of on the way.
        source = translation.preprocessing({"image": case["image"]})["image"]
        stored = "".join(nib.aff2axcodes(np.asarray(source.meta[AFFINE_KEY])))
        label = Orientation(stored, labels=None)(read_image(case["label"]))
        target = convert_to_tensor(label, dtype=torch.float32, track_meta=False)[None]
        scaled = scale_target({"label": label})["label"]
        _compare_window(case["label"], scaled.meta, data_range)
        mask = foreground_mask(convert_to_tensor(scaled, track_meta=False)[None])
        row: dict[str, Any] = {"case": case["case"], "volume": name_of(case["image"])}
        for name, candidate in candidates.items():
            prefix = f"{name}_" if name else ""
            pred = translate(source, translation, candidate, device, amp)[None]
            row |= {
                f"{prefix}{score.__name__}": float(score(pred, target, data_range=data_range, mask=mask))
                for score in (mae, nmae, psnr)
            }
            row[f"{prefix}ssim"] = float(ssim(pred, target, data_range=data_range, window=_windows(target)))
        yield row


def _compare_window(path: str, meta: Mapping[str, Any], data_range: float) -> None:
    """Warn of a target that is in another unit than the model's predictions, or not what its scaling expects."""
    for remark in meta.get(REMARKS_KEY, []):
        logger.warning("%s: %s", path, remark)
    low, high = meta[WINDOW_KEY]
    if is_other_unit(high - low, data_range):
        logger.warning(
            "%s: its intensities range from %.4g to %.4g, and the model's target window is %.4g wide: is it in another "
            "unit? All scores of it are of that difference",
            path,
            low,
            high,
            data_range,
        )


def translate(
    source: MetaTensor,
    translation: Translation,
    network: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
    amp: bool = False,
) -> Tensor:
    """Translate one preprocessed volume.

    Args:
        source: (C, H, W, D), what ``translation.preprocessing`` gave.
        translation: the way of a volume.
        network: see `score_volumes`.
        device: where to compute.
        amp: see `score_volumes`.

    Returns:
        The prediction in the target's units and the source's geometry, of the shape of the source's file.
    """
    device = torch.device(device)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
        pred = translation.inferer(source.as_tensor()[None].to(device), network)[0].cpu()
    restored = translation.postprocessing({"image": source, "pred": MetaTensor(pred)})
    return convert_to_tensor(restored["pred"], track_meta=False)


def _windows(image: Tensor) -> list[int]:
    return [min(SSIM_WINDOW, length - 1 + length % 2) for length in image.shape[2:]]
