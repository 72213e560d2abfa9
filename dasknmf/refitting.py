"""Consensus components, and the usages that belong to them: W solved anew with H held fixed.

D. Kotliar et al.: Identifying gene expression programs of cell-type identity and cellular activity
with single-cell RNA-Seq, eLife 8, 2019 (consensus NMF; its "usages" are W).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from dasknmf import parameters, results
from dasknmf.estimator import NMF
from dasknmf.history import History
from dasknmf.numerics import restarts
from dasknmf.numerics.errors import FactorWarning, warn
from dasknmf.numerics.interpretation import row_norms
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.penalties import make_penalties
from dasknmf.numerics.restarts import Consensus
from dasknmf.numerics.stopping import Outcome
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import Step
from dasknmf.parallel import inputs, make_executor
from dasknmf.parallel.blas import one_thread
from dasknmf.parallel.observing import observed
from dasknmf.parallel.slabs import cut
from dasknmf.settings import Result
from dasknmf.storage import arrays
from dasknmf.validation import validated


def consensus_of(components: Array, like: int, threshold: float, neighbours: float) -> Consensus:
    """Medians of the clusters of matched components, in the order of one of the restarts.

    Parameters
    ----------
    components : array of shape (R, k, n_features)
        Of all restarts of one rank.
    like : int
        The restart whose component i is in cluster i of the result.
    threshold, neighbours : float
        As for :func:`dasknmf.numerics.restarts.consensus_components`.
    """
    order = restarts.agreement(components).order
    order = order[:, np.argsort(order[like])]
    found = restarts.consensus_components(components, order, threshold, neighbours)
    none = np.flatnonzero(found.kept == 0)
    if none.size:
        warn(
            f"consensus components {none.tolist()} of {len(found.kept)} are medians of outliers: "
            f"no {neighbours:g} of {len(components)} restarts agree on them to "
            f"threshold={threshold:g}. Choose a smaller rank, or look at density and raise it.",
            FactorWarning,
        )
    return found


def refit(model: NMF, components: Array, X: Any, client: Any, weights: Any) -> NMF:
    """Give ``model`` these components, and the W of X that belongs to them, in one read of X.

    A component gets the length that it is given; W has the rest.
    """
    X = validated(model, X, reset=False)
    loss, solver = parameters.check(model)
    parameters.check_observing(model, weights, fitting=False)
    rule = parameters.observing(model)
    slabs = observed(cut(X, whole_rows=True), X, arrays.opened(inputs.unwrap(weights)), rule)
    penalties = make_penalties(model.alpha_W, model.alpha_H, model.l1_ratio, X.shape)
    short = np.ascontiguousarray(components.T, dtype=slabs.dtype)
    normal, began, name = loss.kind is Normal, time.perf_counter(), type(model).__name__
    step = Step(loss, solver, penalties[0], (short,), inspect=True, residual=normal)
    job = parameters.make_job(model, solver, short.shape[1], slabs, keep_rows=True)
    job = replace(job, models=1, waves=1)
    with make_executor(slabs, client, job) as executor, one_thread():
        visit = executor.run(step, keep=True)
        seen = visit.sums.inspection
        seen.raise_if_bad(False, name)
        seen.raise_if_out_of_range(slabs.dtype)
        (sums,) = visit.sums.models
        value = 0.5 * sums.residual if normal else loss.value(sums.terms, short, seen.squares)
        history = History(
            loss=[value],
            objective=[value + sums.penalty + penalties[1].value(short)],
            relative_error=[loss.relative(value, seen.squares)],
            reads=[executor.reads],
            models=[1],
            seconds=[time.perf_counter() - began],
            holdout=[float("nan")],
        )
        found = Result(
            short=short, rows=visit.rows, model=0, loss=value, n_iter=1,
            outcome=Outcome.CONVERGED, history=history.as_arrays(), inspection=seen,
            reads=executor.reads,
        )  # fmt: skip
        model.__dict__.update(results.fitted(model, found, executor, X))
    return model


def lengths(components: Array, like: Array) -> Array:
    """Unit components at the lengths of others: a penalty knows what length means."""
    scaled: Array = components * row_norms(like)[:, None]
    return scaled
