"""State dicts on disk: plain tensors, read without running code, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.compat.common import WeightsError
from pipeline.files import NotWrittenError
from pipeline.tensors import UnreadableFileError, load_tensors, save_tensors

_SAVE_HINT = "save plain weights with torch.save(network.state_dict(), path)"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a plain state dict without running code from the file.

    Args:
        path: file written by `torch.save(network.state_dict(), path)`.

    Returns:
        The tensors by name, in the file's order, on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, holds Python objects, or something else than a state dict.
    """
    try:
        content = load_tensors(path, allow_legacy=True)  # the authors' files may be that old
    except UnreadableFileError as error:
        raise WeightsError(f"{error}; {_SAVE_HINT}" if error.holds_objects else str(error)) from error
    if not isinstance(content, Mapping) or not content:
        kind = "an empty mapping" if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path} holds {kind}, expected a state dict of named tensors; {_SAVE_HINT}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(
                f"{path} is no state dict: its entry {name!r} holds {type(tensor).__name__}, expected a tensor; "
                f"{_SAVE_HINT}"
            )
    return dict(content)


def write_state_dict(tensors: Mapping[str, Tensor], path: str | Path, overwrite: bool = False) -> None:
    """Write a state dict so that the file is there whole or not at all.

    Args:
        tensors: the state dict.
        path: file to write; missing folders are made.
        overwrite: replace a file that is already there.

    Raises:
        FileExistsError: the file is there already and `overwrite` is off.
        WeightsError: the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, expected a file to write")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already")
    try:
        save_tensors(dict(tensors), path)
    except NotWrittenError as error:
        raise WeightsError(str(error)) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error
