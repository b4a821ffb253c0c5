"""What a training step, the loop around it, the loader and the translation of volumes cost on one GPU, in minutes.

Every part is guarded: what fails costs its own row, with the reason, and what no time is left for is named.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import platform
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Events
from monai.data import DataLoader

from pipeline.engines import PrepareBatch, TranslationTrainer, seed_all
from pipeline.engines.acceleration import Compiled
from pipeline.reporting.tables import markdown_table
from pipeline.studies.cost import make_translator
from pipeline.studies.stand_ins import TINY_NETWORKS, InMemory, training, write_untrained, write_volume
from pipeline.studies.timing import Work, flops, optimizers, plain_step
from pipeline.workflow import ConfigWorkflow
from transforms import RandDeformationNoised

METHOD = "reggan"
# What a trace of the GPU holds beside kernels: copies, and ranges that the host marks.
NO_KERNELS = ("Memcpy", "Memset", "Optimizer", "ProfilerStep", "Torch-Compiled", "##")
SETTLE = 6
"""Steps before any is timed: kernels are chosen, the step is compiled, CUDA graphs are recorded."""
BLOCKS = 5
"""Blocks of steps that are timed; the median counts."""


class Variant(NamedTuple):
    """A way to run the step."""

    schedule: str = "ours"
    precision: str = "fp32"
    compile: str = "off"
    channels_last: bool = False
    batch: int = 1

    @property
    def name(self) -> str:
        """What its row is called."""
        parts = [self.schedule, self.precision]
        parts += [self.compile] * (self.compile != "off") + ["channels last"] * self.channels_last
        return f"{', '.join(parts)}; batch {self.batch}"


def _both(*variants: Variant) -> list[Variant]:
    return [variant._replace(batch=batch) for variant in variants for batch in (1, 8)]


FIRST = _both(Variant("plain"), Variant(), Variant(precision="bf16"), Variant(precision="bf16", channels_last=True))
LAST = _both(Variant(precision="bf16", compile="reduce-overhead"), Variant(precision="bf16", compile="default"))
"""Those that compile take long; they come when all else is measured."""


class OutOfTimeError(BaseException):
    """The time for all rows is up; no ordinary exception, so that nothing below takes it for its own failure."""


class Report:
    """Rows of measurements, as they come; written after each, so that a run that is cut off leaves what it has.

    Args:
        seconds: for all rows together.
        path: of the JSON file; None for none.
        machine: what to say of the machine.
    """

    def __init__(self, seconds: float, path: Path | None, machine: Mapping[str, Any]) -> None:
        self.start, self.seconds, self.path = time.monotonic(), seconds, path
        self.content: dict[str, Any] = {"machine": dict(machine), "rows": [], "failed": {}, "skipped": []}

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.start)

    def row(self, name: str, work: Callable[[], Mapping[str, Any]]) -> None:
        """Measure a row, unless no time is left; a failure is its own, with the reason."""
        begun = time.monotonic()
        if self.left <= 0:
            self.content["skipped"].append(name)
            outcome = "skipped"
        else:
            try:
                with _limit(self.left):
                    result = dict(work())
                result["took_s"] = round(time.monotonic() - begun, 1)
                self.content["rows"].append({"name": name, **result})
                outcome = json.dumps(result)
            except OutOfTimeError:
                self.content["skipped"].append(name)
                outcome = "cut off"
            except Exception as error:  # whatever it is, the other rows are measured
                outcome = f"{type(error).__name__}: {str(error).strip()[:500]}"
                self.content["failed"][name] = outcome
        gc.collect()  # trainers refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"[{time.monotonic() - self.start:5.0f} s] {name}: {outcome}", flush=True)
        self.write()

    def write(self) -> None:
        """Write what there is."""
        self.content["seconds"] = round(time.monotonic() - self.start, 1)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.content, indent=1) + "\n")


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` inside after so many seconds, where the system has such an alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(
    device: torch.device,
    seconds: float,
    path: Path | None = None,
    size: int = 256,
    network_size: str = "paper",
    volume: Sequence[int] = (240, 240, 155),
    block: float = 0.25,
    iterations: int = 60,
    variants: tuple[Sequence[Variant], Sequence[Variant]] = (FIRST, LAST),
) -> dict[str, Any]:
    """Measure all rows, print them as they come and a table in the end.

    Args:
        device: to measure on.
        seconds: that may be spent; rows for which none are left are named.
        path: of a JSON file for all that was measured; None for none.
        size: of the images in pixels, along both axes.
        network_size: "paper" or "small".
        volume: shape of the volume that is translated.
        block: least seconds of one of the timed blocks of steps.
        iterations: of each epoch of the loop.
        variants: of the step: those measured before all else, and those after.

    Returns:
        What is written to ``path``.
    """
    report = Report(seconds, path, machine(device))
    print(json.dumps(report.content["machine"]), flush=True)
    step = partial(measure_step, device=device, size=size, network_size=network_size, block=block)
    seed_all(0, device)
    try:
        for variant in variants[0]:
            report.row(variant.name, partial(step, variant))
        report.row("loader", partial(measure_loader, device, size))
        report.row("loop", partial(measure_loop, device, size, network_size, iterations))
        report.row("loop around a tiny step", partial(measure_tiny_loop, device, iterations))
        for precision in ("fp32", "bf16"):
            report.row(
                f"translation, {precision}", partial(measure_translation, device, precision, network_size, volume)
            )
        report.row("deterministic", partial(measure_determinism, device, size, network_size))
        for variant in variants[1]:
            report.row(variant.name, partial(step, variant))
    finally:
        seed_all(0, "cpu")
    print("\n" + table(report.content))
    return report.content


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    about: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        about |= {"tf32_convolutions": torch.backends.cudnn.allow_tf32}
    return about


def make_trainer(variant: Variant, device: torch.device, size: int, network_size: str) -> TranslationTrainer:
    """The trainer of a variant on a batch of noise, its learning rate too small to go anywhere."""
    torch.manual_seed(0)
    translator, weights = make_translator(METHOD, network_size)
    translator.to(device)
    batch = {name: torch.rand(variant.batch, 1, size, size, device=device) * 2 - 1 for name in ("image", "label")}
    return TranslationTrainer(
        device,
        1,
        [batch],
        translator,
        *optimizers(translator, fused=variant.schedule == "ours"),
        weights,
        amp=variant.precision == "bf16",
        compile=variant.compile,
        channels_last=variant.channels_last,
    )


def make_step(variant: Variant, device: torch.device, size: int, network_size: str) -> Work:
    """A variant of the step on a fixed batch of noise."""
    return _step_of(make_trainer(variant, device, size, network_size), variant)


def _step_of(trainer: TranslationTrainer, variant: Variant) -> Work:
    [batch] = trainer.data_loader
    ours: Work = partial(trainer._iteration, trainer, batch)
    return plain_step(trainer, batch) if variant.schedule == "plain" else ours


def measure_step(variant: Variant, device: torch.device, size: int, network_size: str, block: float) -> dict[str, Any]:
    """One way to run the step: its time, its rate, its kernels, its synchronisations and its memory."""
    on_gpu = device.type == "cuda"
    trainer = make_trainer(variant, device, size, network_size)
    step = _step_of(trainer, variant)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.monotonic()
    output: Any = None
    for _ in range(SETTLE):
        output = step()
    _wait(device)
    settled = time.monotonic() - begun
    result: dict[str, Any] = {}
    if variant.schedule == "ours":
        result["losses"] = {name: round(float(loss), 5) for name, loss in output["losses"].items()}
    seconds = _seconds_per_call(step, block, device)
    result |= {"ms": round(1e3 * seconds, 3), "images_per_s": round(variant.batch / seconds, 1)}
    result["settling_s"] = round(settled, 1)
    if on_gpu:
        result["peak_MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        result["synchronisations"] = _synchronisations(step)
        try:
            result |= _launches(step)
        except Exception as error:  # the tracing library is not on every machine
            result["not_traced"] = str(error)[:200]
    operations = _operations(variant, device, size, network_size)
    result |= {"GFLOP": round(operations / 1e9, 1), "TFLOP_per_s": round(operations / seconds / 1e12, 2)}
    parts = (trainer._generator_terms, trainer._discriminator_terms)
    reasons = [part.reason for part in parts if isinstance(part, Compiled) and part.reason is not None]
    return result | ({"fell_back": reasons} if reasons else {})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds_per_call(work: Work, block: float, device: torch.device) -> float:
    """Median over `BLOCKS` blocks of calls, each at least ``block`` seconds long, the queue of the device included."""

    def timed(calls: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        _wait(device)
        return (time.perf_counter() - start) / calls

    calls = max(1, round(block / timed(2)))
    return statistics.median(timed(calls) for _ in range(BLOCKS))


_COUNTED: dict[Any, int] = {}


def _operations(variant: Variant, device: torch.device, size: int, network_size: str) -> int:
    """Floating-point operations of a step of that schedule, two for a multiplication with its addition."""
    key = (variant.schedule, size, network_size)
    if key not in _COUNTED:
        _COUNTED[key] = flops(make_step(Variant(variant.schedule), device, size, network_size))
    return _COUNTED[key] * variant.batch


def _launches(step: Work, steps: int = 2) -> dict[str, float]:
    """Kernels that a step runs, calls that launch them, and waits of the host in it."""
    from torch.profiler import ProfilerActivity, profile  # starts the tracing library: only where it is asked for

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as trace:
        for _ in range(steps):
            step()
    kernels = launches = waits = 0
    for event in trace.events():
        name = event.name
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels += not name.startswith(NO_KERNELS)
        elif name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")):
            launches += 1
        elif name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"):
            waits += 1
    return {"kernels": kernels / steps, "launches": launches / steps, "host_waits_traced": waits / steps}


def _synchronisations(step: Work) -> int:
    """How often a step makes the host wait for the GPU, as PyTorch itself counts it."""
    torch.cuda.synchronize()
    with _counted_synchronisations() as found:
        step()
    return len(found)


@contextlib.contextmanager
def _counted_synchronisations() -> Iterator[list[str]]:
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]


def measure_loader(device: torch.device, size: int, pairs: int = 256) -> dict[str, Any]:
    """Pairs per second through loader and noise, the noise on the device."""
    data = InMemory.noise(size, pairs)
    result = {}
    for kind in ("affine", "nonaffine"):
        prepare = PrepareBatch(RandDeformationNoised(keys=("image", "label"), level=5, kind=kind))
        for batch_size in (1, 8):
            loader = DataLoader(data, batch_size=batch_size)

            def run(loader: Any = loader, prepare: Any = prepare) -> None:
                for batch in loader:
                    prepare(batch, device, non_blocking=True)

            run()
            seconds = _seconds_per_call(run, 0.0, device)
            result[f"{kind}, batch {batch_size}, pairs_per_s"] = round(pairs / seconds)
    return result


def measure_loop(device: torch.device, size: int, network_size: str, iterations: int) -> dict[str, Any]:
    """An iteration of a training with all default handlers, its waits for the GPU, and the bare step beside it."""
    settings = {"network_size": network_size, "precision": "bf16", "tracking_uri": "none"}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        workflow = training(Path(folder), size, iterations, 3, device, **settings)
        workflow.initialize()
        trainer = workflow.part("train#trainer")
        times: list[float] = []
        waits: list[str] = []
        state: dict[str, Any] = {"start": 0.0, "count": contextlib.ExitStack()}

        def begin() -> None:
            _wait(device)
            state["start"] = time.perf_counter()
            if device.type == "cuda" and trainer.state.epoch == 3:
                state["found"] = state["count"].enter_context(_counted_synchronisations())

        def end() -> None:
            if trainer.state.iteration % iterations:
                return
            state["count"].close()
            _wait(device)
            times.append(time.perf_counter() - state["start"])

        trainer.add_event_handler(Events.EPOCH_STARTED, begin)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
        trainer.run()
        waits += state.get("found", [])
        [batch, *_] = [trainer.prepare_batch(b, device, False) for b in workflow.part("train#dataloader")][:1]
        bare = _seconds_per_call(partial(trainer._iteration, trainer, batch), 0.2, device)
    result: dict[str, Any] = {
        "loop_ms": round(1e3 * times[1] / iterations, 3),
        "bare_ms_with_noise": round(1e3 * bare, 3),
    }
    if device.type == "cuda":
        result |= {"waits_per_epoch": len(waits), "fetches_per_epoch": iterations // 20}
        result |= {"where": sorted(set(waits))[:8]}
    return result


def measure_tiny_loop(device: torch.device, iterations: int, rounds: int = 3) -> dict[str, Any]:
    """What the loop with all default handlers adds to a step that costs next to nothing."""
    settings = {**TINY_NETWORKS, "tracking_uri": "none"}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        bare, loop = loop_times(training(Path(folder), 32, iterations, rounds + 1, device, **settings), device)
    added = statistics.median(b - a for a, b in zip(bare, loop, strict=True))
    return {
        "bare_ms": round(1e3 * statistics.median(bare) / iterations, 3),
        "added_ms": round(1e3 * added / iterations, 3),
    }


def loop_times(workflow: ConfigWorkflow, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of each epoch's steps alone, then of the same in the loop with all its handlers; without the first, cold.

    Each epoch of the loop is preceded by a pass of bare steps over the same batches.
    """
    workflow.initialize()
    trainer = workflow.part("train#trainer")
    batches = list(workflow.part("train#dataloader"))
    bare: list[float] = []
    loop: list[float] = []
    start = 0.0

    def run_bare() -> None:
        nonlocal start
        _wait(device)
        begun = time.perf_counter()
        for batch in batches:
            trainer._iteration(trainer, batch)
        _wait(device)
        bare.append(time.perf_counter() - begun)
        start = time.perf_counter()

    def stop() -> None:
        if trainer.state.iteration % len(batches) == 0:
            _wait(device)
            loop.append(time.perf_counter() - start)

    trainer.add_event_handler(Events.EPOCH_STARTED, run_bare)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    trainer.run()
    return bare[1:], loop[1:]


