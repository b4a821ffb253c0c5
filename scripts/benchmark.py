"""Measure what a step costs, what the loop around it adds, how fast data arrives, how much memory it takes, and ONNX.

Everything is measured side by side in one run, in turns, and reported as a ratio: machines are noisy. The plain
schedule is the one of the RegGAN authors' code, built from the same networks: the generator runs again for the
discriminator's step, and the discriminator's gradients are also computed in the generator's.

method_cost.py measures the steps of all the paper's methods.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, set_track_meta
from monai.transforms import RandAffined

from pipeline.bundle import project_dir
from pipeline.data import ensure_phantom
from pipeline.engines import PrepareBatch
from pipeline.inference import Exporter, find_volumes
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.studies.timing import Work, in_turns, optimizers, peak_memory, random_pair, timed, training_step
from pipeline.translators import CycleGANTranslator
from pipeline.workflow import ConfigWorkflow
from transforms import RandDeformationNoised

CONFIG = Path(__file__).resolve().parent.parent / "bundles" / "reggan" / "configs" / "train.json"
INFERENCE = CONFIG.with_name("inference.json")
WEIGHTS = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}
SCHEDULES = ("ours", "plain")


def main() -> None:
    """Run the benchmarks that were asked for and print their results as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where to measure: cpu, cuda:0, ... (default: cpu)")
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256, the paper's)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each schedule (default: 8)")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of each timed pass (default: 100)")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes of the loop (default: 7)")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"Machine: {name}, {platform.machine()}; Python {platform.python_version()}, torch {torch.__version__}\n")
    step = report_step(args.size, args.steps, device)
    report_loop(args.iterations, args.rounds, device)
    report_data(args.size, step, device)
    report_memory(args.size, device)
    if device.type == "cpu":
        report_onnx(args.rounds)


def make_step(schedule: str, size: int, device: torch.device) -> Work:
    """One training step of the paper's RegGAN on a fixed pair, in one of the schedules."""
    torch.manual_seed(0)
    translator: Any = CycleGANTranslator(
        WEIGHTS, generator=ResNetGenerator, discriminator=PatchDiscriminator, registration=RegistrationNet
    ).to(device)
    batch = random_pair(size, device)
    if schedule == "ours":
        return training_step(translator, WEIGHTS, batch)
    g, d = optimizers(translator)

    def plain() -> None:
        g.zero_grad()
        _, terms = translator.generator_terms(batch)
        sum(WEIGHTS[name] * term for name, term in terms.items()).backward()
        g.step()
        d.zero_grad()
        with torch.no_grad():
            fake = translator.generator(batch["image"])
        fake_score, real_score = translator.discriminator(fake), translator.discriminator(batch["label"])
        ((fake_score**2).mean() + ((real_score - 1) ** 2).mean()).backward()
        d.step()

    return plain


def report_step(size: int, steps: int, device: torch.device) -> float:
    """(a) One step against the plain schedule; returns the seconds of ours."""
    times = in_turns({schedule: make_step(schedule, size, device) for schedule in SCHEDULES}, steps, device)
    ours, plain = (statistics.median(times[schedule]) for schedule in SCHEDULES)
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["plain"], strict=True))
    print(f"(a) Step at {size}x{size}, batch 1: {1e3 * ours:.0f} ms, plain schedule {1e3 * plain:.0f} ms,")
    print(f"    ratio {ratio:.3f} (median of {steps} pairs; goal: at most 0.82 on CPU)\n")
    return ours


