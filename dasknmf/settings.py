"""What a fit is told, and what it ends with."""

from __future__ import annotations

from dataclasses import dataclass

from dasknmf.history import Callback
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.lots import Lot
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import Outcome, RelativeChange
from dasknmf.parallel.executors import Carried
from dasknmf.parallel.starts import Request


@dataclass(frozen=True)
class Settings:
    """One fit. ``waves``: updates of the short factor a pass; ``compress``: between passes.

    ``lots``: what sets single models apart, by their numbers; empty: nothing does.
    """

    start: Request
    stop: RelativeChange
    max_iter: int
    keep_rows: bool
    waves: int = 1
    compress: bool = False
    name: str = "NMF"
    callbacks: tuple[Callback, ...] = ()
    lots: tuple[Lot, ...] = ()

    @property
    def loss(self) -> Loss:
        """The objective."""
        return self.start.loss

    @property
    def solver(self) -> Solver:
        """The algorithm."""
        return self.start.solver

    @property
    def penalties(self) -> tuple[Penalty, Penalty]:
        """Of the rows, of the short factor."""
        return self.start.penalties


@dataclass(frozen=True)
class Result:
    """What a fit ends with: the best model of the ensemble."""

    short: Array
    rows: Carried | None
    model: int  # whose rows they are
    loss: float
    n_iter: int
    outcome: Outcome
    history: dict[str, Array]
    inspection: Inspection
    reads: float
