"""Networks, two- and three-dimensional through `spatial_dims`."""
