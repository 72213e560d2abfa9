"""A slab of which not every entry counts: missing ones, weights, and entries that are held out.

Everything behind it sees one kind of slab: :class:`Observed` knows the values, the weights and the
rule by which entries are missing, and gives tiles of rows as lists (:class:`Lists`), on which the
kernels of least squares and of Kullback-Leibler work. Nothing of the size of V is ever copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from dasknmf.numerics.kernels import Array, Float64, Slab, is_sparse, loops, own

TILE = 1 << 17  # entries whose lists are held at a time
TALLEST = 1024  # rows of a dense tile: all models' coefficients are held for so many
ZERO, NAN, UNSTORED = "zero", "nan", "unstored"


@dataclass(frozen=True)
class Holdout:
    """Entries hidden from a fit to judge it: ``share`` of them, by a hash of (seed, row, column).

    Nothing is stored, and the chunks of a matrix have no say in it.
    """

    share: float
    seed: int

    @property
    def below(self) -> np.uint64:
        """Words of 64 bits less than this one hide their entry."""
        return np.uint64(min(int(self.share * 2.0**64), 2**64 - 1))

    @property
    def key(self) -> np.uint64:
        """The seed as 64 bits."""
        return np.uint64(self.seed & (2**64 - 1))

    def hides(self, rows: Array, columns: Array) -> Array:
        """Whether it hides the entries at (rows, columns): global indices of X, one dimension."""
        words = np.empty(rows.size, np.uint64)
        loops("entries").hashed(self.key, rows.astype(np.int64), columns.astype(np.int64), words)
        hidden: Array = words < self.below
        return hidden


@dataclass(frozen=True)
class Rule:
    """Which entries of X are missing: none but those of weight zero, NaN, or what is not stored."""

    missing: str = ZERO
    holdout: Holdout | None = None


class Lists(NamedTuple):
    """Rows ``start:stop`` of a slab as lists; see ``kernels/entries.py``.

    ``product``: V ∘ M of a dense tile in place of the lists of observed entries, which are empty
    then; zero rows fill it up to the height that all tiles of such columns have.
    """

    start: int
    stop: int
    base: Float64
    marks: Array  # ends of the lists of each row: (rows + 1) × 3
    columns: Array  # of the observed entries
    value: Float64
    weight: Float64
    others: Array  # columns that deviate from the base
    deviation: Float64
    held: tuple[Array, Float64, Float64]
    product: Float64 | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return self.stop - self.start

    @property
    def kernel_lists(self) -> tuple[Array, ...]:
        """What the kernels walk along."""
        return self.columns, self.value, self.weight, self.others, self.deviation


@dataclass(frozen=True)
class Observed:
    """Rows of V with what says how much each entry counts.

    values
        Dense or CSR, r × c.
    weights
        None (all 1), or r × c: dense, or CSR, of which what is not stored weighs nothing.
    names
        Global numbers of the rows, int64; ``swapped``: they are columns of X, V being its
        transpose.
    kept
        What :meth:`products` gives, where it was asked for once and for all.
    """

    values: Slab
    weights: Any
    rule: Rule
    names: Array
    swapped: bool = False
    kept: tuple[Lists, ...] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.values.shape
        return int(rows), int(columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values, and so of the factors."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        parts = [self.names]
        for matrix in (self.values, self.weights):
            if is_sparse(matrix):
                parts += [matrix.data, matrix.indices, matrix.indptr]
            elif matrix is not None:
                parts.append(matrix)
        return int(sum(part.nbytes for part in parts))

    def __getitem__(self, rows: Any) -> Observed:
        """Some of the rows, which keep their numbers."""
        weights = None if self.weights is None else self.weights[rows]
        values, names = self.values[rows], self.names[rows]
        return replace(self, values=values, weights=weights, names=names, kept=None)

    @staticmethod
    def stacked(parts: Sequence[Observed]) -> Observed:
        """Rows of several slabs under one another."""
        first = parts[0]
        weights = None
        if first.weights is not None:
            weights = stacked([part.weights for part in parts])
        return replace(
            first,
            values=stacked([part.values for part in parts]),
            weights=weights,
            names=np.concatenate([part.names for part in parts]),
            kept=None,
        )

    def root(self) -> Observed:
        """The square roots of the values."""
        return replace(self, values=np.sqrt(self.values), kept=None)

    def keeping(self) -> Observed:
        """The same, its tiles for least squares made once: for few rows that are visited often."""
        return replace(self, kept=tuple(_compact(tile) for tile in self.products()))

    @property
    def listed(self) -> bool:
        """Whether only stored entries (of the values, or of the weights) can count at all."""
        return self.rule.missing == UNSTORED or is_sparse(self.weights)

    @property
    def complete(self) -> bool:
        """Whether the lists name every observed entry, zeros included."""
        return self.listed or not is_sparse(self.values)

    def tiles(self) -> Iterator[Lists]:
        """The rows as lists, so many at a time that their lists stay in the cache."""
        rows, columns = self.shape
        mean = columns
        if self.listed:
            stored = self.values if self.rule.missing == UNSTORED else self.weights
            mean = -(-stored.data.size // max(rows, 1))
        height = max(1, TILE // max(mean, 1))
        for start in range(0, rows, height):
            yield self._lists(start, min(start + height, rows))

    def products(self) -> Iterator[Lists]:
        """The same for least squares: dense tiles as products, which all models share."""
        if self.kept is not None:
            yield from self.kept
        elif self.listed or is_sparse(self.values):
            yield from self.tiles()
        else:
            rows, columns = self.shape
            height = min(max(1, TILE // max(columns, 1)), TALLEST)
            for start in range(0, rows, height):
                yield self._product(start, min(start + height, rows), height)

    @property
    def _hashed(self) -> tuple[np.uint64, np.uint64]:
        """The seed of the hash, and below which word entries are held out."""
        holdout = self.rule.holdout
        return (np.uint64(0),) * 2 if holdout is None else (holdout.key, holdout.below)

    def _lists(self, start: int, stop: int) -> Lists:
        rows, columns = stop - start, self.shape[1]
        rule, names = (*self._hashed, self.swapped), own(self.names[start:stop])
        base, marks = np.zeros(rows), np.zeros((rows + 1, 3), np.int64)
        if self.listed:
            indptr, index, v, m = self._stored(start, stop)
            lists = _empty_lists(v.size)
            walk = loops("entries").listed_rows
            walk(indptr, index, v, m, rule, names, marks, lists)
        else:
            v, m = self._tile(start, stop)
            lists = _empty_lists(rows * columns)
            loops("entries").grid_rows(v, m, self.complete, rule, names, base, marks, lists)
        oi, ov, ow, di, dw, hi, hv, hw = lists
        observed, deviating, held = marks[-1]
        return Lists(
            start, stop, base, marks, own(oi[:observed]), own(ov[:observed]), own(ow[:observed]),
            di[:deviating], dw[:deviating], (hi[:held], hv[:held], hw[:held]),
        )  # fmt: skip

    def _product(self, start: int, stop: int, height: int) -> Lists:
        rows, columns = stop - start, self.shape[1]
        rule, names = (*self._hashed, self.swapped), own(self.names[start:stop])
        base, marks = np.zeros(rows), np.zeros((rows + 1, 3), np.int64)
        v, m = self._tile(start, stop)
        product = np.zeros((height, columns))
        lists = _empty_lists(rows * columns)[3:]
        loops("entries").grid_products(v, m, rule, names, base, marks, lists, product)
        di, dw, hi, hv, hw = lists
        _, deviating, held = marks[-1]
        none, nothing = own(np.empty(0, np.int32)), own(np.empty(0))
        return Lists(
            start, stop, base, marks, none, nothing, nothing, di[:deviating], dw[:deviating],
            (hi[:held], hv[:held], hw[:held]), product,
        )  # fmt: skip

    def _tile(self, start: int, stop: int) -> tuple[Float64, Float64]:
        """Values and weights of a few rows, dense; NaN where an entry is missing."""
        part = self.values[start:stop]
        v = own((part.toarray() if is_sparse(part) else part).astype(np.float64))
        m = np.empty((0, 0)) if self.weights is None else self.weights[start:stop]
        return v, own(m.astype(np.float64))

    def _stored(self, start: int, stop: int) -> tuple[Array, Array, Float64, Float64]:
        """Where the entries of a few rows are that can count, their values and weights."""
        if self.rule.missing == UNSTORED:
            indptr, index = _pattern(self.values[start:stop])
            v = self.values[start:stop].data
            m = np.ones(v.size)
            if self.weights is not None:
                m = _at(self.weights, start, stop, indptr, index)
        else:
            indptr, index = _pattern(self.weights[start:stop])
            m = self.weights[start:stop].data
            v = _at(self.values, start, stop, indptr, index)
        return indptr, index, own(v.astype(np.float64)), own(m.astype(np.float64))


def stacked(blocks: Sequence[Any]) -> Any:
    """Blocks of rows under one another: dense, CSR or :class:`Observed`."""
    if isinstance(blocks[0], Observed):
        return Observed.stacked(blocks)
    return sp.vstack(blocks, format="csr") if sp.issparse(blocks[0]) else np.concatenate(blocks)


def _compact(tile: Lists) -> Lists:
    """Without the room that lists were given to grow."""
    lists = (own(part.copy()) for part in tile.kernel_lists)
    held = (tile.held[0].copy(), tile.held[1].copy(), tile.held[2].copy())
    columns, value, weight, others, deviation = lists
    return Lists(
        tile.start, tile.stop, tile.base, tile.marks, columns, value, weight, others, deviation,
        held, tile.product,
    )  # fmt: skip


def _empty_lists(size: int) -> tuple[Array, ...]:
    def index() -> Array:
        return np.empty(size, np.int32)

    def real() -> Array:
        return np.empty(size)

    return index(), real(), real(), index(), real(), index(), real(), real()


def _pattern(matrix: Any) -> tuple[Array, Array]:
    return own(matrix.indptr.astype(np.int64)), own(matrix.indices.astype(np.int64))


def _at(matrix: Any, start: int, stop: int, indptr: Array, index: Array) -> Array:
    """Entries of a few rows, by their lists."""
    part = matrix[start:stop]
    if not is_sparse(part):
        rows = np.repeat(np.arange(stop - start), np.diff(indptr))
        found: Array = part[rows, index]
        return found
    out = np.empty(index.size)
    data = own(part.data.astype(np.float64))
    loops("entries").looked_up(*_pattern(part), data, indptr, index, out)
    return out
