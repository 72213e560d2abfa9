"""Which of several ranks: what restarts agree on, and what foresees entries that no fit has seen.

Among the ranks whose components come back in every restart (mean silhouette of at least
``STABLE``), the smallest whose hold-out error is within ``NEAR`` of the way down from the largest
error, of ranks before it, to the smallest. Where no rank is stable, or nothing is known of
stability, all ranks stand; where nothing was held out, the largest stable one is taken (Alexandrov
2013). The bounds are from planted ranks, where the true one had silhouettes of 1.00, and larger
ones of 0.6 to 0.9.

The runner-up is what the same rule chooses among the other ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Float64

STABLE = 0.9  # mean silhouette; 1: all restarts alike
NEAR = 0.02  # of the way down: less than that is no gain


class Choice(NamedTuple):
    """The rank, the next best one (None where there is no other), and why, in words."""

    rank: int
    runner_up: int | None
    rule: str


def choose(ranks: Array, holdout: Float64, silhouette: Float64) -> Choice:
    """Choose one of the ranks (ascending, one entry each; nan: not known).

    Raises
    ------
    ParameterError
        There is no rank.
    """
    ranks, holdout = np.asarray(ranks), np.asarray(holdout, dtype=np.float64)
    silhouette = np.asarray(silhouette, dtype=np.float64)
    if ranks.size == 0:
        raise ParameterError("no ranks; expected at least one to choose from.")
    chosen, why = _choose(ranks, holdout, silhouette)
    others = ranks != chosen
    second = None
    if others.any():
        second, _ = _choose(ranks[others], holdout[others], silhouette[others])
        why += f"; runner-up {second}"
    return Choice(chosen, second, f"rank {chosen}: {why}")


def _choose(ranks: Array, holdout: Float64, silhouette: Float64) -> tuple[int, str]:
    known = np.isfinite(silhouette)
    stable = (silhouette >= STABLE) | ((ranks == 1) & known.any())
    if not known.any():
        among, which = np.ones(ranks.size, bool), "all ranks, as stability is undefined"
        which += " (it needs n_init of at least 2, and ranks above 1)"
    elif stable.any():
        among, which = stable, f"the ranks with a mean silhouette of at least {STABLE}"
    else:
        among, which = np.ones(ranks.size, bool), "all ranks, none being stable"
        which += f" (no mean silhouette reaches {STABLE})"
    if np.isfinite(holdout[among]).any():
        errors = np.where(among & np.isfinite(holdout), holdout, np.inf)
        least = errors.min()
        before = holdout[: int(errors.argmin()) + 1]
        span = float(np.nanmax(before)) - least
        chosen = int(ranks[np.flatnonzero(errors <= least + NEAR * span)[0]])
        return chosen, f"the smallest whose hold-out error is as good as the best, among {which}"
    if stable.any():
        return int(ranks[stable].max()), f"the largest, among {which} (nothing was held out)"
    if known.any():
        best = int(ranks[np.nanargmax(silhouette)])
        return best, f"the largest mean silhouette, among {which} (nothing was held out)"
    return int(ranks.min()), (
        f"the smallest, among {which}, and nothing was held out: no ground for a choice"
    )
