"""What keeps a fit descending where a solver's step has no guarantee.

The exact objective of a pass is known only after the pass; if it rose, the step that led to it is
taken again from where it began, by a more careful solver. A rejected step costs one read.
"""

from __future__ import annotations

from dataclasses import dataclass

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.terms import Terms

ROUNDING = 1e-9  # of the objective: less than that is no rise, rows being solved to a tolerance


@dataclass(frozen=True)
class Place:
    """A pass worth going back to: the short factor, its terms and its exact objective."""

    short: Array
    terms: Terms
    objective: float


@dataclass
class Safeguard:
    """The last good pass, and how often a step was taken back."""

    good: Place | None = None
    rejected: int = 0

    def step(self, solver: Solver, here: Place, penalty: Penalty) -> Array:
        """Give the next short factor: from here, or again from the last good place if it rose."""
        if self.good is not None:
            allowed = self.good.objective + ROUNDING * abs(self.good.objective)
            if here.objective > allowed:
                self.rejected += 1
                here = self.good
        self.good = here
        careful = solver.safer(self.rejected) if self.rejected else solver
        return careful.half_step(here.short, here.terms, penalty)
