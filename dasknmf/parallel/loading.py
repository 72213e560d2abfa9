"""How a slab gets into memory: chunk by chunk, into the array that becomes the slab.

A task that loads its slab by itself holds the slab and a few chunks of it, never the slab and all
of its chunks. Threads and clusters load by the same code, and so get the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise, product
from typing import Any, NamedTuple

import cloudpickle
import dask
import numpy as np
import scipy.sparse as sp
from dask.optimization import cull

from dasknmf.numerics import planning
from dasknmf.numerics.errors import DataError

Sizes = tuple[Sequence[int], Sequence[int]]  # heights and widths of a grid of chunks
Grid = Sequence[Sequence[Any]]  # chunks of one slab, or their keys, laid out as in X

LARGE_RECIPE = 1 << 18  # bytes; a graph above it carries data


def work_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 stays, float16 becomes float32, everything else that is a number float64."""
    kind = dtype.kind
    if kind not in "biuf":
        lead = "Complex data not supported: " if kind == "c" else ""
        what = {"c": "complex", "O": "object", "U": "string", "S": "bytes", "M": "datetime"}
        raise DataError(
            f"{lead}X has dtype {dtype} ({what.get(kind, 'not numeric')}); expected real numbers "
            "(bool, integer or float). Convert it first, e.g. X.astype('float64')."
        )
    return np.dtype(np.float32 if kind == "f" and dtype.itemsize <= 4 else np.float64)


def assemble(blocks: Grid, sizes: Sizes, transposed: bool, dtype: np.dtype[Any]) -> Any:
    """Put a grid of chunks together into one slab: C-contiguous, or CSR without duplicates."""
    grid = [[_checked_chunk(b) for b in row] for row in blocks]
    if any(sp.issparse(b) for row in grid for b in row):
        whole = grid[0][0] if len(grid) == len(grid[0]) == 1 else sp.block_array(grid)
        _expect_shape(whole, (sum(sizes[0]), sum(sizes[1])))
        return as_csr(whole.T if transposed else whole, dtype)
    if len(grid) == len(grid[0]) == 1:
        whole = grid[0][0]
        _expect_shape(whole, (sizes[0][0], sizes[1][0]))
        return np.require(whole.T if transposed else whole, dtype=dtype, requirements=["C", "A"])
    return _filled(sizes, (b for row in grid for b in row), transposed, dtype)


def _filled(sizes: Sizes, chunks: Iterator[Any], transposed: bool, dtype: np.dtype[Any]) -> Any:
    """Copy dense chunks, as they come row by row, to their places in one slab."""
    rows, columns = (list(pairwise((0, *accumulate(along)))) for along in sizes)
    slab = np.empty((rows[-1][1], columns[-1][1])[:: -1 if transposed else 1], dtype)
    whole = slab.T if transposed else slab
    for (top, bottom), (left, right) in product(rows, columns):
        chunk = next(chunks)
        _expect_shape(chunk, (bottom - top, right - left))
        whole[top:bottom, left:right] = chunk
        del chunk
    return slab


def _expect_shape(chunk: Any, expected: tuple[int, int]) -> None:
    """Refuse what would otherwise be stretched, or shift the rows behind it."""
    if chunk.shape != expected:
        raise DataError(
            f"a chunk of X has shape {chunk.shape}; expected {expected}, as its Dask array says. "
            "Correct the array's chunks, e.g. by X.compute_chunk_sizes()."
        )


def _checked_chunk(chunk: Any) -> Any:
    """Refuse a chunk that is not what the Dask array said, and that a conversion would hide."""
    if isinstance(chunk, np.ma.MaskedArray):
        raise DataError(
            "a chunk of X is a masked array, and its mask would be lost; expected numpy arrays or "
            "scipy.sparse matrices. Fill the masked entries first, e.g. "
            "X.map_blocks(numpy.ma.filled, 0)."
        )
    chunk = chunk if sp.issparse(chunk) else np.asarray(chunk)
    work_dtype(chunk.dtype)
    return chunk


