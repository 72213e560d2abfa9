"""What leaves a fit: W as an array of the caller's kind, and the model in a store."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_info

from dasknmf import parts
from dasknmf.numerics.errors import DataError, FactorWarning, warn
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.penalties import make_penalties
from dasknmf.numerics.solvers import make_solver
from dasknmf.numerics.stopping import Outcome
from dasknmf.numerics.work import SolveRows
from dasknmf.parallel import inputs
from dasknmf.parallel.blas import ensure_one_thread, one_thread
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.slabs import Slabs
from dasknmf.storage import models

if TYPE_CHECKING:
    from dasknmf.estimator import NMF
    from dasknmf.settings import Result
    from dasknmf.study import RankStudy

OF_A_CALL = ("callbacks", "checkpoint", "checkpoint_every", "resume", "takeover", "time_limit")
PACKAGES = ("dasknmf", "dask", "distributed", "numpy", "scipy", "zarr", "numba", "scikit-learn")


def rows_of(found: Result, executor: Executor, X: Any) -> Any:
    """W of a fit: numpy for an X in memory, else a Dask array with the row chunks of X."""
    if executor.slabs.transposed:
        W = found.short
        return da.from_array(W, chunks=(X.chunks[0], -1)) if inputs.is_dask(X) else W
    assert found.rows is not None
    if not inputs.is_dask(X):
        return np.concatenate([rows[found.model] for rows in executor.fetch(found.rows)])
    name = f"nmf-W-{tokenize(found.inspection.checksums, found.short, found.n_iter)}"
    chunks = executor.dask_chunks(found.rows, found.model)
    graph = {(name, i, 0): chunk for i, chunk in enumerate(chunks)}
    heights = tuple(np.diff(executor.slabs.edges).tolist())
    k = found.short.shape[1]
    rows = da.Array(graph, name, chunks=(heights, (k,)), dtype=executor.slabs.dtype)
    return rows if heights == X.chunks[0] else rows.rechunk({0: X.chunks[0]})


def fitted(model: NMF, found: Result, executor: Executor, X: Any) -> dict[str, Any]:
    """The attributes of a fitted estimator, ``W_`` among them where X is given."""
    slabs = executor.slabs
    if slabs.transposed:
        assert found.rows is not None
        H = np.concatenate([r[found.model] for r in executor.fetch(found.rows)]).T.copy()
    else:
        H = found.short.T.copy()
    known = {
        "components_": H,
        "n_components_": H.shape[0],
        "reconstruction_err_": make_loss(model.beta_loss).error(found.loss),
        "n_iter_": found.n_iter,
        "history_": found.history,
        "outcome_": found.outcome,
        "fingerprint_": found.inspection.fingerprint(slabs.shape, slabs.dtype),
        "_n_samples": slabs.shape[slabs.transposed],
    }
    return known if X is None else {**known, "W_": rows_of(found, executor, X)}


def row_work(model: NMF, slabs: Slabs, n_samples: int) -> SolveRows:
    """What ``transform`` does on each slab: rows given H are a convex problem, solved as such."""
    loss = make_loss(model.beta_loss)
    shape = (n_samples, model.n_features_in_)
    penalty = make_penalties(model.alpha_W, model.alpha_H, model.l1_ratio, shape)[0]
    fixed = np.ascontiguousarray(model.components_.T, dtype=slabs.dtype)
    solver = make_solver("auto", loss)
    return SolveRows(loss, solver, penalty, (fixed,), int(model.max_iter), float(model.tol))


def solve_slab(work: SolveRows, block: Any, place: Place, name: str) -> Array:
    """Rows of one slab, or the error that says what is wrong with it."""
    ensure_one_thread()
    rows, inspection = work(block, None, place)
    work.check(inspection, work.fixed[0].shape[0], name)
    assert rows is not None
    return rows[0]


def lazy_rows(slabs: Slabs, work: SolveRows, X: da.Array, name: str) -> da.Array:
    """W as a Dask array that reads nothing until it is computed."""
    assert slabs.graph is not None
    token = f"nmf-transform-{tokenize(X.name, work.fixed[0], work)}"
    graph: dict[Any, Any] = {**slabs.graph, f"{token}-components": work}
    for place, block in zip(slabs.places, slabs.blocks, strict=True):
        solve = partial(solve_slab, place=place, name=name)
        graph[(token, place.slab, 0)] = (solve, f"{token}-components", block)
    heights = tuple(np.diff(slabs.edges).tolist())
    k = work.fixed[0].shape[1]
    W = da.Array(graph, token, chunks=(heights, (k,)), dtype=slabs.dtype)
    return W if heights == X.chunks[0] else W.rechunk({0: X.chunks[0]})


def solve_rows(executor: Executor, work: Any, name: str) -> list[Array]:
    """Rows given the other factor, slab by slab: ``transform`` of a matrix in memory."""
    with one_thread():
        visit = executor.run(work, keep=True)
        work.check(visit.sums, executor.slabs.shape[1], name)
        assert visit.rows is not None
        return [rows[0] for rows in executor.fetch(visit.rows)]


def warn_of(model: NMF, found: Result) -> None:
    """Say what a user should know of a fit: not converged, or components that are zero."""
    if found.outcome is Outcome.MAX_ITER and model.tol > 0:
        objective = found.history["objective"]
        falls = np.nan
        if len(objective) > 1:
            before, last = objective[-2:]
            falls = abs(before - last) / (abs(last) or abs(before) or 1.0)
        warn(
            f"Maximum number of iterations {model.max_iter} reached before tol={model.tol:g} was "
            f"(the last pass lowered the objective by {falls:.2g} of itself). Increase "
            "max_iter, or tol, to improve convergence or to accept less.",
            ConvergenceWarning,
        )
    seen = found.inspection.observation
    if seen is not None:
        counts = (seen.empty_rows, seen.empty_columns)
        swapped = model.n_features_in_ > model._n_samples
        warn_unobserved(*(counts[::-1] if swapped else counts))
    dead = int(np.sum(~model.components_.any(axis=1)))
    if dead and found.inspection.positive:
        warn(
            f"{dead} of {model.n_components_} components are zero and explain nothing. Try "
            "another start (random_state, init='nndsvda'), or a smaller n_components or alpha.",
            FactorWarning,
        )


def warn_unobserved(rows: int, columns: int) -> None:
    """Say where nothing was observed: zeros there are no finding."""
    parts = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((rows, "row"), (columns, "column")) if n]
    if parts:
        warn(
            f"{' and '.join(parts)} of X have no observed entry: their factors are zero. Drop "
            "them, or see whether missing=, weights= or holdout= leave out too much.",
            FactorWarning,
        )


def save(model: NMF, store: Any, W: Any, overwrite: bool) -> None:
    """Write a fitted estimator (see :meth:`dasknmf.NMF.save`)."""
    models.write(record_of(model, W), store, overwrite)


def record_of(model: NMF, W: Any) -> models.ModelRecord:
    """What is stored of a fitted estimator."""
    names = getattr(model, "feature_names_in_", None)
    kept, about_kept = parts.of(model)
    return models.ModelRecord(
        H=model.components_,
        W=None if W is None else _checked_rows(model, W),
        history=model.history_,
        parameters=plain_parameters(model),
        fitted={
            "reconstruction_err": model.reconstruction_err_,
            "n_iter": model.n_iter_,
            "outcome": model.outcome_.name,
            "n_samples": model._n_samples,
            "fingerprint": model.fingerprint_,
            "feature_names": None if names is None else [str(n) for n in names],
            **about_kept,
        },
        provenance=provenance(),
        parts=kept,
    )


def plain_parameters(model: NMF | RankStudy) -> dict[str, Any]:
    """Parameters as JSON; those that belong to one call and not to the model are left out."""
    parameters = model.get_params(deep=False)
    for name in OF_A_CALL:
        parameters.pop(name)
    state = parameters["random_state"]
    if state is not None and not isinstance(state, int | np.integer):
        parameters["random_state"] = None
    return {k: _plain(v) for k, v in parameters.items()}


def provenance() -> dict[str, Any]:
    """When, on what, with which versions."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in PACKAGES},
        "blas": sorted(
            f"{lib['internal_api']} {lib['version']} {lib.get('architecture', '')}".strip()
            for lib in threadpool_info()
            if lib["user_api"] == "blas"
        ),
    }


