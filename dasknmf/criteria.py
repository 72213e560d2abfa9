"""What a study is asked, and what its restarts say: ranks, criteria, the consensus of samples."""

from __future__ import annotations

import logging
from numbers import Integral
from typing import Any

import numpy as np

from dasknmf.numerics import consensus, interpretation, restarts
from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array, Float64
from dasknmf.sharing import fold_error
from dasknmf.studying import Restart, Study

logger = logging.getLogger("dasknmf")

COLUMNS = (
    "loss",
    "explained_variance",
    "holdout_error",
    "stability",
    "silhouette",
    "cophenetic",
    "dispersion",
    "sparseness",
)
FOLD_COLUMNS = ("holdout_se",)  # with bi-cross-validation


def checked_ranks(ranks: Any) -> tuple[int, ...]:
    """Give ranks ascending, or say which of them can't be."""
    expected = "expected different integers >= 1, such as range(2, 13)"
    if isinstance(ranks, str | bytes) or not hasattr(ranks, "__iter__"):
        raise ParameterError(f"ranks={ranks!r}; {expected}.")
    given = list(ranks)
    if not given:
        raise ParameterError(f"ranks={ranks!r} has no rank; {expected}.")
    for k in given:
        if isinstance(k, bool | np.bool_) or not isinstance(k, Integral) or k < 1:
            raise ParameterError(f"ranks={ranks!r} has {k!r}; {expected}.")
    found = sorted(int(k) for k in given)
    twice = sorted({k for k in found if found.count(k) > 1})
    if twice:
        raise ParameterError(
            f"ranks={ranks!r} has {twice} more than once; {expected}. n_init= is how many "
            "restarts each rank gets."
        )
    if found != [int(k) for k in given]:
        logger.info("ranks were sorted: %s", found)
    return tuple(found)


def best_of(found: list[Restart]) -> Restart:
    """The restart with the lowest objective; of equals, the first."""
    return min(found, key=lambda restart: restart.objective)


def measured(found: list[Restart]) -> tuple[dict[str, float], Float64, Array | None]:
    """What the restarts of one rank say: criteria by name, stabilities, the consensus of samples.

    Of a single restart, what says how far restarts agree is nan.
    """
    best = best_of(found)
    k = best.H.shape[0]
    row = dict.fromkeys(COLUMNS, float("nan"))
    row["loss"] = best.loss
    row["holdout_error"] = best.held
    sparse = interpretation.sparseness(best.H)
    row["sparseness"] = float(np.nanmean(sparse)) if np.isfinite(sparse).any() else float("nan")
    if len(found) < 2:
        return row, np.full(k, np.nan), None
    agreed = restarts.agreement(np.stack([restart.H for restart in found]))
    row["stability"] = float(np.mean(agreed.stability))
    row["silhouette"] = float(np.mean(agreed.silhouette))
    if not best.labels.size:  # of a study that is not done
        return row, agreed.stability, None
    matrix = consensus.consensus(np.stack([restart.labels for restart in found]))
    row["cophenetic"] = consensus.cophenetic(matrix)
    row["dispersion"] = consensus.dispersion(matrix)
    return row, agreed.stability, matrix


def tabulated(
    by_rank: dict[int, list[Restart]], found: Study, *, blocks: bool
) -> tuple[Array, dict[int, Float64], dict[int, Array]]:
    """Give the table of a study, a row a rank, with the stabilities and consensus of each.

    ``blocks``: whether hold-out errors are those of folds; of a study that is not done, nan.
    """
    stabilities, matrices, rows = {}, {}, []
    columns = COLUMNS + FOLD_COLUMNS * blocks
    for k, of_rank in by_rank.items():
        row, stabilities[k], matrix = measured(of_rank)
        if blocks:
            row["holdout_error"], row["holdout_se"] = fold_error(found.folded, k)
        row["explained_variance"] = interpretation.explained_variance(
            best_of(of_rank).residual, found.inspection.squares
        )
        rows.append((k, *(row[name] for name in columns)))
        if matrix is not None:
            matrices[k] = matrix
    kinds = [("rank", np.int64), *((name, np.float64) for name in columns)]
    return np.array(rows, dtype=kinds), stabilities, matrices
