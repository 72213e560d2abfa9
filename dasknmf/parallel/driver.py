"""What the process of the fit itself computes between two waves, on its own threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from dask.system import CPU_COUNT

from dasknmf.numerics.kernels import Array
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.terms import Each, Normal, Terms
from dasknmf.parallel.blas import ensure_one_thread

BLOCK = 1024  # rows that are worth a thread


def half_step(solver: Solver, F: Array, terms: Terms, penalty: Penalty) -> Array:
    """``solver.half_step``, the rows of a long factor shared among threads: each is on its own."""
    if not isinstance(terms, Normal | Each) or F.shape[0] < 2 * BLOCK or CPU_COUNT == 1:
        return solver.half_step(F, terms, penalty)

    def part(start: int) -> Array:
        ensure_one_thread()
        some = slice(start, start + BLOCK)
        return solver.half_step(F[some], terms.part(some), penalty)

    with ThreadPoolExecutor(CPU_COUNT) as pool:
        return np.concatenate(list(pool.map(part, range(0, F.shape[0], BLOCK))))
