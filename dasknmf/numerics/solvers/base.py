"""The contract of a solver: a frozen set of settings that turns terms into a new factor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Slab
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.terms import Listed, Normal, Split, Terms

Rows = tuple[Array, ...]  # one block for each model of the ensemble
Prices = tuple[Penalty, ...]  # of the rows of each model
Gains = tuple[float, ...] | None


class Solver(ABC):
    """One algorithm. Subclasses are frozen dataclasses, final, one a file.

    name
        What ``NMF(solver=...)`` calls it.
    needs
        Kinds of terms it can work from; a loss of another kind is refused at construction.
    monotone
        Whether an update can't raise the penalised objective (up to rounding). Where it can, the
        loop takes such a step back.
    carries_rows
        Whether a row update starts from the rows of the pass before. Otherwise the rows are a
        function of V and H alone, and nothing about them is kept between passes.
    takes_waves
        Whether terms of slabs that met different H may be added up, so that H can move after each
        group of slabs instead of once a pass.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = (Normal, Split)
    monotone: ClassVar[bool] = True
    carries_rows: ClassVar[bool] = True
    takes_waves: ClassVar[bool] = False

    @abstractmethod
    def update(self, F: Array, terms: Terms) -> Array:
        """New factor, shape and dtype of ``F``, from terms with the penalty in them."""

    def adapt(self, terms: Terms, F: Array) -> Terms:
        """Bring terms into the form that the solver works on, before the penalty is added."""
        return terms

    def lifting(self, smallest: float) -> Solver:
        """A solver that also lifts vanishing entries, ``smallest`` being the start's smallest."""
        return self

    def loosened(self, gain: float, *, warm: bool = False) -> Solver:
        """A solver that leaves rows where less than ``gain`` of c wᵀ is still to be gained.

        ``warm`` lets a solver that carries no rows start from the old factor: for the short one,
        which is at hand.
        """
        return self

    def ending(self) -> Solver:
        """A solver for rows from which no other factor follows: terms may have but their loss."""
        return self

    def at(self, reads: float) -> Solver:
        """Settings for a point of a fit that began from nothing: ``reads`` of V so far."""
        return self

    def curvature_bytes(self, columns: int, k: int) -> int:
        """Bytes of second derivatives in the terms of one model, for ``columns`` of V."""
        return 0

    def safer(self, times: int) -> Solver:
        """A more careful solver, after ``times`` steps that raised the objective."""
        return self

    def safest(self) -> Solver:
        """A solver whose steps can't raise the objective."""
        return self

    def rows(
        self, loss: Loss, V: Slab, old: Rows, fixed: Rows, prices: Prices, gains: Gains = None
    ) -> Rows:
        """New rows of a slab for every model: the first half of :meth:`visit`."""
        terms = loss.terms(V, old, fixed)
        return tuple(
            self.loosened(gain).half_step(F, t, price)
            for F, t, price, gain in zip(
                old, terms, prices, gains or (0.0,) * len(old), strict=True
            )
        )

    def ready(self, fixed: Rows, prices: Prices) -> Any:
        """What visits need that depends on the fixed factors alone: made once for all slabs."""
        return None

    def visit(
        self, loss: Loss, V: Slab, old: Rows, fixed: Rows, prices: Prices, gains: Gains = None,
        ready: Any = None,
    ) -> tuple[Rows, list[Terms]]:  # fmt: skip
        """New rows of a slab for every model, and their terms of the other half.

        ``prices``: the penalty of each model's rows. ``gains``: what rows of each model may leave
        to gain (:meth:`loosened`); None: nothing. ``ready``: from :meth:`ready`; None: made here.
        """
        new = self.rows(loss, V, old, fixed, prices, gains)
        return new, loss.terms(V.T, fixed, new)

    def check(self, loss: Loss) -> None:
        """Raise :class:`ParameterError` unless the solver can serve ``loss``."""
        if loss.kind not in self.needs:
            raise ParameterError(
                f"solver={self.name!r} can't minimise beta_loss={loss.name!r}: it needs a product "
                "and a Gram matrix, which only beta_loss='frobenius' has. Use solver='mu' (or "
                "'auto') with this loss, or beta_loss='frobenius' with this solver."
            )

    def half_step(self, F: Array, terms: Terms, penalty: Penalty, shared: Any = None) -> Array:
        """Adapt, penalise, update: the whole of one half-step on one factor.

        ``shared``: from :meth:`shared`, where parts of a factor are solved one by one.
        """
        if isinstance(terms, Listed):
            terms = terms.formed()
        return self.update(F, penalty.apply(self.adapt(terms, F), F))

    def shared(self, terms: Terms, penalty: Penalty) -> Any:
        """What all rows of a half-step need, made once for parts of them."""
        return None
