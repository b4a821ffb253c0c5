"""Measure what a step costs, what the loop around it adds, loader, memory, ONNX, and MLflow's store.

Everything is measured side by side in one run, in turns, and reported as a ratio: machines are noisy. The plain
schedule is the one of the RegGAN authors' code in modes NC+R (RegGAN) and Pix2Pix, built from the same networks: the
generator runs again for the discriminator's step, and the discriminator's gradients are also computed in the
generator's. In modes NC, C and C+R the authors keep the first prediction, as we do in all; there the comparison would
not be fair, and is not made.

With --gpu: what one GPU does with the step in single precision, in bfloat16, compiled and as a CUDA graph, at batches
of 1 and 8, with its kernels, synchronisations and memory; the loop, the loader, and the translation of volumes. What
takes longer than --seconds is left out and named.

method_cost.py measures the steps of all the paper's methods.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset, set_track_meta
from monai.transforms import RandAffined

from pipeline.bundle import project_dir
from pipeline.data import ensure_phantom
from pipeline.ending import command
from pipeline.engines import PrepareBatch
from pipeline.inference import Exporter, find_volumes
from pipeline.studies import gpu
from pipeline.studies.gpu import Variant, loop_times, make_step
from pipeline.studies.stand_ins import TINY_NETWORKS, InMemory, training, write_untrained, write_volume
from pipeline.studies.timing import checked_out, in_turns, peak_memory, steps_in_turns
from pipeline.translators import MUNITTranslator
from pipeline.workflow import ConfigWorkflow
from transforms import RandDeformationNoised

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("step", "loop", "data", "memory", "onnx", "store")
STEPS = {"plain": Variant("plain"), "ours": Variant(), "ours, bf16": Variant(precision="bf16")}


def main() -> None:
    """Run the benchmarks that were asked for and print their results as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="where to measure: cpu, cuda:0, ... (default: cpu; with --gpu: cuda:0)")
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256, the paper's)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each schedule (default: 8)")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of each timed pass (default: 100)")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes of the loop (default: 7)")
    parser.add_argument("--only", choices=PARTS, help="measure one part (default: all, onnx on a CPU alone)")
    parser.add_argument(
        "--against", metavar="COMMIT", help="measure the default training's step on a CPU against that of a commit"
    )
    parser.add_argument("--gpu", action="store_true", help="measure what one GPU does, in place of all else")
    parser.add_argument("--seconds", type=float, default=200, help="time for --gpu in all (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of --gpu to this file")
    parser.add_argument(
        "--tiny", action="store_true", help="--gpu with small networks and images, to see that it runs, on a CPU, say"
    )
    args = parser.parse_args()
    device = torch.device(args.device or ("cuda:0" if args.gpu else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: PyTorch finds no GPU here")
    if args.gpu:
        small: dict[str, Any] = {
            "size": 64,
            "network_size": "small",
            "volume": (40, 36, 12),
            "block": 0.0,
            "iterations": 20,
        }
        gpu.measure(device, args.seconds, args.json, **(small if args.tiny else {"size": args.size}))
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"Machine: {name}, {platform.machine()}; Python {platform.python_version()}, torch {torch.__version__}\n")
    parts: dict[str, Callable[[], Any]] = {
        "step": lambda: report_step(args.size, args.steps, device),
        "loop": lambda: report_loop(args.iterations, args.rounds, device),
        "data": lambda: report_data(args.size, device),
        "memory": lambda: report_memory(args.size, device),
        "onnx": lambda: report_onnx(args.rounds),
        "store": report_store,
    }
    if args.against is not None:
        report_against(args.against, args.steps)
        return
    for part in PARTS if args.only is None else [args.only]:
        if part != "onnx" or device.type == "cpu":
            parts[part]()
            print(flush=True)


def report_step(size: int, steps: int, device: torch.device, network_size: str = "paper") -> None:
    """(a) One step against the plain schedule, in single precision and in bfloat16.

    Each runs in a process of its own, since the trainer also sets how memory is allocated.
    """
    common = ["--size", str(size), "--network_size", network_size, "--device", str(device)]
    kinds = {"plain": ["--schedule", "plain"], "ours": [], "ours, bf16": ["--bf16"]}
    times = steps_in_turns({name: (ROOT, [*common, *kind]) for name, kind in kinds.items()}, steps)
    plain = 1e3 * statistics.median(times["plain"])
    print(f"(a) Step at {size}x{size}, batch 1, {network_size} networks: plain schedule {plain:.0f} ms;")
    for name, goal in (("ours", "0.80"), ("ours, bf16", "0.46")):
        print(f"    {_against(name, 'plain', times)} (goal on a CPU: {goal})")


def report_against(commit: str, rounds: int, size: int = 96, steps: int = 5) -> None:
    """(g) A step of the default training on a CPU, against that of an earlier commit."""
    arguments = ["--size", str(size), "--network_size", "small", "--batch", "2"]
    with checked_out(commit) as folder:
        times = steps_in_turns({commit: (folder, arguments), "now": (ROOT, arguments)}, rounds, steps)
    before = 1e3 * statistics.median(times[commit])
    print(f"(g) Step at {size}x{size}, batch 2, default networks: commit {commit} {before:.1f} ms;")
    print(f"    {_against('now', commit, times)} (goal against 5e4f953: 0.80)")


def _against(name: str, other: str, times: Mapping[str, Sequence[float]]) -> str:
    ratio = statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
    rounds = len(times[name])
    return f"{name} {1e3 * statistics.median(times[name]):.1f} ms, ratio {ratio:.3f} (median of {rounds})"


def report_loop(iterations: int, rounds: int, device: torch.device) -> None:
    """(b) What the Ignite loop with all default handlers adds to the bare step, on a step as small as can be."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        workflow = training(Path(folder), 32, iterations, rounds + 1, device, **TINY_NETWORKS)
        times = loop_times(workflow, device)
    bare, loop = (1e3 * statistics.median(seconds) / iterations for seconds in times)
    added = statistics.median(b - a for a, b in zip(*times, strict=True))
    print(f"(b) Bare step {bare:.2f} ms, in the loop with all default handlers {loop:.2f} ms per iteration:")
    print(f"    the loop adds {1e3 * added / iterations:.2f} ms (median of {rounds} rounds; goal: at most 0.2 ms)")


def report_data(size: int, device: torch.device, network_size: str = "paper") -> None:
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
        "step": make_step(STEPS["ours"], device, size, network_size),
    }
    times = in_turns(works, 5, device)
    step = statistics.median(times.pop("step"))
    rates = {name: len(pairs) / statistics.median(seconds) for name, seconds in times.items()}
    set_track_meta(True)
    print(f"(c) Pairs per second with noise at {size}x{size}: " + ", ".join(f"{n} {r:.0f}" for n, r in rates.items()))
    print(f"    {rates['ours'] * step:.0f} times what one step uses (goal: at least 10);")
    print(f"    cost against the per-sample affine: {rates['per-sample affine'] / rates['ours']:.2f}")


def report_memory(size: int, device: torch.device, network_size: str = "paper") -> None:
    """(d) Peak memory of a step, each schedule in a process of its own."""
    peaks = {name: peak_memory(make_step, STEPS[name], device, size, network_size, device=device) for name in STEPS}
    print(f"(d) Peak memory of a step at {size}x{size}: plain {peaks['plain']:.0f} MiB;")
    for name in ("ours", "ours, bf16"):
        print(f"    {name} {peaks[name]:.0f} MiB, ratio {peaks[name] / peaks['plain']:.2f}")


def report_onnx(rounds: int, shape: Sequence[int] | None = None) -> None:
    """(e) Volumes per second through loading, translation and saving, by PyTorch and by ONNX Runtime.

    The networks are the default config's, untrained; the volume is the phantom's first for testing, or one of noise.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        image = first_volume() if shape is None else str(write_volume(folder / "head.nii.gz", shape))
        settings = {"image": image, "output_dir": str(folder), "device": "cpu"}
        write_untrained(folder / "model.pt")
        workflow = ConfigWorkflow(["inference.json"], **settings, checkpoint=str(folder / "model.pt"))
        exporter = Exporter(workflow)
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


def report_store(iterations: int = 158, epochs: Sequence[int] = (1, 11)) -> None:
    """(f) What MLflow's store takes for an iteration of the default training: by how much more epochs make it larger.

    All is said that a training says, at the end of each epoch also validation; only the steps are none. Their losses
    are of as many terms as RegGAN has, and as the method with the most.

    Args:
        iterations: of an epoch; as many as the default training has.
        epochs: of the two trainings that are compared, the shorter one first.
    """
    most = [f"generator/{name}" for name in sorted(MUNITTranslator.known_terms)] + ["discriminator/adversarial"]
    for terms in ([*(f"generator/{name}" for name in ("adversarial", "correction", "smoothness")), most[-1]], most):
        sizes = [_store_size(iterations, count, terms) for count in epochs]
        grown = (sizes[1] - sizes[0]) / iterations / (epochs[1] - epochs[0])
        print(f"(f) MLflow's store, {len(terms)} terms of loss: {grown:.0f} bytes per iteration (goal: under 100)")


def _store_size(iterations: int, epochs: int, terms: Sequence[str]) -> int:
    """Bytes of an SQLite store after a training whose steps do nothing but tell losses."""

    def step(engine: Any, batch: Any) -> dict[str, Any]:
        return {"losses": {name: torch.rand(()) for name in terms}}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        one = {"validate#dataset": InMemory.noise(32, 1), "val_interval": 1, **TINY_NETWORKS}
        workflow = training(Path(folder), 32, iterations, epochs, torch.device("cpu"), **one)
        workflow.initialize()
        trainer = workflow.part("train#trainer")
        trainer._process_function = step
        trainer.run()
        return (Path(folder) / "mlflow.db").stat().st_size


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
    sys.exit(command(main))
