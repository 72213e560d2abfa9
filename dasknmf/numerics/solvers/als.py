"""Alternating non-negative least squares, each row solved exactly.

    min over F >= 0 of 1/2 <F G, F> - <C, F>,   row by row: f = argmin 1/2 f G fᵀ - c fᵀ

The unconstrained solution, clipped, is only the start (that alone is not NNLS, and its loss can
rise); coordinate descent goes on from there, and rows still moving are finished by an active set.
The result depends on V and the fixed factor alone, so no rows have to be carried.

H. Kim, H. Park: SIAM J. Matrix Anal. Appl. 30(2), 2008 (ANLS); R. Bro, S. de Jong: A fast
non-negativity-constrained least squares algorithm, J. Chemometrics 11, 1997 (the finish).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from dasknmf.numerics import kernels
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.solvers.base import Solver
from dasknmf.numerics.terms import Normal, Terms


@final
@dataclass(frozen=True)
class ALS(Solver):
    """Exact rows. A few sweeps find most of the zeros; the active set finishes what still moves."""

    name: ClassVar[str] = "als"
    needs: ClassVar[tuple[type, ...]] = (Normal,)
    carries_rows: ClassVar[bool] = False

    sweeps: int = 3
    tol: float = 1e-10

    def update(self, F: Array, terms: Terms) -> Array:
        """Solve every row; the old ``F`` gives only shape and dtype."""
        assert isinstance(terms, Normal)
        inverse = np.linalg.pinv(terms.gram, rcond=1e-12, hermitian=True)
        start = terms.cross @ inverse
        rows = kernels.descend_rows(
            terms.cross, terms.gram, start, self.sweeps, self.tol, finish=True
        )
        return rows.astype(F.dtype, copy=False)
