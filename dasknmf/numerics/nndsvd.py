"""NNDSVD: initial factors from the singular vectors, negative halves cut off.

For each singular triple (u, s, v) the pair of halves with the larger product of norms is kept:
w = sqrt(s |u±| |v±|) u± / |u±| and h likewise (the first triple has one sign: absolute values).

C. Boutsidis, E. Gallopoulos: SVD based initialization: a head start for nonnegative matrix
factorization, Pattern Recognition 41(4), 2008. The singular vectors come from a range finder of
two reads: N. Halko, P.-G. Martinsson, J. A. Tropp, SIAM Review 53(2), 2011, section 4.5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dasknmf.numerics import random
from dasknmf.numerics.kernels import Array, Float64, Slab, gram, matmul

OVERSAMPLING = 10


class Directions(NamedTuple):
    """Leading singular triples of V in the streamed orientation.

    right: columns of V × k, orthonormal. turn: l × k, maps rows of V @ basis to left vectors.
    values: k singular values.
    """

    right: Float64
    turn: Float64
    values: Float64


def test_matrix(seed: int, columns: int, n_components: int) -> Float64:
    """Random probes, columns × min(k + 10, columns)."""
    width = min(n_components + OVERSAMPLING, columns)
    return random.normal_rows(seed, "range-finder", 0, 0, columns, width)


def power_product(V: Slab, probes: Array) -> Float64:
    """Vᵀ V probes of one slab: the range finder with one power step, in one read."""
    return matmul(V.T, matmul(V, probes))


def orthonormal(product: Float64) -> Float64:
    """Orthonormal basis of the summed product, columns of V × l."""
    largest = float(np.max(np.abs(product), initial=0.0))
    basis: Float64 = np.linalg.qr(product / largest if largest > 0 else product)[0]
    return basis


def directions(projected_gram: Float64, basis: Float64, n_components: int) -> Directions:
    """Singular triples from the Gram matrix of V @ basis."""
    squares, vectors = np.linalg.eigh(projected_gram)
    order = np.argsort(squares)[::-1][:n_components]
    values = np.sqrt(np.maximum(squares[order], 0.0))
    floor = 1e-12 * max(float(values[0]), np.finfo(float).tiny)
    scale = np.divide(1.0, values, out=np.zeros_like(values), where=values > floor)
    return Directions(basis @ vectors[:, order], vectors[:, order] * scale, values)


def half_norms(vectors: Array) -> tuple[Float64, Float64]:
    """Squared norms of the positive and of the negative halves of each column."""
    positive = np.sum(np.square(np.maximum(vectors, 0.0), dtype=np.float64), axis=0)
    negative = np.sum(np.square(np.minimum(vectors, 0.0), dtype=np.float64), axis=0)
    return positive, negative


class Halves(NamedTuple):
    """Which half of each triple is kept (+1, -1; 0: absolute values), and both factors' scales."""

    sign: Float64
    left: Float64
    right: Float64


def choose_halves(found: Directions, left_norms: tuple[Float64, Float64]) -> Halves:
    """Pick, for each triple, the half that carries more."""
    left_up, left_down = (np.sqrt(norm) for norm in left_norms)
    right_up, right_down = (np.sqrt(norm) for norm in half_norms(found.right))
    up = left_up * right_up >= left_down * right_down
    sign = np.where(up, 1.0, -1.0)
    left, right = np.where(up, left_up, left_down), np.where(up, right_up, right_down)
    sign[0], left[0], right[0] = 0.0, 1.0, 1.0
    size = np.sqrt(found.values * left * right)

    def scale(norm: Float64) -> Float64:
        return np.divide(size, norm, out=np.zeros_like(size), where=norm > 0.0)

    return Halves(sign, scale(left), scale(right))


def keep_halves(vectors: Array, sign: Float64, scale: Float64) -> Float64:
    """Cut the vectors to their kept halves and scale them."""
    kept = np.where(sign == 0.0, np.abs(vectors), np.maximum(vectors * sign, 0.0)) * scale
    kept[kept < 1e-6 * np.max(kept, initial=0.0)] = 0.0  # rounding of the range finder, not data
    return kept


class Fill(NamedTuple):
    """What replaces the zeros: nothing (nndsvd), the mean (a), or small random numbers (ar)."""

    kind: str
    mean: float
    seed: int

    def __call__(self, factor: Array, purpose: str, start: int) -> Array:
        """Fill ``factor``, whose first row is global row ``start``, in place; give it back."""
        zero = factor == 0.0
        if self.kind == "nndsvda":
            factor[zero] = self.mean
        elif self.kind == "nndsvdar":
            rows, columns = factor.shape
            drawn = random.normal_rows(self.seed, purpose, 0, start, start + rows, columns)
            factor[zero] = np.abs(drawn[zero]) * self.mean / 100.0
        return factor


def projected(V: Slab, basis: Array) -> tuple[Float64, Float64]:
    """V @ basis of one slab and its Gram matrix."""
    rows = matmul(V, basis)
    return rows, gram(rows)


def heavier_halves(left: Array, values: Array, right: Array) -> Float64:
    """The right factor, columns × k: of each triple the heavier half, zeros filled with a little.

    ``left`` may be of a sample of the rows: its sizes count among themselves, column by column.
    """
    left_up, left_down = (np.sqrt(norm) for norm in half_norms(left))
    right_up, right_down = (np.sqrt(norm) for norm in half_norms(right))
    up, down = left_up * right_up, left_down * right_down
    sign = np.where(up >= down, 1.0, -1.0)
    norm = np.where(up >= down, right_up, right_down)
    scale = np.sqrt(values * np.maximum(up, down))
    scale = np.divide(scale, norm, out=scale, where=norm > 0.0)
    short: Float64 = np.maximum(right * sign, 0.0) * scale
    short[short == 0.0] = 0.01 * short.mean()
    return short
