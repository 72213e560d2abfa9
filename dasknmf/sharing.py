"""What estimators have in common whose fits share every read of X: checks, and the lots of models.

See :mod:`dasknmf.numerics.lots`; all penalties here are in the streamed orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from dasknmf import parameters
from dasknmf.estimator import NMF
from dasknmf.numerics.blocks import Blocks, Fold
from dasknmf.numerics.errors import ParameterError, warn
from dasknmf.numerics.lots import Lot
from dasknmf.numerics.penalties import Penalty, make_penalties
from dasknmf.numerics.stopping import Outcome
from dasknmf.numerics.terms import Normal
from dasknmf.parallel.slabs import Slabs
from dasknmf.studying import Folded, Restart

Folds = tuple[int, int] | None


def check(template: NMF, weights: Any) -> None:
    """Refuse parameters that make no sense, and solvers whose fits can't share reads."""
    loss, solver = parameters.check(template)
    if not solver.takes_waves:
        raise ParameterError(
            f"solver={template.solver!r} with beta_loss={loss.name!r} carries rows from pass to "
            "pass, those of all restarts. Use solver='als' with beta_loss='frobenius', or "
            "'newton' with 'kullback-leibler'."
        )
    parameters.check_observing(template, weights)


def checked_folds(folds: Any, template: NMF) -> Folds:
    """Give folds as two integers, or say why they can't be."""
    if folds is None:
        return None
    expected = "expected None or two integers >= 2, of rows and of columns, such as (2, 2)"
    if isinstance(folds, str) or not isinstance(folds, Sequence) or len(folds) != 2:
        raise ParameterError(f"folds={folds!r}; {expected}.")
    for number in folds:
        whole = isinstance(number, Integral) and not isinstance(number, bool | np.bool_)
        if not whole or number < 2:
            raise ParameterError(f"folds={folds!r} has {number!r}; {expected}.")
    loss, _ = parameters.check(template)
    if loss.kind is not Normal:
        raise ParameterError(
            f"folds={folds!r} with beta_loss={loss.name!r}: bi-cross-validation is of least "
            "squares, where held rows and columns follow from sums of one read. Use "
            "folds=None and holdout=, which hides entries, or beta_loss='frobenius'."
        )
    return int(folds[0]), int(folds[1])


def prices_of(
    template: NMF, slabs: Slabs, shape: tuple[int, int], alpha: float | None = None
) -> tuple[Penalty, Penalty]:
    """Penalties of the rows and of the short factor of ``shape`` (of V or of a part of it).

    ``alpha``: in the place of ``alpha_W``.
    """
    of_X = shape[::-1] if slabs.transposed else shape
    alpha_W = template.alpha_W if alpha is None else alpha
    both = make_penalties(alpha_W, template.alpha_H, template.l1_ratio, of_X)
    return both[::-1] if slabs.transposed else both


def lots_of_ranks(
    template: NMF, ranks: Sequence[int], folds: Folds, slabs: Slabs, seed: int
) -> tuple[Lot, ...]:
    """All restarts of every rank, and one fit for each fold of it.

    Raises
    ------
    ParameterError
        What a fold leaves is too small for the largest rank; nothing was read.
    """
    prices = prices_of(template, slabs, slabs.shape)
    lots = [Lot(k, int(template.n_init), prices) for k in ranks]
    if folds is None:
        return tuple(lots)
    parts = folds[::-1] if slabs.transposed else folds
    blocks = Blocks(parts, seed, slabs.transposed)
    rows, columns = blocks.counts(slabs.shape)
    kept = (slabs.shape[0] - rows, slabs.shape[1] - columns)
    least = min(int(kept[0].min()), int(kept[1].min()))
    if not rows.all() or not columns.all() or least < max(ranks):
        groups = [sizes.tolist() for sizes in (rows, columns)][:: -1 if slabs.transposed else 1]
        raise ParameterError(
            f"folds={folds!r} cut X into groups of {groups[0]} rows and {groups[1]} columns; "
            f"expected none empty, and at least {max(ranks)} (the largest rank) of each beside "
            "any of them. Use fewer folds, smaller ranks, or holdout= with folds=None."
        )
    for k in ranks:
        for r in range(parts[0]):
            for c in range(parts[1]):
                shape = (int(kept[0][r]), int(kept[1][c]))
                lots.append(Lot(k, 1, prices_of(template, slabs, shape), Fold(blocks, r, c)))
    return tuple(lots)


def models_of(lots: Sequence[Lot]) -> int:
    """How many models of the largest rank would be as wide as all of them."""
    return -(-sum(lot.k * lot.many for lot in lots) // max(lot.k for lot in lots))


def fold_error(folded: Sequence[Folded], k: int) -> tuple[float, float]:
    """Bi-cross-validation error of a rank, a mean over all entries, and its standard error.

    The latter from the spread of the folds' own means, as if they were independent: folds share
    rows and columns, so it is rather small. Both are nan without folds.
    """
    held = [fold.held for fold in folded if fold.lot.k == k]
    if not held:
        return float("nan"), float("nan")
    weight = sum(one.weight for one in held)
    means = np.array([one.mean for one in held])
    error = sum(one.error for one in held) / weight if weight > 0 else float("nan")
    return error, float(np.std(means, ddof=1) / np.sqrt(means.size))


def warn_unfinished(fits: Sequence[Restart | Folded], model: Any) -> None:
    """Say how many fits of the estimator ``model`` might have gone on."""
    unfinished = sum(fit.outcome is Outcome.MAX_ITER for fit in fits)
    if unfinished and model.tol > 0:
        warn(
            f"{unfinished} of {len(fits)} fits reached max_iter={model.max_iter} before "
            f"tol={model.tol:g} was. Increase max_iter or tol to compare fits that are done.",
            ConvergenceWarning,
        )


def as_fitted(model: NMF, found: Restart, of: Any) -> NMF:
    """Make ``model`` what a restart of the fitted estimator ``of`` has found."""
    model.components_ = found.H
    model.n_components_ = found.H.shape[0]
    model.n_features_in_ = of.n_features_in_
    if hasattr(of, "feature_names_in_"):
        model.feature_names_in_ = of.feature_names_in_
    model.history_ = found.history
    loss, _ = parameters.check(model)
    model.reconstruction_err_ = loss.error(found.loss)
    model.n_iter_, model.outcome_ = found.n_iter, found.outcome
    model.fingerprint_ = of.fingerprint_
    model._n_samples = of._n_samples
    return model
