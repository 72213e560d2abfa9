"""Newton steps for Kullback-Leibler: rows solved exactly, columns by their k × k curvature.

    rows:     w_i = argmin of the row's divergence, a function of V_i and H alone (kernels/kl.py)
    columns:  h_j = argmin of 1/2 h C_j h - b_j h within a box, C_j = Σ_i v_ij w_i w_iᵀ / y_ij²,
              b_j = C_j h_j - gradient = 2 neg_j - mass;
              without curvature the EM step h = counts / mass

Both kinds of statistics add up over slabs that met different H, so H can move several times a
read: R. Neal, G. Hinton: A view of the EM algorithm that justifies incremental, sparse, and other
variants, 1998 (the EM step; it can't raise the free energy); A. Rodomanov, D. Kropotov: A
superlinearly-convergent proximal Newton-type method, ICML 2016 (incremental Newton).

A fit that begins from nothing takes a few EM steps a row instead of exact rows in its first reads:
exact rows are sparse at once, and what has become zero guides H into a poorer optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np

from dasknmf.numerics import kullback, weighted
from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Slab
from dasknmf.numerics.losses import BetaDivergence, Loss
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.base import Gains, Prices, Rows, Solver
from dasknmf.numerics.terms import Columns, Listed, Split, Terms

SOFT_READS = 3.0  # of a fit that begins from nothing
EM_READS = 1.0  # of those, without curvature, which rows so soft would not give right
LISTS = 4  # a slab brings a list where those of four like it would still be less than the sums


@final
@dataclass(frozen=True)
class Newton(Solver):
    """Settings of both halves.

    soft, steps, tol
        EM and Newton steps of a row, and the gap to its optimum at which it rests, relative to its
        mass (0 Newton steps: soft rows).
    curved, limit
        Whether columns take Newton steps, and the bytes of curvature above which they take EM
        steps instead: it is n k(k+1)/2 numbers that travel.
    box, sweeps
        How far an entry of H may go in one step, as a factor; coordinate sweeps on its model.
    shares
        Whether slabs bring what the columns need, or only their loss.
    """

    name: ClassVar[str] = "newton"
    needs: ClassVar[tuple[type, ...]] = (Split,)
    monotone: ClassVar[bool] = False
    carries_rows: ClassVar[bool] = False
    takes_waves: ClassVar[bool] = True

    soft: int = 8
    steps: int = 60
    tol: float = 1e-7
    curved: bool = True
    limit: int = 256 << 20
    box: float = 10.0
    sweeps: int = 10
    shares: bool = True

    def at(self, reads: float) -> Newton:
        """Soft rows for the first reads, harder and harder; EM before curvature."""
        if reads >= SOFT_READS:
            return self
        soft = round(4.0 * 3.0 ** (reads / SOFT_READS))
        return replace(self, soft=soft, steps=0, curved=self.curved and reads >= EM_READS)

    def curvature_bytes(self, columns: int, k: int) -> int:
        """A triangle of k × k numbers a column, or nothing where those would pass ``limit``."""
        needed = 8 * columns * (k * (k + 1) // 2)
        return needed if needed <= self.limit else 0

    def loosened(self, gain: float, *, warm: bool = False) -> Newton:
        """Rows may rest where less than ``gain`` of their mass is still to be gained."""
        return replace(self, tol=max(self.tol, gain))

    def ending(self) -> Newton:
        """Rows and their loss."""
        return replace(self, shares=False)

    def safer(self, times: int) -> Newton:
        """Halve the box (as a step: 10, 5.5, 3.25); from the third time on only EM steps."""
        if times >= 3:
            return self.safest()
        return replace(self, box=1.0 + (self.box - 1.0) / 2.0**times)

    def safest(self) -> Newton:
        """EM steps: what they minimise is nowhere below the divergence, and equal at the start."""
        return replace(self, curved=False)

    def check(self, loss: Loss) -> None:
        """Refuse every loss but Kullback-Leibler."""
        if not (isinstance(loss, BetaDivergence) and loss.beta == 1.0):
            raise ParameterError(
                f"solver={self.name!r} can't minimise beta_loss={loss.name!r}: its rows are solved "
                "for beta_loss='kullback-leibler'. Use solver='auto' (als for frobenius, mu for "
                "the rest) with this loss, or beta_loss='kullback-leibler' with this solver."
            )

    def visit(
        self, loss: Loss, V: Slab, old: Rows, fixed: Rows, prices: Prices, gains: Gains = None,
        ready: Any = None,
    ) -> tuple[Rows, list[Terms]]:  # fmt: skip
        """Rows and terms in one walk over the entries; the old rows are not looked at."""
        each = zip(fixed, prices, gains or (0.0,) * len(fixed), strict=True)
        solved = [self.loosened(gain)._visit(V, Ht, price) for Ht, price, gain in each]
        return tuple(rows for rows, _ in solved), [terms for _, terms in solved]

    def _visit(self, V: Slab, Ht: Array, penalty: Penalty) -> tuple[Array, Terms]:
        columns, k = Ht.shape
        curved = self.curved and self.curvature_bytes(columns, k) > 0
        prices, rule = (penalty.l1, penalty.l2), (self.soft, self.steps, self.tol)
        share = ("curvature" if curved else "gradient") if self.shares else "none"
        if isinstance(V, Observed):
            rows, neg, curvature, mass, value = weighted.kl_rows(V, Ht, prices, rule, share)
        elif share == "curvature" and self._lists(V, columns, k):
            rows, kept, value = kullback.kl_lists(V, Ht, prices, rule)
            listed = Listed(Ht, kept, rows, np.sum(rows, axis=0), value)
            return rows.astype(Ht.dtype, copy=False), listed
        else:
            rows, neg, curvature, value = kullback.kl_rows(V, Ht, prices, rule, share)
            mass = np.sum(rows, axis=0)
        if not self.shares:
            bare = Columns(neg, np.sum(rows, axis=0), None, None, value)  # none of it a column's
            return rows.astype(Ht.dtype, copy=False), bare
        terms = Columns.of(Ht, neg, mass, curvature if curved else None, value)
        return rows.astype(Ht.dtype, copy=False), terms

    @staticmethod
    def _lists(V: Slab, columns: int, k: int) -> bool:
        return Listed.pays(columns, kullback.stored(V), V.shape[0], k, LISTS)

    def update(self, F: Array, terms: Terms) -> Array:
        """Newton or EM step of every column; a plain gradient gets the multiplicative step."""
        if isinstance(terms, Split):
            ratio = np.divide(terms.neg, terms.pos, out=np.zeros(F.shape), where=terms.pos > 0.0)
            return (F * ratio).astype(F.dtype, copy=False)
        assert isinstance(terms, Columns)
        if self.curved and terms.pull is not None and terms.curvature is not None:
            moved = kullback.newton_columns(
                F, terms.counts, terms.pull, terms.curvature, terms.ridge, self.box, self.sweeps
            )
        else:
            moved = self._expectation(terms)
        return moved.astype(F.dtype, copy=False)

    def _expectation(self, terms: Columns) -> Array:
        """EM step counts / mass; with an L2 penalty the root of ridge h² + mass h = counts."""
        mass = np.broadcast_to(terms.mass, terms.counts.shape)
        root = 0.5 * (mass + np.sqrt(mass * mass + 4.0 * terms.ridge * terms.counts))
        zero = np.zeros(terms.counts.shape)
        result: Array = np.divide(terms.counts, root, out=zero, where=root > 0.0)
        return result
