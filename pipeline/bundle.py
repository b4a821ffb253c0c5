"""What the bundle's configs need around training itself: folders, knobs, the resolved config, readable errors."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from pipeline.chain import explain, is_monai_command
from pipeline.ending import ENDING, LOG_FILE
from pipeline.files import ProcessLock, not_written, remove_leftovers, replacing
from pipeline.models import LAST
from pipeline.provenance import redact
from pipeline.settings import FLAGS, calling_parser, values
from pipeline.tracking.rules import without_credentials

CONFIG_FILE = "config.json"
LOGGING_FILE = "logging.conf"
# What a run writes into its folder; an earlier run's files of these names are set aside before a new one starts.
RUN_OUTPUTS = (
    "checkpoints",
    "model.pt",
    CONFIG_FILE,
    "pictures",
    "evaluation",
    "mlflow_run.json",
    LOG_FILE,
    LOGGING_FILE,
)
WEIGHTS = ("checkpoints", "model.pt")
# Settings that name files a run reads.
INPUTS = ("dataset_dir", "datalist", "start_from")
# Folders are held until the process ends, so that handlers may write to the last; runs of one process may share one.
_TAKEN: dict[Path, ProcessLock] = {}
logger = logging.getLogger(__name__)


def project_dir() -> Path:
    """The folder that default data and outputs lie in: the checkout, or the working folder where there is none."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def bundle_dir() -> Path:
    """The bundle's folder: in the checkout, or the one that a packaged bundle was unpacked to."""
    beside = Path(__file__).resolve().parent.parent
    return beside if (beside / "configs" / "metadata.json").is_file() else project_dir() / "bundles" / "reggan"


def default_weights(bundle_root: str | Path, run_name: str, file: str = "model.pt") -> str:
    """The weights to translate with where none are named.

    In the checkout these are the run's of that name, or else those in the bundle's ``models``. A bundle that was taken
    elsewhere, into an app of MONAI Label say, has its own first.

    Returns:
        Path of the file; of the first of the two if there is neither.
    """
    root = Path(bundle_root).resolve()
    places = [project_dir() / "outputs" / str(run_name) / file, root / "models" / file]
    if root.parent != project_dir() / "bundles":
        places.reverse()
    return str(next((path for path in places if path.is_file()), places[0]))


def flag(name: str, value: Any) -> bool:
    """A yes-or-no knob; the command line hands ``true`` and ``false`` over as text.

    Raises:
        ValueError: if the value is neither.
    """
    text = str(value).strip().lower()
    if text not in FLAGS:
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return FLAGS[text]


