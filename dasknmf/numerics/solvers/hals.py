"""Hierarchical alternating least squares: coordinate descent, one component after the other.

    f_a <- max(0, f_a + (c_a - F g_a) / G_aa)      for a = 1..k, ``sweeps`` times

A. Cichocki, R. Zdunek, S. Amari: Hierarchical ALS algorithms for nonnegative matrix and 3D tensor
factorization, ICA 2007. N. Gillis, F. Glineur: Accelerated multiplicative updates and hierarchical
ALS algorithms, Neural Computation 24(4), 2012 (several sweeps per product).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from dasknmf.numerics import kernels
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.solvers.base import Solver
from dasknmf.numerics.terms import Normal, Terms


@final
@dataclass(frozen=True)
class HALS(Solver):
    """``sweeps`` cycles over the components for each product with V, which costs far more."""

    name: ClassVar[str] = "hals"
    needs: ClassVar[tuple[type, ...]] = (Normal,)

    sweeps: int = 3

    def update(self, F: Array, terms: Terms) -> Array:
        """Descend from the old rows."""
        assert isinstance(terms, Normal)
        rows = kernels.descend_rows(terms.cross, terms.gram, F, self.sweeps, 0.0, finish=False)
        return rows.astype(F.dtype, copy=False)
