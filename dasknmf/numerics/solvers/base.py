"""The contract of a solver: a frozen set of settings that turns terms into a new factor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Slab
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.terms import Normal, Split, Terms


class Solver(ABC):
    """One algorithm. Subclasses are frozen dataclasses, final, one a file.

    name
        What ``NMF(solver=...)`` calls it.
    needs
        Kinds of terms it can work from; a loss of another kind is refused at construction.
    monotone
        Whether an update can't raise the penalised objective (up to rounding). Where it can, the
        loop takes such a step back (:mod:`dasknmf.numerics.safeguard`).
    carries_rows
        Whether a row update starts from the rows of the pass before. Otherwise the rows are a
        function of V and H alone, and nothing about them is kept between passes.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = (Normal, Split)
    monotone: ClassVar[bool] = True
    carries_rows: ClassVar[bool] = True

    @abstractmethod
    def update(self, F: Array, terms: Terms) -> Array:
        """New factor, shape and dtype of ``F``, from terms with the penalty in them."""

    def adapt(self, terms: Terms, F: Array) -> Terms:
        """Bring terms into the form that the solver works on, before the penalty is added."""
        return terms

    def lifting(self, smallest: float) -> Solver:
        """A solver that also lifts vanishing entries, ``smallest`` being the start's smallest."""
        return self

    def at(self, reads: float) -> Solver:
        """Settings for a point of a fit that began from nothing: ``reads`` of V so far."""
        return self

    def safer(self, times: int) -> Solver:
        """A more careful solver, after ``times`` steps that raised the objective."""
        return self

    def visit(
        self, loss: Loss, V: Slab, old: Sequence[Array], fixed: Sequence[Array], penalty: Penalty
    ) -> tuple[tuple[Array, ...], list[Terms]]:
        """New rows of a slab for every model, and their terms of the other half."""
        terms = loss.terms(V, old, fixed)
        new = tuple(self.half_step(F, t, penalty) for F, t in zip(old, terms, strict=True))
        return new, loss.terms(V.T, fixed, new)

    def check(self, loss: Loss) -> None:
        """Raise :class:`ParameterError` unless the solver can serve ``loss``."""
        if loss.kind not in self.needs:
            raise ParameterError(
                f"solver={self.name!r} can't minimise beta_loss={loss.name!r}: it needs a product "
                "and a Gram matrix, which only beta_loss='frobenius' has. Use solver='mu' (or "
                "'auto') with this loss, or beta_loss='frobenius' with this solver."
            )

    def half_step(self, F: Array, terms: Terms, penalty: Penalty) -> Array:
        """Adapt, penalise, update: the whole of one half-step on one factor."""
        return self.update(F, penalty.apply(self.adapt(terms, F), F))
