"""Reading a factorisation W H: scale apart from shape, what a component is made of, how sparse.

Everything here is free of the order and scale in which a fit happened to leave its components, and
works on plain arrays: W (m × k), H (k × n).

P. O. Hoyer: Non-negative matrix factorization with sparseness constraints, JMLR 5, 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from dasknmf.numerics.errors import DataError, ParameterError
from dasknmf.numerics.kernels import Array, Float64, Slab, is_sparse, matmul, squared_norms, tiles

NORMS = ("l2", "l1", "max")
NO_CLUSTER = -1


class Separated(NamedTuple):
    """W diag(d) H with the columns of W and the rows of H of norm one, heaviest first."""

    W: Any
    d: Float64
    H: Array


class Match(NamedTuple):
    """Components of one model and those of another that are most alike.

    ``permutation[i]`` is the other model's component for component i, and -1 where the other model
    has none left; ``similarity[i]`` is their cosine, in [0, 1], and nan where there is none.
    """

    permutation: npt.NDArray[np.int64]
    similarity: Float64


def row_norms(rows: Array, norm: str = "l2") -> Float64:
    """Norm of every row, in float64, without overflow on the way.

    Raises
    ------
    ParameterError
        ``norm`` is none of 'l2', 'l1', 'max'.
    """
    if norm not in NORMS:
        raise ParameterError(f"norm={norm!r}; expected one of {', '.join(map(repr, NORMS))}.")
    wide = np.abs(np.asarray(rows, dtype=np.float64))
    largest: Float64 = wide.max(axis=1, initial=0.0)
    if norm == "max":
        return largest
    scaled = wide / np.where(largest > 0, largest, 1.0)[:, None]
    sums = scaled.sum(axis=1) if norm == "l1" else np.sqrt(np.square(scaled).sum(axis=1))
    return np.asarray(largest * sums, dtype=np.float64)


def unit_rows(rows: Array, norm: str = "l2") -> Float64:
    """Rows of norm one, in float64; zero rows stay zero."""
    norms = row_norms(rows, norm)
    wide = np.asarray(rows, dtype=np.float64)
    return np.asarray(wide / np.where(norms > 0, norms, 1.0)[:, None], dtype=np.float64)


def separate_scale(W: Array, H: Array, norm: str = "l2") -> Separated:
    """Take W H apart into W diag(d) H, sorted by weight d, heaviest first; ties keep their order.

    Columns of W and rows of H then have norm one, or are zero; the dtypes stay. A component that
    is zero on either side has weight 0.

    Parameters
    ----------
    W : array of shape (m, k)
    H : array of shape (k, n)
    norm : {'l2', 'l1', 'max'}
        'l2': d is the Frobenius norm of each component w hᵀ. 'l1': the sum of its entries.
        'max': its largest entry.
    """
    return scaled(W, row_norms(np.asarray(W).T, norm), H, norm)


def scaled(W: Any, norms: Float64, H: Array, norm: str) -> Separated:
    """As :func:`separate_scale` for a W (lazy, perhaps) whose column norms are known."""
    if len(norms) != len(H):
        raise DataError(
            f"W has {len(norms)} columns, but H has {len(H)} rows; expected one of each for every "
            "component. Pass the two factors of one model."
        )
    d = norms * row_norms(H, norm)
    order = np.argsort(-d, kind="stable")
    by = np.where(norms > 0, norms, 1.0)[order].astype(W.dtype)
    return Separated(W[:, order] / by, d[order], unit_rows(H, norm)[order].astype(H.dtype))


def top_indices(H: Array, n: int) -> list[npt.NDArray[np.int64]]:
    """Features of the largest weights of every component, descending; ties by position.

    Features of weight 0 are none: a component that has fewer than n others gives fewer.

    Parameters
    ----------
    H : array of shape (k, n_features)
    n : int
        At least 1; more than there are features means all of them.
    """
    n = _positive(n)
    H = np.asarray(H)
    order = np.argsort(-H, axis=1, kind="stable")[:, :n]
    return [row[h[row] > 0].astype(np.int64) for row, h in zip(order, H, strict=True)]


def top_features(H: Array, n: int = 10, names: Sequence[Any] | None = None) -> list[list[Any]]:
    """As :func:`top_indices`, by name: one list a component. Without names, positions.

    Raises
    ------
    DataError
        There is not one name for each feature.
    ParameterError
        n is no integer of at least 1.
    """
    found = top_indices(H, n)
    if names is None:
        return [row.tolist() for row in found]
    if len(names) != H.shape[1]:
        raise DataError(
            f"names has {len(names)} entries for {H.shape[1]} features; expected one each, in the "
            "order of the columns of X."
        )
    return [[names[j] for j in row] for row in found]


def hoyer(l1: Array, l2: Array, n: int) -> Float64:
    """Sparseness (√n - ‖x‖₁/‖x‖₂) / (√n - 1) of vectors of n entries (Hoyer 2004, section 3.1).

    0: all entries are equal; 1: one entry is not zero. nan for zero vectors and for n = 1.
    """
    l1, l2 = np.asarray(l1, dtype=np.float64), np.asarray(l2, dtype=np.float64)
    if n < 2:
        return np.full(l1.shape, np.nan)
    ratio = np.divide(l1, l2, out=np.full(l1.shape, np.nan), where=l2 > 0)
    root = np.sqrt(float(n))
    return np.asarray(np.clip((root - ratio) / (root - 1.0), 0.0, 1.0), dtype=np.float64)


def sparseness(rows: Array) -> Float64:
    """Hoyer's sparseness of every row: those of H, or with ``W.T`` the columns of W."""
    return hoyer(row_norms(rows, "l1"), row_norms(rows, "l2"), rows.shape[1])


