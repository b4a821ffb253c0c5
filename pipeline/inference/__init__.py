"""Translation of whole volumes."""

from pipeline.inference.volumes import find_volumes, output_suffix

__all__ = ["find_volumes", "output_suffix"]
