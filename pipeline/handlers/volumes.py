"""The scores of whole volumes in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.inference.scoring import score_volumes
from pipeline.inference.translation import Translation
from pipeline.metrics.catalogue import VOLUME


class VolumeScores:
    """Translate the test volumes as `inference.json` does, and score them whole, in the patient's space and units.

    ``engine.state.volumes`` then holds a row for each volume (see `pipeline.inference.scoring.score_volumes`), and
    ``engine.state.metrics`` the means over patients, ``volume_psnr`` and so on; each patient counts once.

    Attach it before what writes and tells of scores.

    Args:
        data: ``{"image": path, "label": path, "case": patient}`` each.
        translation: the way of a volume.
        network: the translator.
        baselines: by name, what to score beside it.
        device: where to compute.
        amp: translate in bfloat16.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        translation: Translation,
        network: nn.Module,
        baselines: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        device: torch.device | str = "cpu",
        amp: bool = False,
    ) -> None:
        self.data, self.translation, self.network = list(data), translation, network
        self.baselines, self.device, self.amp = dict(baselines or {}), device, amp

    def attach(self, engine: Engine) -> None:
        """Register on an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Translate and score."""
        self.network.eval()
        rows = score_volumes(self.data, self.translation, self.network, self.baselines, self.device, self.amp)
        volumes = list(tqdm(rows, total=len(self.data), desc="whole volumes", unit="volume", disable=None))
        engine.state.volumes = volumes
        for name in (name for name in volumes[0] if name not in ("case", "volume")):
            by_patient: dict[str, list[float]] = {}
            for row in volumes:
                by_patient.setdefault(row["case"], []).append(row[name])
            engine.state.metrics[VOLUME + name] = float(np.mean([np.mean(values) for values in by_patient.values()]))
