"""Multiplicative updates, for every loss.

    F <- F ∘ (neg / pos)^gamma      gamma: the majorise-minimise exponent of the loss

Zeros stay zero, so a start must be positive. The loss never rises (without a penalty: Févotte &
Idier 2011; Lee & Seung 2001 for beta 1 and 2). An entry that sank to 1e-100 would need as long to
come back, so now and then entries are lifted to eps times the smallest entry of the start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.solvers.base import Solver
from dasknmf.numerics.terms import Exponent, Normal, Split, Terms


@final
@dataclass(frozen=True)
class MultiplicativeUpdate(Solver):
    """One multiplicative step a pass. ``floor``: what positive entries are lifted to."""

    name: ClassVar[str] = "mu"

    floor: float = 0.0

    def lifting(self, smallest: float) -> MultiplicativeUpdate:
        """Set the floor for a factor whose smallest positive entry at the start is given."""
        return replace(self, floor=float(np.finfo(np.float64).eps) * smallest)

    def adapt(self, terms: Terms, F: Array) -> Terms:
        """Split a least-squares gradient into its two non-negative halves."""
        if isinstance(terms, Normal):
            pos = F.astype(np.float64, copy=False) @ terms.gram
            return Split(terms.cross, pos, 0.0, Exponent(1.0))
        return terms

    def update(self, F: Array, terms: Terms) -> Array:
        """Multiply; where the denominator vanishes the component is dead and becomes zero."""
        assert isinstance(terms, Split)
        ratio = np.divide(terms.neg, terms.pos, out=np.zeros(F.shape), where=terms.pos > 0.0)
        if terms.exponent != 1.0:
            ratio **= float(terms.exponent)
        rows: Array = F * ratio
        np.maximum(rows, self.floor, out=rows, where=rows > 0.0)
        return rows.astype(F.dtype, copy=False)
