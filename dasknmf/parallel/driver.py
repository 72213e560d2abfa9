"""What the process of the fit itself computes between two waves, on its own threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from dask.system import CPU_COUNT

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.stopping import Mask, alive, led, revive
from dasknmf.numerics.terms import (
    Columns,
    Each,
    Foreseen,
    Listed,
    Normal,
    Split,
    Terms,
    add,
    add_arrays,
    add_by,
)
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.team import Team

BLOCK = 1024  # rows that are worth a thread,
FEW = 500  # and by least squares
STRETCH = 16384  # rows of a part, at most, where there are more than
PARTS = 4  # of them: threads that take turns in Python hold each other up
LARGE = 1 << 20  # bytes of an array that is worth not making anew,
SHARED = 16 << 20  # and of one that is worth threads
NONE = slice(0)
T = TypeVar("T")


def half_step(solver: Solver, F: Array, terms: Terms, penalty: Penalty) -> Array:
    """``solver.half_step``, the rows of a long factor shared among threads: each is on its own."""
    whole = formed(terms)
    if isinstance(whole, Split):
        return solver.half_step(F, whole, penalty)
    shared = solver.shared(whole.part(NONE), penalty)

    def part(some: slice) -> Array:
        return solver.half_step(F[some], whole.part(some), penalty, shared)

    return np.concatenate(_in_blocks(part, F.shape[0]))


def solve_columns(
    solver: Solver, F: Array, found: Sequence[Columns | Foreseen], penalty: Penalty
) -> tuple[Array, float]:
    """``half_step`` from terms still to be added up, and the loss that they tell of the new factor.

    Each thread adds up its columns' terms: the k × k curvature of a column is read once then, and
    the sum of all columns' is nowhere held.
    """

    def part(some: slice) -> tuple[Array, float]:
        terms = add([terms.part(some) for terms in found])
        new = solver.half_step(F[some], terms, penalty)
        return new, terms.told(new.astype(np.float64, copy=False))

    news, told = zip(*_in_blocks(part, F.shape[0]), strict=True)
    constants = [terms.constant for terms in found if isinstance(terms, Columns)]
    return np.concatenate(news), sum(told) + sum(constants)


def formed(terms: Any) -> Any:
    """What slabs only listed is formed by threads, each for its columns."""
    if not isinstance(terms, Listed):
        return terms
    return terms.formed(_by_columns)


def _by_columns(work: Callable[[slice], None], columns: int) -> None:
    _in_parts(work, columns, BLOCK)


def _in_blocks(work: Callable[[slice], T], rows: int) -> list[T]:
    return _in_parts(work, rows, BLOCK if rows >= 2 * BLOCK else rows)


def _in_parts(work: Callable[[slice], T], rows: int, height: int) -> list[T]:
    """What ``work`` gives for every ``height`` of the rows."""
    starts = range(0, rows, height)
    parts = [slice(a, b) for a, b in pairwise([*starts, rows])]
    if len(parts) == 1 or CPU_COUNT == 1:
        return [work(some) for some in parts]

    def alone(some: slice) -> T:
        ensure_one_thread()
        return work(some)

    with Team(CPU_COUNT) as team:
        return team.map(alone, parts)


class Solved(NamedTuple):
    """A short factor, the loss with it, and one ahead of it."""

    short: Array
    loss: float
    ahead: Array


def solve_least_squares(
    solver: Solver,
    F: Array,
    found: Sequence[Terms],
    penalty: Penalty,
    squared_norm: float,
    momentum: float,
) -> Solved:
    """:func:`solve_columns` by least squares, with what is ahead of the factor, in one walk.

    One after the other they read from memory what a thread here still has near. The parts are the
    same for any number of threads, and so is the sum of what they explain.
    """
    loss, known = Frobenius(), [terms for terms in found if isinstance(terms, Normal | Each)]
    assert len(known) == len(found)
    shared = solver.shared(add([terms.part(NONE) for terms in known]), penalty)

    def part(some: slice) -> tuple[Array, float, Array, Mask]:
        terms = add([terms.part(some) for terms in known])
        new = solver.half_step(F[some], terms, penalty, shared)
        ahead = led(new, F[some], momentum)
        return new, loss.explained(terms, new), ahead, alive(ahead)

    rows = F.shape[0]
    parts = max(1, min(rows // FEW, PARTS), -(-rows // STRETCH))
    news, explained, aheads, living = zip(*_in_parts(part, rows, -(-rows // parts)), strict=True)
    short, ahead = np.concatenate(news), np.concatenate(aheads)
    revive(ahead, short, np.any(living, axis=0))
    return Solved(short, loss.left(sum(explained), squared_norm), ahead)


def add_up(parts: Sequence[T]) -> T:
    """``add`` of what nobody else refers to: into the first of the parts, where it is large."""
    return add_by(_into_first, parts, _by_columns)


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
        with Team(CPU_COUNT) as team:
            team.map(add_rows, pairwise(edges))
    return first
