"""Compiled least squares where every row has a Gram matrix of its own, and so every column.

    rows:     G_i = Σ_j m_ij h_j h_jᵀ = base_i HHᵀ + Σ deviations,   c_i = Σ_j m_ij v_ij h_j
    columns:  G_j = Σ_i m_ij w_i w_iᵀ likewise,                      c_j = Σ_i m_ij v_ij w_i

What deviates from the shared matrix is held packed, the lower triangle row by row. Each problem
min 1/2 w G w - c w, w >= 0, is solved by coordinate descent and then an active set, like the rows
that share one matrix (``nnls.py``).

Y.-D. Kim, S. Choi: Weighted nonnegative matrix factorization, ICASSP 2009 (alternating weighted
least squares); R. Bro, S. de Jong, J. Chemometrics 11, 1997 (the active set).
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import REGROUP, entry, helper
from dasknmf.numerics.kernels.kl import _dot, _four_dots

SWEEPS = 8  # of coordinate descent before the active set takes over
LOST = 1e-13  # of the shared diagonal: what is left of it is rounding
DEPENDENT = 1e-12  # of a column's squared norm: what others leave of it is rounding
REMAINS = 1e-24  # of the largest share in a row's squared norm, likewise


BLOCK = 256  # entries of a row that are gathered at a time


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
    """Add every row's c and what its G deviates by, from the other factor ``F``."""
    oi, ov, ow, di, dw = lists
    k = F.shape[1]
    B, d = np.empty((k, BLOCK)), np.empty(BLOCK)
    for i in range(cross.shape[0]):
        for p in range(marks[i, 0], marks[i + 1, 0]):
            s = ov[p] * ow[p]
            if s != 0.0:
                for a in range(k):
                    cross[i, a] += s * F[oi[p], a]
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
        first = 0
        for a in range(k):
            for b in range(a + 1):
                outer[first + b] = W[i, a] * W[i, b]
            first += a + 1
        for p in range(marks[i, 1], marks[i + 1, 1]):
            j, f = di[p], dw[p]
            for t in range(outer.size):
                own[j, t] += f * outer[t]


@helper()
def _unpack(packed, gram, share, G):
    """G = share gram + what is packed; a diagonal of which only rounding is left becomes zero."""
    k = G.shape[0]
    for a in range(k):
        first = a * (a + 1) // 2
        for b in range(a + 1):
            G[a, b] = G[b, a] = share * gram[a, b] + packed[first + b]
        if G[a, a] <= LOST * share * gram[a, a]:
            G[a, a] = 0.0


@helper()
def _gradient(G, c, w, g):
    """Gradient g = c - G w; zero where G has nothing on its diagonal."""
    for a in range(c.size):
        g[a] = c[a] if G[a, a] > 0.0 else 0.0
    for b in range(c.size):
        if w[b] != 0.0:
            for a in range(c.size):
                if G[a, a] > 0.0:
                    g[a] -= G[a, b] * w[b]


@helper()
def _sweep(G, c, w, g, sweeps, scale):
    """Coordinate descent until the gains to come are below ``scale``; True if they are."""
    before = 0.0
    for _ in range(sweeps):
        gained = 0.0
        for a in range(c.size):
            if G[a, a] <= 0.0:
                continue
            new = max(w[a] + g[a] / G[a, a], 0.0)
            e = new - w[a]
            if e != 0.0:
                w[a] = new
                gained += G[a, a] * e * e
                for b in range(c.size):
                    g[b] -= e * G[a, b]
        to_come = gained * gained > scale * (before - gained)
        if gained == 0.0 or (gained <= 100.0 * scale and not to_come):
            return True
        before = gained
    return False


@helper()
def _step_on(G, g, free, size, chol, step):
    """Solve G step = g on the free coefficients; those that depend on others before stand still.

    Lifting their pivots instead would let rounding grow: a row with few entries has many of them.
    """
    for i in range(size):
        p = free[i]
        for j in range(i):
            s = G[p, free[j]]
            for m in range(j):
                s -= chol[i, m] * chol[j, m]
            chol[i, j] = s * chol[j, j]
        s = G[p, p]
        for m in range(i):
            s -= chol[i, m] * chol[i, m]
        if s <= DEPENDENT * G[p, p]:
            chol[i, : i + 1] = 0.0
            step[i] = 0.0
            continue
        chol[i, i] = 1.0 / np.sqrt(s)  # the diagonal is kept inverted
        s = g[p]
        for m in range(i):
            s -= chol[i, m] * step[m]
        step[i] = s * chol[i, i]
    for i in range(size - 1, -1, -1):
        step[i] *= chol[i, i]
        for m in range(i):
            step[m] -= chol[i, m] * step[i]


