"""Translation of all images of the studies, in a process of its own."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask


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
