"""Layer 0: the numbers. NumPy, SciPy and one compiled module; no Dask, no Zarr, no files."""
