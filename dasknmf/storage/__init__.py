"""Layer 1: matrices and models on Zarr. Knows Zarr, knows no formula."""
