"""What a slab is asked for: products, Gram matrices, divergences, row solves, inspection.

A slab V is a dense array, a CSR matrix, or the transpose of either (``V.T``), so that the H half
of a step is the W half on ``V.T``. Factors are tall: rows × k.

Rules that keep the bits the same wherever a slab was delivered: every array goes through
:func:`own` before BLAS or compiled code sees it, and sums leave in float64.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Slab = Any  # dense ndarray, scipy CSR, or the transpose of one

SINGULAR = 1e-12  # eigenvalues of a Gram matrix, in parts of the largest: as good as zero;
ROUGH = 1e-7  # smallest over largest: below, what the inverse gives has lost too many digits;
FINE = 1e-3  # above, it need not be refined;
CLOSE = 1 / 6  # above, sweeps converge faster than pivots are made
GRAM_BYTES = 1 << 18  # of the wide copy of a tile of rows
TILE_BYTES = 1 << 20  # a tile of W H and its slab rows stay in the second-level cache


_of_thread = threading.local()


@cache
def loops(module: str = "compiled") -> Any:
    """Give a module of compiled loops, loaded (and, once per machine, compiled) at first use."""
    return import_module(f"dasknmf.numerics.kernels.{module}")


def own(array: Array) -> Array:
    """Give an aligned, C-contiguous, read-only view, copied only where it must be.

    Schedulers deliver small arrays misaligned, and BLAS then takes another path with other last
    bits; read-only, because numba compiles another variant for writable arrays.
    """
    fit = array.flags.c_contiguous and array.flags.aligned
    view = array.view() if fit else np.require(array, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


def is_sparse(V: Slab) -> bool:
    """Whether ``V`` is a scipy sparse matrix or array."""
    return bool(sp.issparse(V))


def _is_transposed(V: Slab) -> bool:
    """Whether ``V`` is the transpose of a slab stored by rows."""
    if is_sparse(V):
        return bool(V.format == "csc")
    return bool(V.flags.f_contiguous and not V.flags.c_contiguous)


def csr_parts(V: Slab) -> tuple[Array, Array, Array]:
    """Give indptr, indices and data of a slab or of a transposed slab, as the slab stores them."""
    return own(V.indptr), own(V.indices), own(V.data)


def unit_of(*factors: Array) -> float:
    """Give the power of two next to the product of the factors' largest (1 where one is zero)."""
    exponent = 0
    for factor in factors:
        largest = max(float(np.max(factor, initial=0.0)), -float(np.min(factor, initial=0.0)))
        if largest > 0:
            exponent += int(np.frexp(largest)[1])
    return float(np.ldexp(1.0, min(max(exponent, -1000), 1000)))


def matmul(V: Slab, fixed: Array) -> Float64:
    """V @ fixed in float64, shape (rows of V, k).

    The product runs in the data's dtype, on a factor brought near one by a power of two (exact),
    so that data of 1e-30 or 1e30 in float32 neither vanish nor overflow.
    """
    if is_sparse(V):
        out = np.zeros((V.shape[0], fixed.shape[1]))
        loop = loops().csr_t_matmul if _is_transposed(V) else loops().csr_matmul
        loop(*csr_parts(V), own(fixed), out)
        return out
    unit = unit_of(fixed)
    scaled = own((fixed * (1.0 / unit)).astype(V.dtype, copy=False))
    dense = own(V.T).T if _is_transposed(V) else own(V)
    product: Float64 = (dense @ scaled).astype(np.float64)
    product *= unit
    return product


