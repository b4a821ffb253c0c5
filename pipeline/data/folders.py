"""Data sets whose folders say which files belong together: volumes in imagesTr and labelsTr, slices in A and B."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.cases import SLICE_FOLDERS, VOLUME_FOLDERS, Cases, no_cases
from pipeline.io import READABLE, ImageError, check_regular, name_of

__all__ = ["find_slice_folders", "images_in", "list_slice_folders", "list_volume_folders", "named"]

logger = logging.getLogger(__name__)

CHANNEL_SUFFIX = "_0000"
"""What nnU-Net appends to the name of a case's first image."""
SECOND_CHANNEL = re.compile(r"_000[1-9]$")
"""And to those of its further images."""


def images_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the images that lie in a folder. Whatever else lies there is named, but for hidden files.

    Returns:
        The images by their name without suffix, in order; and a fault for every name that two of them share, for every
        image's name behind which is a folder, and for everything that cannot be read, such as a link to nothing.
    """
    by_name: dict[str, Path] = {}
    faults, others, folders = [], [], []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        is_image = path.name.lower().endswith(READABLE)
        if path.is_dir():
            if is_image:
                faults.append(f"{path}: is a folder, expected a file")
            else:
                folders.append(str(path))
            continue
        if not is_image and not path.is_symlink():
            others.append(path.name)
            continue
        try:
            check_regular(path, may_be_empty=True)  # what is in the files is for the checks
        except ImageError as error:
            faults.append(f"{path}: {error}")
            continue
        if not is_image:
            others.append(path.name)
            continue
        first = by_name.setdefault(name_of(path), path)
        if first is not path:
            faults.append(f"{folder}: {first.name} and {path.name} differ in the suffix only")
    for names, what in ((others, "files are no images"), (folders, "folders are not looked into")):
        if names:
            logger.warning("%s: %d %s and are left aside: %s", folder, len(names), what, named(names))
    return by_name, faults


def named(names: Sequence[str], most: int = 20) -> str:
    """Names on one line, the first of them where there are many.

    Args:
        names: the names.
        most: how many are written out.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _pair(
    image_dir: Path, label_dir: Path, to_translate: bool = False
) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Pair two folders by file name; returns (name, image, label) and the faults.

    Args:
        image_dir: folder of the images.
        label_dir: folder of the labels.
        to_translate: whether images may have no label: those are for translation only, and named.
    """
    if not image_dir.is_dir() and not label_dir.is_dir():
        return [], []
    (images, image_faults), (labels, label_faults) = images_in(image_dir), images_in(label_dir)
    faults = image_faults + label_faults
    second = [images[name].name for name in images if SECOND_CHANNEL.search(name)]
    if second:
        faults.append(
            f"{image_dir}: {named(second)}: nnU-Net's names for further channels of a case; a source has one channel "
            "here, one image for each patient"
        )
        images = {name: path for name, path in images.items() if not SECOND_CHANNEL.search(name)}
    matched = {name: name if name in labels else name.removesuffix(CHANNEL_SUFFIX) for name in images}
    pairs = [(name, images[image], labels[name]) for image, name in matched.items() if name in labels]
    lonely_images = [images[image].name for image, name in matched.items() if name not in labels]
    wanted = set(matched.values())
    lonely_labels = [labels[name].name for name in labels if name not in wanted]
    if to_translate and lonely_images:
        logger.warning(
            "%s: %d images have no label in %s, so they can be translated and not evaluated: %s",
            image_dir,
            len(lonely_images),
            label_dir,
            named(lonely_images),
        )
        lonely_images = []
    elif len(images) != len(labels):
        faults.append(f"{image_dir} holds {len(images)} images and {label_dir} {len(labels)}, expected as many")
    for folder, names, partner in ((image_dir, lonely_images, label_dir), (label_dir, lonely_labels, image_dir)):
        if names:
            faults.append(f"{folder}: no partner in {partner} for {', '.join(names)}")
    return pairs, faults


def _no_images(image_dir: Path, label_dir: Path) -> str:
    """Return the fault of a training list without anything in it."""
    return f"{image_dir} and {label_dir} hold no images ({' '.join(READABLE)}), expected the training pairs"


def list_volume_folders(root: Path, to_train: bool) -> tuple[Cases, list[str]]:
    """List the folders imagesTr, labelsTr and so on; a file's name is its patient."""
    cases, faults = no_cases(), []
    for split, (image_folder, label_folder, mask_folder) in VOLUME_FOLDERS.items():
        pairs, problems = _pair(root / image_folder, root / label_folder, split == "test")
        cases[split] = [{"image": str(image), "label": str(label), "fallback": name} for name, image, label in pairs]
        faults += problems + _add_masks(cases[split], root / mask_folder)
        if to_train and split == "training" and not pairs and not problems:
            faults.append(_no_images(root / image_folder, root / label_folder))
    return cases, faults


def _add_masks(items: Sequence[dict[str, str]], folder: Path) -> list[str]:
    """Give each case its mask of that name, where there are masks; returns the faults."""
    if not folder.is_dir():
        return []
    masks, faults = images_in(folder)
    lonely = []
    for item in items:
        found = masks.get(item["fallback"]) or masks.get(item["fallback"].removesuffix(CHANNEL_SUFFIX))
        if found is None:
            lonely.append(item["fallback"])
        else:
            item["mask"] = str(found)
    return faults + ([f"{folder}: no mask of {', '.join(lonely)}"] if lonely else [])


def find_slice_folders(root: Path) -> dict[str, list[Path]]:
    """Return, per list, the folders whose name starts with train, val or test and that hold A/ or B/."""
    folders = sorted(path for path in root.iterdir() if (path / "A").is_dir() or (path / "B").is_dir())
    return {
        split: [folder for folder in folders if folder.name.lower().startswith(start)]
        for split, start in SLICE_FOLDERS.items()
    }


def list_slice_folders(
    root: Path, slice_folders: Mapping[str, Sequence[Path]], to_train: bool
) -> tuple[Cases, list[str]]:
    """List the folders train/A, train/B and so on; numbering restarts per folder, so names say nothing across lists."""
    cases, faults = no_cases(), []
    for split, folders in slice_folders.items():
        if len(folders) > 1:
            faults.append(f"{root}: more than one folder for {split}: {', '.join(folder.name for folder in folders)}")
        folder = folders[0] if folders else root / SLICE_FOLDERS[split]
        pairs, problems = _pair(folder / "A", folder / "B", split == "test")
        cases[split] = [
            {"image": str(image), "label": str(label), "fallback": f"{folder.name}/{name}"}
            for name, image, label in pairs
        ]
        faults += problems
        if to_train and split == "training" and not pairs and not problems:
            faults.append(_no_images(folder / "A", folder / "B"))
    return cases, faults
