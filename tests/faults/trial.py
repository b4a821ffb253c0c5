"""What a cause of a fault has to hand: small inputs, the project's commands, and words to judge them by."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import matplotlib.image
import nibabel as nib
import numpy as np
import torch

from pipeline.chain import explain

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
SHAPE = (40, 34, 6)
TIMEOUT = 60.0
# What makes the networks of a chain small enough to try one cause in about a second.
NETWORKS = {"network_def#generator#filters": 4, "network_def#generator#residual_blocks": 1}
TINY = {
    "device": "cpu",
    "store": "none",
    "spatial_size": 32,
    "max_epochs": 1,
    "decay_epochs": 0,
    "batch_size": 2,
    "noise_level": 0,
    "picture_interval": 1,
    **NETWORKS,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": "[4,4]",
}
# The model that volumes are translated with has learned the two contrasts.
FITTED = {"max_epochs": 12, "learning_rate": 0.003, "val_interval": 12, "picture_interval": 12}
# Files that must not be there after a refusal.
RESULTS = (".pt", ".onnx", ".zip", ".nii.gz", ".nii", ".nrrd", ".mha", "config.json", ".csv")
ADDRESS_SPACES = 0x00020000  # CLONE_NEWNS of unshare(2): mounts that this process alone sees


SKIPPED = "this cannot be tried here: "
# Given to a command: called before it in its process; what it returns is called after it.
Prepare = Callable[[], Callable[[], object] | None]


class SilentError(Exception):
    """Nothing was said of a fault, or not what it is, or the result is wrong."""


class SkippedError(Exception):
    """A cause cannot be tried on this machine; says why."""


@dataclass(frozen=True)
class Done:
    """What a command left.

    Attributes:
        code: its exit status, negative for a signal.
        text: what it printed, standard output and error in the order of writing.
        seconds: how long it took, without the imports.
    """

    code: int
    text: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """What it printed, without empty lines."""
        return [line for line in self.text.splitlines() if line.strip()]

    @property
    def last(self) -> str:
        """Its last line."""
        return self.lines[-1] if self.lines else ""

    @property
    def traceback(self) -> bool:
        """Whether a report for programmers was printed."""
        return "Traceback (most recent call last)" in self.text

    def notices(self) -> list[str]:
        """Lines of warnings and errors, with what is listed below them."""
        return [line for line in self.lines if re.search(r"warn|error|^\s*- ", line, re.IGNORECASE)]

    def says(self, *patterns: str) -> bool:
        """Whether a warning or an error matches one of the patterns."""
        return any(re.search(pattern, line, re.IGNORECASE) for line in self.notices() for pattern in patterns)


def head(seed: int = 5, shape: Sequence[int] = SHAPE, fill: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """A pair of an ellipsoid with an inner part off its centre, in two contrasts, on a background of 0."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij"))
    centre = random.uniform(-0.05, 0.05, size=(3, 1, 1, 1))
    centre[2] = 0
    inside = (((grid - centre) / np.array([fill, fill, 1.6]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1
    offset = np.array([0.25, -0.15, 0]).reshape(3, 1, 1, 1)
    inner = inside & ((((grid - centre - offset) ** 2)[:2]).sum(0) < (0.35 * fill) ** 2)
    image = np.where(inside, np.where(inner, 700, 400), 0) + inside * random.normal(0, 10, shape)
    label = np.where(inside, np.where(inner, 200, 900), 0) + inside * random.normal(0, 10, shape)
    return image.clip(0).astype(np.float32), label.clip(0).astype(np.float32)


def seed_of(name: str) -> int:
    """A seed that no other name of a case has."""
    return zlib.crc32(name.encode())


def ct_of(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A CT in HU that belongs to such a pair: air, soft tissue and something dense."""
    inside = image > 0
    noise = np.random.default_rng(1).normal(0, 10, image.shape)
    return (np.where(inside, np.where(label < 500, 900, 40), -1000) + inside * noise).astype(np.float32)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, of the voxels."""
    return float(np.corrcoef(np.asarray(one, float).ravel(), np.asarray(other, float).ravel())[0, 1])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE) -> Path:
    """Write a NIfTI file, or a NumPy file by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, voxels)
    else:
        nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def silent(why: str, done: Done | None = None) -> NoReturn:
    """A cause was not survived."""
    raise SilentError(why if done is None else f"{why} (exit {done.code}, last line: {done.last[:300]})")


@dataclass
class Trial:
    """One cause being tried.

    Attributes:
        folder: empty, its own; commands run in it.
        model: weights that have learned the two contrasts of `head`.
        run: the finished run that made them, to be read only.
        data: the data set of that run, to be read only: folders of the Decathlon, cases a to d, v to validate with and
            t to test with.
    """

    folder: Path
    run: Path
    data: Path

    @property
    def store(self) -> str:
        """An MLflow store of its own, made from an empty one that has its tables."""
        path = self.folder / "mlflow.db"
        if not path.exists():
            shutil.copy(self.run.parent / "empty.db", path)
        return f"sqlite:///{path}"

    @property
    def model(self) -> Path:
        """Weights of the run."""
        return self.run / "model.pt"

    # inputs

    def save(self, name: str, voxels: np.ndarray, affine: np.ndarray | None = AFFINE) -> Path:
        """Write a volume below the folder."""
        return save(self.folder / name, voxels, affine)

    def dataset(
        self,
        name: str = "data",
        *,
        training: Sequence[str] = "abc",
        validation: Sequence[str] = "v",
        test: Sequence[str] = "",
        change: Callable[[str, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
        affine: np.ndarray = AFFINE,
        shape: Sequence[int] = SHAPE,
        suffix: str = ".nii.gz",
    ) -> Path:
        """Write a data set in the folders of the Decathlon; ``change(case, image, label)`` spoils it."""
        root = self.folder / name
        for split, cases in (("Tr", training), ("Val", validation), ("Ts", test)):
            for case in cases:
                pair = head(seed_of(split + case), shape)
                pair = pair if change is None else change(case, *pair)
                for kind, voxels in zip(("images", "labels"), pair, strict=True):
                    save(root / f"{kind}{split}" / f"{case}{suffix}", voxels, affine)
        return root

    def finished(self, name: str = "run") -> Path:
        """A copy of the finished run, to be spoilt or gone on with."""
        shutil.copytree(self.run, self.folder / name)
        return self.folder / name

    # commands

    def bundle(self, *arguments: Any, **how: Any) -> Done:
        """Run ``python -m monai.bundle ARGUMENTS`` in the folder; see `command` for what else may be given."""
        return command(["-m", "monai.bundle", *map(str, arguments)], how.pop("cwd", self.folder), **how)

    def script(self, name: str, *arguments: Any, **how: Any) -> Done:
        """Run a script of the project."""
        return command([str(ROOT / "scripts" / name), *map(str, arguments)], how.pop("cwd", self.folder), **how)

    def train(
        self,
        *more: Any,
        data: Any = None,
        out: Any = "out",
        overlays: Sequence[Any] = (),
        settings: dict[str, Any] | None = None,
        **how: Any,
    ) -> Done:
        """Train, small; ``settings`` replaces or adds some, a value of None takes one away."""
        chosen = {**TINY, "tracking_uri": "none", "dataset_dir": self.data if data is None else data, "output_dir": out}
        chosen |= settings or {}
        return self.bundle(
            "run", "training", "--config_file", chain("train.json", *overlays), *words(chosen), *more, **how
        )

    def translate(self, image: Any, *more: Any, model: Any = None, out: Any = "out", **how: Any) -> Done:
        """Translate with the finished model or another."""
        chosen = {"image": image, "output_dir": out, "checkpoint": model or self.model, "device": "cpu"}
        return self.bundle("run", "--config_file", chain("inference.json"), *words(chosen), *more, **how)

    def evaluate(self, *more: Any, run: Any = None, tracking_uri: str = "none", **how: Any) -> Done:
        """Evaluate a run: a copy of the finished one unless another is given."""
        folder = self.finished() if run is None else run
        chosen = {"output_dir": folder, "device": "cpu", "tracking_uri": tracking_uri}
        return self.bundle("run", "--config_file", chain("evaluate.json"), *words(chosen), *more, **how)

    # judgement

    def refused(self, done: Done, *patterns: str, anywhere: bool = False) -> str:
        """A command ended with another status than 0 and its last line says why.

        Args:
            done: what it left.
            *patterns: regular expressions, one of which the last line matches.
            anywhere: any line of the error may match, as where several faults are listed.
        """
        if done.code == 0:
            silent("ended with exit 0", done)
        if done.code < 0:
            silent(f"ended by signal {-done.code}", done)
        lines = [done.last, *done.notices()] if anywhere else [done.last]
        if not any(re.search(pattern, line, re.IGNORECASE) for pattern in patterns for line in lines):
            silent(f"the refusal says nothing of {' or '.join(patterns)}", done)
        return "refused"

    def nothing_written(self, *names: str) -> None:
        """No result lies in the folders of that name, ``out`` unless others are given."""
        for name in names or ("out",):
            found = [path for path in (self.folder / name).rglob("*") if path.is_file() and path.name.endswith(RESULTS)]
            if found:
                silent(f"left {', '.join(str(path.relative_to(self.folder)) for path in found[:3])}")

    def translated(self, name: str | Path, out: str = "out", suffix: str = ".nii.gz") -> np.ndarray:
        """The voxels of a translated volume, without axes of length one."""
        stem = re.sub(r"\.(nii\.gz|nii|npy|nrrd|mha|mhd|mgz|mgh|dcm)$", "", Path(name).name, flags=re.IGNORECASE)
        path = self.folder / out / f"{stem}_translated{suffix}"
        if not path.is_file():
            silent(f"{path.name} was not written")
        return np.squeeze(nib.load(path).get_fdata())

    def right_or_said(self, done: Done, right: Callable[[], bool], *patterns: str) -> str:
        """The result is right, or it was refused or warned of in words that match."""
        if done.code != 0:
            return self.refused(done, *patterns, anywhere=True)
        if done.says(*patterns):
            return "warned"
        if right():
            return "right"
        return silent(f"a wrong result, and nothing said of {' or '.join(patterns)}", done)


def chain(*names: Any) -> str:
    """A chain of configs as the command line takes it; names of the bundle's, or paths."""
    paths = [str(CONFIGS / str(name)) for name in names]  # an absolute path stays itself
    return paths[0] if len(paths) == 1 else "[" + ",".join(f"'{path}'" for path in paths) + "]"


def words(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line; None leaves one out."""
    return [word for name, value in settings.items() if value is not None for word in (f"--{name}", str(value))]


def command(
    argv: Sequence[str],
    cwd: Path | str,
    *,
    env: dict[str, str] | None = None,
    timeout: float = TIMEOUT,
    prepare: Prepare | None = None,
    meanwhile: Callable[[int], None] | None = None,
) -> Done:
    """Run what ``python ARGV`` would run, in a fork of this process, which has all imports done.

    Args:
        argv: ``-m MODULE ...`` or ``SCRIPT ...``.
        cwd: working folder.
        env: further environment; a value of "" takes a variable away.
        timeout: seconds after which it is ended.
        prepare: called in the fork before the command, to give it a full disk, say; what it returns is called after it.
        meanwhile: called here with the fork's process id while it runs, to send it a signal, say.
    """
    # Not in the folder itself, which may be a checkout that has to be clean.
    handle, name = tempfile.mkstemp(prefix="said-")
    os.close(handle)
    log = Path(name)
    sys.stdout.flush()
    sys.stderr.flush()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(argv, cwd, env or {}, log, prepare)
    waiter = threading.Thread(target=meanwhile, args=(child,)) if meanwhile else None
    if waiter:
        waiter.start()
    code = _wait(child, begun + timeout)
    seconds = time.monotonic() - begun
    if waiter:
        waiter.join()
    text = log.read_text(errors="replace")
    log.unlink()
    if SKIPPED in text:
        raise SkippedError(text.split(SKIPPED)[1].strip())
    if code is None:
        silent(f"did not end within {timeout:g} s", Done(-9, text, seconds))
    return Done(code, text, seconds)


def _wait(child: int, deadline: float) -> int | None:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _become(argv: Sequence[str], cwd: Path | str, env: dict[str, str], log: Path, prepare: Prepare | None) -> NoReturn:
    """Be the command: its arguments, folder, output and exit status are those of a process of its own."""
    code = 1
    try:
        os.setpgid(0, 0)
        # What this process has to do at its end is not the fork's to do: it would remove folders that are in use.
        atexit._clear()
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        for name, value in env.items():
            os.environ.pop(name, None) if value == "" else os.environ.update({name: value})
        os.chdir(cwd)
        torch.set_num_threads(
            1
        )  # a fork has to make PyTorch's threads anew, before two of its own ask for them at once
        sys.orig_argv[:] = [sys.executable, *argv]
        afterwards = prepare() if prepare else None
        try:
            if argv[0] == "-m":
                sys.argv = list(argv[1:])
                sys.excepthook = explain  # as MLflow's plug-in has it, in a process of its own
                runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = list(argv)
                runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if afterwards:
            afterwards()
    except SkippedError as error:
        print(f"{SKIPPED}{error}", flush=True)
    finally:
        os._exit(code)


# what a disk may do


def own_mounts() -> None:
    """Mounts that follow are seen by this process and its children alone.

    Raises:
        SkippedError: where it takes rights that this user has not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ADDRESS_SPACES) != 0 or libc.mount(b"none", b"/", None, 0x44000, None) != 0:  # MS_REC | MS_PRIVATE
        raise SkippedError(f"mounting takes rights that this user has not: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: Path, flags: int = 0, kind: str | None = None, options: str | None = None) -> None:
    """Mount something at a folder, as the system call does.

    Raises:
        SkippedError: where it is refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [None if text is None else text.encode() for text in (source, str(target), kind)]
    if libc.mount(*encoded, flags, None if options is None else options.encode()) != 0:
        raise SkippedError(f"cannot mount at {target}: {os.strerror(ctypes.get_errno())}")


def small_disk(folder: Path, free: int) -> Prepare:
    """Makes a folder a disk with so many kilobytes left; what lies there in the end is copied to ``FOLDER.after``."""

    def prepare() -> Callable[[], object]:
        kept = folder.with_name(folder.name + ".kept")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        used = sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in kept.rglob("*"))
        own_mounts()
        mount("none", folder, kind="tmpfs", options=f"size={used + free}k")
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return lambda: shutil.copytree(folder, folder.with_name(folder.name + ".after"), dirs_exist_ok=True)

    return prepare


def read_only(folder: Path) -> Prepare:
    """Makes a folder one of a disk that is mounted read-only, as root notices too."""

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own_mounts()
        mount(str(folder), folder, flags=0x1000)  # MS_BIND
        mount("none", folder, flags=0x1000 | 0x20 | 0x1)  # MS_BIND | MS_REMOUNT | MS_RDONLY

    return prepare


def file_limit(kilobytes: int) -> Prepare:
    """No file may grow beyond this size: what users without rights to mount try a full disk with."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024,) * 2)

    return prepare


def files_with(folder: Path, secret: str) -> Iterator[str]:
    """Files below a folder, and members of zip files there, that hold a text."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        if secret.encode() in path.read_bytes():
            yield str(path.relative_to(folder))
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                members = [name for name in packed.namelist() if secret.encode() in packed.read(name)]
            yield from (f"{path.relative_to(folder)}/{name}" for name in members)


def broken(folder: Path) -> Iterator[str]:
    """Files below a folder that lie under a final name and cannot be read to their end."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or ".lock" in path.name:
            continue
        try:
            if path.name.endswith((".nii.gz", ".nii")):
                np.asarray(nib.load(path).dataobj)
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix in (".zip", ".pt2"):
                with zipfile.ZipFile(path) as packed:
                    if packed.testzip() is not None:
                        raise ValueError("a member is damaged")
            elif path.suffix == ".json":
                as_json(path)
            elif path.suffix in (".png", ".html", ".csv", ".onnx", ".ts") and path.stat().st_size == 0:
                raise ValueError("is empty")
            elif path.suffix == ".png":
                matplotlib.image.imread(path)
        except Exception as error:
            yield f"{path.relative_to(folder)} ({type(error).__name__}: {str(error)[:80]})"


def as_json(path: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
