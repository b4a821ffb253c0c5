"""Translation of all images of the studies, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from pipeline.label_app.access import is_name
from pipeline.label_app.answers import answering, tag_of
from pipeline.label_app.conf import ALL
from pipeline.label_app.infer import request_device
from pipeline.label_app.limits import LARGEST_INFO, one_line

WHICH_IMAGES = (ALL, "labeled", "unlabeled")
"""Words for the images that a batch translates."""

MOST_IMAGES = 1000
"""That a batch can be told by their names."""


def check_batch(request: Mapping[str, Any], list_images: Callable[[], Sequence[str]]) -> dict[str, Any]:
    """Check what a client wants of a batch, before it is started.

    Args:
        request: ``images``, one of `WHICH_IMAGES` or a list of names, and, optionally, ``device``, ``label_tag`` and
            ``max_batch_size``.
        list_images: gives the names of the images in the studies; asked only if a client names some.

    Returns:
        The request, without what a client must not decide.

    Raises:
        HTTPException: 400, 404 or 422, saying what is wrong.
    """
    tag = tag_of(request)
    images = _check_images(request.get("images", ALL), list_images)
    size = request.get("max_batch_size", 0)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MOST_IMAGES:
        raise HTTPException(400, f"max_batch_size must be a whole number in [0, {MOST_IMAGES}], got {size!r}")
    checked = {"images": images, "label_tag": tag, "max_batch_size": size}
    if request.get("device"):
        with answering(422):
            checked["device"] = request_device(request["device"])
    return checked


def _check_images(images: Any, list_images: Callable[[], Sequence[str]]) -> Any:
    """Which images a batch means, said without a doubt: otherwise it might be all."""
    if isinstance(images, str) and images in WHICH_IMAGES:
        return images
    if not isinstance(images, list) or not images or not all(is_name(image) for image in images):
        raise HTTPException(
            400,
            f"images must be one of {', '.join(WHICH_IMAGES)}, or a list of names of images in the studies, not of "
            f"paths, got {one_line(repr(images), 200)}",
        )
    if len(images) > MOST_IMAGES or sum(len(image.encode()) for image in images) > LARGEST_INFO:
        raise HTTPException(400, f"images must be at most {MOST_IMAGES} names, got {len(images)}; use '{ALL}'")
    there = set(list_images())
    unknown = [image for image in images if image not in there]
    if unknown:
        raise HTTPException(404, f"images names {one_line(unknown[:5], 200)}, which are not in the studies")
    return list(dict.fromkeys(images))


class BatchTranslation(BatchInferTask):
    """MONAI Label's batch task, which goes on behind an image that cannot be translated."""

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Any) -> dict[str, Any]:
        """Translate all images that the request means and keep the results in the datastore.

        Raises:
            HTTPException: 422, at the end, if some could not be translated; the message says which.
        """
        failed: dict[str, str] = {}

        def translate(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                return infer(one, store)
            except HTTPException as error:
                failed[one["image"]] = error.detail
                return {"error": error.detail}

        # MONAI Label's defaults divide by the number of GPUs.
        results = super().__call__({**request, "multi_gpu": False, "max_workers": 1}, datastore, translate)
        if failed:
            lines = "\n".join(f"- {image}: {reason}" for image, reason in failed.items())
            raise HTTPException(422, f"{len(failed)} of {len(results)} images were not translated:\n{lines}")
        return results
