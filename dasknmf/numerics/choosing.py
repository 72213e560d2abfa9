"""Which of several ranks: what foresees entries that no fit has seen, and what restarts agree on.

Too few components, or too many, foresee hidden entries worse; but where noise is low a component
too many costs next to nothing, and where it is high one too few does. So the hold-out error makes a
short list, and stability decides: of the ranks whose error is above the least by at most ``NEAR``
of that, or by ``SMALL`` of the way down to it (from the largest error of smaller ranks), the one
whose components come back best (largest mean silhouette; of those within ``ALIKE`` of it, the one
with the least error). Ranks of which restarts share less than half (a mean silhouette under
``SHARED``) are left out while there are others.

Where nothing is known of stability, the smallest rank of the short list is taken; where nothing was
held out, the largest whose silhouette is at least ``STABLE`` (Alexandrov 2013). Where planted, the
true rank has silhouettes of 0.9 to 1.0 (0.7 where noise is as large as half of the signal), and
larger ones 0.2 to 0.9.

The runner-up is what the same rule chooses among the other ranks. A choice that is the largest rank
tried says so: the least error may lie beyond.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Float64

STABLE = 0.9  # mean silhouette; 1: all restarts alike
SHARED = 0.5
ALIKE = 0.06  # of silhouettes: no difference
NEAR = 0.02  # of the least hold-out error: about what a few thousand hidden entries can tell
SMALL = 0.005  # of the way down: what explains less is no component, such as the mean of noise


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
        if chosen == ranks.max() and np.isfinite(holdout).any():
            why += "; no larger rank was tried, which might do better"
    return Choice(chosen, second, f"rank {chosen}: {why}")


def _choose(ranks: Array, holdout: Float64, silhouette: Float64) -> tuple[int, str]:
    known = bool(np.isfinite(silhouette).any())
    agreed = np.where((ranks == 1) & known, 1.0, silhouette)  # alone: no other cluster
    measured = np.isfinite(holdout)
    if measured.any():
        return _foreseeing(ranks, np.where(measured, holdout, np.inf), agreed, known)
    if (agreed >= STABLE).any():
        among = f"the ranks with a mean silhouette of at least {STABLE}"
        chosen = int(ranks[agreed >= STABLE].max())
        return chosen, f"the largest, among {among} (nothing was held out)"
    if known:
        best = int(ranks[np.nanargmax(agreed)])
        return best, (
            f"the largest mean silhouette, all ranks standing, as none reaches {STABLE} (nothing "
            "was held out)"
        )
    return int(ranks.min()), (
        "the smallest, as stability is undefined (it needs n_init of at least 2, and ranks above "
        "1), and nothing was held out: no ground for a choice"
    )


def _foreseeing(ranks: Array, holdout: Float64, agreed: Float64, known: bool) -> tuple[int, str]:
    """Of the ranks that foresee as well as the best does, the one that restarts agree on."""
    shared = agreed >= SHARED
    errors = np.where(shared, holdout, np.inf) if np.isfinite(holdout[shared]).any() else holdout
    least = float(errors.min())
    before = holdout[: int(errors.argmin()) + 1]
    down = float(before[np.isfinite(before)].max()) - least
    near = np.flatnonzero(errors <= least + max(NEAR * least, SMALL * down))
    listed = "a hold-out error near the least"
    if not known:
        return int(ranks[near[0]]), (
            f"the smallest with {listed}, as stability is undefined (it needs n_init of at least "
            "2, and ranks above 1)"
        )
    if not shared.any():
        return int(ranks[near[0]]), (
            f"the smallest with {listed}, none being stable (no mean silhouette reaches {SHARED})"
        )
    alike = near[agreed[near] >= np.nanmax(agreed[near]) - ALIKE]
    chosen = int(ranks[alike[errors[alike].argmin()]])
    return chosen, f"the most stable (mean silhouette) of those with {listed}"
