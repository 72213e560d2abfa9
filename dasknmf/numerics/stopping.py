"""When to stop and what to say about it, and how to get there sooner: extrapolation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dasknmf.numerics.kernels import Array

Mask = npt.NDArray[np.bool_]
FASTER, FASTEST = 1.2, 2.5
BRAKE = 0.7  # of the momentum, after a step that had to be taken back


def extrapolated(new: Array, old: Array, momentum: float) -> tuple[Array, float]:
    """A factor ahead of ``new``, along the way that it came from ``old``; and the next momentum.

    Rows are solved for it; where the objective rises, the caller takes the step back and brakes.
    A component is never led to zero, from where it could not come back.
    A. M. S. Ang, N. Gillis: Accelerating nonnegative matrix factorization algorithms using
    extrapolation, Neural Computation 31(2), 2019.
    """
    ahead = led(new, old, momentum)
    revive(ahead, new, alive(ahead))
    return ahead, faster(momentum)


def led(new: Array, old: Array, momentum: float) -> Array:
    """Rows ahead of ``new``, none below zero."""
    ahead: Array = new - old
    ahead *= momentum
    ahead += new
    return np.maximum(ahead, 0, out=ahead)


def alive(factor: Array) -> Mask:
    """Which components are not zero in all rows."""
    found: Mask = np.any(factor, axis=0)
    return found


def revive(ahead: Array, new: Array, living: Mask) -> None:
    """Give components that are not ``living`` in any row back what they have in ``new``."""
    if not living.all():
        ahead[:, ~living] = new[:, ~living]


def faster(momentum: float) -> float:
    """The momentum after a step that was good."""
    return min(momentum * FASTER, FASTEST)


# Squared relative errors: below, a loss by Gram matrices has lost its digits; is rounding.
RESIDUAL_BELOW = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}
EXACT_BELOW = {np.dtype(np.float32): 1e-13, np.dtype(np.float64): 1e-15}


class Outcome(Enum):
    """How a fit ended; the value is the message."""

    CONVERGED = "converged: the objective changed by less than tol, pass after pass"
    EXACT = "converged: the factors reproduce the data to rounding"
    MAX_ITER = "stopped: max_iter reached while the objective was still falling; raise max_iter"
    OVERTAKEN = "stopped: a restart of the same rank had converged to a lower objective"
    INTERRUPTED = "stopped: a callback asked for it"
    PARTIAL = "open: partial_fit goes on with the next batch"
    UNFINISHED = "not done: from a checkpoint of a fit that goes on, or can"

    @property
    def converged(self) -> bool:
        """Whether more passes would not have changed the result by more than tol."""
        return self in (Outcome.CONVERGED, Outcome.EXACT)


@dataclass(frozen=True)
class RelativeChange:
    """Stop after ``patience`` passes in a row that lower the objective by at most ``tol`` of it.

    Or by at most ``floor`` of 1/2 ||V||²: where V is (almost) of rank k, the objective goes on
    falling by as much of itself for as long as one likes.

    Relative to the pass before, never to the first one: a warm start or a resumed fit stops where
    the undisturbed fit would.
    """

    tol: float
    patience: int = 2
    floor: float = 0.0

    def judge(
        self, objectives: list[float], exact_below: float, size: float = 0.0
    ) -> Outcome | None:
        """Say whether the fit is done, from the objective of every pass so far."""
        if self.tol > 0 and objectives[-1] <= exact_below:
            return Outcome.EXACT
        if self.tol == 0 or len(objectives) <= self.patience:
            return None
        recent = objectives[-self.patience - 1 :]
        least = self.floor * size
        still = all(
            before - after <= max(self.tol * abs(after), least)
            for before, after in pairwise(recent)
        )
        return Outcome.CONVERGED if still else None
