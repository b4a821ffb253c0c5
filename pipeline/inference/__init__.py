"""Translation of whole volumes."""
