"""Matrices on disk, opened without being read: Zarr arrays, sparse groups in Zarr, .npy, .npz."""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import dask
import dask.array as da
import numpy as np
import scipy.sparse as sp
import zarr

from dasknmf.numerics import planning
from dasknmf.numerics.errors import StoreError
from dasknmf.storage import arrays
from dasknmf.storage.places import NOT_THERE, explained, local_path, readable, staged

SPARSE = {"csr_matrix": sp.csr_array, "csc_matrix": sp.csc_array}
KNOWN = (
    "a Zarr array, a group with an AnnData-style csr_matrix or csc_matrix, an AnnData store, a "
    ".npy or a .npz file"
)


def open_matrix(store: Any, component: str | None = None) -> Any:
    """Open a matrix on disk.

    Parameters
    ----------
    store : str, path or zarr store
        A Zarr array or group (folder, URL, path into a group, ``.zip``), ``.npy`` or ``.npz``.
    component : str, optional
        Path of the matrix within a group.

    Returns
    -------
    X : dask.array, scipy.sparse.csr_array or numpy.ndarray
        Lazy for everything but ``.npz``.

    Raises
    ------
    StoreError
        Nothing is there, or no single matrix.
    """
    if isinstance(store, zarr.Array | zarr.Group):
        store, component = store.store_path.store, "/".join(filter(None, (store.path, component)))
    path = local_path(store)
    if path is not None and not path.exists():
        raise StoreError(f"{store} does not exist; expected {KNOWN}.")
    if path is not None and path.suffix in (".npy", ".npz"):
        if component is not None:
            raise StoreError(f"{store} has no components; component is for Zarr groups.")
        return _open_npy(path) if path.suffix == ".npy" else _open_npz(path)
    where = f"{store}/{component}" if component else store
    with explained(store, "opening"):
        try:
            node = zarr.open(readable(store), mode="r", path=component)
        except NOT_THERE as error:
            raise StoreError(
                f"{where} is nothing that Zarr can open ({error}); expected {KNOWN}."
            ) from error
    return _from_node(node, where)


def _from_node(node: Any, where: Any) -> Any:
    if isinstance(node, zarr.Array):
        return arrays.lazy(node)
    attributes = dict(node.attrs)
    encoding = attributes.get("encoding-type")
    if "dasknmf" in attributes:
        raise StoreError(
            f"{where} is a saved model, not a matrix. dasknmf.load() and `dasknmf info` open it; "
            "its factors are the arrays W and H in it."
        )
    if encoding == "anndata":
        if "X" not in node:
            raise StoreError(f"{where} is an AnnData store without X. Name a layer: layers/NAME.")
        return _from_node(node["X"], f"{where}/X")
    if encoding in SPARSE:
        return _open_sparse(node, where, SPARSE[encoding])
    matrices = [name for name, array in node.arrays() if array.ndim == 2]
    if len(matrices) == 1:
        return arrays.lazy(node[matrices[0]])
    raise StoreError(
        f"{where} is a Zarr group with {sorted(node.keys())}; expected {KNOWN}. Name one matrix "
        f"in it: {where}/{(sorted(matrices) or ['NAME'])[0]}."
    )


def _open_npy(path: Path) -> da.Array:
    """Slabs that map the file where they are read: workers need to see the path."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path} is no array of numbers: {error}.") from error
    if mapped.ndim != 2 or mapped.size == 0:
        return da.from_array(np.asarray(mapped))
    chunks = planning.even_chunks(mapped.shape[0], mapped.shape[1] * mapped.dtype.itemsize)
    read = dask.delayed(partial(_map_rows, str(path)), name="read-npy", pure=True)
    blocks = [
        da.from_delayed(read(a, b), (b - a, mapped.shape[1]), mapped.dtype)
        for a, b in pairwise((0, *accumulate(chunks)))
    ]
    return da.concatenate(blocks)


def _map_rows(path: str, start: int, stop: int) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)[start:stop]


def _open_npz(path: Path) -> Any:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            names = list(held.keys())
            if "format" in names:
                return sp.csr_array(sp.load_npz(path))
            if len(names) == 1:
                return held[names[0]]
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise StoreError(f"{path} can't be read as .npz: {error}.") from error
    raise StoreError(
        f"{path} holds the arrays {names}; expected one array, or what "
        "scipy.sparse.save_npz writes."
    )


def _open_sparse(group: Any, where: Any, kind: Any) -> da.Array:
    """A compressed matrix as row (CSR) or column (CSC) slabs, each read by its own range."""
    try:
        shape = tuple(int(n) for n in group.attrs["shape"])
        parts = [arrays.Source(group[name]) for name in ("data", "indices", "indptr")]
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{where} is no complete sparse matrix; expected the arrays data, indices and indptr "
            f"and the attribute shape, found {sorted(group.keys())} and {sorted(group.attrs)}."
        ) from error
    data, indices, indptr = parts
    axis = 0 if kind is sp.csr_array else 1
    if len(shape) != 2 or indptr.shape != (shape[axis] + 1,) or data.shape != indices.shape:
        raise StoreError(
            f"{where} is no {kind.__name__} of shape {shape}: data {data.shape}, indices "
            f"{indices.shape}, indptr {indptr.shape}."
        )
    if 0 in shape:
        return da.from_array(np.zeros(shape, data.dtype))
    per_line = -(-data.shape[0] * (data.dtype.itemsize + indices.dtype.itemsize) // shape[axis])
    chunks = planning.even_chunks(shape[axis], max(per_line, 1))
    read = dask.delayed(partial(_read_lines, parts, kind, shape), name="read-sparse", pure=True)
    meta = kind((0, 0), dtype=data.dtype)
    blocks = []
    for a, b in pairwise((0, *accumulate(chunks))):
        lines = (b - a, shape[1]) if axis == 0 else (shape[0], b - a)
        blocks.append(da.from_delayed(read(a, b), lines, meta=meta))
    return da.concatenate(blocks, axis=axis)


def _read_lines(parts: Any, kind: Any, shape: tuple[int, ...], start: int, stop: int) -> Any:
    data, indices, indptr = parts
    edges = np.asarray(indptr[start : stop + 1]).astype(np.int64)
    first, last = int(edges[0]), int(edges[-1])
    lines = stop - start
    size = (lines, shape[1]) if kind is sp.csr_array else (shape[0], lines)
    return kind((data[first:last], indices[first:last], edges - first), shape=size)


def save_matrix(
    array: Any, store: Any, dimensions: tuple[str, str] = ("row", "column"), *, overwrite: bool
) -> None:
    """Write a dense matrix, numpy or Dask, to a Zarr array of its own.

    Raises
    ------
    StoreError
        The path exists and ``overwrite`` is false; nothing was written.
    """
    with staged(store, overwrite) as place:
        if overwrite and local_path(store) is None and isinstance(array, da.Array):
            array = array.persist()  # it may be lazy on what is about to be deleted
        arrays.write(place, None, array, dimensions)
