"""Leading right singular vectors of V from one read of it, given vectors that are near them.

From Y = VᵀV Q, Nyström's approximation VᵀV ≈ Y (Qᵀ Y)⁺ Yᵀ, whose eigenvectors are much nearer to
those of VᵀV than Q is: they lie in the span of Y, one step of power iteration further.

J. A. Tropp, A. Yurtsever, M. Udell, V. Cevher: Fixed-rank approximation of a positive-semidefinite
matrix from streaming data, NIPS 2017, algorithm 3. Directions that rounding alone would carry are
left out here, in place of its shift.
"""

from __future__ import annotations

import numpy as np

from dasknmf.numerics.kernels import Array, Float64, gram

SPARE = 10  # vectors more than are wanted, in every step
ROUNDING = 1e-12  # eigenvalues, in parts of the largest: below, they are none


def whitening(squared: Float64) -> Float64:
    """What makes columns with this Gram matrix orthonormal: l × the rank that they have."""
    values, turn = _eigen(squared)
    found: Float64 = turn / np.sqrt(values)
    return found


def leading(product: Float64, basis: Array, count: int) -> tuple[Float64, Float64]:
    """Singular values, in units that all share, and right vectors; zeros where V has no more.

    ``product``: VᵀV ``basis``, columns × l. Gives ``count`` values, largest first, and vectors
    columns × ``count``.
    """
    scaled = _near_one(product)
    core = basis.T.astype(np.float64) @ scaled
    root = scaled @ whitening((core + core.T) / 2.0)
    squares, turn = _eigen(gram(root))
    many = min(count, squares.size)
    values, right = np.zeros(count), np.zeros((product.shape[0], count))
    values[:many] = np.sqrt(squares[:many])
    right[:, :many] = (root @ (turn / np.sqrt(squares)))[:, :many]
    return values, right


def _near_one(product: Float64) -> Float64:
    """Squares of what comes from large data would overflow."""
    largest = float(np.max(np.abs(product), initial=0.0))
    scaled: Float64 = product / largest if largest > 0.0 else product
    return scaled


def _eigen(symmetric: Float64) -> tuple[Float64, Float64]:
    """Eigenvalues that are not rounding, largest first, and their vectors."""
    values, vectors = np.linalg.eigh(symmetric)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > ROUNDING * max(float(values[0]), 0.0) if values.size else values > 0.0
    return values[kept], vectors[:, kept]
