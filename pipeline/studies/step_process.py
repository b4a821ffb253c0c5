"""Steps of RegGAN, in whatever checkout this is started in: a line in says how many, a line out what one of them took.

A program, for `pipeline.studies.timing.steps_in_turns`; it uses what commits since 5e4f953 have.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from functools import partial
from typing import Any

import torch

from pipeline import engines
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator

WEIGHTS = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


def main() -> None:
    """Answer until there is no more to read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedule", default="ours", choices=("ours", "plain"))
    parser.add_argument("--network_size", default="paper", choices=("paper", "small"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    with contextlib.ExitStack() as stack:
        step = _step(args, device, stack)
        for line in sys.stdin:
            start = clock()
            for _ in range(int(line)):
                step()
            if on_gpu:
                torch.cuda.synchronize(device)
            print((clock() - start) / int(line), flush=True)


def _step(args: argparse.Namespace, device: torch.device, stack: contextlib.ExitStack) -> Any:
    torch.manual_seed(0)
    small = args.network_size == "small"
    generator: dict[str, Any] = {"filters": 16, "residual_blocks": 4, "upsampling": "resize"} if small else {}
    translator = CycleGANTranslator(
        WEIGHTS,
        partial(ResNetGenerator, **generator),
        partial(PatchDiscriminator, filters=16 if small else 64),
        partial(RegistrationNet, channels=(8, 16, 32, 32)) if small else RegistrationNet,
    ).to(device)
    settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.5, 0.999), "weight_decay": 1e-4}
    options: dict[str, Any] = {"amp": args.bf16}
    pays = getattr(engines, "channels_last_pays", None)
    if pays is not None and args.schedule == "ours":  # as train.json has it since then
        settings["fused"], options["channels_last"] = True, pays(translator, device)
    sides = translator.generator_parameters(), translator.discriminator_parameters()
    of_generator, of_discriminator = (torch.optim.Adam(list(parameters), **settings) for parameters in sides)
    shape = args.batch, 1, args.size, args.size
    batch = {name: torch.rand(shape, device=device) * 2 - 1 for name in ("image", "label")}
    trainer = engines.TranslationTrainer(
        device, 1, [batch], translator, of_generator, of_discriminator, WEIGHTS, **options
    )
    if args.schedule == "plain":
        from pipeline.studies.timing import plain_step  # not there at first

        return plain_step(trainer, batch)
    with contextlib.suppress(ImportError):
        from pipeline.engines.memory import kept_memory

        stack.enter_context(kept_memory(device))
    return partial(trainer._iteration, trainer, batch)


if __name__ == "__main__":
    main()