def report_loop(iterations: int, rounds: int, device: torch.device) -> None:
    """(b) What the Ignite loop with all default handlers adds to the bare step, on a step as small as can be.

    Each epoch of the loop is preceded by a pass of bare steps over the same batches.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        workflow = tiny_training(Path(folder), iterations, rounds + 1, device)
        workflow.initialize()
        trainer = workflow.part("train#trainer")
        batches = list(workflow.part("train#dataloader"))
        times: dict[str, list[float]] = {"bare": [], "loop": []}
        start = 0.0

        def run_bare() -> None:
            nonlocal start
            times["bare"].append(timed(lambda: [trainer._iteration(trainer, batch) for batch in batches], device))
            start = time.perf_counter()

        def stop(engine: Any) -> None:
            if engine.state.iteration % iterations == 0:
                times["loop"].append(time.perf_counter() - start)

        trainer.add_event_handler(Events.EPOCH_STARTED, run_bare)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
        trainer.run()
    # The first round warms up.
    bare, loop = (1e3 * statistics.median(times[name][1:]) / iterations for name in ("bare", "loop"))
    added = statistics.median(b - a for a, b in zip(times["bare"][1:], times["loop"][1:], strict=True))
    print(f"(b) Bare step {bare:.2f} ms, in the loop with all default handlers {loop:.2f} ms per iteration:")
    print(f"    the loop adds {1e3 * added / iterations:.2f} ms (median of {rounds} rounds; goal: at most 2 ms)")
    print()


def tiny_training(folder: Path, iterations: int, max_epochs: int, device: torch.device) -> ConfigWorkflow:
    """The default training config, all its handlers included, on 32x32 images in memory."""
    pair = {name: torch.rand(1, 32, 32) * 2 - 1 for name in ("image", "label")}
    data = InMemory([{**pair, "case": "a", "slice": index} for index in range(iterations)])
    return ConfigWorkflow(
        ["train.json"],
        **{
            "output_dir": str(folder / "run"),
            "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
            "train#dataset": data,
            "validate#dataset": data,
            "device": str(device),
            "max_epochs": max_epochs,
            "val_interval": max_epochs,
            "picture_interval": max_epochs,
            "decay_epochs": 0,
            "batch_size": 1,
            "spatial_size": 32,
            "network_def#generator#filters": 4,
            "network_def#generator#residual_blocks": 1,
            "network_def#discriminator#filters": 4,
            "network_def#registration#channels": [4, 4],
        },
    )


class InMemory(Dataset):
    """Pairs in memory, standing in for ``pipeline.data.SliceDataset``."""

    target_window = (0.0, 1000.0)
    channels, patients, min_foreground = 1, 1, 0.0
    descriptions = ()

    @property
    def clean(self) -> InMemory:
        """These pairs: nothing is drawn."""
        return self

    def set_random_state(self, seed: int) -> InMemory:
        """Nothing to seed, either."""
        return self


def report_data(size: int, step: float, device: torch.device) -> None:
    """(c) Pairs per second through loader and noise, against what a step uses and against a plain per-sample affine."""
    pairs = [{name: torch.rand(1, size, size) * 2 - 1 for name in ("image", "label")} for _ in range(64)]
    keys = ("image", "label")
    ours = RandDeformationNoised(keys=keys, level=5)
    nonaffine = RandDeformationNoised(keys=keys, level=5, kind="nonaffine")
    set_track_meta(False)
    plain = RandAffined(
        keys=keys,
        prob=1.0,
        rotate_range=0.0873,
        translate_range=0.1 * size,
        scale_range=0.1,
        padding_mode="border",
    )

    def run(transform: Callable | None, prepare: Callable | None, batch_size: int) -> None:
        loader = DataLoader(Dataset(pairs, transform), batch_size=batch_size)
        prepare_batch = PrepareBatch(prepare)
        for batch in loader:
            prepare_batch(batch, device)

    works: dict[str, Callable[[], Any]] = {
        "ours": partial(run, None, ours, 1),
        "ours, batch 4": partial(run, None, ours, 4),
        "ours, non-affine": partial(run, None, nonaffine, 1),
        "per-sample affine": partial(run, plain, None, 1),
    }
    times = in_turns(works, 5, device)
    rates = {name: len(pairs) / statistics.median(seconds) for name, seconds in times.items()}
    set_track_meta(True)
    print(f"(c) Pairs per second with noise at {size}x{size}: " + ", ".join(f"{n} {r:.0f}" for n, r in rates.items()))
    print(f"    {rates['ours'] * step:.0f} times what one step uses (goal: at least 10);")
    print(f"    cost against the per-sample affine: {rates['per-sample affine'] / rates['ours']:.2f}\n")


def report_memory(size: int, device: torch.device) -> None:
    """(d) Peak memory of a step, each schedule in a process of its own."""
    peaks = {name: peak_memory(make_step, name, size, device, device=device) for name in SCHEDULES}
    print(f"(d) Peak memory of a step at {size}x{size}: {peaks['ours']:.0f} MiB, plain {peaks['plain']:.0f} MiB,")
    print(f"    ratio {peaks['ours'] / peaks['plain']:.2f}")


def report_onnx(rounds: int) -> None:
    """(e) Volumes per second through loading, translation and saving, by PyTorch and by ONNX Runtime.

    The networks are the default config's, untrained, the volume is the phantom's first for testing.
    """
    print()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        settings = {"image": first_volume(), "output_dir": str(folder), "device": "cpu"}
        write_untrained(folder / "model.pt")
        workflow = ConfigWorkflow(["inference.json"], **settings, checkpoint=str(folder / "model.pt"))
        exporter = Exporter([INFERENCE], folder / "model.pt", CONFIG.with_name("metadata.json"), settings)
        exporter.export(folder / "model.onnx", exporter.slices())
        evaluators = {
            "PyTorch": workflow.part("evaluator"),
            "ONNX Runtime": onnx_evaluator(folder / "model.onnx", settings),
        }
        networks = {kind: evaluator.network.eval() for kind, evaluator in evaluators.items()}
        times = in_turns({kind: evaluator.run for kind, evaluator in evaluators.items()}, rounds, torch.device("cpu"))
        slices = exporter.slices(count=64)
        with torch.no_grad():
            alone = in_turns(
                {kind: partial(net, slices) for kind, net in networks.items()}, rounds, torch.device("cpu")
            )
    rates = {kind: 1 / statistics.median(seconds) for kind, seconds in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["PyTorch"], times["ONNX Runtime"], strict=True))
    print("(e) Volumes per second, file to file: " + ", ".join(f"{kind} {rate:.3f}" for kind, rate in rates.items()))
    print(f"    ONNX Runtime is {ratio:.2f} times as fast (median of {rounds} rounds), its version {onnx_version()};")
    ratio = statistics.median(a / b for a, b in zip(alone["PyTorch"], alone["ONNX Runtime"], strict=True))
    print(f"    the network alone, on {len(slices)} slices at once, {ratio:.2f} times as fast")


def write_untrained(path: Path) -> None:
    """Weights of the default networks, with the recipe of the default training."""
    pair = {name: torch.rand(1, 96, 96) * 2 - 1 for name in ("image", "label")}
    data = InMemory([{**pair, "case": "a", "slice": 0}])
    workflow = ConfigWorkflow(["train.json"], **{"train#dataset": data})
    torch.manual_seed(0)
    network = workflow.part("network_def")
    workflow.part("recipe").travel_with(network)
    torch.save(network.inference_state_dict(), path)


def first_volume() -> str:
    """The first test volume of the phantom, made where it is missing."""
    return find_volumes(ensure_phantom(project_dir() / "data" / "phantom"))[0]["image"]


def onnx_evaluator(path: Path, settings: dict[str, Any]) -> Any:
    """The evaluator of the config chain that runs from an ONNX file."""
    return ConfigWorkflow(["inference.json", "onnx.json"], **settings, checkpoint=str(path)).part("evaluator")


def onnx_version() -> str:
    """Version of ONNX Runtime."""
    import onnxruntime  # an extra, that the other parts do without

    return onnxruntime.__version__


if __name__ == "__main__":
    main()