def measure_determinism(device: torch.device, size: int, network_size: str, steps: int = 4) -> dict[str, Any]:
    """Whether a few steps of one seed give the same weights twice, and what a step costs, with and without asking."""

    def run() -> tuple[list[torch.Tensor], float]:
        trainer = make_trainer(Variant(batch=2), device, size, network_size)
        [batch] = trainer.data_loader
        trainer._iteration(trainer, batch)
        _wait(device)
        start = time.perf_counter()
        for _ in range(steps):
            trainer._iteration(trainer, batch)
        _wait(device)
        seconds = (time.perf_counter() - start) / steps
        return [parameter.detach().cpu() for parameter in trainer.network.parameters()], seconds

    result: dict[str, Any] = {}
    try:
        for wanted in (True, False):
            seed_all(0, device, wanted)
            (first, _), (second, seconds) = run(), run()
            same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            result |= {f"same_weights_{wanted}": same, f"step_ms_{wanted}": round(1e3 * seconds, 2)}
    finally:
        seed_all(0, device)
    return result


def measure_translation(
    device: torch.device, precision: str, network_size: str, shape: Sequence[int], rounds: int = 2
) -> dict[str, Any]:
    """Volumes per second from file to file, and of the network alone on as many slices."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        size = max(32, min(shape[:2]))
        write_untrained(folder / "model.pt", size, network_size=network_size, device="cpu")
        image = write_volume(folder / "head.nii.gz", shape)
        settings: dict[str, Any] = {"image": str(image), "output_dir": str(folder / "out"), "device": str(device)}
        settings["amp"] = precision == "bf16"
        workflow = ConfigWorkflow(["inference.json"], checkpoint=str(folder / "model.pt"), **settings)
        evaluator = workflow.part("evaluator")
        evaluator.run()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            evaluator.run()
            times.append(time.perf_counter() - start)
        slices = torch.rand(8, 1, size, size, device=device) * 2 - 1
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            network = evaluator.network.eval()
            network(slices)
            seconds = _seconds_per_call(partial(network, slices), 0.1 if device.type == "cuda" else 0.0, device)
    return {
        "shape": list(shape),
        "volumes_per_s": round(1 / statistics.median(times), 3),
        "network_alone_volumes_per_s": round(8 / seconds / shape[2], 3),
    }


COLUMNS = ("ms", "images_per_s", "GFLOP", "TFLOP_per_s", "peak_MiB", "kernels", "launches", "synchronisations")


def table(content: Mapping[str, Any]) -> str:
    """Everything measured, as Markdown; steps with their ratio to the plain schedule of the same batch."""
    about = content["machine"]
    lines = [f"{about.get('gpu', about['device'])}, torch {about['torch']}, Python {about['python']}", ""]
    steps = {row["name"]: row for row in content["rows"] if "ms" in row}
    rows = [["step", "of the plain schedule", *(column.replace("_", " ") for column in COLUMNS)]]
    for name, row in steps.items():
        plain = steps.get(f"plain, fp32; {name.rpartition('; ')[2]}")
        ratio = "" if plain is None else f"{row['ms'] / plain['ms']:.3f}"
        cells = ["" if row.get(column) is None else f"{row[column]:g}" for column in COLUMNS]
        rows.append([name + (" (fell back)" if "fell_back" in row else ""), ratio, *cells])
    lines += [markdown_table(rows), ""]
    for row in content["rows"]:
        if "ms" not in row:
            values = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("name", "took_s"))
            lines.append(f"- {row['name']}: {values}")
    lines += [f"- failed: {name}: {reason}" for name, reason in content["failed"].items()]
    if content["skipped"]:
        lines.append(f"- no time was left for: {'; '.join(content['skipped'])}")
    return "\n".join(lines)
