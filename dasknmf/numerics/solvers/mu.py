"""Multiplicative updates, for every loss.

    F <- F ∘ (neg / pos)^gamma      gamma: the majorise-minimise exponent of the loss

Zeros stay zero, so a start must be positive. The loss never rises (without a penalty: Févotte &
Idier 2011; Lee & Seung 2001 for beta 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.solvers.base import Solver
from dasknmf.numerics.terms import Exponent, Normal, Split, Terms


@final
@dataclass(frozen=True)
class MultiplicativeUpdate(Solver):
    """One multiplicative step a pass."""

    name: ClassVar[str] = "mu"

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
        return rows.astype(F.dtype, copy=False)
