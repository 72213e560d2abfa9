"""Initial factors, in the streamed orientation: the short factor, and rows where they are carried.

Every start ends in a :class:`Start`; what it read of V it also inspected.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dasknmf.numerics import nndsvd, random
from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.inspection import Inspection
from dasknmf.numerics.kernels import Array, gram
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import (
    Inspect,
    KeepHalves,
    MeasureHalves,
    Project,
    RandomRows,
    RangeFinder,
    Step,
)
from dasknmf.parallel.executors import Carried, Executor

NAMES = ("random", "nndsvd", "nndsvda", "nndsvdar", "custom")


@dataclass(frozen=True)
class Request:
    """What the fit is started for. ``long`` and ``short`` are factors given by the user."""

    n_components: int
    init: str
    seed: int
    loss: Loss
    solver: Solver
    penalties: tuple[Penalty, Penalty]
    long: Any = None
    short: Array | None = None


@dataclass(frozen=True)
class Start:
    """Where the passes begin.

    short
        One factor a model: columns of V × k.
    rows
        Carried rows, or None: then ``random_rows`` says how they begin.
    inspection
        What the start saw of V; None when it read nothing, and the first pass has to look.
    smallest
        Scale of the smallest positive entries of the rows and of the short factor.
    """

    short: tuple[Array, ...]
    rows: Carried | None = None
    random_rows: RandomRows | None = None
    inspection: Inspection | None = None
    smallest: tuple[float, float] = (0.0, 0.0)


def make_start(request: Request, executor: Executor, name: str) -> Start:
    """Give the start that ``request.init`` names. ``name`` is the estimator's, for messages."""
    if request.init == "custom":
        return _custom(request, executor, name)
    if request.init == "random":
        return _random(request, executor, name)
    return _nndsvd(request, executor, name)


def _checked(inspection: Inspection, executor: Executor, name: str) -> Inspection:
    inspection.raise_if_bad(executor.slabs.transposed, name)
    inspection.raise_if_out_of_range(executor.slabs.dtype)
    return inspection


def _mean(inspection: Inspection, executor: Executor) -> float:
    rows, columns = executor.slabs.shape
    return inspection.total / (rows * columns)


def _random(request: Request, executor: Executor, name: str) -> Start:
    """|N(0, 1)| sqrt(mean(V) / k), as scikit-learn's; drawn by global row.

    Exact rows without a penalty do not depend on the scale of H: then V need not be read first.
    """
    columns, k = executor.slabs.shape[1], request.n_components
    scale, inspection = 1.0, None
    if request.solver.carries_rows or any(p.active for p in request.penalties):
        visit = executor.run(Inspect())
        inspection = _checked(visit.sums, executor, name)
        scale = float(np.sqrt(_mean(inspection, executor) / k))
    drawn = random.normal_rows(request.seed, "columns", 0, 0, columns, k)
    short = (np.abs(drawn) * scale).astype(executor.slabs.dtype)
    return Start((short,), None, RandomRows(request.seed, scale), inspection, (scale, scale))


def _nndsvd(request: Request, executor: Executor, name: str) -> Start:
    """Two reads; the projected rows stay on the workers for the long factor."""
    rows, columns = executor.slabs.shape
    k, dtype = request.n_components, executor.slabs.dtype
    if k > min(rows, columns):
        raise ParameterError(
            f"init={request.init!r} needs n_components <= min(n_samples, n_features); got "
            f"n_components={k} for {min(rows, columns)}. Use init='random'."
        )
    probes = nndsvd.test_matrix(request.seed, columns, k)
    first = executor.run(RangeFinder(probes)).sums
    inspection = _checked(first.inspection, executor, name)
    basis = nndsvd.orthonormal(first.product)
    second = executor.run(Project(basis), keep=True)
    found = nndsvd.directions(second.sums, basis, k)
    norms = executor.run(MeasureHalves(found.turn), second.rows, load=False).sums
    halves = nndsvd.choose_halves(found, norms)
    # scikit-learn fills with mean(V); this is the same where max(V) = 1, and scales as factors do.
    mean = _mean(inspection, executor) / np.sqrt(inspection.maximum or 1.0)
    fill = nndsvd.Fill(request.init, float(mean), request.seed)
    short = fill(nndsvd.keep_halves(found.right, halves.sign, halves.right), "columns", 0)
    carried = None
    if request.solver.carries_rows:
        keep = KeepHalves(found.turn, halves, fill, dtype)
        carried = executor.run(keep, second.rows, keep=True, load=False).rows
    scale = float(np.sqrt(_mean(inspection, executor) / k))
    return Start((short.astype(dtype),), carried, None, inspection, (scale, scale))


def _custom(request: Request, executor: Executor, name: str) -> Start:
    """Factors given by the user: both, or the one from which the other follows.

    Given rows bring their terms in the read that validates V, so a carried start gets its first
    half-step on the short factor for no read of its own.
    """
    slabs = executor.slabs
    carried = None
    if request.long is not None and (request.solver.carries_rows or request.short is None):
        carried = executor.carry(_rows_by_slab(request.long, executor))
    if carried is None:
        assert request.short is not None
        short = request.short.astype(slabs.dtype)
        if not request.solver.carries_rows:
            return Start((short,))
        visit = executor.run(Inspect())
        inspection = _checked(visit.sums, executor, name)
        scale = float(np.sqrt(_mean(inspection, executor) / request.n_components))
        smallest = (scale, _smallest(short))
        return Start((short,), None, RandomRows(request.seed, scale), inspection, smallest)
    if request.short is None:
        return _from_rows(request, executor, name, carried)
    short = request.short.astype(slabs.dtype)
    smallest = (_smallest(request.long), _smallest(short))
    step = Step(
        request.loss, request.solver, request.penalties[0], (short,), move=False, inspect=True
    )
    sums = executor.run(step, carried).sums
    inspection = _checked(sums.inspection, executor, name)
    short = request.solver.half_step(short, sums.models[0].terms, request.penalties[1])
    return Start((short,), carried, None, inspection, smallest)


def _smallest(factor: Any) -> float:
    """Smallest positive entry."""
    array = np.asarray(factor)
    return float(np.min(array, initial=np.inf, where=array > 0.0))


def _from_rows(request: Request, executor: Executor, name: str, carried: Carried) -> Start:
    """The short factor by least squares from the given rows, whatever the loss."""
    from dasknmf.numerics.losses import Frobenius
    from dasknmf.numerics.solvers.als import ALS

    slabs, k = executor.slabs, request.n_components
    zeros = np.zeros((slabs.shape[1], k), dtype=slabs.dtype)
    step = Step(Frobenius(), ALS(), Penalty(), (zeros,), move=False, inspect=True)
    sums = executor.run(step, carried).sums
    inspection = _checked(sums.inspection, executor, name)
    short = ALS().half_step(zeros, sums.models[0].terms, request.penalties[1])
    if request.loss.kind is not Normal:  # multiplicative steps can't leave an exact zero
        short = np.maximum(short, 1e-3 * float(np.mean(short)))
    if not gram(short).any():
        raise DataError("the custom factor explains nothing of X: every coefficient is zero.")
    smallest = (_smallest(request.long), _smallest(short))
    return Start((short,), carried, None, inspection, smallest)


def _rows_by_slab(factor: Any, executor: Executor) -> list[tuple[Array, ...]]:
    """Cut a long factor (numpy or Dask) along the slabs."""
    if hasattr(factor, "dask"):
        factor = factor.compute()
    whole = np.ascontiguousarray(factor, dtype=executor.slabs.dtype)
    return [(whole[a:b],) for a, b in pairwise(executor.slabs.edges)]
