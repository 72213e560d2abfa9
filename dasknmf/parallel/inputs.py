"""Any input as one of three things: a numpy array, a scipy sparse matrix or a Dask array, 2-D.

What can be refused from shape, dtype and type alone is refused here, before anything is read.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import scipy.sparse as sp

from dasknmf.numerics.errors import DataError
from dasknmf.parallel.loading import work_dtype

REFUSED = "cUSMmV"  # kinds of dtype that are no real numbers; objects may hold some


def unwrap(X: Any) -> Any:
    """Take the matrix out of an xarray.DataArray, an AnnData or a zarr.Array; others pass."""
    if _is(X, "xarray", "Dataset"):
        raise DataError(
            f"X is an xarray.Dataset with variables {list(X.data_vars)}; expected one matrix. "
            "Pass one DataArray, e.g. X[name]."
        )
    if _is(X, "xarray", "DataArray"):
        return X.data
    if _is(X, "anndata", "AnnData"):
        if X.X is None:
            raise DataError(
                f"X is an AnnData without a matrix X (its layers: {sorted(X.layers)}); expected "
                "one. Pass the matrix itself, e.g. X.layers[name] or X.obsm[name]."
            )
        return X.X
    return X


def _is(X: Any, module: str, name: str) -> bool:
    """Whether X is an instance of ``module.name``, without importing the module for it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(X, getattr(loaded, name, ()))


def is_dask(X: Any) -> bool:
    """Whether X is a Dask array."""
    return isinstance(X, da.Array)


def refuse_early(X: Any) -> None:
    """Refuse what scikit-learn's validation would let through or explain badly."""
    if X is None or _is(X, "dask.delayed", "Delayed"):
        raise DataError(
            f"X is {'None' if X is None else 'a dask.delayed value of unknown shape'}; expected a "
            "matrix. A delayed one becomes an array by dask.array.from_delayed(X, shape, dtype)."
        )
    if isinstance(X, np.ma.MaskedArray):
        raise DataError(
            "X is a masked array, and its mask would be lost; expected a plain array. Fill the "
            "masked entries first, e.g. X.filled(0)."
        )
    if _is(X, "dask.dataframe", "DataFrame"):
        raise DataError(
            "X is a dask DataFrame, whose chunk sizes are unknown; expected a Dask array. Use "
            "X.to_dask_array(lengths=True)."
        )
    if getattr(X, "ndim", 2) > 2:
        _expect_matrix(X, type(X).__name__)
    dtype = getattr(X, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in REFUSED:
        work_dtype(dtype)
    if _is(X, "pandas", "DataFrame"):
        for name, column in X.dtypes.items():
            if getattr(column, "kind", "f") in REFUSED:
                raise DataError(
                    f"Column {name!r} of X has dtype {column}; expected real numbers (bool, "
                    f"integer or float). Convert or drop it first, e.g. X.drop(columns={name!r})."
                )


def _expect_matrix(X: Any, what: str) -> None:
    if X.ndim == 2:
        return
    hint = {1: "X.reshape(-1, 1) or X.reshape(1, -1)", 0: "X.reshape(1, 1)"}.get(
        X.ndim, "X.reshape(-1, X.shape[-1]), which makes each pixel a row"
    )
    raise DataError(
        f"Expected 2D array, got a {X.ndim}-D {what} of shape {X.shape}. Reshape your data: {hint}."
    )


def dtypes_in_memory(X: Any) -> list[Any]:
    """What scikit-learn's validation may leave or has to make of X: the rule of the slabs."""
    dtype = getattr(X, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return [work_dtype(dtype)]
    return [np.float64, np.float32]


def explain(error: TypeError | ValueError) -> None:
    """Raise numpy's word on values that are no numbers with what was expected and what to do."""
    if not any(text in str(error) for text in ("convert string", "argument must be", "promoted")):
        return
    make = TypeError if isinstance(error, TypeError) else DataError
    raise make(
        f"X holds values that are no real numbers ({error}); expected bool, integer or float. "
        "Convert or drop them first, e.g. X.astype('float64')."
    ) from error


def checked_dask(X: da.Array) -> da.Array:
    """Give a 2-D Dask array of known chunks, its chunks numpy or scipy sparse."""
    _expect_matrix(X, "Dask array")
    if any(np.isnan(size) for size in X.shape):
        raise DataError(
            f"X has unknown chunk sizes (shape {X.shape}); expected known ones. Call "
            "X.compute_chunk_sizes() first (one read of X)."
        )
    for axis, what in enumerate(("sample", "feature")):
        if X.shape[axis] == 0:
            raise DataError(
                f"Found array with 0 {what}(s) (shape={X.shape}) while a minimum of 1 is required."
            )
    work_dtype(X.dtype)
    meta = X._meta
    if not (sp.issparse(meta) or isinstance(meta, np.ndarray)) or isinstance(
        meta, np.ma.MaskedArray
    ):
        raise DataError(
            f"X has chunks of type {type(meta).__module__}.{type(meta).__name__}; expected numpy "
            "arrays or scipy.sparse matrices. Convert them, e.g. "
            "X.map_blocks(scipy.sparse.csr_array) or X.map_blocks(numpy.asarray)."
        )
    return X


class Labels(NamedTuple):
    """``dims``: names of the two axes. ``samples``, ``features``: an index of pandas, or None.

    ``coordinates``: all those of a DataArray, as a Dataset for each axis.
    """

    dims: tuple[str, str] = ("sample", "feature")
    samples: Any = None
    features: Any = None
    coordinates: Any = None

    def of_features(self) -> Labels:
        """Without those of samples."""
        along = None if self.coordinates is None else (None, self.coordinates[1])
        return self._replace(samples=None, coordinates=along)


def labels_of(X: Any) -> Labels:
    """Names in an xarray.DataArray, an AnnData or a data frame; others have none. Nothing is read.

    An index may have levels, as that of stacked dimensions (the pixels of an image) has.
    """
    if _is(X, "xarray", "DataArray") and X.ndim == 2:
        rows, columns = (str(dim) for dim in X.dims)
        along = tuple(
            X.coords.to_dataset().drop_dims(other, errors="ignore") for other in (columns, rows)
        )
        return Labels((rows, columns), X.indexes.get(rows), X.indexes.get(columns), along)
    if _is(X, "anndata", "AnnData"):
        return Labels(samples=X.obs_names, features=X.var_names)
    if _is(X, "pandas", "DataFrame"):
        return Labels(samples=X.index, features=X.columns)
    return Labels()
