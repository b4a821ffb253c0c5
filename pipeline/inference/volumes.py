"""Which files a translation is of, and reading them ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from monai.data import Dataset

from pipeline.data.checks import DataError, check_images
from pipeline.data.folders import images_in
from pipeline.io import READABLE, holds_dicom, split_series
from pipeline.io.reading import SERIES_MARK


def find_volumes(path: str | Path, series: str | None = None, mask: str | Path | None = None) -> list[dict[str, str]]:
    """Find the source volumes to translate, and look into each before any is translated.

    Args:
        path: an image file; a folder of image files; a data set's folder, whose ``imagesTs`` is meant; or DICOM: a
            file, a folder with a series, or a DICOMDIR.
        series: which DICOM series is meant, where there are several; see `pipeline.io.choose_series`.
        mask: a file that is not 0 where the volume's foreground is, on its grid; for a single volume.

    Returns:
        One ``{"image": path}`` per volume, in the order of their names; with ``"mask"`` where there is one.

    Raises:
        FileNotFoundError: the path or the mask does not exist, or holds no image.
        ValueError: a mask for several volumes.
        DataError: an image cannot be translated (see `pipeline.data.checks.check_images`), or two would be translated
            into files of one name; the message lists every fault.
    """
    # The command line makes numbers of names that look like one.
    path, named = split_series(Path(str(path)).expanduser())
    series = named if series is None else str(series)
    if not path.exists():
        raise FileNotFoundError(f"image: {path} does not exist")
    if series is not None:
        files = [f"{path}{SERIES_MARK}{series}"]
    else:
        files = [str(file) for file in (_sources_in(path) if path.is_dir() else [path])]
    check_images(files)
    if mask is None:
        return [{"image": file} for file in files]
    if len(files) > 1:
        raise ValueError(f"mask: {mask} is one file, and there are {len(files)} volumes to translate in {path}")
    if not Path(mask).expanduser().is_file():
        raise FileNotFoundError(f"mask: {mask} does not exist")
    return [{"image": files[0], "mask": str(Path(mask).expanduser())}]


def _sources_in(folder: Path) -> list[Path]:
    """Return the images of a folder, or of its ``imagesTs`` if it has one."""
    folder = folder / "imagesTs" if (folder / "imagesTs").is_dir() else folder
    if not any(file.name.lower().endswith(READABLE) for file in folder.iterdir()) and holds_dicom(folder):
        return [folder]
    by_name, faults = images_in(folder)
    if not by_name:
        raise FileNotFoundError(f"image: no file ending in {', '.join(READABLE)} in {folder}, and no DICOM")
    if faults:
        raise DataError(faults)
    return list(by_name.values())


class ReadAhead(Dataset):
    """A data set whose next item is made in a thread while the last one is worked on; no more than one waits.

    MONAI's ``ThreadDataLoader`` does so, too, but ends in silence where an item cannot be made.

    Args:
        data: see ``monai.data.Dataset``.
        transform: likewise; draws nothing.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[[Any], Any]) -> None:
        super().__init__(data, transform)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reading")
        self._next: tuple[int, Future[Any]] | None = None

    def _transform(self, index: int) -> Any:
        if self._next is None or self._next[0] != index:
            self._begin(index)
        _, item = self._next  # type: ignore[misc]
        try:
            result = item.result()
        finally:
            self._next = None
        if index + 1 < len(self):
            self._begin(index + 1)
        return result

    def _begin(self, index: int) -> None:
        self._next = index, self._thread.submit(super()._transform, index)