def about(model: NMF, slabs: Slabs) -> dict[str, Any]:
    """What a checkpoint says of the model that it is."""
    names = getattr(model, "feature_names_in_", None)
    m, n = slabs.shape[::-1] if slabs.transposed else slabs.shape
    return {
        "parameters": plain_parameters(model),
        "n_samples": m,
        "n_features": n,
        "transposed": bool(slabs.transposed),
        "feature_names": None if names is None else [str(n) for n in names],
        "provenance": provenance(),
    }


def _checked_rows(model: NMF, W: Any) -> Any:
    """W as numpy or Dask; refused unless it can be W of the model (of any batch, with batches)."""
    W = W if inputs.is_dask(W) else np.asarray(W)
    some = W.shape[0] if hasattr(model, "n_samples_seen_") and W.ndim else model._n_samples
    expected = (some, model.n_components_)
    if W.shape != expected:
        raise DataError(
            f"W has shape {W.shape}; expected {expected}: one row for each sample of the fit, one "
            "column for each component. W of other data can't be saved with the model."
        )
    if W.dtype.kind not in "fiub":
        raise DataError(f"W has dtype {W.dtype}; expected real numbers.")
    return W


def _version(package: str) -> str | None:
    """The installed version; None in a tree that was never installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def load(store: Any) -> Any:
    """Restore a model that :meth:`NMF.save` wrote, or the newest committed one of a run.

    Parameters
    ----------
    store : str, path or zarr store

    Returns
    -------
    model : NMF or RankStudy
        Fitted; ``W_`` is a lazy Dask array where W was saved. A study from the run of one: as it
        ended, or as far as it has come.

    Raises
    ------
    StoreError
        There is no model there, or one that was never finished.
    """
    from dasknmf import resuming
    from dasknmf.estimator import NMF
    from dasknmf.numerics.stopping import Outcome

    if resuming.is_run(store):
        return resuming.load(store)
    record = models.read(store)
    model = NMF(**record.parameters)
    model.components_ = record.H
    model.n_components_ = record.H.shape[0]
    model.n_features_in_ = record.H.shape[1]
    model.history_ = record.history
    model.reconstruction_err_ = record.fitted["reconstruction_err"]
    model.n_iter_ = record.fitted["n_iter"]
    model.outcome_ = Outcome[record.fitted["outcome"]]
    model.fingerprint_ = record.fitted["fingerprint"]
    model._n_samples = record.fitted["n_samples"]
    if record.fitted["feature_names"] is not None:
        model.feature_names_in_ = np.array(record.fitted["feature_names"], dtype=object)
    if record.W is not None:
        model.W_ = record.W
    parts.put_back(model, {name: array for name, (array, _) in record.parts.items()}, record.fitted)
    return model
