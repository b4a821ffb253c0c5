"""The folder of studies: only whole files of the formats that are taken, and none that leads elsewhere."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import random
import shutil
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydicom
from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from monailabel.tasks.activelearning.random import Random

from pipeline.files import replacing
from pipeline.label_app.uploads import SUFFIXES

logger = logging.getLogger(__name__)


def lies_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is a regular file below a folder, links followed."""
    try:
        real = os.path.realpath(path)
        return Path(real).is_relative_to(os.path.realpath(folder)) and stat.S_ISREG(os.stat(real).st_mode)
    except (OSError, ValueError):
        return False


def image_path(datastore: Any, image: str) -> str:
    """Path of an image, fetched where it is of a DICOM server; empty if there is none.

    Args:
        datastore: that has it.
        image: its name.
    """
    path = datastore.get_image_uri(image)
    if path and isinstance(datastore, DICOMWebDatastore) and not os.path.isdir(path):
        # Of a series that it fetched just now MONAI Label names a temporary file, and leaves that.
        kept = os.path.join(os.path.realpath(datastore._datastore.image_path()), f"{image}.nii.gz")
        if os.path.realpath(path) != kept and os.path.isfile(kept):
            os.unlink(path)
            return kept
    return path


def series_folder(datastore: Any, image: str) -> str:
    """Folder of the DICOM files of a series, fetched from the DICOM server.

    Args:
        datastore: that has it.
        image: its SeriesInstanceUID.

    Raises:
        ValueError: the studies are no DICOM server's.
    """
    if not isinstance(datastore, DICOMWebDatastore):
        raise ValueError("a derived DICOM series is made of images of a DICOM server only; these studies are a folder")
    image_path(datastore, image)
    return os.path.join(os.path.realpath(datastore._datastore.image_path()), image)


