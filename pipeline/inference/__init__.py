"""Translation of whole volumes."""

from pipeline.inference.volumes import find_volumes

__all__ = ["find_volumes"]
