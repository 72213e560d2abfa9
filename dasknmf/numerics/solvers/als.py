"""Alternating non-negative least squares, each row solved exactly.

    min over F >= 0 of 1/2 <F G, F> - <C, F>,   row by row: f = argmin 1/2 f G fᵀ - c fᵀ

The unconstrained solution, clipped, is only the start (that alone is not NNLS, and its loss can
rise). Where few of its coefficients are negative, those that end as zero are found by pivots; else
coordinate descent goes on from there, and rows still moving are finished by an active set. The
result depends on V and the fixed factor alone, so no rows have to be carried.

H. Kim, H. Park: SIAM J. Matrix Anal. Appl. 30(2), 2008 (ANLS); R. Bro, S. de Jong: A fast
non-negativity-constrained least squares algorithm, J. Chemometrics 11, 1997 (the finish).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, final

import numpy as np

from dasknmf.numerics import kernels, weighted
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.kernels.walk import Side, Walk
from dasknmf.numerics.losses import Frobenius, Loss
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.base import Gains, Prices, Rows, Solver
from dasknmf.numerics.terms import Each, Fitted, Normal, Terms


class Ready(NamedTuple):
    """The fixed factors, and of each model its Gram matrix and what rows are solved with."""

    side: Side
    systems: tuple[tuple[Float64, kernels.RowSystem], ...]


@final
@dataclass(frozen=True)
class ALS(Solver):
    """Exact rows. A few sweeps find most of the zeros; the active set finishes what still moves.

    tol
        Steps smaller than this part of the largest one are none: rounding.
    gain
        A row is left where less than this part of cᵀw is still to be gained.
    warm
        Start from the old rows. The solution is the same to ``gain``, and found sooner when the
        rows were close; without it, a row depends on V and the fixed factor alone.
    shares
        Whether slabs bring what the other half needs, or only their loss, for one product less.
        With weights they always do.
    """

    name: ClassVar[str] = "als"
    needs: ClassVar[tuple[type, ...]] = (Normal,)
    carries_rows: ClassVar[bool] = False
    takes_waves: ClassVar[bool] = True

    sweeps: int = 24
    tol: float = 1e-10
    gain: float = 0.0
    warm: bool = False
    shares: bool = True

    def ending(self) -> ALS:
        """Rows and their loss."""
        return replace(self, shares=False)

    def loosened(self, gain: float, *, warm: bool = False) -> ALS:
        """Stop where less than ``gain`` is left."""
        return replace(self, gain=gain, warm=warm)

    def ready(self, fixed: Rows, prices: Prices) -> Ready:
        """Gram matrices, and what rows are solved with."""
        found = []
        for F, price in zip(fixed, prices, strict=True):
            G = kernels.gram(F)
            priced = price.apply(Normal(np.zeros((0, G.shape[0])), G), F)
            assert isinstance(priced, Normal)
            found.append((G, kernels.row_system(priced.gram)))
        return Ready(Side(fixed), tuple(found))

    def rows(
        self, loss: Loss, V: Slab, old: Rows, fixed: Rows, prices: Prices, gains: Gains = None
    ) -> Rows:
        """Tile by tile; the old rows are not looked at (``warm`` counts in :meth:`update`)."""
        if isinstance(V, Observed):
            rules = self._rules(prices, gains)
            return tuple(weighted.least_squares(V, fixed, rules, share=False)[0])
        assert isinstance(loss, Frobenius)
        ready = self.ready(fixed, prices)
        with ready.side.scratch() as scratch:
            walk = Walk(V, ready.side, scratch)
            return self._rows(walk, fixed, prices, gains, ready, lambda products, rows: None)

    def visit(
        self, loss: Loss, V: Slab, old: Rows, fixed: Rows, prices: Prices, gains: Gains = None,
        ready: Any = None,
    ) -> tuple[Rows, list[Terms]]:  # fmt: skip
        """Rows and their share in one walk over the slab: a tile is used twice while it is near."""
        if isinstance(V, Observed):
            rows, terms = weighted.least_squares(V, fixed, self._rules(prices, gains))
            return tuple(rows), list(terms)
        assert isinstance(loss, Frobenius)
        ready, explained = ready or self.ready(fixed, prices), [0.0] * len(fixed)

        def explain(products: Sequence[Float64], rows: Sequence[Array]) -> None:
            for n, (cross, W) in enumerate(zip(products, rows, strict=True)):
                explained[n] += float(np.vdot(cross, W))

        def bring(products: Sequence[Float64], rows: Sequence[Array]) -> None:
            walk.add(rows)

        with ready.side.scratch() as scratch:
            walk = Walk(V, ready.side, scratch)
            use = bring if self.shares else explain
            new = self._rows(walk, fixed, prices, gains, ready, use)
        grams = [kernels.gram(W) for W in new]
        if not self.shares:
            return new, [Fitted(*pair) for pair in zip(explained, grams, strict=True)]
        return new, [Normal(*pair) for pair in zip(walk.shares(), grams, strict=True)]

    def _rows(
        self, walk: Walk, fixed: Rows, prices: Prices, gains: Gains, ready: Ready,
        use: Callable[[Sequence[Float64], Sequence[Array]], None],
    ) -> Rows:  # fmt: skip
        """Rows of every model; ``use`` gets each tile's products and rows, while they are near."""
        new = tuple(np.empty((walk.V.shape[0], F.shape[1]), F.dtype) for F in fixed)
        for start, stop, products in walk:
            for n, (cross, F) in enumerate(zip(products, fixed, strict=True)):
                gram, system = ready.systems[n]
                terms = prices[n].apply(Normal(cross, gram), F)
                assert isinstance(terms, Normal)
                gain = self.gain if gains is None else gains[n]
                out = walk.scratch.take("solved", cross.shape)
                new[n][start:stop] = kernels.solve_rows(
                    terms.cross, system, None, self.sweeps, self.tol, gain, out
                )
            use(products, [W[start:stop] for W in new])
        return new

    def _rules(self, prices: Prices, gains: Gains) -> list[weighted.Solve]:
        return [
            weighted.Solve(self.tol, gain, price.l1, price.l2)
            for price, gain in zip(prices, gains or (0.0,) * len(prices), strict=True)
        ]

    def shared(self, terms: Terms, penalty: Penalty) -> kernels.RowSystem | None:
        """What rows with one Gram matrix are solved with."""
        if not isinstance(terms, Normal):
            return None
        k = terms.gram.shape[0]
        priced = penalty.apply(terms.part(slice(0)), np.empty((0, k)))
        assert isinstance(priced, Normal)
        return kernels.row_system(priced.gram)

    def half_step(
        self, F: Array, terms: Terms, penalty: Penalty, shared: kernels.RowSystem | None = None
    ) -> Array:
        """Penalise, update."""
        return self.update(F, penalty.apply(terms, F), shared)

    def update(self, F: Array, terms: Terms, shared: kernels.RowSystem | None = None) -> Array:
        """Solve every row; the old ``F`` gives only shape and dtype unless ``warm``."""
        if isinstance(terms, Each):
            start = F if self.warm else np.zeros(F.shape)
            ones = np.ones(F.shape[0])
            rule = weighted.Solve(self.tol, self.gain)
            solved = weighted.solve_each(terms.cross, terms.gram, terms.packed, ones, start, rule)
            return solved.astype(F.dtype, copy=False)
        assert isinstance(terms, Normal)
        old = F if self.warm and F.any() else None
        system = shared or kernels.row_system(terms.gram)
        rows = kernels.solve_rows(terms.cross, system, old, self.sweeps, self.tol, self.gain)
        return rows.astype(F.dtype, copy=False)
