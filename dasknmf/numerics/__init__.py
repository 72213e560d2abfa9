"""Layer 0: the numbers. NumPy, SciPy and compiled kernels; no Dask, no Zarr, no files."""
