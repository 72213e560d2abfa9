"""Compiled least squares where every row has a Gram matrix of its own, and so every column.

    rows:     G_i = Σ_j m_ij h_j h_jᵀ = base_i HHᵀ + Σ deviations,   c_i = Σ_j m_ij v_ij h_j
    columns:  G_j = Σ_i m_ij w_i w_iᵀ likewise,                      c_j = Σ_i m_ij v_ij w_i

What deviates from the shared matrix is held packed, the lower triangle row by row. ``alone.py``
solves for the rows.

Y.-D. Kim, S. Choi: Weighted nonnegative matrix factorization, ICASSP 2009 (alternating weighted
least squares).
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import REGROUP, entry, helper
from dasknmf.numerics.kernels.kl import _dot
from dasknmf.numerics.kernels.kl_share import form_outer

LOST = 1e-13  # of the shared diagonal: what is left of it is rounding
BLOCK = 256  # entries of a row that are gathered at a time
SHORT = 64  # entries of a row that are better added one by one
OUTER = 1 << 17  # numbers in the products f_j f_jᵀ of all columns, where those are formed


@helper(REGROUP)
def _four_dots(x, rows, m):
    """Four products with one load of x."""
    s, t, u, v = 0.0, 0.0, 0.0, 0.0
    y0, y1, y2, y3 = rows
    for j in range(m):
        s += x[j] * y0[j]
        t += x[j] * y1[j]
        u += x[j] * y2[j]
        v += x[j] * y3[j]
    return s, t, u, v


@helper(REGROUP)
def _add_gram(B, d, m, packed):
    """Add Σ d_p b_p b_pᵀ of the first m columns of ``B`` (component × entry)."""
    x = np.empty(m)
    first = 0
    for a in range(B.shape[0]):
        for p in range(m):
            x[p] = d[p] * B[a, p]
        b = 0
        while b + 4 <= a + 1:
            s, t, u, v = _four_dots(x, (B[b], B[b + 1], B[b + 2], B[b + 3]), m)
            packed[first + b] += s
            packed[first + b + 1] += t
            packed[first + b + 2] += u
            packed[first + b + 3] += v
            b += 4
        while b <= a:
            packed[first + b] += _dot(x, B[b], m)
            b += 1
        first += a + 1


@entry(REGROUP)
def row_terms(marks, lists, F, cross, own):
    """Add every row's c (of what is listed as observed) and what its G deviates by.

    Few columns have their products f_j f_jᵀ formed once: a row with few deviations adds those up.
    """
    oi, ov, ow, di, dw = lists
    columns, k = F.shape
    B, d = np.empty((k, BLOCK)), np.empty(BLOCK)
    formed = columns * own.shape[1] <= OUTER
    outer = np.empty((columns if formed else 1, own.shape[1]))
    if formed and di.size > 0:
        for j in range(columns):
            form_outer(F[j], outer[j])
    for i in range(cross.shape[0]):
        for p in range(marks[i, 0], marks[i + 1, 0]):
            s = ov[p] * ow[p]
            if s != 0.0:
                for a in range(k):
                    cross[i, a] += s * F[oi[p], a]
        if formed and marks[i + 1, 1] - marks[i, 1] <= SHORT:
            for p in range(marks[i, 1], marks[i + 1, 1]):
                f, j = dw[p], di[p]
                for t in range(own.shape[1]):
                    own[i, t] += f * outer[j, t]
            continue
        for start in range(marks[i, 1], marks[i + 1, 1], BLOCK):
            m = min(BLOCK, marks[i + 1, 1] - start)
            for p in range(m):
                d[p] = dw[start + p]
                for a in range(k):
                    B[a, p] = F[di[start + p], a]
            _add_gram(B, d, m, own[i])


@entry(REGROUP)
def column_terms(marks, lists, W, cross, own):
    """Add a tile's share of every column's c and what its G deviates by."""
    oi, ov, ow, di, dw = lists
    k = W.shape[1]
    outer = np.empty(own.shape[1])
    for i in range(W.shape[0]):
        for p in range(marks[i, 0], marks[i + 1, 0]):
            s = ov[p] * ow[p]
            if s != 0.0:
                for a in range(k):
                    cross[oi[p], a] += s * W[i, a]
        if marks[i, 1] == marks[i + 1, 1]:
            continue
        form_outer(W[i], outer)
        for p in range(marks[i, 1], marks[i + 1, 1]):
            j, f = di[p], dw[p]
            for t in range(outer.size):
                own[j, t] += f * outer[t]


@entry(REGROUP)
def quadratic(own, F):
    """Σ_j f_j own_j f_jᵀ: what the deviations add to the model's squared norm."""
    total = 0.0
    k = F.shape[1]
    for j in range(F.shape[0]):
        for a in range(k):
            first = a * (a + 1) // 2
            s = 0.5 * own[j, first + a] * F[j, a]
            for b in range(a):
                s += own[j, first + b] * F[j, b]
            total += 2.0 * s * F[j, a]
    return total


@entry(REGROUP)
def squared_error(mark, index, v, m, W, F, ceiling):
    """Σ m (v - w f)² over listed entries, w f at most ``ceiling``.

    mark: where the list of each row ends.
    """
    total = 0.0
    for i in range(W.shape[0]):
        for p in range(mark[i], mark[i + 1]):
            y = 0.0
            for a in range(W.shape[1]):
                y += np.float64(W[i, a]) * F[index[p], a]
            y = min(y, ceiling)
            total += m[p] * (v[p] - y) * (v[p] - y)
    return total


@entry(REGROUP)
def divergence(mark, index, v, m, W, F, ceiling):
    """Kullback-Leibler Σ m (v log(v/y) - v + y) of listed entries, y in 1e-6 v to ``ceiling``."""
    total = 0.0
    for i in range(W.shape[0]):
        for p in range(mark[i], mark[i + 1]):
            y = 0.0
            for a in range(W.shape[1]):
                y += np.float64(W[i, a]) * F[index[p], a]
            y = max(min(y, ceiling), 1e-6 * v[p])
            total += m[p] * (y - v[p])
            if v[p] > 0.0:
                total += m[p] * v[p] * np.log(v[p] / y)
    return total


@entry(REGROUP)
def prices(marks, lists, base, F, sums, out):
    """Give every row's Σ_j m_ij f_j; what is left of a sum by rounding alone becomes zero."""
    others, deviation = lists[3], lists[4]
    for i in range(out.shape[0]):
        for a in range(out.shape[1]):
            out[i, a] = base[i] * sums[a]
        for p in range(marks[i, 1], marks[i + 1, 1]):
            for a in range(out.shape[1]):
                out[i, a] += deviation[p] * F[others[p], a]
        for a in range(out.shape[1]):
            if out[i, a] <= LOST * base[i] * sums[a]:
                out[i, a] = 0.0


@entry(REGROUP)
def masses(marks, lists, W, mass):
    """Add what Σ_i m_ij w_i of every column deviates by from the sum over rows of base 1."""
    others, deviation = lists[3], lists[4]
    for i in range(W.shape[0]):
        for p in range(marks[i, 1], marks[i + 1, 1]):
            for a in range(W.shape[1]):
                mass[others[p], a] += deviation[p] * W[i, a]
