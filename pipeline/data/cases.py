"""The three lists of a data set, and where folders hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pipeline.data.checks import FILES, SPLITS, DataError
from pipeline.data.inspection import inspect_all

__all__ = ["SLICE_FOLDERS", "VOLUME_FOLDERS", "Cases", "no_cases"]

VOLUME_FOLDERS = {
    "training": ("imagesTr", "labelsTr", "masksTr"),
    "validation": ("imagesVal", "labelsVal", "masksVal"),
    "test": ("imagesTs", "labelsTs", "masksTs"),
}
"""Folders of images, labels and, where there are any, masks per list, as in the Medical Segmentation Decathlon."""

SLICE_FOLDERS = {"training": "train", "validation": "val", "test": "test"}
"""How the names of the folders that hold A/ and B/ start, per list (the layout of the RegGAN authors)."""


class Cases(dict[str, list[dict[str, str]]]):
    """The three lists of a data set, ``{"training": [...], "validation": [...], "test": [...]}``.

    Each item is ``{"image": path, "label": path, "case": patient}``, and ``"mask"``, a path, where there is one.

    Attributes:
        name: of the data set's folder, without what lies above it; empty where the lists come from nowhere.
        digest: SHA-256 over names and contents of all files (see `check_cases`); None if they were not checked.
        modalities: names of the modalities, ``source`` and ``target``, as far as the datalist tells them.
        registered: whether the datalist says that its pairs were registered, or were made on one grid.
    """

    name: str = ""
    digest: str | None = None
    modalities: Mapping[str, str] = MappingProxyType({})
    registered: bool = False

    def modalities_or(self, source: str | None = None, target: str | None = None) -> dict[str, str | None]:
        """The names of the modalities: those given, or else the datalist's.

        Args:
            source: given name of the source's.
            target: given name of the target's.
        """
        given = {"source": source, "target": target}
        return {name: value or self.modalities.get(name) for name, value in given.items()}

    @property
    def lists_digest(self) -> str | None:
        """SHA-256 over which files are of whom, and in which list and role; None if the files were not checked.

        Unlike `digest`, it is another one where patients change their lists, or source and target are swapped.
        """
        if self.digest is None:
            return None
        files = [item[key] for items in self.values() for item in items for key in FILES if key in item]
        known = inspect_all(files)
        lists = {
            split: sorted(
                [known[item[key]].digest or "" for key in FILES if key in item] + [item["case"]] for item in items
            )
            for split, items in self.items()
        }
        return hashlib.sha256(json.dumps(lists, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what may be told of the data set elsewhere: nothing that names a patient, a file or a path.

        Returns:
            ``name`` and ``digest``; ``pairs`` and ``patients``, the number of each by list.
        """
        return {
            "name": self.name,
            "digest": self.digest,
            "pairs": {split: len(items) for split, items in self.items()},
            "patients": {split: len({item["case"] for item in items}) for split, items in self.items()},
        }

    def require(self, split: str) -> list[dict[str, str]]:
        """Return one list, making sure that there is something in it.

        Args:
            split: name of the list.

        Raises:
            ValueError: there is no such list.
            DataError: the list is empty; the message says how to fill it.
        """
        if split not in self:
            raise ValueError(f"split must be one of {', '.join(self)}, got {split!r}")
        if not self[split]:
            images, labels, _ = VOLUME_FOLDERS[split]
            slices = SLICE_FOLDERS[split]
            filled = ", ".join(name for name in self if self[name]) or "none"
            raise DataError(
                [
                    f'the data set has no {split} pairs: add a list "{split}" to its datalist, or folders {images} and '
                    f"{labels}, or {slices}/A and {slices}/B; lists with pairs in them: {filled}"
                ]
            )
        return self[split]


def no_cases() -> Cases:
    """Return three empty lists."""
    return Cases({split: [] for split in SPLITS})
