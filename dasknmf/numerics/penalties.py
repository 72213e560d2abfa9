"""L1 and L2 penalties on a factor, applied to the summed terms once.

Objective:  l1 ||F||_1 + 1/2 l2 ||F||²,  with scikit-learn's scaling of alpha by the global shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.terms import Columns, Each, Fitted, Listed, Normal, Split, Terms


@dataclass(frozen=True)
class Penalty:
    """Weights of the 1-norm and of half the squared 2-norm of one factor."""

    l1: float = 0.0
    l2: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything is penalised."""
        return self.l1 != 0.0 or self.l2 != 0.0

    def apply(self, terms: Terms, F: Array) -> Terms:
        """Add the penalty's gradient to the terms."""
        if not self.active:
            return terms
        assert not isinstance(terms, Listed | Fitted)
        if isinstance(terms, Normal):
            ridge = self.l2 * np.eye(terms.gram.shape[0])
            return Normal(terms.cross - self.l1, terms.gram + ridge)
        if isinstance(terms, Each):
            ridge = self.l2 * np.eye(terms.gram.shape[0])
            return Each(terms.cross - self.l1, terms.gram + ridge, terms.packed)
        if isinstance(terms, Columns):
            pull = None if terms.pull is None else terms.pull - self.l1
            return terms._replace(mass=terms.mass + self.l1, pull=pull, ridge=self.l2)
        weight = F.astype(np.float64, copy=False)
        return Split(terms.neg, terms.pos + self.l1 + self.l2 * weight, terms.value, terms.exponent)

    def value(self, F: Array) -> float:
        """The penalty's share of the objective."""
        if not self.active:
            return 0.0
        l1 = float(np.sum(F, dtype=np.float64))
        l2 = float(np.sum(np.square(F, dtype=np.float64)))
        return self.l1 * l1 + 0.5 * self.l2 * l2


def make_penalties(
    alpha_W: float, alpha_H: float | str, l1_ratio: float, shape: tuple[int, int]
) -> tuple[Penalty, Penalty]:
    """Give the penalties of W and H: alpha_W times n_features, alpha_H times n_samples."""
    same = isinstance(alpha_H, str)
    if same and alpha_H != "same":
        raise ParameterError(f"alpha_H={alpha_H!r} is unknown; expected a number >= 0 or 'same'.")
    weight_H = alpha_W if same else float(alpha_H)
    for name, given in (("alpha_W", alpha_W), ("alpha_H", weight_H)):
        if not (np.isfinite(given) and given >= 0):
            raise ParameterError(f"{name}={given!r}; expected a finite number >= 0.")
    if not 0 <= l1_ratio <= 1:
        raise ParameterError(f"l1_ratio={l1_ratio!r}; expected a number from 0 (L2) to 1 (L1).")
    n_samples, n_features = shape
    per_W, per_H = alpha_W * n_features, weight_H * n_samples
    return (
        Penalty(per_W * l1_ratio, per_W * (1.0 - l1_ratio)),
        Penalty(per_H * l1_ratio, per_H * (1.0 - l1_ratio)),
    )
