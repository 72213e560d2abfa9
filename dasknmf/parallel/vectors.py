"""Singular vectors of a sparse matrix from a sample of its rows and one read of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from dask.system import CPU_COUNT

from dasknmf.numerics import kernels, nndsvd, nystrom, random
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import PowerProducts
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.team import Team

STEPS = 12  # of power iteration on the sample
PARTS = 2  # of the sample, for threads, whatever the number of them


def probes(sample: Slab, k: int, seed: int) -> Array:
    """Leading right singular vectors of a sample, roughly: columns × at most k + 10.

    Block power iteration on the columns that the sample reaches; the others have zeros.
    """
    ensure_one_thread()
    reached, places = np.unique(sample.indices, return_inverse=True)
    near = type(sample)(
        (sample.data, places.astype(sample.indices.dtype, copy=False), sample.indptr),
        shape=(sample.shape[0], reached.size),
    )
    edges = [near.shape[0] * i // PARTS for i in range(PARTS + 1)]
    parts = [near[a:b] for a, b in pairwise(edges)]
    width = min(k + 2 * nystrom.SPARE, reached.size)
    basis: Array = random.normal_rows(seed, "singular-vectors", 0, 0, reached.size, width)
    with Team(CPU_COUNT) as team:
        for _ in range(STEPS):
            basis = nystrom.orthonormal(_product(team, parts, basis)).astype(sample.dtype)
        _, right = nystrom.leading(_product(team, parts, basis), basis, k + nystrom.SPARE)
    found = np.zeros((sample.shape[1], right.shape[1]), sample.dtype)
    found[reached] = right
    return found[:, right.any(axis=0)]


def _product(team: Team, parts: Sequence[Slab], basis: Array) -> Float64:
    def product(part: Slab) -> Float64:
        ensure_one_thread()
        return nndsvd.power_product(part, basis)

    total: Float64 = add(team.map(product, parts))
    return total


def refined(
    executor: Executor, found: Sequence[Array], ranks: Sequence[int]
) -> list[tuple[Float64, Float64]]:
    """Singular values and k right vectors of all of V for each of ``ranks``, in one read."""
    products = executor.run(PowerProducts(tuple(found))).sums
    return [
        nystrom.leading(product, basis, k)
        for product, basis, k in zip(products, found, ranks, strict=True)
    ]


def starting(sample: Slab, values: Float64, right: Float64) -> Array:
    """The short factor that NNDSVD makes of them; left vectors are those of the sample's rows."""
    left = kernels.matmul(sample, right)
    return nndsvd.heavier_halves(left, values, right).astype(sample.dtype)