def hard_clusters(W: Array, weights: Array | None = None) -> npt.NDArray[np.int64]:
    """Give each row the component with its largest entry; -1 for zero rows and for ties.

    Parameters
    ----------
    W : array of shape (m, k)
    weights : array of shape (k,), optional
        Multiplied onto the columns first. With the norms of the rows of H the winner is the
        component of the largest part w_ik h_k of the row, whatever the scales of W and H.
    """
    W = np.asarray(W, dtype=np.float64)
    if weights is not None:
        W = W * np.asarray(weights, dtype=np.float64)
    if W.shape[1] == 0:
        return np.full(len(W), NO_CLUSTER, dtype=np.int64)
    largest = W.max(axis=1)
    unclear = (largest <= 0) | ((largest[:, None] == W).sum(axis=1) > 1)
    return np.where(unclear, NO_CLUSTER, W.argmax(axis=1)).astype(np.int64)


def cosines(first: Array, second: Array) -> Float64:
    """Cosine of every row of one and every row of the other; 0 where a row is zero."""
    return np.asarray(np.clip(unit_rows(first) @ unit_rows(second).T, 0.0, 1.0), dtype=np.float64)


def match(first: Array, second: Array) -> Match:
    """Pair the rows of two H's, each at most once, so that the sum of their cosines is largest.

    Parameters
    ----------
    first, second : arrays of shape (k, n) and (l, n)

    Raises
    ------
    DataError
        They have not the same number of features.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(
            f"components of shapes {first.shape} and {second.shape} can't be matched; expected as "
            "many features (columns) in both. Match models of one data set."
        )
    similarity = cosines(first, second)
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    permutation = np.full(len(first), -1, dtype=np.int64)
    found = np.full(len(first), np.nan)
    permutation[rows], found[rows] = columns, similarity[rows, columns]
    return Match(permutation, found)


def explained_variance(residual: float, squares: float) -> float:
    """1 - ‖V - WH‖² / ‖V‖², about zero and not about the mean (as R's NMF: ``evar``).

    nan where V is zero. Of a least-squares fit: 1 - relative_error².
    """
    return 1.0 - residual / squares if squares > 0 else float("nan")


def row_errors(V: Slab, W: Array, H: Array) -> Float64:
    """Relative error ‖v - wH‖ / ‖v‖ of every row of a slab (dense or CSR), in float64.

    W H is formed one tile at a time, and not at all for CSR (where errors below 1e-7 are lost in
    rounding). 0 for zero rows with zero w, inf for zero rows with another.
    """
    W, H = np.asarray(W, dtype=np.float64), np.asarray(H, dtype=np.float64)
    size = squared_norms(V)
    if is_sparse(V):
        cross = matmul(V, H.T)
        left = size - 2.0 * np.sum(cross * W, axis=1) + np.sum((W @ (H @ H.T)) * W, axis=1)
    else:
        left = np.empty(len(V))
        for start, stop in tiles(V.shape, 8):
            left[start:stop] = np.square(V[start:stop] - W[start:stop] @ H).sum(axis=1)
    left = np.maximum(left, 0.0)
    ratio = np.divide(left, size, out=np.where(left > 0, np.inf, 0.0), where=size > 0)
    return np.asarray(np.sqrt(ratio), dtype=np.float64)


def _positive(n: int) -> int:
    try:
        found = index(n)
    except TypeError:
        found = 0
    if found < 1:
        raise ParameterError(f"n={n!r}; expected an integer of at least 1: how many features.")
    return found