def as_csr(matrix: Any, dtype: np.dtype[Any]) -> sp.csr_array:
    """Canonical CSR of ``dtype``: sorted indices, duplicates added up; the input is not touched."""
    csr = sp.csr_array(matrix).astype(dtype, copy=False)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


class Layout(NamedTuple):
    """How the chunks of one slab lie: their keys as in X, their heights and widths in X."""

    grid: list[list[Any]]
    heights: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def sizes(self) -> Sizes:
        """Heights and widths."""
        return self.heights, self.widths


class Recipe(NamedTuple):
    """How a task loads one slab by itself: the part of the graph that makes its chunks.

    layout
        None where chunks share work (or are sparse): then ``key`` is computed in one go.
    """

    graph: dict[Any, Any]
    key: Any
    layout: Layout | None
    transposed: bool
    dtype: np.dtype[Any]

    def load(self) -> Any:
        """Give the slab."""
        if self.layout is None:
            return dask.get(self.graph, self.key)
        chunks: Iterator[Any] = self._chunks(self.layout)
        first = next(chunks)
        if sp.issparse(first):  # X said dense: COO chunks have numpy's meta
            return dask.get(self.graph, self.key)
        return _filled(
            self.layout.sizes, chain(_popped([first]), chunks), self.transposed, self.dtype
        )

    def _chunks(self, layout: Layout) -> Iterator[Any]:
        """Chunks row by row; small ones are made several at a time, at most a batch of bytes."""
        batch: list[Any] = []
        size = 0
        for keys, height in zip(layout.grid, layout.heights, strict=True):
            for key, width in zip(keys, layout.widths, strict=True):
                batch.append(key)
                size += height * width * self.dtype.itemsize
                if size >= planning.BATCH:
                    yield from self._made(batch)
                    batch, size = [], 0
        if batch:
            yield from self._made(batch)

    def _made(self, keys: list[Any]) -> Iterator[Any]:
        part, _ = cull(self.graph, keys)
        for chunk in _popped(list(dask.get(part, keys))):
            yield _checked_chunk(chunk)


def _popped(made: list[Any]) -> Iterator[Any]:
    """Give the items one by one, and refer to none that was given."""
    while made:
        yield made.pop(0)


def recipes(slabs: Any) -> list[Recipe] | None:
    """Cut the graph into one self-contained part a slab.

    None where slabs share work (a mean that all subtract, say), since each slab would repeat it,
    or where the graph refers to data on a cluster: such a matrix is computed by Dask as a whole.
    """
    assert slabs.graph is not None
    if any(is_future(node) for node in slabs.graph.values()):
        return None
    found: list[Recipe] = []
    seen: set[Any] = set()
    for key, layout in zip(slabs.blocks, slabs.layouts, strict=True):
        part, needs = cull(slabs.graph, [key])
        work = _work(needs)
        if work & seen:
            return None
        seen |= work
        plain = not (slabs.sparse or slabs.observed)
        several = plain and len(layout.grid) * len(layout.grid[0]) > 1
        alone = several and _apart(part, [k for row in layout.grid for k in row])
        found.append(
            Recipe(dict(part), key, layout if alone else None, slabs.transposed, slabs.dtype)
        )
    return found


def _work(needs: dict[Any, Any]) -> set[Any]:
    """Keys of tasks that depend on others: what would be repeated, were it needed twice."""
    return {key for key, parents in needs.items() if parents}


def _apart(graph: dict[Any, Any], keys: list[Any]) -> bool:
    """Whether no two of ``keys`` share work."""
    seen: set[Any] = set()
    for key in keys:
        work = _work(cull(graph, [key])[1])
        if work & seen:
            return False
        seen |= work
    return True


def is_future(node: Any) -> bool:
    """Whether a graph node is data that a cluster already holds."""
    module = sys.modules.get("distributed")
    return module is not None and isinstance(node, module.Future)


def small_recipes(slabs: Any) -> list[Recipe] | None:
    """Give the recipes of all slabs; None where there are none, or they carry data."""
    found = recipes(slabs)
    if found is None:
        return None
    size = max(len(cloudpickle.dumps(recipe)) for recipe in found[:2])
    return found if size < LARGE_RECIPE else None
