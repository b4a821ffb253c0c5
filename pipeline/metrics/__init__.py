"""Image and registration metrics, one value per case."""