@helper()
def _take(G, w, g, free, size, step):
    """Take the step, clipped at zero if that lowers the objective, else to the first bound.

    True if no bound was in the way.
    """
    change, length, first = 0.0, 1.0, -1
    for i in range(size):
        x = max(step[i], -w[free[i]])
        bend = 0.0
        for j in range(size):
            bend += G[free[i], free[j]] * max(step[j], -w[free[j]])
        change += x * (0.5 * bend - g[free[i]])
        aim = w[free[i]] + step[i]
        if aim <= 0.0 and w[free[i]] <= length * -step[i]:
            length, first = w[free[i]] / -step[i], i
    clipped = first < 0 or change < 0.0
    for i in range(size):
        w[free[i]] = max(w[free[i]] + (step[i] if clipped else length * step[i]), 0.0)
    if first >= 0 and not clipped:
        w[free[first]] = 0.0
    return first < 0


@helper()
def _finish(G, c, w, g, scale, free, chol, step):
    """Newton steps on the positive coefficients; bound ones that the gradient calls are freed."""
    k, steps = c.size, 0
    for _ in range(4 * k + 20):
        _gradient(G, c, w, g)
        size, inside, called = 0, 0.0, 0
        for a in range(k):
            if w[a] > 0.0:
                free[size] = a
                size += 1
                inside = max(inside, g[a] * g[a] / G[a, a])
            elif g[a] > 0.0 and g[a] * g[a] > scale * G[a, a]:
                called += 1
        if inside <= scale or steps >= 3:
            if called == 0:
                return
            steps, size = 0, 0
            for a in range(k):
                if w[a] == 0.0 and g[a] > 0.0 and g[a] * g[a] > scale * G[a, a]:
                    w[a] = g[a] / (called * G[a, a])
                if w[a] > 0.0:
                    free[size] = a
                    size += 1
            _gradient(G, c, w, g)
        _step_on(G, g, free, size, chol, step)
        steps = steps + 1 if _take(G, w, g, free, size, step) else 0


@helper()
def _drop_rounding(G, w):
    """Make zero what explains next to nothing beside the row's largest coefficient.

    Left standing, such remains of a difference would be all that a row with few entries finds of
    a component in the next half-step, and would be scaled up to explain them.
    """
    largest = 0.0
    for a in range(w.size):
        largest = max(largest, w[a] * w[a] * G[a, a])
    for a in range(w.size):
        if w[a] * w[a] * G[a, a] < REMAINS * largest:
            w[a] = 0.0


@entry()
def solve_each(cross, gram, own, share, ridge, tol, gain, out):
    """Solve min 1/2 w G_i w - c_i w, w >= 0, for every row, from what ``out`` holds, in place.

    G_i = share_i gram + own_i + ridge. ``tol``: steps below this part of the largest are rounding;
    ``gain``: a row rests where less than this part of c w is left.
    """
    rows, k = cross.shape
    G, chol = np.empty((k, k)), np.empty((k, k))
    g, step, free = np.empty(k), np.empty(k), np.empty(k, np.int64)
    for i in range(rows):
        c, w = cross[i], out[i]
        _unpack(own[i], gram, share[i], G)
        scale = 0.0
        for a in range(k):
            if G[a, a] > 0.0 or ridge > 0.0:
                G[a, a] += ridge
                if c[a] > 0.0:
                    scale = max(scale, tol * tol * c[a] * c[a] / G[a, a])
            else:
                w[a] = 0.0
        if scale <= 0.0:  # nothing pulls: nothing observed, or zeros only
            w[:] = 0.0
            continue
        _gradient(G, c, w, g)
        done = _sweep(G, c, w, g, SWEEPS, scale)
        if not done and gain > 0.0:
            energy = 0.0
            for a in range(k):
                energy += c[a] * w[a]
            done = _sweep(G, c, w, g, SWEEPS, max(scale, 2.0 * gain * energy))
        if not done:
            _finish(G, c, w, g, scale, free, chol, step)
        _drop_rounding(G, w)


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
def squared_error(mark, index, v, m, W, F):
    """Σ m (v - w f)² over listed entries; ``mark``: where the list of each row ends."""
    total = 0.0
    for i in range(W.shape[0]):
        for p in range(mark[i], mark[i + 1]):
            y = 0.0
            for a in range(W.shape[1]):
                y += np.float64(W[i, a]) * F[index[p], a]
            total += m[p] * (v[p] - y) * (v[p] - y)
    return total


@entry(REGROUP)
def divergence(mark, index, v, m, W, F):
    """Kullback-Leibler Σ m (v log(v/y) - v + y) over listed entries, y at least 1e-6 v."""
    total = 0.0
    for i in range(W.shape[0]):
        for p in range(mark[i], mark[i + 1]):
            y = 0.0
            for a in range(W.shape[1]):
                y += np.float64(W[i, a]) * F[index[p], a]
            y = max(y, 1e-6 * v[p])
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
