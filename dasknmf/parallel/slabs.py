"""Any matrix as slabs of whole rows of its long side: the shape in which everything reads V.

The layout is a function of the matrix (its shape, dtype and chunks) alone. A wide matrix is handled
as its transpose, so a slab is then a block of columns.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.base import tokenize
from dask.sizeof import sizeof

from dasknmf.numerics import planning
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.observed import Observed
from dasknmf.parallel.loading import Layout, assemble, is_future, work_dtype

logger = logging.getLogger("dasknmf")


@dataclass(frozen=True)
class Slabs:
    """A matrix cut for streaming.

    shape, edges
        Of the streamed orientation: rows are the long side.
    blocks
        One entry a slab: the array itself, or the key in ``graph`` of what becomes it.
    graph
        Dask graph that makes the blocks; None where they are in memory.
    layouts
        How the chunks of every slab lie, where there is a graph.
    observed, extra
        Whether the blocks know which of their entries count, and bytes of weights an entry.
    """

    shape: tuple[int, int]
    edges: tuple[int, ...]
    dtype: np.dtype[Any]
    sparse: bool
    transposed: bool
    blocks: tuple[Any, ...]
    graph: dict[Any, Any] | None
    layouts: tuple[Layout, ...] = ()
    observed: bool = False
    extra: int = 0

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def places(self) -> list[Place]:
        """Number and rows of every slab."""
        edges = self.edges
        return [Place(i, edges[i], edges[i + 1]) for i in range(len(edges) - 1)]

    @property
    def nbytes(self) -> int | None:
        """Bytes of all slabs in memory; None for sparse slabs that nobody has read yet."""
        if self.graph is None:
            return sum(_nbytes(block) for block in self.blocks)
        size = self.dtype.itemsize + self.extra
        return None if self.sparse else self.shape[0] * self.shape[1] * size


def _nbytes(block: Any) -> int:
    if isinstance(block, Observed):
        return block.nbytes
    if sp.issparse(block):
        return int(block.data.nbytes + block.indices.nbytes + block.indptr.nbytes)
    return int(block.nbytes)


@sizeof.register((sp.csr_array, sp.csc_array, sp.csr_matrix, sp.csc_matrix))
def _sizeof_sparse(matrix: Any) -> int:
    """True size of a sparse slab: Dask would say 56 bytes, and never spill or move it."""
    return _nbytes(matrix)


def from_memory(X: Any, transposed: bool) -> Slabs:
    """Cut a numpy array or scipy sparse matrix; a wide or unaligned one is copied once."""
    dtype = work_dtype(X.dtype)
    shape = (X.shape[1], X.shape[0]) if transposed else (X.shape[0], X.shape[1])
    sparse = sp.issparse(X)
    whole = assemble([[X]], ((X.shape[0],), (X.shape[1],)), transposed, dtype)
    total = _nbytes(whole)
    chunks = planning.even_chunks(shape[0], -(-total // shape[0]))
    edges = (0, *accumulate(chunks))
    blocks = tuple(whole[a:b] for a, b in pairwise(edges))
    return Slabs(shape, edges, dtype, sparse, transposed, blocks, None)


def from_dask(X: da.Array, transposed: bool, *, merge: bool = True) -> Slabs:
    """Cut a Dask array along its chunks; one that is chunked across the short side is rechunked.

    ``merge=False`` keeps one slab for each chunk of the long side.
    """
    dtype = work_dtype(X.dtype)
    sparse = sp.issparse(X._meta)
    X = _whole_rows(X, transposed, dtype.itemsize)
    along, across = X.chunks[::-1] if transposed else X.chunks
    shape = (sum(along), sum(across))
    row_bytes = shape[1] * dtype.itemsize
    groups = planning.merged_chunks(along, row_bytes) if merge and not sparse else (1,) * len(along)
    if len(groups) < len(along):
        logger.info("%d chunks of rows are read as %d slabs", len(along), len(groups))
    X, graph = _graph_of(X)
    name = f"nmf-slab-{tokenize(X.name, transposed, dtype, groups)}"
    ends = tuple(accumulate(groups))
    layouts = []
    for i, (members, end) in enumerate(zip(groups, ends, strict=True)):
        layout = _layout(X, graph, range(end - members, end), transposed)
        make = partial(assemble, sizes=layout.sizes, transposed=transposed, dtype=dtype)
        graph[(name, i)] = (make, layout.grid)
        layouts.append(layout)
    rows_before = (0, *accumulate(along))
    edges = (0, *(rows_before[end] for end in ends))
    blocks = tuple((name, i) for i in range(len(groups)))
    return Slabs(shape, edges, dtype, sparse, transposed, blocks, graph, tuple(layouts))


def _graph_of(X: da.Array) -> tuple[da.Array, dict[Any, Any]]:
    """The optimised graph; as it stands where it refers to futures, which optimising drops."""
    graph = dict(X.__dask_graph__())
    if not any(is_future(node) for node in graph.values()):
        (X,) = dask.optimize(X)
        graph = dict(X.__dask_graph__())
    return X, graph


def _layout(X: da.Array, graph: dict[Any, Any], chunks: range, transposed: bool) -> Layout:
    """Keys of the chunks that form one slab (futures themselves), laid out as in X."""
    rows, columns = (range(n) for n in X.numblocks)
    rows, columns = (rows, chunks) if transposed else (chunks, columns)
    keys = [[(X.name, row, column) for column in columns] for row in rows]
    grid = [[graph[key] if is_future(graph[key]) else key for key in row] for row in keys]
    heights, widths = ([X.chunks[i][n] for n in along] for i, along in enumerate((rows, columns)))
    return Layout(grid, tuple(heights), tuple(widths))


def _sliceable(chunk: Any) -> Any:
    """Make a chunk one that Dask can cut: COO (whose meta is numpy's even), BSR and DOK are not."""
    return sp.csr_array(chunk) if sp.issparse(chunk) else chunk


def _whole_rows(X: da.Array, transposed: bool, itemsize: int) -> da.Array:
    """Rechunk, once, an array whose slabs would be cut across, and drop empty chunks."""
    along, across = (1, 0) if transposed else (0, 1)
    rows, width = X.shape[along], X.shape[across]
    chunks = tuple(c for c in X.chunks[along] if c)
    tall = max(chunks) * width * itemsize > 2 * planning.LARGEST
    method = "tasks" if sp.issparse(X._meta) else None  # what workers exchange by is for numpy's
    if len(X.chunks[across]) > 1 and (tall or len(chunks) == 1):
        chunks = planning.even_chunks(rows, width * itemsize)
        logger.info(
            "X has chunks %s: rechunked once to slabs of whole %s, %s",
            X.chunksize, "columns" if transposed else "rows", {along: chunks[0], across: width},
        )  # fmt: skip
        X = da.map_blocks(_sliceable, X, dtype=X.dtype, meta=X._meta)
        return X.rechunk({along: chunks, across: -1}, method=method)
    if chunks != X.chunks[along] or any(c == 0 for c in X.chunks[across]):
        across_chunks = tuple(c for c in X.chunks[across] if c)
        return X.rechunk({along: chunks, across: across_chunks}, method=method)
    return X


def cut(X: Any, *, whole_rows: bool = False) -> Slabs:
    """Slabs of a numpy array, scipy sparse matrix or Dask array of two dimensions.

    ``whole_rows`` cuts along the rows whatever the shape, one slab for each Dask chunk.
    """
    transposed = not whole_rows and X.shape[1] > X.shape[0]
    if isinstance(X, da.Array):
        return from_dask(X, transposed, merge=not whole_rows)
    return from_memory(X, transposed)
