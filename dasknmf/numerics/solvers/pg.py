"""Projected gradient with the step 1/L, L the largest eigenvalue of the Gram matrix.

    F <- max(0, F - (F G - C) / L)      ``steps`` times

C.-J. Lin: Projected gradient methods for nonnegative matrix factorization, Neural Computation
19(10), 2007; the constant step instead of a line search keeps rows independent of one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.solvers.base import Solver
from dasknmf.numerics.terms import Normal, Terms


@final
@dataclass(frozen=True)
class ProjectedGradient(Solver):
    """``steps`` gradient steps for each product with V."""

    name: ClassVar[str] = "pg"
    needs: ClassVar[tuple[type, ...]] = (Normal,)

    steps: int = 20

    def update(self, F: Array, terms: Terms) -> Array:
        """Step from the old rows."""
        assert isinstance(terms, Normal)
        largest = float(np.linalg.eigvalsh(terms.gram)[-1])
        rows = F.astype(np.float64)
        if largest <= 0.0:
            return np.zeros_like(F)
        for _ in range(self.steps):
            rows = np.maximum(rows - (rows @ terms.gram - terms.cross) / largest, 0.0)
        rows[~(terms.cross > 0.0).any(axis=1)] = 0.0  # the solution there, which steps only near
        return rows.astype(F.dtype, copy=False)
