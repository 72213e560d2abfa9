"""Matrices on disk, opened without being read: Zarr arrays, sparse groups in Zarr, .npy, .npz."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy.sparse as sp
import zarr

from dasknmf.numerics import planning
from dasknmf.numerics.errors import StoreError
from dasknmf.storage import arrays
from dasknmf.storage.places import local_path, staged

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
        A Zarr array or group (folder, URL, or path into a group), ``.npy`` or ``.npz``.
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
    path = local_path(store)
    if path is not None and not path.exists() and not _inside_group(path):
        raise StoreError(f"{store} does not exist; expected {KNOWN}.")
    if path is not None and path.suffix == ".npy":
        return _open_npy(path)
    if path is not None and path.suffix == ".npz":
        return _open_npz(path)
    try:
        node = zarr.open(store, mode="r", path=component)
    except (FileNotFoundError, KeyError, ValueError, NotADirectoryError) as error:
        where = f"{store}/{component}" if component else store
        raise StoreError(f"{where} is no Zarr array or group; expected {KNOWN}.") from error
    return _from_node(node, store if component is None else f"{store}/{component}")


def _inside_group(path: Path) -> bool:
    """Whether the path leads into something (a zip store, say) that is no folder."""
    return any(parent.is_file() for parent in path.parents)


def _from_node(node: Any, where: Any) -> Any:
    if isinstance(node, zarr.Array):
        return da.from_zarr(node)
    attributes = dict(node.attrs)
    encoding = attributes.get("encoding-type")
    if "dasknmf" in attributes:
        raise StoreError(
            f"{where} is a saved model, not a matrix. Use dasknmf.load() or `dasknmf info`; its "
            "factors are the arrays W and H in it."
        )
    if encoding == "anndata":
        return _from_node(node["X"], f"{where}/X")
    if encoding in SPARSE:
        return _open_sparse(node, SPARSE[encoding])
    matrices = [name for name, array in node.arrays() if array.ndim == 2]
    if len(matrices) == 1:
        return da.from_zarr(node[matrices[0]])
    raise StoreError(
        f"{where} is a Zarr group with {sorted(node.keys())}; expected {KNOWN}. Name one matrix "
        f"in it, e.g. {where}/{(matrices or ['NAME'])[0]}."
    )


def _open_npy(path: Path) -> da.Array:
    """Slabs that map the file where they are read: workers need to see the path."""
    try:
        mapped = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise StoreError(f"{path} is no array of numbers: {error}.") from error
    if mapped.ndim != 2:
        return da.from_array(np.asarray(mapped))
    chunks = planning.even_chunks(mapped.shape[0], mapped.shape[1] * mapped.dtype.itemsize)
    edges = np.concatenate([[0], np.cumsum(chunks)]).tolist()
    read = dask.delayed(partial(_map_rows, str(path)), name="read-npy", pure=True)
    blocks = [
        da.from_delayed(read(a, b), (b - a, mapped.shape[1]), mapped.dtype)
        for a, b in pairwise(edges)
    ]
    return da.concatenate(blocks)


def _map_rows(path: str, start: int, stop: int) -> Any:
    return np.load(path, mmap_mode="r")[start:stop]


def _open_npz(path: Path) -> Any:
    try:
        with np.load(path) as held:
            names = list(held.keys())
            if "format" in names:
                return sp.csr_array(sp.load_npz(path))
            if len(names) == 1:
                return held[names[0]]
    except (ValueError, OSError) as error:
        raise StoreError(f"{path} can't be read as .npz: {error}.") from error
    raise StoreError(
        f"{path} holds the arrays {names}; expected one array, or what "
        "scipy.sparse.save_npz writes."
    )


def _open_sparse(group: Any, kind: Any) -> da.Array:
    """A compressed matrix as row (CSR) or column (CSC) slabs, each read by its own range."""
    shape = tuple(int(n) for n in group.attrs["shape"])
    axis = 0 if kind is sp.csr_array else 1
    indptr = np.asarray(group["indptr"][...])
    stored = group["data"].dtype.itemsize + group["indices"].dtype.itemsize
    per_line = -(-int(indptr[-1]) * stored // max(shape[axis], 1))
    chunks = planning.even_chunks(shape[axis], max(per_line, 1))
    edges = np.concatenate([[0], np.cumsum(chunks)]).astype(int).tolist()
    read = dask.delayed(partial(_read_lines, group, kind, shape), name="read-sparse", pure=True)
    meta = kind((0, 0), dtype=group["data"].dtype)
    blocks = []
    for a, b in pairwise(edges):
        lines = (b - a, shape[1]) if axis == 0 else (shape[0], b - a)
        part = read(indptr[a : b + 1])
        blocks.append(da.from_delayed(part, lines, meta=meta))
    return da.concatenate(blocks, axis=axis)


def _read_lines(group: Any, kind: Any, shape: tuple[int, ...], indptr: Any) -> Any:
    first, last = int(indptr[0]), int(indptr[-1])
    lines = len(indptr) - 1
    size = (lines, shape[1]) if kind is sp.csr_array else (shape[0], lines)
    parts = (group["data"][first:last], group["indices"][first:last], indptr - first)
    return kind(parts, shape=size)


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
        target = zarr.create_array(
            place,
            shape=array.shape,
            chunks=arrays.row_chunks(array.shape, array.dtype.itemsize),
            dtype=array.dtype,
            dimension_names=dimensions,
            overwrite=True,
        )
        arrays.fill(target, array)
