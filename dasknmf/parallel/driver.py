"""What the process of the fit itself computes between two waves, on its own threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from dask.system import CPU_COUNT

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.terms import Columns, Each, Normal, Terms, add, add_arrays, add_by
from dasknmf.parallel.blas import ensure_one_thread

BLOCK = 1024  # rows that are worth a thread
LARGE = 1 << 20  # bytes of an array that is worth not making anew,
SHARED = 16 << 20  # and of one that is worth threads
T = TypeVar("T")


def half_step(solver: Solver, F: Array, terms: Terms, penalty: Penalty) -> Array:
    """``solver.half_step``, the rows of a long factor shared among threads: each is on its own."""
    return half_step_of_sum(solver, F, [terms], penalty)


def half_step_of_sum(solver: Solver, F: Array, found: Sequence[Terms], penalty: Penalty) -> Array:
    """The same from terms that are still to be added up, which each thread does for its rows.

    A column's k × k curvature is read once then, and the sum of all columns' is nowhere held.
    """
    known = [terms for terms in found if isinstance(terms, Normal | Each | Columns)]
    if len(known) < len(found) or F.shape[0] < 2 * BLOCK or CPU_COUNT == 1:
        return solver.half_step(F, add(found), penalty)

    shared = solver.shared(add([terms.part(slice(0)) for terms in known]), penalty)

    def part(start: int) -> Array:
        ensure_one_thread()
        some = slice(start, start + BLOCK)
        terms = add([terms.part(some) for terms in known])
        return solver.half_step(F[some], terms, penalty, shared)

    with ThreadPoolExecutor(CPU_COUNT) as pool:
        return np.concatenate(list(pool.map(part, range(0, F.shape[0], BLOCK))))


def add_up(parts: Sequence[T]) -> T:
    """``add`` of what nobody else refers to: into the first of the parts, where it is large."""
    return add_by(_into_first, parts)


def _into_first(parts: Sequence[Array]) -> Array:
    """The same sum; curvature of 36 MB a slab took twice as long into fresh memory."""
    first = parts[0]
    if first.nbytes < LARGE or first.dtype != np.float64 or not first.flags.writeable:
        return add_arrays(parts)

    def add_rows(edges: tuple[int, int]) -> None:
        rows = slice(*edges)
        for part in parts[1:]:
            np.add(first[rows], part[rows], out=first[rows])

    if first.nbytes < SHARED or CPU_COUNT == 1:
        add_rows((0, first.shape[0]))
    else:
        edges = [first.shape[0] * i // CPU_COUNT for i in range(CPU_COUNT + 1)]
        with ThreadPoolExecutor(CPU_COUNT) as pool:
            list(pool.map(add_rows, pairwise(edges)))
    return first
