"""Running a chain of the bundle's configs from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai import bundle

from pipeline.bundle import bundle_dir


class ConfigWorkflow(bundle.ConfigWorkflow):
    """A chain of configs, run as ``python -m monai.bundle run`` runs it, or opened for one of its parts.

    Args:
        chain: names of the bundle's configs, such as "train.json", or paths; what comes later overrides.
        **settings: entries that take other values, by their path in the config.

    Raises:
        FileNotFoundError: a config is missing.
    """

    def __init__(self, chain: Sequence[str | Path], **settings: Any) -> None:
        configs = bundle_dir() / "configs"
        files, about = [str(configs / name) for name in chain], str(configs / "metadata.json")
        super().__init__(files, about, logging_file=False, **settings)

    def part(self, name: str) -> Any:
        """The part of that path, built if it has not been."""
        return self.parser.get_parsed_content(name)

    def run(self) -> None:
        """Initialize what has not been, run, and finalize."""
        if not self._is_initialized:
            self.initialize()
        super().run()
        self.finalize()


def run_chain(chain: Sequence[str | Path], **settings: Any) -> None:
    """Run a chain of configs in this process, see `ConfigWorkflow`."""
    ConfigWorkflow(chain, **settings).run()
