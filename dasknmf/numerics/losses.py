"""The objective: the only place that knows its formula.

A loss says what a half-step needs from a slab (:meth:`Loss.terms`) and what the objective is worth
(:meth:`Loss.value`). The H half is the W half on the transpose of V, so each is written once.

Frobenius:  D(V | WH) = 1/2 ||V - WH||²
beta:       D(V | WH) = Σ d_beta(v_ij | (WH)_ij); beta = 1 Kullback-Leibler, 0 Itakura-Saito

C. Févotte, J. Idier: Algorithms for nonnegative matrix factorization with the beta-divergence,
Neural Computation 23(9), 2011.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import numpy as np

from dasknmf.numerics import kernels, kullback, weighted
from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.terms import Columns, Each, Exponent, Fitted, Listed, Normal, Split, Terms

NAMES = {"frobenius": 2.0, "kullback-leibler": 1.0, "itakura-saito": 0.0}

EXACT_ROWS = (2, 60, 1e-12)  # EM steps, Newton steps, gap relative to the row's mass


class Loss(ABC):
    """What is minimised. Values are in the units of V to the power ``degree``."""

    kind: ClassVar[type]
    name: str
    degree: float  # D(cV | cY) = c^degree D(V | Y)

    @abstractmethod
    def terms(self, V: Slab, moving: Sequence[Array], fixed: Sequence[Array]) -> list[Terms]:
        """Terms of a half-step of every model in the ensemble.

        V: r×c slab or transpose of one; moving: list of r×k; fixed: list of c×k.
        """

    def share(self, V: Slab, fixed: Sequence[Array], rows: Sequence[Array]) -> list[Terms]:
        """Terms of the other half from the rows of a slab, as they are."""
        return self.terms(V.T, fixed, rows)

    @abstractmethod
    def value(self, terms: Terms, moving: Array, squared_norm: float) -> float:
        """Objective at (moving, fixed), from the summed terms and ||V||²."""

    def exact_rows(self, V: Slab, fixed: Array, penalty: tuple[float, float]) -> Array | None:
        """Rows of a slab given the other factor, where the loss has a row solver of its own."""
        return None

    def error(self, value: float) -> float:
        """``reconstruction_err_`` as scikit-learn's: sqrt(2 D), so ||V - WH|| for least squares."""
        return float(np.sqrt(2.0 * max(value, 0.0)))

    def relative(self, value: float, squared_norm: float) -> float:
        """||V - WH|| / ||V||, nan for losses that are no norm."""
        return float("nan")

    def check_zeros(self, zeros: int) -> None:  # noqa: B027 - most losses accept zeros
        """Raise :class:`DataError` if the loss is infinite at entries that are zero."""


@dataclass(frozen=True)
class Frobenius(Loss):
    """Least squares. The terms are a product and a Gram matrix, and give the loss for nothing."""

    kind: ClassVar[type] = Normal
    name: str = "frobenius"
    degree: float = 2.0

    def terms(self, V: Slab, moving: Sequence[Array], fixed: Sequence[Array]) -> list[Terms]:
        """A product and a Gram matrix for each model."""
        products = self.products(V, fixed)
        return [Normal(c, kernels.gram(F)) for c, F in zip(products, fixed, strict=True)]

    def products(self, V: Slab, fixed: Sequence[Array]) -> list[Float64]:
        """One wide product for all models: V @ [F_1 | F_2 | ...]."""
        if len(fixed) == 1:
            return [kernels.matmul(V, fixed[0])]
        cross = kernels.matmul(V, np.concatenate(list(fixed), axis=1))
        edges = np.cumsum([F.shape[1] for F in fixed])[:-1]
        return np.split(cross, edges, axis=1)

    def value(self, terms: Terms, moving: Array, squared_norm: float) -> float:
        """1/2 (||V||² - 2 <C, F> + <G, FᵀF>), never below zero."""
        return self.left(self.explained(terms, moving), squared_norm)

    def left(self, explained: float, squared_norm: float) -> float:
        """What factors that explain so much leave of 1/2 ||V||²."""
        return max(0.5 * squared_norm - explained, 0.0)

    def explained(self, terms: Terms, moving: Array) -> float:
        """<C, F> - 1/2 <G, FᵀF>: what F takes off 1/2 ||V||². Parts of F's rows add up."""
        F = moving.astype(np.float64, copy=False)
        if isinstance(terms, Fitted):
            return terms.explained - 0.5 * float(np.sum(terms.gram * kernels.gram(F)))
        assert isinstance(terms, Normal | Each)
        dot = float(np.vdot(kernels.own(terms.cross), kernels.own(F)))
        if isinstance(terms, Each):
            model = terms.norm(F)
        else:
            model = float(np.sum(terms.gram * kernels.gram(F)))
        return dot - 0.5 * model

    def share(self, V: Slab, fixed: Sequence[Array], rows: Sequence[Array]) -> list[Terms]:
        """A Gram matrix a column, where not every entry counts the same."""
        if isinstance(V, Observed):
            return list(weighted.share_of(V, fixed, rows))
        return self.terms(V.T, fixed, rows)

    def exact_rows(self, V: Slab, fixed: Array, penalty: tuple[float, float]) -> Array | None:
        """Rows with Gram matrices of their own; others are the solver's."""
        if not isinstance(V, Observed):
            return None
        rule = weighted.Solve(1e-10, 0.0, *penalty)
        return weighted.least_squares(V, [fixed], [rule], share=False)[0][0]

    def relative(self, value: float, squared_norm: float) -> float:
        """||V - WH|| / ||V||, 0 for V = 0."""
        return self.error(value) / float(np.sqrt(squared_norm)) if squared_norm > 0 else 0.0


