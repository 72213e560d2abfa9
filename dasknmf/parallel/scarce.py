"""Starts where a sparse sample is scarce: it has fewer entries than the factor sought from it.

What is best on such a sample has fitted the sample, not V. So directions come from a read of all
of V, and a second one says which components to go on with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dasknmf.numerics import exchange, nystrom
from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import Step
from dasknmf.parallel import vectors
from dasknmf.parallel.driver import half_step
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.race import Candidate, count_iterations, run_alone
from dasknmf.parallel.sample import Begun, Sampled
from dasknmf.parallel.slabs import Slabs

FIRST = 2  # iterations before components join: more bring nothing
CHOOSING = 1e-4  # of the loss: what rows that choose components may leave to gain


def by_singular_vectors(
    sampled: Sampled, ranks: Sequence[int], seed: int, executor: Executor
) -> dict[int, Begun]:
    """Starts by rank, for two reads in all; a rank that the sample or V does not have is missing.

    NNDSVD from the singular vectors of V, and a few iterations on the sample. Then a fifth more
    components join, which are what the sample leaves unexplained along those vectors, and all are
    fitted to the sample. Rows of all of V for all of them say which k stay, and give their columns.
    """
    rows = sampled.rows
    near = {k: vectors.probes(rows, k + joining(k, sampled), seed) for k in ranks}
    ranks = [k for k in ranks if near[k].shape[1] >= k]
    if not ranks:
        return {}
    found = vectors.refined(executor, [near[k] for k in ranks])
    wide = {
        k: _widened(sampled, k, *triples)
        for k, triples in zip(ranks, found, strict=True)
        if triples[0][:k].all()
    }
    return _narrowed(sampled, wide, executor) if wide else {}


def start_widths(ranks: Sequence[int], slabs: Slabs) -> dict[str, int]:
    """What the memory plan has to know of such starts: their ``probes``, and their ``widest``."""
    wide = [k + exchange.count_joining(k, *slabs.shape) for k in ranks]
    return {"probes": sum(width + nystrom.SPARE for width in wide), "widest": sum(wide)}


def joining(k: int, sampled: Sampled) -> int:
    """How many components a start of rank k has in excess until the last read."""
    return exchange.count_joining(k, *sampled.rows.shape)


def _widened(sampled: Sampled, k: int, values: Array, right: Array) -> Candidate:
    rows, plenty = sampled.rows, sampled.plenty(k)
    short, many = vectors.starting(rows, values, right, k), joining(k, sampled)
    if many:
        first = run_alone(rows, short, FIRST)
        short = first.widened(rows, many, right[:, values > 0.0]).short
    return run_alone(rows, short, count_iterations(plenty))


def _narrowed(sampled: Sampled, wide: dict[int, Candidate], executor: Executor) -> dict[int, Begun]:
    """The k most useful components of each, and their columns solved from rows of all of V."""
    begun = {k: sampled.begun(candidate) for k, candidate in wide.items()}
    shorts = tuple(start.short for start in begun.values())
    gains = tuple(CHOOSING * start.relative for start in begun.values())
    step = Step(Frobenius(), ALS(), Penalty(), shorts, gains=gains)
    assert sampled.inspection is not None
    squares = sampled.inspection.squares
    found = {}
    for (k, start), sums in zip(begun.items(), executor.run(step).sums.models, strict=True):
        kept = exchange.most_useful(sums.terms.gram, start.short, k)
        terms = Normal(sums.terms.cross[:, kept], sums.terms.gram[np.ix_(kept, kept)])
        short = half_step(ALS(), np.ascontiguousarray(start.short[:, kept]), terms, Penalty())
        found[k] = Begun(short, 2.0 * Frobenius().value(terms, short, squares) / squares)
    return found
