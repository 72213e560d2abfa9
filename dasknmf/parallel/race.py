"""Restarts on a sample of V, in memory: which of many random starts to go on with.

Every candidate alternates exact rows and columns on the sample; after each round the better ones
go on, on more rows; the winner may exchange components at last. A candidate's numbers belong to its
number, so the result does not depend on how many threads take part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from dask.system import CPU_COUNT
from sklearn.utils.extmath import randomized_svd

from dasknmf.numerics import exchange, kernels, nndsvd, random
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.observed import Observed
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.stopping import BRAKE, extrapolated
from dasknmf.numerics.terms import Normal, add
from dasknmf.numerics.weighted import squared_norms
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.driver import half_step
from dasknmf.parallel.team import Team

CANDIDATES = 3  # random starts
ENOUGH = 1  # where the race is a rough one: the better of two there ends no lower
FIRST_ROWS = 300  # of the sample, on which all of them run
SECOND = 1  # random candidates that see the whole sample, beside the one of the singular vectors
ROUND = 12  # iterations of a round
WIDER = 6  # of the winner while it has more components than it may keep
FEWEST = 4  # of one that runs alone where entries are scarce
LAST = 20
EARLY, LATE = 1e-3, 1e-4  # relative change that ends a round, and the last one
ROUGH, ACCURACY = 1e-4, 1e-5  # of the rows, in the first round and then: what may be left to gain,
# in parts of the squared residual
PARTS = 4  # of the sample for one that runs alone, at most, whatever the number of threads
SHORTEST_PART = 750  # rows: of fewer, the sums cost more than the threads gain
POWER = 7  # iterations for singular vectors of a sample, as many as scikit-learn's;
POWER_K = 4  # of a sparse one, an iteration more for every so many vectors: singular values of text
# lie close together, and there the last ones need more
ROUGHLY = 4  # where the race is a rough one


class Candidate:
    """One start and where it has got to: columns of V × k, and rows of the sample × k."""

    def __init__(self, number: int, short: Array) -> None:
        self.number = number
        self.short = short
        self.rows: list[Array] = []  # in parts
        self.relative = 0.01  # squared relative error

    def run(
        self, parts: Sequence[Slab], squares: float, iterations: int, tol: float, accuracy: float,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        """Alternate rows and columns; ``squares``: ||V||².

        ``parts``: of V, which the threads of a ``team`` share. One with weights has one part.
        """
        ensure_one_thread()
        loss, none = Frobenius(), Penalty()
        k = self.short.shape[1]
        rows = [np.zeros((part.shape[0], k), self.short.dtype) for part in parts]
        ahead, momentum, before = self.short, 0.5, np.inf
        solve_short = ALS.half_step if team is None else half_step
        for _ in range(iterations):
            solver = ALS(tol=1e-8, gain=accuracy * self.relative, warm=True)
            if isinstance(parts[0], Observed):
                gains = (solver.gain,)
                visit = solver.visit(loss, parts[0], tuple(rows), (ahead,), (none,), gains)
                rows, (terms,) = list(visit[0]), visit[1]
            else:
                rows, terms = _alternated(solver, parts, rows, ahead, team)
            short = solve_short(solver, self.short, terms, none)
            relative = 2.0 * loss.value(terms, short, squares) / squares
            if relative > before:
                ahead, momentum = self.short, momentum * BRAKE
                continue
            ahead, momentum = extrapolated(short, self.short, momentum)
            self.short, self.relative, self.rows = short, relative, rows
            if before - relative < tol * relative:
                break
            before = relative

    def widened(self, sample: Slab, many: int, basis: Float64) -> Candidate:
        """One with ``many`` more components, from what its own leave unexplained."""
        joining = exchange.missing(sample, np.concatenate(self.rows), self.short, basis, many)
        wider = Candidate(self.number, np.hstack([self.short, joining]))
        wider.relative = self.relative
        return wider

    def narrowed(self, k: int) -> Candidate:
        """One with the k components that explain most; they have not been fitted again yet."""
        rows_gram = kernels.gram(np.concatenate(self.rows))
        kept = exchange.most_useful(rows_gram, self.short, k)
        narrower = Candidate(self.number, np.ascontiguousarray(self.short[:, kept]))
        narrower.relative = self.relative
        return narrower

    def balanced(self, growth: float) -> Array:
        """The short factor, scaled as evenly as the rows of a matrix ``growth`` times as long."""
        long = np.sqrt(np.diag(kernels.gram(np.concatenate(self.rows))) * growth)
        short = np.sqrt(np.diag(kernels.gram(self.short)))
        used = (long > 0) & (short > 0)
        ratio = np.divide(long, short, out=np.ones_like(long), where=used)
        return (self.short * np.sqrt(ratio)).astype(self.short.dtype)


def _alternated(
    solver: ALS, parts: Sequence[Slab], old: Sequence[Array], fixed: Array,
    team: Team | None,
) -> tuple[list[Array], Normal]:  # fmt: skip
    """Rows of every part, and what all of them bring to the columns, added in their order."""
    none, gram = Penalty(), kernels.gram(fixed)
    system = solver.shared(Normal(np.empty((0, fixed.shape[1])), gram), none)

    def visit(pair: tuple[Slab, Array]) -> tuple[Array, Normal]:
        ensure_one_thread()
        part, rows = pair
        cross = kernels.matmul(part, fixed)
        rows = solver.half_step(rows, Normal(cross, gram), none, system)
        return rows, Normal(kernels.matmul(part.T, rows), kernels.gram(rows))

    pairs = zip(parts, old, strict=True)
    found = team.map(visit, pairs) if team else [visit(pair) for pair in pairs]
    return [rows for rows, _ in found], add([terms for _, terms in found])


def _values(V: Slab) -> Array:
    if isinstance(V, Observed):
        return _values(V.weights if kernels.is_sparse(V.weights) else V.values)
    return V.data if kernels.is_sparse(V) else V


def count_candidates(sample: Slab, *, polish: bool = True) -> int:
    """How many random starts the first round has."""
    return ENOUGH if _rough(sample, polish) else CANDIDATES


def _rough(sample: Slab, polish: bool) -> bool:
    """Sparse, and the fit goes on with another loss, whose passes move further than the race."""
    return kernels.is_sparse(sample) and not polish


def run_race(
    sample: Slab, k: int, seed: int, numbers: Sequence[int], survivors: int, *, polish: bool = True,
    exchanges: bool = False,
) -> list[Candidate]:  # fmt: skip
    """Let the starts called ``numbers`` race; give the best ``survivors``, best first.

    Number 0 is no random start: it comes from the singular vectors of the sample, and joins the
    others in the second round. ``polish``: whether those that are left run until they rest. For a
    fit by another loss that brings nothing: its first pass moves further than all of these steps.
    Where V is sparse the race is a large part of such a fit, and a rougher one is as good.
    ``exchanges``: whether the best exchanges components at last, where ``polish`` and no weights
    are; what that leads to is taken where it is better on the sample.
    """
    rows, columns = sample.shape
    dtype = sample.dtype
    racing = [Candidate(n, _random_start(n, seed, columns, k).astype(dtype)) for n in numbers if n]
    few = sample
    if rows > 2 * FIRST_ROWS:
        stream = random.generator(seed, "race", 0, 0)
        few = sample[np.sort(stream.choice(rows, FIRST_ROWS, replace=False))]

    def run_seeded() -> Candidate:
        candidate = _svd_candidate(sample, k, seed, polish)
        squares = float(np.sum(squared_norms(sample)))
        candidate.run([sample], squares, ROUND, EARLY, ACCURACY)
        return candidate

    with Team(CPU_COUNT) as team:
        seeded = []
        if 0 in numbers and k <= min(rows, columns) and not isinstance(sample, Observed):
            seeded = [team.begin(run_seeded)]  # both of its rounds, while the others run
        racing = _first_round(team, racing, few)[: max(SECOND, survivors)]
        racing = _round(team, racing, sample, ROUND, EARLY)
        racing = _ranked(racing + [found() for found in seeded])[:survivors]
        if not polish:
            return racing
        racing = _round(team, racing, sample, LAST, LATE)
        if not exchanges or isinstance(sample, Observed):
            return racing
        return _ranked(racing + _exchanged(team, racing[0], sample, seed))[:survivors]


def _exchanged(team: Team, winner: Candidate, sample: Slab, seed: int) -> list[Candidate]:
    """Where an exchange of components leads; nowhere for a single one."""
    k = winner.short.shape[1]
    many = exchange.count_joining(k, *sample.shape)
    if not many:
        return []
    W = np.concatenate(winner.rows)
    basis = exchange.directions(sample, W, winner.short, many, seed)
    wider = _round(team, [winner.widened(sample, many, basis)], sample, WIDER, EARLY)[0]
    return _round(team, [wider.narrowed(k)], sample, LAST, LATE)


def count_iterations(plenty: float) -> int:
    """Of one start alone on a sample: more where it has entries in ``plenty``, up to 1.

    Where they are few, many iterations would fit what is there by chance.
    """
    return max(FEWEST, int(ROUND * plenty))


def run_alone(sample: Slab, short: Array, iterations: int) -> Candidate:
    """A few iterations of one start, on all threads."""
    candidate = Candidate(0, short)
    with Team(CPU_COUNT) as team:
        return _round(team, [candidate], sample, iterations, 0.0)[0]


def _first_round(team: Team, racing: list[Candidate], few: Slab) -> list[Candidate]:
    """On the columns that these rows reach: least squares leaves zero in the others."""
    if not kernels.is_sparse(few):
        return _round(team, racing, few, ROUND, EARLY, ROUGH)
    reached, places = np.unique(few.indices, return_inverse=True)
    near = type(few)((few.data, places, few.indptr), shape=(few.shape[0], reached.size))
    for candidate in racing:
        candidate.short = candidate.short[reached]
    racing = _round(team, racing, near, ROUND, EARLY, ROUGH)
    for candidate in racing:
        whole = np.zeros((few.shape[1], candidate.short.shape[1]), candidate.short.dtype)
        whole[reached] = candidate.short
        candidate.short = whole
    return racing


def _random_start(number: int, seed: int, columns: int, k: int) -> Array:
    return np.abs(random.normal_rows(seed, "columns", number, 0, columns, k))


def _svd_candidate(sample: Slab, k: int, seed: int, polish: bool) -> Candidate:
    ensure_one_thread()
    more = k // POWER_K if kernels.is_sparse(sample) else 0
    steps = ROUGHLY if _rough(sample, polish) else POWER + more
    start = _svd_start(sample, k, seed, steps)
    return Candidate(0, start.astype(sample.dtype))


def _svd_start(sample: Slab, k: int, seed: int, steps: int) -> Array:
    """NNDSVD of the sample."""
    unit = 1.0 / kernels.unit_of(_values(sample))
    near_one = (sample * unit).astype(np.float32, copy=False)
    left, values, right = randomized_svd(near_one, k, n_iter=steps, random_state=seed & 0xFFFFFFFF)
    return nndsvd.heavier_halves(left, values, right.T)


def _round(
    team: Team,
    racing: list[Candidate],
    V: Any,
    iterations: int,
    tol: float,
    accuracy: float = ACCURACY,
) -> list[Candidate]:
    """Let all run on V, the best first; one that is left has all threads to itself."""
    squares = float(np.sum(squared_norms(V)))
    many = min(V.shape[0] // SHORTEST_PART, PARTS)
    if len(racing) == 1 and not isinstance(V, Observed) and many > 1:
        edges = [V.shape[0] * i // many for i in range(many + 1)]
        parts = [V[a:b] for a, b in itertools.pairwise(edges)]
        racing[0].run(parts, squares, iterations, tol, accuracy, team)
        return racing
    parts = [V.keeping() if isinstance(V, Observed) else V]

    def run(candidate: Candidate) -> None:
        candidate.run(parts, squares, iterations, tol, accuracy)

    team.map(run, racing)
    return _ranked(racing)


def _ranked(racing: Sequence[Candidate]) -> list[Candidate]:
    """The best first."""
    return sorted(racing, key=lambda candidate: (candidate.relative, candidate.number))
