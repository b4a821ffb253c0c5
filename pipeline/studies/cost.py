"""What each method builds, and what its training step costs in time and memory against RegGAN's."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping, Sequence

import torch

from pipeline.bundle import check_image_size
from pipeline.methods import METHODS
from pipeline.reporting.tables import markdown_table
from pipeline.studies.timing import Work, flops, in_turns, peak_memory, random_pair, training_step
from pipeline.translators import Translator
from pipeline.workflow import ConfigWorkflow

REFERENCE = "reggan"


def report_cost(
    names: Sequence[str],
    size: int,
    steps: int,
    device: torch.device,
    network_size: str,
    settings: Mapping[str, float] | None = None,
) -> None:
    """Measure the methods and print a table of them.

    Each is timed in turns with RegGAN, two at a time, since not all fit into the memory together.

    Args:
        names: of the methods.
        size: of the images in pixels, along both axes.
        steps: timed pairs of steps, one of the method, one of RegGAN.
        device: to measure on.
        network_size: of the configs, "small" or "paper".
        settings: of the methods, not of the RegGAN that they are compared with.

    Raises:
        ValueError: if the images are too small for a method's networks.
    """
    counts = {}
    given = settings or {}
    for name in dict.fromkeys([REFERENCE, *names]):
        translator = make_translator(name, network_size, given)[0]
        check_image_size((size, size), translator)
        counts[name] = count_parameters(translator)
    base = peak_memory(method_step, REFERENCE, size, device, network_size, device=device)
    rows = [["method", "networks", "parameters of G", "of D", "of R", "GFLOP a step"]]
    rows[0] += ["step", "step / RegGAN", "memory / RegGAN"]
    for name in names:
        title = ", ".join([name, *(f"{setting} {value:g}" for setting, value in given.items())])
        peak = (
            base
            if title == REFERENCE
            else peak_memory(method_step, name, size, device, network_size, given, device=device)
        )
        works = {
            title: method_step(name, size, device, network_size, given),
            REFERENCE: method_step(REFERENCE, size, device, network_size),
        }
        times = in_turns(works, steps, device, of_cpu=device.type == "cpu")
        operations = flops(works[title])
        del works
        gc.collect()  # trainers refer to themselves
        pairs = zip(times[title], times[REFERENCE], strict=True)
        ratio = 1.0 if title == REFERENCE else statistics.median(a / b for a, b in pairs)
        networks, *numbers = counts[name]
        milliseconds = 1e3 * statistics.median(times[title])
        cells = [f"{operations / 1e9:.3g}", f"{milliseconds:.0f} ms", f"{ratio:.2f}", f"{peak / base:.2f}"]
        rows.append([title, ", ".join(networks), *(f"{number:,}" for number in numbers), *cells])
    seconds = "CPU seconds" if device.type == "cpu" else "seconds"
    print(f"Methods, {network_size} networks at {size}x{size}, batch 1, median {seconds} of {steps} pairs of steps.")
    print(f"Peak memory of RegGAN: {base:.0f} MiB\n")
    print(markdown_table(rows))


def method_step(
    method: str, size: int, device: torch.device, network_size: str, settings: Mapping[str, float] | None = None
) -> Work:
    """A method's training step on a fixed pair of noise."""
    torch.manual_seed(0)
    translator, weights = make_translator(method, network_size, settings)
    return training_step(translator.to(device), weights, random_pair(size, device))


def make_translator(
    method: str, network_size: str, settings: Mapping[str, float] | None = None
) -> tuple[Translator, Mapping[str, float]]:
    """A method's translator, out of its chain of configs, and its loss weights."""
    workflow = ConfigWorkflow(METHODS[method].training, network_size=network_size, **(settings or {}))
    return workflow.part("network_def"), workflow.part("loss_weights")


def count_parameters(translator: Translator) -> tuple[list[str], int, int, int]:
    """Names of a translator's networks, and the parameters of generator's side, discriminator's side, registration."""
    networks = [name for name, part in translator.named_children() if any(True for _ in part.parameters())]
    registration = translator.registration
    sides = (
        translator.generator_parameters(),
        translator.discriminator_parameters(),
        () if registration is None else registration.parameters(),
    )
    generator, judging, registering = (sum(parameter.numel() for parameter in side) for side in sides)
    return networks, generator - registering, judging, registering
