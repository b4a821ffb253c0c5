"""MONAI dictionary transforms of the bundle: intensity, resampling and synthetic deformation noise."""
