"""A walk over a slab, tile by tile: what rows are solved from, and their share while it is near.

Arrays that grow with the tile or with V's columns are made once a walk. Made anew for every tile
they are fresh pages each time (Dask's workers give such memory back at once), and threads wait for
each other while the system hands them out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from dasknmf.numerics.kernels import Array, Float64, Slab, csr_parts, is_sparse, loops, own, unit_of

WALK_BYTES = 2 << 20  # of a tile: near when it is used again, and worth the Python of a dozen calls
SHARES = 4  # times what a tile brings to the other half: smaller ones cost more than they gain


def row_tiles(V: Slab, width: int) -> Iterator[tuple[int, int, Slab]]:
    """Stretches of rows of a slab, (start, stop, rows), that are near when they are used again.

    So are ``width`` columns of results in float64. What every tile costs is its share of the other
    half, columns × width: it is no smaller than a few of those. No worker or thread counts.
    """
    height = _height(V, width)
    sparse = is_sparse(V)
    for start in range(0, V.shape[0], height):
        stop = min(start + height, V.shape[0])
        yield start, stop, _csr_rows(V, start, stop) if sparse else V[start:stop]


def _height(V: Slab, width: int) -> int:
    rows, columns = V.shape
    stored: int = V.data.nbytes * 2 // max(rows, 1) if is_sparse(V) else columns * V.dtype.itemsize
    smallest: int = max(WALK_BYTES, SHARES * columns * width * 8)
    return max(64, smallest // max(stored, 2 * width * 8, 1))


def _csr_rows(V: Slab, start: int, stop: int) -> Slab:
    """Rows of a CSR slab; its entries are not copied."""
    if start == 0 and stop == V.shape[0]:
        return V
    first, last = V.indptr[start], V.indptr[stop]
    part = sp.csr_array((stop - start, V.shape[1]), dtype=V.dtype)
    part.data, part.indices = V.data[first:last], V.indices[first:last]  # made of them, it copies
    part.indptr = V.indptr[start : stop + 1] - first
    return part


class Walk:
    """Least squares on a slab V for an ensemble with the factors ``fixed`` (columns of V × k each).

    Iterating gives (start, stop, [V[start:stop] @ F for each F]), in float64; the products are
    overwritten by the next tile's. :meth:`add` then takes the rows that were solved from them.
    """

    def __init__(self, V: Slab, fixed: Sequence[Array]) -> None:
        self.V = V
        edges = [0, *itertools.accumulate(F.shape[1] for F in fixed)]
        self._models = [slice(a, b) for a, b in itertools.pairwise(edges)]
        wide = fixed[0] if len(fixed) == 1 else np.concatenate(list(fixed), axis=1)
        self._shape = wide.shape
        self._sparse = is_sparse(V)
        height = min(_height(V, wide.shape[1]), V.shape[0])
        self._cross: Float64 = np.empty((height, wide.shape[1]))
        self._total: Float64 | None = None
        if self._sparse:
            self._fixed = own(wide)
            return
        # As in ``matmul``: near one by a power of two, so that nothing leaves float32's range.
        self._unit = unit_of(wide)
        self._fixed = own((wide * (1.0 / self._unit)).astype(V.dtype, copy=False))
        self._product = np.empty(self._cross.shape, V.dtype)
        self._partial = np.empty((0, 0), V.dtype)

    def __iter__(self) -> Iterator[tuple[int, int, list[Float64]]]:
        for start, stop, tile in row_tiles(self.V, self._shape[1]):
            self._tile = tile if self._sparse else own(tile)
            cross = self._cross[: stop - start]
            if self._sparse:
                loops().csr_matmul(*csr_parts(tile), self._fixed, cross)
            else:
                product = self._product[: stop - start]
                np.matmul(self._tile, self._fixed, out=product)
                np.multiply(product, self._unit, out=cross, dtype=np.float64)
            yield start, stop, [cross[:, model] for model in self._models]

    def add(self, rows: Sequence[Array]) -> None:
        """Add the tile's share of Vᵀ W, W being its rows of every model."""
        wide = rows[0] if len(rows) == 1 else np.concatenate(list(rows), axis=1)
        if self._total is None:
            self._total = np.zeros(self._shape)
        if self._sparse:
            loops().csr_t_matmul(*csr_parts(self._tile), own(wide), self._total)
            return
        if not self._partial.size:
            self._partial = np.empty(self._shape, self._fixed.dtype)
        unit = unit_of(wide)
        scaled = own((wide * (1.0 / unit)).astype(self._fixed.dtype, copy=False))
        np.matmul(self._tile.T, scaled, out=self._partial)
        loops().add_scaled(own(self._partial), unit, self._total)

    def shares(self) -> list[Float64]:
        """Vᵀ W of every model over the tiles that were added."""
        total = np.zeros(self._shape) if self._total is None else self._total
        return [np.ascontiguousarray(total[:, model]) for model in self._models]
