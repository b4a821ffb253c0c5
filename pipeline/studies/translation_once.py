"""One volume, translated by the commit of this project in whose folder it runs, whichever that is.

``python FILE SETTINGS.json``, in a process of its own with that folder as the working one, see
`pipeline.studies.translation`. It knows the insides of two commits: those that have recipes, and those before.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

CONFIGS = Path("bundles", "reggan", "configs").absolute()


def main(wanted: dict[str, Any]) -> None:
    """Translate, and print CPU seconds as JSON: ``all`` of them, and those of the ``network``.

    Args:
        wanted: ``folder`` for all that is written, ``image``, a small one to warm up with (``first``), ``size`` of the
            slices in pixels, ``pixel`` in mm, and whether the source is ``ct``.
    """
    torch.set_num_threads(1)
    folder = Path(wanted["folder"])
    source = {"source_intensity#_target_": "transforms.ScaleCTIntensityd"} if wanted["ct"] else {}
    settings = {"output_dir": str(folder / "out"), "device": "cpu", "checkpoint": str(folder / "model.pt")}
    if Path("pipeline", "models").is_dir():
        from pipeline.studies.stand_ins import write_untrained

        write_untrained(folder / "model.pt", wanted["size"], pixel_size=wanted["pixel"], **source)
    else:
        settings |= {"spatial_size": wanted["size"], **source}
        torch.manual_seed(0)
        network = _parser(settings).get_parsed_content("network_def")
        network.target_window.copy_(torch.tensor([0.0, 1000.0]))
        torch.save(network.inference_state_dict(), folder / "model.pt")
    _translated(settings | {"image": wanted["first"]})
    print(json.dumps(_translated(settings | {"image": wanted["image"]})))


def _parser(settings: dict[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser.update(settings)
    return parser


def _translated(settings: dict[str, Any]) -> dict[str, float]:
    evaluator = _parser(settings).get_parsed_content("evaluator")
    network, seconds = evaluator.network, [0.0]
    forward = network.forward

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.thread_time()  # a file may be written meanwhile, in another thread
        result = forward(*arguments, **options)
        seconds[0] += time.thread_time() - start
        return result

    network.forward = timed
    start = time.process_time()
    evaluator.run()
    return {"all": time.process_time() - start, "network": seconds[0]}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
