"""What whole-volume translation needs beside the network: which files, at which size."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".npy", ".nrrd", ".mha", ".mhd")


def find_volumes(path: str | Path) -> list[dict[str, str]]:
    """Source volumes to translate.

    Args:
        path: an image file; a folder of image files; or a data set's folder, whose ``imagesTs`` is meant.

    Returns:
        One ``{"image": path}`` per volume, in the order of their names.

    Raises:
        FileNotFoundError: if the path does not exist, or holds no image.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"image: {path} does not exist")
    if path.is_dir():
        folder = path / "imagesTs" if (path / "imagesTs").is_dir() else path
        files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(IMAGE_SUFFIXES))
        if not files:
            raise FileNotFoundError(f"image: no file ending in {', '.join(IMAGE_SUFFIXES)} in {folder}")
    else:
        files = [path]
    return [{"image": str(file)} for file in files]
