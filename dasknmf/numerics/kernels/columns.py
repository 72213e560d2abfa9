"""Compiled H half of Kullback-Leibler: every column on its own quadratic model.

min over h within a box of  1/2 h C_j h - b_j h       C_j: k × k, from one reduction over rows

What slabs only listed (kl_share.py) is put together and formed here, a column after the other.
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import REGROUP, entry

NOTHING = 1e-80  # of a column's largest entry: what is less may be zero, or its products get slow


@entry(REGROUP)
def newton_columns(old, counts, pull, curvature, ridge, box, sweeps, out):
    """Minimise every column's model 1/2 h C h - pull h near its old value, by coordinate descent.

    An entry stays within ``box`` times the old value, up and down; one next to zero may leave it
    up to a thousandth of the column's largest. Where no row has both (``counts`` zero) the
    optimum can be zero itself; elsewhere the logarithm forbids that, until nothing depends on it.
    """
    k = old.shape[1]
    C = np.empty((k, k))
    g, low, high, inverse = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
    for j in range(old.shape[0]):
        largest = 0.0
        for a in range(k):
            first = a * (a + 1) // 2
            for b in range(a + 1):
                C[a, b] = C[b, a] = curvature[j, first + b]
            C[a, a] += ridge
            largest = max(largest, old[j, a])
        for a in range(k):
            g[a] = -pull[j, a]
            for b in range(k):
                g[a] += C[a, b] * old[j, b]
            inverse[a] = 1.0 / C[a, a] if C[a, a] > 0.0 else 0.0
            low[a] = old[j, a] / box if counts[j, a] > 0.0 else 0.0
            if low[a] < NOTHING * largest:
                low[a] = 0.0
            high[a] = max(old[j, a] * box, 1e-3 * largest)
            out[j, a] = old[j, a]
        began = 0.0
        for sweep in range(sweeps):
            moved = 0.0
            for a in range(k):
                if C[a, a] > 0.0:
                    new = min(max(out[j, a] - g[a] * inverse[a], low[a]), high[a])
                else:
                    new = low[a] if g[a] >= 0.0 else out[j, a]
                e = new - out[j, a]
                if e != 0.0:
                    out[j, a] = new
                    moved += C[a, a] * e * e
                    for b in range(k):
                        g[b] += e * C[a, b]
            began = moved if sweep == 0 else began
            if moved <= 1e-3 * began:
                break


@entry()
def put_behind(starts, rows, ratios, bends, first, place, into):
    """Copy a list's entries behind those that ``into`` has of each column already.

    ``starts``: of the list's columns; ``first``: the row of ``into`` that its row 0 is; ``place``:
    where each column goes on, moved along.
    """
    all_rows, all_ratios, all_bends = into
    for j in range(starts.size - 1):
        at = place[j]
        for e in range(starts[j], starts[j + 1]):
            all_rows[at], all_ratios[at], all_bends[at] = rows[e] + first, ratios[e], bends[e]
            at += 1
        place[j] = at


@entry(REGROUP)
def add_formed(starts, rows, ratios, bends, W, neg, curvature):
    """Add Σ ratio w and Σ bend w wᵀ of every column, the latter's lower triangle packed."""
    k = W.shape[1]
    C = np.empty((k, k))
    for j in range(starts.size - 1):
        n = neg[j]
        e, end = starts[j], starts[j + 1]
        if e == end:
            continue
        C[:] = 0.0
        while e + 4 <= end:
            w, x, y, z = W[rows[e]], W[rows[e + 1]], W[rows[e + 2]], W[rows[e + 3]]
            p, q, r, s = ratios[e], ratios[e + 1], ratios[e + 2], ratios[e + 3]
            for a in range(k):
                n[a] += p * w[a] + q * x[a] + r * y[a] + s * z[a]
            p, q, r, s = bends[e], bends[e + 1], bends[e + 2], bends[e + 3]
            for a in range(k):
                pa, qa, ra, sa = p * w[a], q * x[a], r * y[a], s * z[a]
                c = C[a]
                for b in range(a + 1):
                    c[b] += pa * w[b] + qa * x[b] + ra * y[b] + sa * z[b]
            e += 4
        while e < end:
            w, p, q = W[rows[e]], ratios[e], bends[e]
            for a in range(k):
                n[a] += p * w[a]
                pa, c = q * w[a], C[a]
                for b in range(a + 1):
                    c[b] += pa * w[b]
            e += 1
        first = 0
        for a in range(k):
            for b in range(a + 1):
                curvature[j, first + b] += C[a, b]
            first += a + 1