def store_series(datastore: Any, archive: str) -> str:
    """Send a series to the DICOM server of the studies, by STOW-RS.

    Args:
        datastore: of the server.
        archive: zip of its files.

    Returns:
        Its SeriesInstanceUID.

    Raises:
        OSError: the server did not take all of it.
    """
    with zipfile.ZipFile(archive) as files:
        slices = [pydicom.dcmread(io.BytesIO(files.read(name))) for name in files.namelist()]
    uid = str(slices[0].SeriesInstanceUID)
    try:
        answer = datastore._client.store_instances(slices)
    except Exception as error:  # whatever the client and its libraries raise
        raise OSError("the derived series could not be stored: the DICOM server did not take it") from error
    failed, taken = len(answer.get("FailedSOPSequence") or []), len(answer.get("ReferencedSOPSequence") or [])
    if failed or taken != len(slices):
        raise OSError(
            f"the derived series {uid} is not stored as a whole: the DICOM server took {taken} of {len(slices)}"
        )
    return uid


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """One thread at a time in a datastore."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._guard:
            return method(self, *args, **kwargs)

    return call


class Studies(LocalDatastore):
    """MONAI Label's datastore of a folder, which keeps files whole or not at all.

    Links that lead out of the folder, pipes, devices and files of other formats are not seen. Requests and the watcher
    of the folder may call it at once: MONAI Label's own iterates over what another thread changes meanwhile, which
    fails the request, or ends the watcher for good.

    Args:
        folder: of the studies.
        auto_reload: see MONAI Label.
        read_only: see MONAI Label.
    """

    def __init__(self, folder: str, auto_reload: bool = False, read_only: bool = False) -> None:
        self.folder = os.path.abspath(folder)
        self._guard = threading.RLock()
        extensions = [f"*{suffix}" for suffix in SUFFIXES]
        super().__init__(folder, extensions=extensions, auto_reload=auto_reload, read_only=read_only)
        if auto_reload and hasattr(self, "_handler"):
            self._handler.on_moved = self._on_moved  # what is replaced as a whole is moved into its place

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Keep an image; see MONAI Label.

        Raises:
            OSError: it cannot be kept; then nothing is left of it.
        """
        _, suffix = self._to_id(os.path.basename(image_filename))
        name = self._filename(image_id, suffix)
        before = self._datastore.objects.get(image_id)
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        labels = before.labels if before else {}
        new = ImageLabelModel(image=DataModel(info=info, ext=suffix), labels=labels)
        with FileLock(self._lock_file):
            target = Path(self._datastore.image_path()) / name
            self._keep(image_filename, target, lambda: self._datastore.objects.__setitem__(image_id, new))
            if before and before.image.ext != suffix:  # one of another format, in place of which this one is
                (target.parent / self._filename(image_id, before.image.ext)).unlink(missing_ok=True)
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label; see MONAI Label.

        Raises:
            ImageNotFoundException: there is no such image.
            OSError: it cannot be kept; then nothing is left of it.
        """
        image = self._datastore.objects.get(image_id)
        if image is None:
            raise ImageNotFoundException(f"there is no image {image_id!r} in the studies")
        _, suffix = self._to_id(os.path.basename(label_filename))
        name = self._filename(image_id, suffix)
        before = image.labels.get(label_tag)
        info = {**(label_info or {}), "ts": int(time.time()), "name": name}
        with FileLock(self._lock_file):
            target = Path(self._datastore.label_path(label_tag)) / name
            if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(self.folder)):
                raise LabelNotFoundException(f"the folder of the tag {label_tag!r} leads out of the studies")
            new = DataModel(info=info, ext=suffix)
            self._keep(label_filename, target, lambda: image.labels.__setitem__(label_tag, new))
            if before and before.ext != suffix:
                (target.parent / self._filename(image_id, before.ext)).unlink(missing_ok=True)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; of a link the link, not what it leads to.

        Raises:
            ImageNotFoundException: there is no such image.
        """
        image = self._datastore.objects.get(image_id)
        if image is None:
            raise ImageNotFoundException(f"there is no image {image_id!r} in the studies")
        for tag in list(image.labels):
            self.remove_label(image_id, tag)
        (Path(self._datastore.image_path()) / self._filename(image_id, image.image.ext)).unlink(missing_ok=True)
        self.refresh()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; of a link the link, not what it leads to.

        Raises:
            LabelNotFoundException: there is no such label.
        """
        label = self._datastore.label(label_id, label_tag)
        if label is None:
            raise LabelNotFoundException(f"there is no label of {label_id!r} with the tag {label_tag!r}")
        (Path(self._datastore.label_path(label_tag)) / self._filename(label_id, label.ext)).unlink(missing_ok=True)
        self.refresh()

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """The pairs to train on, of files in the folder only."""
        pairs = super().datalist(full_path)
        return [pair for pair in pairs if not full_path or all(lies_inside(p, self.folder) for p in pair.values())]

    def _keep(self, source: str, target: Path, note: Any) -> None:
        """Copy a file into its place and note it, or do neither."""
        backup, existed = None, target.exists()
        objects = {name: entry.model_copy(deep=True) for name, entry in self._datastore.objects.items()}
        try:
            if existed:
                backup = target.with_name(f".{target.name}.before")
                os.replace(target, backup)
            with replacing(target) as path:
                shutil.copyfile(source, path)
                with path.open("rb") as written:
                    os.fsync(written.fileno())
            note()
            self._update_datastore_file(lock=False)
        except BaseException:
            target.unlink(missing_ok=True)
            if backup is not None:
                os.replace(backup, target)
            self._datastore.objects.clear()
            self._datastore.objects.update(objects)
            raise
        if backup is not None:
            backup.unlink(missing_ok=True)

    def _to_id(self, file: str) -> tuple[str, str]:
        # MONAI Label takes the suffix out wherever it stands in the name.
        suffix = next((suffix for suffix in SUFFIXES if file.endswith(suffix)), "")
        return (file[: -len(suffix)], suffix) if suffix else (file, "")

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        found = super()._list_files(path, patterns)
        return {name: file for name, file in found.items() if lies_inside(os.path.join(path, file), self.folder)}

    def _on_moved(self, event: Any) -> None:
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def _update_datastore_file(self, lock: bool = True) -> None:
        if lock:
            with FileLock(self._lock_file):
                self._update_datastore_file(lock=False)
            return
        content = self._datastore.model_dump(exclude={"base_path"})
        with replacing(self._datastore_config_path) as path:
            path.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
        self._config_ts = os.stat(self._datastore_config_path).st_mtime


for _name in (
    *("add_image", "save_label", "remove_image", "remove_label", "update_image_info", "update_label_info"),
    *("refresh", "_reconcile_datastore", "_init_from_datastore_file", "_update_datastore_file", "datalist", "status"),
    *("json", "list_images", "get_labeled_images", "get_unlabeled_images", "get_image_uri", "get_label_uri"),
    *("get_image_info", "get_label_info", "get_labels_by_image_id"),
):
    setattr(Studies, _name, _alone(getattr(Studies, _name)))


class AnyImage(Random):
    """MONAI Label's choice of an image without a target: the longer ago one was chosen, the likelier it is.

    Theirs fails where all were chosen within a second, and on what others wrote into the place of its notes.
    """

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any] | None:
        """Choose one; None if every image has a target."""
        images = datastore.get_unlabeled_images()
        if not images:
            return None
        now = time.time()
        weights = [1 + max(0.0, now - _chosen(datastore.get_image_info(name), request["strategy"])) for name in images]
        chosen = random.choices(range(len(images)), weights)[0]
        return {"id": images[chosen], "weight": round(weights[chosen])}


def _chosen(about: Mapping[str, Any], strategy: str) -> float:
    notes: Any = about.get("strategy")
    for name in (strategy, "ts"):
        notes = notes.get(name) if isinstance(notes, dict) else None
    return notes if isinstance(notes, int | float) else 0.0
