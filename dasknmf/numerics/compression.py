"""A dense V as V ≈ Y Mᵀ of few columns, found in a read that a pass does anyway.

Y = V Ω for probes Ω (columns of V × l) stays where V's slabs are. The same read brings Vᵀ Y and
YᵀY, hence M = Vᵀ Y (YᵀY)⁻¹, with which Y Mᵀ is V projected on the span of Y. The probes hold the
short factors as they are, so both products of a pass, V H and Vᵀ W, are exact to first order there;
the others are random in the first pass, and the leading right singular vectors of Y Mᵀ after it.

N. Halko, P.-G. Martinsson, J. A. Tropp: Finding structure with randomness, SIAM Review 53(2), 2011,
section 4. M. Tepper, G. Sapiro: Compressed nonnegative matrix factorization is fast and accurate,
IEEE Trans. Signal Processing 64(9), 2016, who compress both sides, and stay with the compressed V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dasknmf.numerics import random
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.kernels import Array, Float64, Slab, gram, matmul
from dasknmf.numerics.nndsvd import OVERSAMPLING
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import Solver
from dasknmf.numerics.terms import Normal
from dasknmf.numerics.work import ModelSums, Rows, Step, StepSums

SMALLEST = 128 << 20  # bytes of V; a read of less costs less than the compressed passes
LEAST_RATIO = 8  # columns of V for one of Y
DEPENDENT = 1e-7  # directions of Y that weigh less than this part of the heaviest are rounding


def extra_probes(n_components: int) -> int:
    """Probes beside the short factors."""
    return n_components + OVERSAMPLING


def width(n_components: int, models: int, shape: tuple[int, int]) -> int:
    """Columns of Y at most."""
    return min(models * n_components + extra_probes(n_components), shape[1])


def pays(shape: tuple[int, int], itemsize: int, width: int, *, lazy: bool, fits: bool) -> bool:
    """Whether to compress where nobody says: a large, lazily loaded V, many columns for one of Y.

    It saves reads and costs arithmetic: 4 m n l for a sketch, and the rows of each compressed pass.
    Measured, k = 16, in reads and seconds to the error at which a fit without it stopped, from a
    local disk: 21025 × 200 17 and 3.9 against 3 and 2.3; 20000 × 2000 of rank 24 19 and 12 against
    3 and 7, of rank 16 3 and 2.7 against 2 and 2.5; noise 9 and 5.1 against 9 and 5.8. Where V
    stays in memory, the whole fit of the first took 1.8 s against 4.8, of the second 13 against 12:
    few columns for one of Y lose there. Nothing depends on the number of workers but ``fits``.
    """
    large = shape[0] * shape[1] * itemsize >= SMALLEST
    return lazy and fits and large and shape[1] >= LEAST_RATIO * width


class Sketch(NamedTuple):
    """What a read brings for the right factor: ``cross`` Vᵀ Y (n × l), ``gram`` YᵀY (l × l)."""

    cross: Float64
    gram: Float64


class Sketched(NamedTuple):
    """Sums of a step, and the sketch of the slabs that it saw."""

    step: StepSums
    sketch: Sketch


@dataclass(frozen=True)
class SketchedStep:
    """A step that leaves V_i @ probes where the slab is, and behind it the rows, if wanted."""

    step: Step
    probes: Array
    keep: bool = False

    @property
    def name(self) -> str:
        """Such as ``nmf-als-pass``."""
        return self.step.name

    def __call__(self, V: Slab, rows: Rows | None, place: Place) -> tuple[Rows, Sketched]:
        """Visit one slab."""
        new, sums = self.step(V, None, place)
        if not sums.models:  # bad values: the fit is about to end with their places
            nothing = Sketch(np.zeros(self.probes.shape), np.zeros((self.probes.shape[1],) * 2))
            return (V[:0],), Sketched(sums, nothing)
        Y = matmul(V, self.probes).astype(V.dtype)
        kept = (Y, *new) if self.keep and new is not None else (Y,)
        return kept, Sketched(sums, Sketch(matmul(V.T, Y), gram(Y)))


@dataclass(frozen=True)
class CompressedStep:
    """The fused visit on Y alone: exact rows for the compressed V, and YᵀW.

    ``reduced``: MᵀF of every model's short factor F; ``grams``: FᵀF, which MᵀF does not tell.
    """

    solver: Solver
    penalty: Penalty
    reduced: tuple[Float64, ...]
    grams: tuple[Float64, ...]
    name: str = "nmf-compressed-pass"

    def __call__(
        self, V: Slab, rows: Rows | None, place: Place
    ) -> tuple[None, tuple[ModelSums, ...]]:
        """Visit the rows of one slab."""
        assert rows is not None
        Y = rows[0]
        found = []
        for reduced, weights in zip(self.reduced, self.grams, strict=True):
            zeros = np.zeros((Y.shape[0], reduced.shape[1]), Y.dtype)
            W = self.solver.half_step(zeros, Normal(matmul(Y, reduced), weights), self.penalty)
            terms = Normal(matmul(Y.T, W), gram(W))
            found.append(ModelSums(terms, self.penalty.value(W), 0.0))
        return None, tuple(found)


@dataclass(frozen=True)
class LowRank:
    """The right side of V ≈ Y Mᵀ.

    right
        M, columns of V × l.
    scaled
        B with V ≈ Q Bᵀ for orthonormal Q: its left singular vectors are V's right ones.
    """

    right: Float64
    scaled: Float64

    @classmethod
    def of(cls, sketch: Sketch) -> LowRank:
        """From the sums of all slabs; directions that depend on others are left out."""
        norms = np.sqrt(np.diag(sketch.gram))
        inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
        squares, vectors = np.linalg.eigh(sketch.gram * np.outer(inverse, inverse))
        used = squares > DEPENDENT * max(float(squares[-1]), np.finfo(float).tiny)
        turn = inverse[:, None] * vectors[:, used] / np.sqrt(squares[used])
        scaled = sketch.cross @ turn
        return cls(scaled @ turn.T, scaled)

    def step(self, solver: Solver, penalty: Penalty, fixed: Sequence[Array]) -> CompressedStep:
        """The visit for these short factors."""
        wide = [F.astype(np.float64) for F in fixed]
        reduced, grams = tuple(self.right.T @ F for F in wide), tuple(gram(F) for F in wide)
        return CompressedStep(solver, penalty, reduced, grams)

    def widened(self, sums: ModelSums) -> ModelSums:
        """Sums with VᵀW in the place of YᵀW."""
        assert isinstance(sums.terms, Normal)
        terms = Normal(self.right @ sums.terms.cross, sums.terms.gram)
        return ModelSums(terms, sums.penalty, 0.0)

    def leading(self, count: int) -> Float64:
        """Leading right singular vectors, n × count at most."""
        vectors: Float64 = np.linalg.svd(self.scaled, full_matrices=False)[0]
        return vectors[:, :count]


def random_directions(seed: int, columns: int, count: int) -> Float64:
    """Random probes, columns × count."""
    return random.normal_rows(seed, "sketch", 0, 0, columns, count)


def probes(factors: Sequence[Array], others: Float64) -> Float64:
    """Orthonormal columns that span the factors and, as far as there is room, ``others``."""
    whole = np.concatenate([*factors, others], axis=1).astype(np.float64)
    norms = np.linalg.norm(whole, axis=0)
    basis: Float64 = np.linalg.qr(whole[:, norms > 0.0] / norms[norms > 0.0])[0]
    return basis