def gram(factor: Array) -> Float64:
    """FᵀF in float64, shape (k, k); a tile of F at a time, so that its wide copy stays in cache."""
    k = factor.shape[1]
    result: Float64 = np.zeros((k, k))
    height = max(64, GRAM_BYTES // (8 * max(k, 1)))
    height = min(height, factor.shape[0])
    wide = _wide(height * k).reshape(height, k)
    for start in range(0, factor.shape[0], max(height, 1)):
        part = factor[start : start + height]
        tall = wide[: part.shape[0]]
        tall[:] = part
        result += tall.T @ tall
    return result


def _wide(size: int) -> Float64:
    """Memory of the thread that asks: for fresh pages threads wait for each other."""
    held = getattr(_of_thread, "wide", None)
    if held is None or held.size < size:
        held = _of_thread.wide = np.empty(size)
    found: Float64 = held[:size]
    return found


def squared_norms(V: Slab) -> Float64:
    """Squared 2-norm of every row, in float64."""
    if is_sparse(V):
        squares = np.square(V.data, dtype=np.float64)
        sums = np.concatenate([[0.0], np.cumsum(squares)])
        differences: Float64 = sums[V.indptr[1:]] - sums[V.indptr[:-1]]
        return np.maximum(differences, 0.0, out=differences)
    norms: Float64 = np.einsum("ij,ij->i", V, V, dtype=np.float64)
    return norms


def descend_rows(
    cross: Float64,
    gram_matrix: Float64,
    start: Array,
    sweeps: int,
    tol: float,
    gain: float = 0.0,
    *,
    finish: bool,
) -> Float64:
    """Coordinate descent on every row of min 1/2 w G wᵀ - c wᵀ, w >= 0, from ``start``.

    See :mod:`dasknmf.numerics.kernels.nnls`.
    """
    out = np.array(start, dtype=np.float64, order="C")
    live, before = np.arange(out.shape[0]), np.zeros(out.shape[0])
    loops("nnls").descend_rows(
        own(cross), own(gram_matrix), out, live, before, sweeps, tol, gain, finish
    )
    return out


class RowSystem(NamedTuple):
    """What rows that share a Gram matrix are solved with.

    ``inverse`` of it, ``units``: what makes its diagonal one, ``pivoted``: whether rows are solved
    by pivots, ``refined``: whether those need a step of refinement.
    """

    gram: Float64
    inverse: Float64
    units: Float64
    pivoted: bool
    refined: bool


def row_system(gram_matrix: Float64) -> RowSystem:
    """Prepare to solve rows with this Gram matrix."""
    units = _even_units(gram_matrix)
    even, kept_gram = gram_matrix * units * units[:, None], gram_matrix
    if not units.all():
        dead = units == 0.0
        even += np.diag(dead.astype(float))
        kept_gram = np.where(dead | dead[:, None], 0.0, gram_matrix)
    values, vectors = np.linalg.eigh(even)
    largest, smallest = (float(values[i]) if values.size else 0.0 for i in (-1, 0))
    if not smallest > SINGULAR * largest:  # nor where it is no number
        kept = values > SINGULAR * largest
        values, vectors = values[kept], vectors[:, kept]
    inverse = (vectors / values) @ vectors.T
    return RowSystem(
        own(kept_gram),
        own(inverse * units * units[:, None]),
        own(units),
        pivoted=ROUGH * largest < smallest < CLOSE * largest,
        refined=smallest < FINE * largest,
    )


def solve_rows(
    cross: Float64,
    system: RowSystem,
    start: Array | None,
    sweeps: int,
    tol: float,
    gain: float = 0.0,
    out: Float64 | None = None,
) -> Float64:
    """Solve min 1/2 w G wᵀ - c wᵀ, w >= 0, for every row; into ``out``, where ``start`` is None.

    The unconstrained solution, pivoted where sweeps would be slow (:mod:`.pivot`); else, and for
    rows that this does not solve, as in :func:`descend_rows` from ``start`` (None: from there).
    """
    G, inverse, units, pivoted, refined = system
    if start is not None and not pivoted:
        return descend_rows(cross, G, start, sweeps, tol, gain, finish=True)
    C = own(cross)
    out = np.matmul(C, inverse, out=out)
    live = np.arange(out.shape[0])
    if pivoted:
        solved = np.zeros(out.shape[0], np.bool_)
        most = max(units.size // 2, 1)
        loops("pivot").pivot_rows(C, G, inverse, units, most, refined, out, solved)
        if solved.all():
            return out
        live = live[~solved]
    before = np.zeros(out.shape[0])
    loops("nnls").descend_rows(C, G, out, live, before, sweeps, tol, gain, True)
    return out


def _even_units(gram_matrix: Float64) -> Float64:
    """What makes the diagonal one, so that scales do not count.

    Zero for a component of zero, or so near to it that the square of this would overflow.
    """
    diagonal = np.diag(gram_matrix)
    alive = diagonal > 1e10 * np.finfo(np.float64).tiny
    units: Float64 = np.zeros(diagonal.size)
    np.divide(1.0, np.sqrt(np.maximum(diagonal, 0.0)), out=units, where=alive)
    return units


def squared_residual(V: Slab, rows: Array, columns: Array) -> float:
    """||V - W H||² of a slab, from the entries themselves, W H formed one tile at a time."""
    if is_sparse(V):
        squares = float(np.sum(np.square(V.data, dtype=np.float64)))
        model = float(np.sum(gram(rows) * gram(columns)))
        dot = loops().csr_model_dot(*csr_parts(V), own(rows), own(columns))
        return max(squares - 2.0 * float(dot) + model, 0.0)
    total = 0.0
    slab, W, Ht = own(V), own(rows), own(columns)
    for start, stop in tiles(slab.shape, slab.dtype.itemsize):
        difference = slab[start:stop] - W[start:stop] @ Ht.T
        total += float(np.sum(np.square(difference, dtype=np.float64)))
    return total


def tiles(shape: tuple[int, ...], itemsize: int) -> list[tuple[int, int]]:
    """Split the rows of a slab into tiles of about :data:`TILE_BYTES`."""
    rows, columns = shape
    height = max(16, TILE_BYTES // max(columns * itemsize, 1))
    return [(start, min(start + height, rows)) for start in range(0, rows, height)]


def beta_terms(V: Slab, moving: Array, fixed: Array, beta: float) -> tuple[Float64, Float64, float]:
    """Numerator, denominator and value of the beta divergence D(V | moving fixedᵀ).

    Numerator: (V ∘ Y^(beta-2)) fixed; denominator: Y^(beta-1) fixed; Y = moving fixedᵀ
    (Févotte & Idier 2011, eq. 37). Both have the shape of ``moving``.
    """
    if _is_transposed(V):
        slab, rows, columns, side = V.T, fixed, moving, "columns"
    else:
        slab, rows, columns, side = V, moving, fixed, "rows"
    unit = unit_of(rows, columns)
    terms = _sparse_beta if is_sparse(V) else _dense_beta
    neg, pos, value = terms(slab, own(rows), own(columns), beta, unit, side == "rows")
    factor = unit ** (beta - 1.0)
    neg *= factor
    pos *= factor
    return neg, pos, value * unit**beta


def _sparse_beta(
    V: Slab, rows: Array, columns: Array, beta: float, unit: float, move_rows: bool
) -> tuple[Float64, Float64, float]:
    moving, fixed = (rows, columns) if move_rows else (columns, rows)
    neg = np.zeros(moving.shape)
    if beta == 1.0:
        parts = csr_parts(V)
        value = loops().csr_kl_terms(*parts, rows, columns, unit, move_rows, neg)
        column_sums: Float64 = np.sum(fixed, axis=0, dtype=np.float64)
        pos = np.broadcast_to(column_sums, moving.shape).copy()
        mass = float(np.dot(np.sum(moving, axis=0, dtype=np.float64), column_sums))
        return neg, pos, float(value) + mass / unit
    pos = np.zeros(moving.shape)
    value = loops().csr_beta_terms(*csr_parts(V), rows, columns, unit, beta, move_rows, neg, pos)
    return neg, pos, float(value)


def _dense_beta(
    V: Array, rows: Array, columns: Array, beta: float, unit: float, move_rows: bool
) -> tuple[Float64, Float64, float]:
    slab = own(V)
    neg = np.zeros(rows.shape if move_rows else columns.shape)
    pos = np.zeros(neg.shape)
    value = 0.0
    for start, stop in tiles(slab.shape, 2 * slab.dtype.itemsize):
        weights = np.ascontiguousarray(rows[start:stop] @ columns.T)
        denominator = np.empty((0, 0) if beta == 1.0 else weights.shape, dtype=weights.dtype)
        value += loops().beta_weights(slab[start:stop], weights, unit, beta, denominator)
        if move_rows:
            neg[start:stop] = weights @ columns
            if beta != 1.0:
                pos[start:stop] = denominator @ columns
        else:
            neg += weights.T @ rows[start:stop]
            if beta != 1.0:
                pos += denominator.T @ rows[start:stop]
    if beta == 1.0:
        pos[:] = np.sum(columns if move_rows else rows, axis=0, dtype=np.float64)
    return neg, pos, float(value)


def inspect_values(values: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]:
    """Count bad values and sum the good ones in one walk (see the compiled function)."""
    counts = np.zeros(4, np.int64)
    first = np.full(3, -1, np.int64)
    sums = np.zeros(3)
    if values.dtype not in (np.float32, np.float64):  # weights
        values = values.astype(np.float64)
    flat = own(values).reshape(-1)
    bits = flat.view(f"i{flat.itemsize}")
    infinity = np.array(np.inf, flat.dtype).view(bits.dtype)[()]
    loops().inspect_values(flat, bits, infinity, counts, first, sums)
    return counts, first, sums
