"""A model as tables of others: an xarray.Dataset, or fields of an AnnData."""

from __future__ import annotations

from typing import Any

import numpy as np

from dasknmf.numerics import interpretation
from dasknmf.numerics.errors import DataError
from dasknmf.numerics.kernels import Array, Float64
from dasknmf.parallel import inputs
from dasknmf.parallel.inputs import Labels


def as_dataset(model: Any, W: Any, labels: Labels) -> Any:
    """See :meth:`dasknmf.NMF.to_xarray`; W is numpy, Dask or None."""
    import xarray as xr

    H = model.components_
    rows, columns = _free(labels.dims)
    variables: dict[str, Any] = {"components": (("component", columns), H)}
    if W is not None:
        variables["W"] = ((rows, "component"), W)
        weight = column_norms(W, "l2") * interpretation.row_norms(H)
        variables["weight"] = ("component", weight)
    for name, column in model.history_.items():
        if name != "pass":
            variables[f"history_{name}"] = ("pass", column)
    coordinates = {"component": np.arange(len(H)), "pass": model.history_["pass"]}
    found = xr.Dataset(variables, coordinates, {"title": "non-negative matrix factorisation"})
    return _with_labels(found, (rows, columns), labels)


def into_anndata(model: Any, W: Any, adata: Any, key: str) -> Any:
    """See :meth:`dasknmf.NMF.to_anndata`."""
    H = model.components_
    if adata.shape != (W.shape[0], H.shape[1]):
        raise DataError(
            f"adata has shape {adata.shape}; expected {(W.shape[0], H.shape[1])}: the samples "
            "of W and the features of the fit. Pass the AnnData that was fitted, or W of its "
            "samples (transform)."
        )
    _same_names(getattr(model, "feature_names_in_", None), adata.var_names)
    about = {
        "params": {name: _storable(value) for name, value in model.get_params().items()},
        "history": {name: np.asarray(column) for name, column in model.history_.items()},
        "weight": column_norms(W, "l2") * interpretation.row_norms(H),
    }
    adata.obsm[f"X_{key}"] = W
    adata.varm[key.upper()] = H.T.copy()
    adata.uns[key] = about
    return adata


def empty_anndata(W: Any, labels: Labels, n_features: int) -> Any:
    """An AnnData without X: names of observations and variables, numbers where there are none."""
    import anndata
    import pandas as pd

    def frame(names: Any, n: int) -> Any:
        return pd.DataFrame(index=[str(name) for name in (range(n) if names is None else names)])

    return anndata.AnnData(
        obs=frame(labels.samples, W.shape[0]), var=frame(labels.features, n_features)
    )


def column_norms(W: Any, norm: str) -> Float64:
    """Norms of the columns of W; those of a Dask array block by block, then of the blocks'."""
    if not inputs.is_dask(W):
        return interpretation.row_norms(W.T, norm)
    whole = W.rechunk({1: -1})
    chunks = ((1,) * whole.numblocks[0], whole.chunks[1])
    parts = whole.map_blocks(_norms_of_block, norm, chunks=chunks, dtype=np.float64)
    return interpretation.row_norms(parts.compute().T, norm)


def _norms_of_block(block: Array, norm: str) -> Float64:
    return interpretation.row_norms(np.asarray(block).T, norm)[None, :]


def _free(dims: tuple[str, str]) -> tuple[str, str]:
    """The names of X's dimensions, unless the Dataset uses one of them for something else."""
    taken = {"component", "pass", "components", "W", "weight"}
    return ("sample", "feature") if taken & set(dims) or dims[0] == dims[1] else dims


def _with_labels(found: Any, dims: tuple[str, str], labels: Labels) -> Any:
    """The Dataset with names of samples and features, and a DataArray's other coordinates."""
    if labels.coordinates is not None and dims == labels.dims:
        for dim, coordinates in zip(dims, labels.coordinates, strict=True):
            if dim in found.dims and coordinates is not None:
                found = found.assign_coords(coordinates.coords)
        return found
    for dim, names in zip(dims, (labels.samples, labels.features), strict=True):
        if names is not None and dim in found.dims:
            found = found.assign_coords({dim: np.asarray(names)})
    return found


def _same_names(fitted: Any, given: Any) -> None:
    if fitted is None:
        return
    wrong = np.flatnonzero(np.asarray(fitted, dtype=str) != np.asarray(given, dtype=str))
    if len(wrong):
        at = wrong[0]
        raise DataError(
            f"adata.var_names differ from the fitted features in {len(wrong)} places, the first "
            f"at {at}: {given[at]!r} for {fitted[at]!r}. Bring them into the order of the fit, "
            "e.g. adata[:, model.feature_names_in_]."
        )


def _storable(value: Any) -> Any:
    """A parameter as AnnData can write it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
