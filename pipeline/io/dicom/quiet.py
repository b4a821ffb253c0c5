"""pydicom without its warnings of values that are not as the standard has them: these quote the values."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config


@contextmanager
def quiet() -> Iterator[None]:
    """Neither check nor quote values, such as a date of birth, within a ``with`` block or a decorated function."""
    logger = logging.getLogger("pydicom")
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.addFilter(_nothing)
        try:
            yield
        finally:
            logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
