"""Bi-cross-validation: rows and columns are cut into groups, and a block of both is held out.

With the held-out block A, its rows' other columns B, its columns' other rows C, and the rest D,

    V = | A  B |      D ≈ W_D H_D                     the fit, which sees D alone
        | C  D |      W_A = argmin over W >= 0 of |B - W H_D|²
                      H_A = argmin over H >= 0 of |C - W_D H|²
                      error of the fold = |A - W_A H_A|²

Owen & Perry's prediction of A for the non-negative factorisation, over all blocks: each is held out
once. No entry of A is seen by its fit, by W_A or by H_A; B and C are seen by the one and the other,
and C by the sample from which the fit of D starts. The authors found half of the rows and half of
the columns, 2 × 2 blocks, to do well.

In an ensemble this costs no read. With the held columns of H zero, rows of all of V are solved for
H_D: those of D and W_A. With the held rows of W zero, the sums over slabs are those of W_D: of the
kept columns for the next H_D, of the held ones for H_A. So folds share the wide products of all
other models. Groups are a hash of (seed, row) and of (seed, column) of X: nothing is stored, and
chunks have no say in it.

A. B. Owen, P. O. Perry: Bi-cross-validation of the SVD and the nonnegative matrix factorization,
Annals of Applied Statistics 3(2), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dasknmf.numerics import kernels
from dasknmf.numerics.inspection import Place, inspect_slab
from dasknmf.numerics.kernels import Array, Float64, Slab, is_sparse, loops
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.solvers.base import Rows
from dasknmf.numerics.terms import Each, Normal, Terms, add
from dasknmf.numerics.weighted import Held, share_of
from dasknmf.numerics.work import ModelSums, Step, StepSums, Work

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
AT_ONCE = 1 << 20  # rows that are counted at a time


@dataclass(frozen=True)
class Blocks:
    """How V is cut: ``parts`` groups of its rows and of its columns.

    ``swapped``: V is the transpose of X, its rows are columns of X.
    """

    parts: tuple[int, int]
    seed: int
    swapped: bool = False

    def rows(self, start: int, stop: int) -> Int64:
        """Groups of rows ``start:stop`` of V."""
        return self.rows_of(np.arange(start, stop))

    def rows_of(self, names: Array) -> Int64:
        """Groups of rows of V by their global numbers."""
        return self._groups(names, self.parts[0], of_columns=self.swapped)

    def columns(self, count: int) -> Int64:
        """Groups of all columns of V."""
        return self._groups(np.arange(count), self.parts[1], of_columns=not self.swapped)

    def _groups(self, names: Array, parts: int, *, of_columns: bool) -> Int64:
        """The hash of an entry that no matrix has: in row -1, or in column -1."""
        nowhere = np.full(names.size, -1, np.int64)
        words = np.empty(names.size, np.uint64)
        rows, columns = (nowhere, names) if of_columns else (names, nowhere)
        loops("entries").hashed(np.uint64(self.seed & (2**64 - 1)), rows, columns, words)
        high = words >> np.uint64(32)
        return ((high * np.uint64(parts)) >> np.uint64(32)).astype(np.int64)

    def counts(self, shape: tuple[int, int]) -> tuple[Int64, Int64]:
        """How many rows and columns of V each group has."""
        parts = self.parts[0]
        rows = np.zeros(parts, np.int64)
        for start in range(0, shape[0], AT_ONCE):
            groups = self.rows(start, min(start + AT_ONCE, shape[0]))
            rows += np.bincount(groups, minlength=parts)
        return rows, np.bincount(self.columns(shape[1]), minlength=self.parts[1])

    def sums(self, V: Slab, start: int) -> tuple[Float64, Float64]:
        """Σ m v² and Σ m over every block of a slab that begins at row ``start`` of V."""
        rows, columns = self.rows(start, start + V.shape[0]), self.columns(V.shape[1])
        if isinstance(V, Observed):
            return self._observed_sums(V, rows, columns)
        amount: Array = np.bincount(rows, minlength=self.parts[0])[:, None] * np.bincount(
            columns, minlength=self.parts[1]
        )
        weight = amount.astype(np.float64)
        if is_sparse(V):
            of = np.repeat(rows, np.diff(V.indptr)) * self.parts[1] + columns[V.indices]
            values = np.square(V.data, dtype=np.float64)
            found = np.bincount(of, values, minlength=amount.size).astype(np.float64)
            return found.reshape(self.parts), weight
        squares = np.empty(self.parts)
        for c in range(self.parts[1]):
            of_rows = kernels.squared_norms(np.ascontiguousarray(V[:, columns == c]))
            squares[:, c] = np.bincount(rows, of_rows, minlength=self.parts[0])
        return squares, weight

    def _observed_sums(self, V: Observed, rows: Int64, columns: Int64) -> tuple[Float64, Float64]:
        number = self.parts[0] * self.parts[1]
        widths = np.bincount(columns, minlength=self.parts[1])
        squares, amount = np.zeros(number), np.zeros(number)
        for tile in V.tiles():
            groups = rows[tile.start : tile.stop] * self.parts[1]
            of = np.repeat(groups, np.diff(tile.marks[:, 0])) + columns[tile.columns]
            squares += np.bincount(of, tile.weight * tile.value**2, minlength=number)
            of = np.repeat(groups, np.diff(tile.marks[:, 1])) + columns[tile.others]
            amount += np.bincount(of, tile.deviation, minlength=number)
            base = np.bincount(rows[tile.start : tile.stop], tile.base, minlength=self.parts[0])
            amount += (base[:, None] * widths).ravel()
        return squares.reshape(self.parts), amount.reshape(self.parts)


@dataclass(frozen=True)
class Fold:
    """The block (``row``, ``column``) of groups is held out."""

    blocks: Blocks
    row: int
    column: int

    def held_rows(self, start: int, stop: int) -> Mask:
        """Which of the rows ``start:stop`` of V are held out."""
        held: Mask = self.blocks.rows(start, stop) == self.row
        return held

    def held_columns(self, count: int) -> Mask:
        """Which columns of V are held out."""
        held: Mask = self.blocks.columns(count) == self.column
        return held

    def masked(self, short: Array) -> Array:
        """The short factor with its held columns zero: H_D."""
        held = self.held_columns(short.shape[0])[:, None]
        return np.where(held, np.zeros((), short.dtype), short)

    def kept(self, sums: Float64) -> float:
        """What D has of the sums over blocks."""
        rows, columns = np.arange(sums.shape[0]), np.arange(sums.shape[1])
        return float(np.sum(sums[np.ix_(rows != self.row, columns != self.column)]))


@dataclass(frozen=True)
class FoldedStep:
    """A step of an ensemble in which some models see only the D of their fold.

    ``step.fixed`` of those has zeros for the held columns. ``folds``: of each model, or None.
    """

    step: Step
    folds: tuple[Fold | None, ...]

    @property
    def name(self) -> str:
        """As that of the step."""
        return self.step.name

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows | None, StepSums]:
        """Visit one slab."""
        step = self.step
        inspection = inspect_slab(V, place) if step.inspect else None
        if inspection is not None and inspection.unfit(V.dtype):
            return rows, StepSums(inspection, ())
        new = _solved(step, V, rows, place)
        kept = tuple(_kept(W, fold, place) for W, fold in zip(new, self.folds, strict=True))
        terms = step.loss.share(V, step.fixed, kept)
        squares = {f.blocks: f.blocks.sums(V, place.start)[0] for f in self.folds if f}
        models = []
        for found, W, price, fold in zip(terms, kept, step.prices, self.folds, strict=True):
            if fold is None:
                models.append(ModelSums(found, price.value(W), 0.0))
                continue
            assert isinstance(found, Normal | Each)
            seen = found._replace(cross=fold.masked(found.cross))
            sums = ModelSums(seen, price.value(W), 0.0, squares=fold.kept(squares[fold.blocks]))
            models.append(sums)
        return new, StepSums(inspection, tuple(models))


class FoldSums(NamedTuple):
    """What the last visit brings of a fold: terms of W_D, terms of W_A on A, Σ m v² and Σ m of A.

    Terms of W_D are of all columns; those of W_A of the held ones, in float64.
    """

    kept: Terms
    held: Terms
    squares: float
    weight: float

    def error(self, fold: Fold, solver: Solver, penalty: Penalty) -> Held:
        """|A - W_A H_A|², H_A being solved from C."""
        assert isinstance(self.kept, Normal | Each)
        columns = np.flatnonzero(fold.held_columns(self.kept.cross.shape[0]))
        of_C = self.kept._replace(cross=self.kept.cross[columns])
        if isinstance(of_C, Each):
            of_C = of_C._replace(packed=of_C.packed[columns])
        H = solver.half_step(np.zeros(of_C.cross.shape), of_C, penalty)
        return Held(2.0 * Frobenius().value(self.held, H, self.squares), self.weight)


@dataclass(frozen=True)
class FoldErrors:
    """The last visit to a slab for models with folds."""

    step: Step
    folds: tuple[Fold, ...]
    name: str = "nmf-fold-errors"

    def __call__(
        self, V: Slab, rows: Rows | None, place: Place
    ) -> tuple[None, tuple[FoldSums, ...]]:
        """Visit one slab."""
        step = self.step
        new = _solved(step, V, None, place)
        kept = tuple(_kept(W, fold, place) for W, fold in zip(new, self.folds, strict=True))
        terms = step.loss.share(V, step.fixed, kept)
        sums = {blocks: blocks.sums(V, place.start) for blocks in {f.blocks for f in self.folds}}
        found = []
        for number, fold in enumerate(self.folds):
            squares, amount = (part[fold.row, fold.column] for part in sums[fold.blocks])
            held = _on_held(V, new[number], fold, place)
            found.append(FoldSums(terms[number], held, float(squares), float(amount)))
        return None, tuple(found)


class Both(NamedTuple):
    """What two visits bring; with bad values in any slab, the second brings nothing."""

    first: Any
    second: tuple[FoldSums, ...]

    @staticmethod
    def merge(parts: Sequence[Both]) -> Both:
        """Add up both."""
        known = all(part.second for part in parts)
        second = add([part.second for part in parts]) if known else ()
        return Both(add([part.first for part in parts]), second)


@dataclass(frozen=True)
class Together:
    """A visit to a slab and one of folds, while it is in memory; rows are those of the first."""

    first: Work
    second: FoldErrors

    @property
    def name(self) -> str:
        """As that of the first."""
        return self.first.name

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows | None, Any]:
        """Visit one slab."""
        new, sums = self.first(V, rows, place)
        if new is None:  # bad values, which the sums tell
            return new, Both(sums, ())
        return new, Both(sums, self.second(V, None, place)[1])


def _solved(step: Step, V: Slab, rows: Rows | None, place: Place) -> Rows:
    old = step.starting_rows(rows, place)
    return step.solver.rows(step.loss, V, old, step.fixed, step.prices, step.gains)


def _kept(W: Array, fold: Fold | None, place: Place) -> Array:
    """Rows of a slab with the held ones zero: W_D."""
    if fold is None:
        return W
    held = fold.held_rows(place.start, place.stop)[:, None]
    return np.where(held, np.zeros((), W.dtype), W)


def _on_held(V: Slab, W: Array, fold: Fold, place: Place) -> Terms:
    """Terms of W_A on the block A, in float64: an error far below |A|² keeps its digits."""
    rows = np.flatnonzero(fold.held_rows(place.start, place.stop))
    columns = np.flatnonzero(fold.held_columns(V.shape[1]))
    W_A = W[rows].astype(np.float64)
    if isinstance(V, Observed):
        nothing = np.zeros((V.shape[1], W.shape[1]))
        terms = share_of(V[rows], [nothing], [W_A])[0]
        return Each(terms.cross[columns], terms.gram, terms.packed[columns])
    A = V[rows][:, columns].astype(np.float64)
    return Normal(kernels.matmul(A.T, W_A), kernels.gram(W_A))
