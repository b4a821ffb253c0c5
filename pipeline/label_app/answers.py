"""What a client is told when something is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import DefaultLabelTag

from pipeline.errors import first_cause
from pipeline.label_app.limits import is_name, one_line


def tag_of(request: Mapping[str, Any]) -> str:
    """The tag to keep results under; not one that leads elsewhere, nor the one that marks what training learns from."""
    tag = request.get("label_tag")
    tag = DefaultLabelTag.ORIGINAL if tag is None or tag == "" else tag
    tag = tag.value if isinstance(tag, DefaultLabelTag) else tag
    if not is_name(tag):
        raise HTTPException(400, f"label_tag must be a plain name, got {one_line(repr(tag), 200)}")
    if tag == DefaultLabelTag.FINAL.value:
        raise HTTPException(
            400, f"label_tag must not be '{tag}': training would take translated volumes for real ones; use 'original'"
        )
    return tag


@contextmanager
def answering(status: int, *paths: str | Path) -> Iterator[None]:
    """Answer with a status where a value is wrong, without the folders of paths: a client need not know them."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        cause = first_cause(error)
        if not isinstance(cause, ValueError):
            raise
        text = str(cause)
        for path in paths:
            text = text.replace(os.path.dirname(path) + os.sep, "")
        raise HTTPException(status, text) from error
