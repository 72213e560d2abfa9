"""Components exchanged: those that explain least for those that are missing.

A start or a few iterations settle which parts of V have a component of their own, and later
iterations hardly change that: two share what one would explain, while something else has none. What
all of them leave unexplained shows what is missing. So components along the leading directions of
the residual join, all are fitted together, and those leave without which least is lost.

The idea is that of split and merge for mixtures: N. Ueda, R. Nakano, Z. Ghahramani, G. E. Hinton,
SMEM algorithm for mixture models, Neural Computation 12(9), 2000.
"""

from __future__ import annotations

import numpy as np

from dasknmf.numerics import kernels, random
from dasknmf.numerics.kernels import Array, Float64, Slab
from dasknmf.numerics.nndsvd import orthonormal

PART = 5  # of the components, one in so many joins
SPARE = 5  # directions more than are wanted, in every step
STEPS = 4  # of power iteration on the residual
RIDGE = 1e-9  # of a squared length: what keeps equal components apart


def count_joining(k: int, rows: int, columns: int) -> int:
    """How many components join k others; none join one, whose best value every start finds."""
    return max(min(max(k // PART, 1), rows - k, columns - k), 0) if k > 1 else 0


def directions(V: Slab, W: Array, F: Array, many: int, seed: int) -> Float64:
    """Roughly the leading right singular vectors of V - W Fᵀ, by block power iteration.

    Shape (columns of V, at most ``many`` + 5), orthonormal.
    """
    width = min(many + SPARE, *V.shape)
    basis = random.uniform_rows(seed, "residual", 0, 0, V.shape[1], width) - 0.5
    for _ in range(STEPS):
        left = _residual(V, W, F, basis)
        left /= kernels.unit_of(left)
        basis = orthonormal(_residual(V.T, F, W, left))
    return basis


def missing(V: Slab, W: Array, F: Array, basis: Float64, many: int) -> Array:
    """``many`` non-negative components of V - W Fᵀ, columns of V × ``many``, scaled as those of F.

    Its leading directions within the span of ``basis``, orthonormal columns (Rayleigh-Ritz); of
    their two signs the one with more in it.
    """
    _, turn = np.linalg.eigh(kernels.gram(_residual(V, W, F, basis)))
    found = basis @ turn[:, ::-1][:, :many]
    halves = np.maximum(found, 0.0), np.maximum(-found, 0.0)
    plus, minus = (np.linalg.norm(half, axis=0) for half in halves)
    heavier = np.where(plus >= minus, *halves)
    usual = float(np.mean(np.sqrt(np.diag(kernels.gram(F)))))
    length = np.maximum(plus, minus)
    scale = np.divide(usual, length, out=np.zeros_like(length), where=length > 0.0)
    joining: Array = (heavier * scale).astype(F.dtype)
    return joining


def _residual(V: Slab, W: Array, F: Array, basis: Float64) -> Float64:
    """(V - W Fᵀ) basis."""
    basis = basis.astype(V.dtype, copy=False)
    product: Float64 = kernels.matmul(V, basis) - kernels.matmul(W, kernels.matmul(F.T, basis))
    return product


def most_useful(rows_gram: Float64, F: Array, k: int) -> list[int]:
    """Which k components of W Fᵀ stay: that without which least is lost leaves, again and again.

    ``rows_gram``: WᵀW; both in any units. Without component j the squared error grows by (WᵀW)_jj
    over the diagonal entry of (FᵀF)⁻¹, as that of a regression without one of its regressors, and
    the others take over what they can of it: where no row of W is at a bound, this is backward
    elimination. Components that differ by less than 3e-5 of their length count as one.
    """
    inner = kernels.gram(F * (1.0 / kernels.unit_of(F)))
    length = np.sqrt(np.diag(inner))
    inner /= np.outer(length, length) + (np.outer(length, length) == 0.0)
    inner[np.diag_indices_from(inner)] = 1.0 + RIDGE
    rows = rows_gram / kernels.unit_of(rows_gram) * np.outer(length, length)
    kept = np.arange(length.size)
    while kept.size > k:
        inverse = np.linalg.inv(inner)  # updating the last one loses all digits among equals
        leaves = int(np.argmin(np.diag(rows) / np.diag(inverse)))
        taken = -inverse[:, leaves] / inverse[leaves, leaves]
        others = np.delete(np.arange(kept.size), leaves)
        passed = np.outer(taken, rows[leaves])
        rows = rows + passed + passed.T + rows[leaves, leaves] * np.outer(taken, taken)
        rows, inner = (matrix[np.ix_(others, others)] for matrix in (rows, inner))
        kept = kept[others]
    return [int(j) for j in kept]