@dataclass(frozen=True)
class BetaDivergence(Loss):
    """Any beta divergence, through the two halves of its gradient."""

    beta: float = 1.0
    kind: ClassVar[type] = Split

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the special cases, else ``beta=...``."""
        for name, beta in NAMES.items():
            if beta == self.beta:
                return name
        return f"beta={self.beta:g}"

    @property
    def degree(self) -> float:  # type: ignore[override]
        """The divergence scales as V^beta."""
        return self.beta

    @property
    def exponent(self) -> Exponent:
        """MM exponent gamma(beta), with which the loss can't rise (Févotte & Idier, eq. 46)."""
        if self.beta < 1.0:
            return Exponent(1.0 / (2.0 - self.beta))
        if self.beta > 2.0:
            return Exponent(1.0 / (self.beta - 1.0))
        return Exponent(1.0)

    def terms(self, V: Slab, moving: Sequence[Array], fixed: Sequence[Array]) -> list[Terms]:
        """Numerator, denominator and value, each model on its own."""
        found: list[Terms] = []
        for F, other in zip(moving, fixed, strict=True):
            neg, pos, value = kernels.beta_terms(V, F, other, self.beta)
            found.append(Split(neg, pos, value, self.exponent))
        return found

    def value(self, terms: Terms, moving: Array, squared_norm: float) -> float:
        """The divergence of the factors for which the terms were formed."""
        assert isinstance(terms, Split | Columns | Listed)
        return terms.value

    def relative(self, value: float, squared_norm: float) -> float:
        """||V - WH|| / ||V||, nan for losses that are no norm."""
        return float("nan")

    def exact_rows(self, V: Slab, fixed: Array, penalty: tuple[float, float]) -> Array | None:
        """Kullback-Leibler's rows, by safeguarded Newton steps."""
        if self.beta != 1.0:
            return None
        if isinstance(V, Observed):
            return weighted.kl_rows(V, fixed, penalty, EXACT_ROWS)[0]
        return kullback.kl_rows(V, fixed, penalty, EXACT_ROWS)[0]

    def check_zeros(self, zeros: int) -> None:
        """Itakura-Saito and every beta <= 0 divide by the entries."""
        if self.beta <= 0 and zeros:
            raise DataError(
                f"X has {zeros} entries that are zero, where beta_loss={self.name!r} is infinite "
                "(beta <= 0 needs X > 0). Add a small value to X, or use a positive beta."
            )


def make_loss(beta_loss: str | float) -> Loss:
    """Give the loss that ``beta_loss`` names, a number being the exponent beta itself."""
    if isinstance(beta_loss, str):
        if beta_loss not in NAMES:
            raise ParameterError(
                f"beta_loss={beta_loss!r} is unknown; expected one of {sorted(NAMES)} or a number: "
                "the exponent beta (2 is Frobenius, 1 Kullback-Leibler, 0 Itakura-Saito)."
            )
        beta = NAMES[beta_loss]
    else:
        if (
            isinstance(beta_loss, bool)
            or not isinstance(beta_loss, Real)
            or not np.isfinite(beta_loss)
        ):
            raise ParameterError(
                f"beta_loss={beta_loss!r} is no exponent; expected a finite number or one of "
                f"{sorted(NAMES)}."
            )
        beta = float(beta_loss)
    return Frobenius() if beta == 2.0 else BetaDivergence(beta=beta)
