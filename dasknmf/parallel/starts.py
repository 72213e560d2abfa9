"""Initial factors, in the streamed orientation: the short factor, and rows where they are carried.

Every start ends in a :class:`Start`; what it read of V it also inspected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from dasknmf.numerics import nndsvd, random
from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.inspection import Inspection, Place, inspect_slab
from dasknmf.numerics.kernels import Array, gram
from dasknmf.numerics.losses import Loss
from dasknmf.numerics.lots import Lot
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
from dasknmf.parallel.race import count_candidates, run_race
from dasknmf.parallel.sample import Begun, Sampled, checked, draw
from dasknmf.parallel.scarce import by_singular_vectors

NAMES = ("auto", "sample", "random", "nndsvd", "nndsvda", "nndsvdar", "custom")
MODELS = 4  # that go on from a sample to the whole of V, at most


@dataclass(frozen=True)
class Request:
    """What the fit is started for. ``long`` and ``short`` are factors given by the user."""

    n_components: int
    init: str
    seed: int
    loss: Loss
    solver: Solver
    penalties: tuple[Penalty, Penalty]
    n_init: int = 1
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
    relative
        A guess of the squared relative error that the fit begins with.
    """

    short: tuple[Array, ...]
    rows: Carried | None = None
    random_rows: RandomRows | None = None
    inspection: Inspection | None = None
    smallest: tuple[float, float] = (0.0, 0.0)
    relative: float = 1e-2


def make_start(request: Request, executor: Executor, name: str) -> Start:
    """Give the start that ``request.init`` names. ``name`` is the estimator's, for messages."""
    if request.init == "custom":
        return _custom(request, executor, name)
    if request.init == "sample":
        return _sample(request, executor, name) or _random(request, executor, name)
    if request.init == "random":
        return _random(request, executor, name)
    return _nndsvd(request, executor, name)


def _mean(inspection: Inspection, executor: Executor) -> float:
    return inspection.mean(executor.slabs.shape)


def _random(request: Request, executor: Executor, name: str) -> Start:
    """|N(0, 1)| sqrt(mean(V) / k), as scikit-learn's; drawn by global row.

    Exact rows without a penalty do not depend on the scale of H: then V need not be read first.
    """
    columns, k = executor.slabs.shape[1], request.n_components
    scale, inspection = 1.0, None
    if request.solver.carries_rows or any(p.active for p in request.penalties):
        visit = executor.run(Inspect())
        inspection = checked(visit.sums, executor, name)
        scale = float(np.sqrt(_mean(inspection, executor) / k))
    shorts = []
    for model in range(request.n_init):
        drawn = random.normal_rows(request.seed, "columns", model, 0, columns, k)
        shorts.append((np.abs(drawn) * scale).astype(executor.slabs.dtype))
    rows = RandomRows(request.seed, scale)
    return Start(tuple(shorts), None, rows, inspection, (scale, scale))


def _sample(request: Request, executor: Executor, name: str) -> Start | None:
    """The best of many least-squares restarts on some rows; None where too few, or bad ones.

    Where those have too few entries to tell, the first comes from singular vectors of all of V.

    Whoever is best among the first candidates is model 0, however many models there are.
    """
    sampled = _drawn(request, request.n_components, executor, name)
    if sampled is None:
        return None
    k = request.n_components
    rows, polish = sampled.rows, sampled.polish
    count = count_candidates(rows, polish=polish)
    found: list[Begun] = []
    if sampled.plenty(k) < 1.0:
        found += by_singular_vectors(sampled, [k], request.seed, executor).values()
    best = []
    if not found:
        first = range(count + 1)
        best = run_race(rows, k, request.seed, first, 1, polish=polish, exchanges=True)
    if request.n_init > 1:
        others = range(count + 1, 2 * count + request.n_init)
        survivors = min(request.n_init, MODELS) - 1
        best += run_race(rows, k, request.seed, others, survivors, polish=polish)
    found += [sampled.begun(candidate) for candidate in best]
    shorts = tuple(start.short for start in found)
    return Start(shorts, inspection=sampled.inspection, relative=found[0].relative)


def _drawn(request: Request, k: int, executor: Executor, name: str) -> Sampled | None:
    root = request.loss.kind is not Normal
    return draw(k, request.seed, root=root, executor=executor, name=name)


def study_start(
    request: Request, lots: Sequence[Lot], executor: Executor, name: str
) -> tuple[Start, list[float]]:
    """``lot.many`` starts of every lot, lot by lot, and the squared error of each.

    All from one sample, for the largest rank, or random where there is none. They don't race: what
    restarts agree on says something only where each went its own way. One start of a lot is that of
    a fit of this rank from the same rows. A lot with a fold has a start that has not seen the rows
    held out.
    """
    largest = max(lot.k for lot in lots)
    sampled = _drawn(request, largest, executor, name)
    factors: list[Array] = []
    errors: list[float] = []
    if sampled is None:
        start = _random(replace(request, n_components=1), executor, name)
        for lot in lots:
            factors += _random_factors(request, lot, executor, start.smallest[0])
        return replace(start, short=tuple(factors)), [start.relative] * len(factors)
    known: dict[Any, list[Begun]] = {}
    if scarce := [k for k in probed(lots) if sampled.plenty(k) < 1.0]:
        best = by_singular_vectors(sampled, scarce, request.seed, executor)
        known = {(k, 1, None): [start] for k, start in best.items()}
    for lot in lots:
        same = (lot.k, lot.many, None if lot.fold is None else (lot.fold.blocks, lot.fold.row))
        rows = sampled.seen_by(lot)
        if rows.shape[0] < lot.k:
            scale = float(np.sqrt(inspect_slab(rows, Place(0, 0, 1)).mean(rows.shape)))
            factors += _random_factors(request, lot, executor, scale or 1.0)
            errors += [1e-2] * lot.many
            continue
        if same not in known:
            polish = sampled.polish
            count = count_candidates(rows, polish=polish)
            apart = lot.many > 1
            numbers = range(1, lot.many + 1) if apart else range(count + 1)
            found = run_race(
                rows, lot.k, request.seed, numbers, lot.many, polish=polish, exchanges=not apart
            )
            found = sorted(found, key=lambda candidate: candidate.number)
            known[same] = [sampled.begun(candidate) for candidate in found]
        made = [start.short for start in known[same]]
        factors += made if lot.fold is None else [lot.fold.masked(short) for short in made]
        errors += [start.relative for start in known[same]]
    return Start(tuple(factors), inspection=sampled.inspection), errors


def probed(lots: Sequence[Lot]) -> list[int]:
    """Ranks whose one start, of all rows, may come from singular vectors of all of V."""
    return sorted({lot.k for lot in lots if lot.fold is None and lot.many == 1})


def _random_factors(request: Request, lot: Lot, executor: Executor, scale: float) -> list[Array]:
    """Random starts of a lot, of ``scale`` / sqrt(k)."""
    made, columns = [], executor.slabs.shape[1]
    for n in range(lot.many):
        drawn = np.abs(random.normal_rows(request.seed, "columns", n, 0, columns, lot.k))
        short = (drawn * scale / np.sqrt(lot.k)).astype(executor.slabs.dtype)
        made.append(short if lot.fold is None else lot.fold.masked(short))
    return made


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
    inspection = checked(first.inspection, executor, name)
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
        inspection = checked(visit.sums, executor, name)
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
    inspection = checked(sums.inspection, executor, name)
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
    inspection = checked(sums.inspection, executor, name)
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
