"""Singular vectors of a sparse matrix from a sample of its rows and one read of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from dask.system import CPU_COUNT

from dasknmf.numerics import kernels, nndsvd, nystrom, random
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.terms import add
from dasknmf.numerics.work import PowerProducts
from dasknmf.parallel.blas import ensure_one_thread
from dasknmf.parallel.executors import Executor
from dasknmf.parallel.team import Team

STEPS = 8  # of power iteration on the sample
PARTS = 2  # of the sample, for as many threads: fixed, so that the bits are
NOTHING = 1e-14  # length of a vector, in parts of the longest: below, it is rounding
S = TypeVar("S")
T = TypeVar("T")


def probes(sample: Slab, k: int, seed: int) -> Array:
    """Leading right singular vectors of a sample, roughly: columns × at most k + 10.

    Block power iteration on the columns that the sample reaches; the others have zeros.
    """
    ensure_one_thread()
    reached, places = np.unique(sample.indices, return_inverse=True)
    unit = 1.0 / kernels.unit_of(sample.data)
    near = type(sample)(
        (sample.data * unit, places.astype(sample.indices.dtype, copy=False), sample.indptr),
        shape=(sample.shape[0], reached.size),
    )
    width = min(k + 2 * nystrom.SPARE, reached.size)
    basis: Array = random.uniform_rows(seed, "singular-vectors", 0, 0, reached.size, width) - 0.5
    with Team(CPU_COUNT) as team:
        iteration = _PowerIteration(team, near, width)
        for _ in range(STEPS):
            basis = iteration.step(basis)
        _, right = nystrom.leading(iteration.product(basis), basis, k + nystrom.SPARE)
    found = np.zeros((sample.shape[1], right.shape[1]), sample.dtype)
    found[reached] = right
    return found[:, right.any(axis=0)]


class _PowerIteration:
    """On SᵀS of a sparse S, part by part; products reuse their memory."""

    def __init__(self, team: Team, sample: Slab, width: int) -> None:
        rows, columns = sample.shape
        self._team = team
        self._parts = [sample[some] for some in _stretches(rows)]
        self._stretches = _stretches(columns)
        self._inner = [np.empty(part.shape[0] * width) for part in self._parts]
        self._outer = [np.empty(columns * width) for _ in self._parts]
        self._turned = np.empty(columns * width)

    def product(self, basis: Array) -> Float64:
        """SᵀS basis; the next one overwrites it."""
        first, *others = self._products(basis)
        for other in others:
            first += other
        return first

    def step(self, basis: Array) -> Array:
        """A basis of SᵀS basis, all of length one; smaller, where S has a lower rank.

        Turned to be orthogonal, as far as float64 can tell: what is 1e-4 of the largest singular
        value is 1e-16 in a Gram matrix. It is kept all the same, and told apart in later steps.
        """
        first, *others = self._products(basis)

        def gram(some: slice) -> Float64:
            for other in others:
                first[some] += other[some]
            return kernels.gram(first[some])

        turn = np.linalg.eigh(add(self._map(gram, self._stretches)))[1]
        turned = self._turned[: first.size].reshape(first.shape)

        def squares(some: slice) -> Float64:
            np.matmul(first[some], turn, out=turned[some])
            found: Float64 = np.einsum("ij,ij->j", turned[some], turned[some])
            return found

        lengths = np.sqrt(add(self._map(squares, self._stretches)))
        kept = lengths > NOTHING * np.max(lengths, initial=0.0)
        new = np.empty((first.shape[0], np.count_nonzero(kept)), self._parts[0].dtype)

        def scale(some: slice) -> None:
            new[some] = turned[some][:, kept] / lengths[kept]

        self._map(scale, self._stretches)
        return new

    def _products(self, basis: Array) -> list[Float64]:
        fixed, width = kernels.own(basis), basis.shape[1]

        def product(n: int) -> Float64:
            entries = kernels.csr_parts(self._parts[n])
            inner = self._inner[n][: self._parts[n].shape[0] * width].reshape(-1, width)
            outer = self._outer[n][: fixed.size].reshape(fixed.shape)
            outer[:] = 0.0
            kernels.loops().csr_matmul(*entries, fixed, inner)
            kernels.loops().csr_t_matmul(*entries, kernels.own(inner), outer)
            return outer

        return self._map(product, range(PARTS))

    def _map(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        def alone(item: S) -> T:
            ensure_one_thread()
            return work(item)

        return self._team.map(alone, items)


def _stretches(rows: int) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(rows * i // PARTS for i in range(PARTS + 1))]


def refined(executor: Executor, found: Sequence[Array]) -> list[tuple[Float64, Float64]]:
    """Singular values and right vectors of all of V, as many as each basis has, in one read."""
    products = executor.run(PowerProducts(tuple(found))).sums
    return [
        nystrom.leading(product, basis, basis.shape[1])
        for product, basis in zip(products, found, strict=True)
    ]


def starting(sample: Slab, values: Float64, right: Float64, k: int) -> Array:
    """The short factor that NNDSVD makes of the first k.

    Left vectors are those of the sample's rows.
    """
    left = kernels.matmul(sample, right[:, :k])
    return nndsvd.heavier_halves(left, values[:k], right[:, :k]).astype(sample.dtype)
