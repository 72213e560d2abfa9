"""A walk over a slab, tile by tile: what rows are solved from, and their share while it is near.

Arrays that grow with the tile or with V's columns are used again, by one walk after the other. Made
anew they are fresh pages each time (Dask's workers give such memory back at once), and threads wait
for each other while the system hands them out: with Dask's settings, two threads of a worker took
half as long again for a visit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from dasknmf.numerics.kernels import Array, Float64, Slab, csr_parts, is_sparse, loops, own, unit_of

WALK_BYTES = 4 << 20  # of a tile: near when it is used again, and worth the Python around it
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


class Scratch:
    """Arrays by name, each as large as the largest that was asked for; their content is lost."""

    def __init__(self) -> None:
        self._held: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
        """An uninitialised array; what was taken under this name before is overwritten."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, np.uint8)
        found: Array = held[:size].view(dtype).reshape(shape)
        return found


class Side:
    """The factors of an ensemble that stay fixed (columns of V × k each), ready for products.

    Made once for all slabs; threads that visit them at a time take turns with the scratch.
    """

    def __init__(self, fixed: Sequence[Array]) -> None:
        edges = [0, *itertools.accumulate(F.shape[1] for F in fixed)]
        self.models = [slice(a, b) for a, b in itertools.pairwise(edges)]
        wide = fixed[0] if len(fixed) == 1 else np.concatenate(list(fixed), axis=1)
        self.wide = own(wide)
        self._idle: list[Scratch] = []

    @cached_property
    def scaled(self) -> tuple[Array, float]:
        """For dense slabs: near one by a power of two, as in ``matmul``, and that power.

        So nothing leaves float32's range.
        """
        unit = unit_of(self.wide)
        return own(self.wide * (1.0 / unit)), unit

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """What no other thread uses meanwhile."""
        try:
            some = self._idle.pop()
        except IndexError:
            some = Scratch()
        try:
            yield some
        finally:
            self._idle.append(some)


class Walk:
    """Least squares on a slab V with one side fixed.

    Iterating gives (start, stop, [V[start:stop] @ F for each F]), in float64; the products are
    overwritten by the next tile's. :meth:`add` then takes the rows that were solved from them.
    """

    def __init__(self, V: Slab, side: Side, scratch: Scratch) -> None:
        self.V, self.side, self.scratch = V, side, scratch
        self._sparse = is_sparse(V)
        if self._sparse:
            self._fixed, self._unit = side.wide, 1.0
        else:
            scaled, self._unit = side.scaled
            self._fixed = own(scaled.astype(V.dtype, copy=False))
        self._total: Float64 | None = None

    def __iter__(self) -> Iterator[tuple[int, int, list[Float64]]]:
        for start, stop, tile in row_tiles(self.V, self.side.wide.shape[1]):
            self._tile = tile if self._sparse else own(tile)
            yield start, stop, self._products(stop - start)

    def _products(self, height: int) -> list[Float64]:
        """One for each model, contiguous."""
        side, take = self.side, self.scratch.take
        wide = (height, self._fixed.shape[1])
        if self._sparse:
            product = take("product", wide)
            loops().csr_matmul(*csr_parts(self._tile), self._fixed, product)
            if len(side.models) == 1:
                return [product]
        else:
            product = take("product", wide, self._fixed.dtype)
            np.matmul(self._tile, self._fixed, out=product)
        found = []
        for n, model in enumerate(side.models):
            cross = take(f"cross {n}", (height, model.stop - model.start))
            np.multiply(product[:, model], self._unit, out=cross, dtype=np.float64)
            found.append(cross)
        return found

    def add(self, rows: Sequence[Array]) -> None:
        """Add the tile's share of Vᵀ W, W being its rows of every model."""
        wide = rows[0] if len(rows) == 1 else np.concatenate(list(rows), axis=1)
        if self._total is None:
            self._total = np.zeros(self._fixed.shape)
        if self._sparse:
            loops().csr_t_matmul(*csr_parts(self._tile), own(wide), self._total)
            return
        dtype, unit = self._fixed.dtype, unit_of(wide)
        scaled = self.scratch.take("rows", wide.shape, dtype)
        np.multiply(wide, 1.0 / unit, out=scaled)
        partial = self.scratch.take("partial", self._total.shape, dtype)
        np.matmul(self._tile.T, scaled, out=partial)
        loops().add_scaled(own(partial), unit, self._total)

    def shares(self) -> list[Float64]:
        """Vᵀ W of every model over the tiles that were added."""
        total = np.zeros(self._fixed.shape) if self._total is None else self._total
        return [np.ascontiguousarray(total[:, model]) for model in self.side.models]