def device(name: str | torch.device) -> torch.device:
    """The device of that name, ``auto`` for the first GPU or else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if str(name) == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen).item()  # "meta" has no values
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto', 'cpu', or a device of this machine such as 'cuda:0', got {name!r}: {error}"
        ) from error
    return chosen


def spatial_size(value: Any, spatial_dims: int = 2) -> tuple[int, ...]:
    """In-plane size in pixels: one number for all axes, or one for each.

    Raises:
        ValueError: if it is neither.
    """
    sizes = (value,) * spatial_dims if isinstance(value, int) else value
    if (
        not isinstance(sizes, (list, tuple))
        or len(sizes) != spatial_dims
        or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    ):
        raise ValueError(f"spatial_size must be a positive whole number or {spatial_dims} of them, got {value!r}")
    return tuple(sizes)


def by_size(network_size: str | None, **values: Any) -> Any:
    """The one of several values that belongs to a size of networks, such as ``by_size(size, small=16, paper=64)``.

    None, the size of a model that knows its networks itself, gives None: nothing is asked for.

    Raises:
        ValueError: if no value is given for that size.
    """
    if network_size is None:
        return None
    if network_size not in values:
        raise ValueError(f"network_size must be one of {sorted(values)}, got {network_size!r}")
    return values[network_size]


def check_image_size(size: Sequence[int], network: torch.nn.Module) -> None:
    """Check that images are large enough for every part of a network, before anything is computed with it.

    Args:
        size: of the images in pixels.
        network: its parts may have a ``minimum_size``, the smallest size along any axis that they work on.

    Raises:
        ValueError: naming the smallest size that works, and the part that needs it.
    """
    needs = {
        type(part).__name__: cast(int, part.minimum_size) for part in network.modules() if hasattr(part, "minimum_size")
    }
    if needs and min(size) < max(needs.values()):
        name = max(needs, key=needs.__getitem__)
        raise ValueError(f"spatial_size must be at least {needs[name]} along every axis for {name}, got {tuple(size)}")


def named(part: Any) -> Any:
    """Put a part with a name of its own into a list of handlers; MONAI wants a ``_target_`` in each entry."""
    return part


def explain_errors() -> None:
    """End the command line with one clear line, whatever a part raises; the traceback goes to a file.

    MONAI wraps whatever a config's part raises in "Failed to instantiate", so that the last line says nothing of use.
    The file lies in the folder that the config writes into, where that is there. Does nothing where a config is run
    from Python.
    """
    if not is_monai_command() or sys.excepthook not in (sys.__excepthook__, explain):
        return
    parser = calling_parser()

    def folder() -> Path | None:
        known = {} if parser is None else {**parser.config, **parser.ref_resolver.resolved_content}
        found = [known.get(name) for name in ("evaluation_dir", "output_dir")]
        paths = [str(value) for value in found if value is not None and not str(value).startswith(("$", "@", "%"))]
        return Path(paths[0]).expanduser() if paths else None

    ENDING.folder = folder
    ENDING.take_over()


def check_is_folder(path: Path, name: str = "output_dir") -> None:
    """Check that a folder to write into is one, or can be made.

    Raises:
        ValueError: it, or one that it would lie in, is a file or a link to nowhere.
    """
    for place in (path, *path.parents):
        if place.is_dir():
            return
        if place.is_symlink() and not place.exists():
            raise ValueError(f"{name} {place} is a link to {place.readlink()}, which does not exist")
        if place.exists():
            raise ValueError(f"{name} {path}: {place} is a file, expected a folder")


class RunFolder:
    """The folder of one run and the config it was started with.

    Nothing is touched until the trainer starts, so that a setting which any part refuses costs no earlier run anything.
    Then the folder is taken for this process alone, an earlier run's files are set aside (never deleted) or found for
    resuming, and the config, with overlays and command line merged in, is written to ``config.json``; on resuming, not
    before the checkpoint was found to fit. That file runs by itself:
    ``python -m monai.bundle run training --config_file OUTPUT_DIR/config.json``.

    Attach it before all handlers that write into the folder.

    Args:
        output_dir: created where absent.
        resume: continue the run that the folder holds.

    Attributes:
        output_dir: absolute path.
        resume: whether an earlier run is continued.

    Raises:
        ValueError: if ``resume`` is set and the folder holds no run, or it cannot be a folder.
        RuntimeError: if another process is running in the folder.
    """

    def __init__(self, output_dir: str | Path, resume: bool = False) -> None:
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.resume = resume
        self._parser = calling_parser()
        if resume and not (self.output_dir / CONFIG_FILE).is_file():
            raise ValueError(
                f"resume: {self.output_dir} holds no run (no {CONFIG_FILE}); leave resume out to start one"
            )
        check_is_folder(self.output_dir)
        if self.output_dir.is_dir() and idist.get_rank() == 0:
            self._take_folder()
        self._config_written = False
        ENDING.go_on = self.how_to_go_on

    def how_to_go_on(self) -> str:
        """Words that say how to go on with this run, after it was stopped."""
        if not (self.output_dir / "checkpoints" / LAST).is_file():
            return f"no epoch was completed in {self.output_dir}: the same command starts again"
        config = shlex.quote(str(self.output_dir / CONFIG_FILE))
        return f"it goes on with: python -m monai.bundle run training --config_file {config} --resume true"

    def attach(self, engine: Engine) -> None:
        """Register on a trainer."""
        if idist.get_rank() > 0:  # of several processes, the first one writes
            return
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.EPOCH_STARTED, self._write_config)

    def begin(self) -> None:
        """Make the folder ready for the run to write into.

        Raises:
            RuntimeError: if another process is running in the folder.
        """
        self._take_folder()
        remove_leftovers(self.output_dir, alone=True)
        if not self.resume:
            self._set_aside(RUN_OUTPUTS)
            self._write_config()
        elif not (self.output_dir / "checkpoints" / LAST).exists():
            self._set_aside(WEIGHTS)  # training will start from the first epoch

    def _take_folder(self) -> None:
        if self.output_dir in _TAKEN:
            return
        lock = ProcessLock(self.output_dir / ".lock")
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            free = lock.acquire()
        except OSError as error:
            told = not_written(self.output_dir / ".lock", error)
            if told is None:
                raise
            raise told from error
        if not free:
            raise RuntimeError(f"output_dir {self.output_dir} is in use by another running process; choose another")
        _TAKEN[self.output_dir] = lock

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the settings, see `pipeline.settings.values`."""
        return {} if self._parser is None else values(self._parser)

    def _config(self) -> dict[str, Any]:
        if self._parser is None:
            return {}
        return {name: value for name, value in self._parser.config.items() if name != self._parser.meta_key}

    def _set_aside(self, names: Sequence[str]) -> None:
        found = [self.output_dir / name for name in names if (self.output_dir / name).exists()]
        if not found:
            return
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(path.stat().st_mtime for path in found)))
        target = self.output_dir / "previous" / stamp
        while target.exists():
            target = target.with_name(target.name + "-again")
        target.mkdir(parents=True)
        for path in found:
            shutil.move(path, target / path.name)
        logger.info("set the files of an earlier run aside in %s", target)

    def _write_config(self) -> None:
        if not self._config_written:
            with replacing(self.output_dir / CONFIG_FILE) as path:
                config = _without_secrets(_with_absolute_paths(self._config()))
                path.write_text(json.dumps(config, indent=4, default=str) + "\n")
            how_to_log = bundle_dir() / "configs" / LOGGING_FILE  # MONAI looks for it beside the config
            if how_to_log.is_file():
                with replacing(self.output_dir / LOGGING_FILE) as path:
                    path.write_bytes(how_to_log.read_bytes())
            self._config_written = True


def _without_secrets(value: Any) -> Any:
    """A part of a config without user names, passwords and tokens; an address of a store stays one."""
    if isinstance(value, Mapping):
        return {
            name: without_credentials(entry)
            if name == "tracking_uri" and isinstance(entry, str)
            else _without_secrets(entry)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(entry) for entry in value]
    return redact(value) if isinstance(value, str) else value


def _with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that finds its data from any working folder."""
    found = dict(config)
    for name in INPUTS:
        value = found.get(name)
        if isinstance(value, str) and not value.startswith(("$", "@", "%")) and Path(value).expanduser().exists():
            found[name] = str(Path(value).expanduser().absolute())
    return found
