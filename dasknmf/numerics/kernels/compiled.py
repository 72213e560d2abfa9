"""Compiled loops over one slab (numba, nogil, cached on disk).

Imported at the first fit, never with the package. Arrays are C-contiguous and aligned when they
arrive here (``kernels/__init__`` sees to it). Everything is accumulated in float64, whatever the
dtype of the data, and no loop depends on anything but its own row: a row's result is the same in
any slab.
"""

import numpy as np
from numba import njit

TILE = 16  # rows that march in step: two AVX-512 or four AVX2 registers of float64
FLOOR = 1e-15  # smallest model value W H, in units of the largest, that a ratio may meet

_compile = njit(nogil=True, cache=True, error_model="numpy")


@_compile
def _newton_step(gram, gradient, passive, size, chol, step):
    """Solve (gram[P, P] + E) step = gradient[P] by Cholesky, pivots lifted where P is dependent.

    E is zero for an independent P. Otherwise the step still descends: gradientᵀ step exceeds
    stepᵀ gram step.
    """
    for i in range(size):
        p = passive[i]
        for j in range(i + 1):
            s = gram[p, passive[j]]
            for t in range(j):
                s -= chol[i, t] * chol[j, t]
            if i == j:
                chol[i, i] = np.sqrt(max(s, 1e-13 * gram[p, p]))
            else:
                chol[i, j] = s / chol[j, j]
    for i in range(size):
        s = gradient[passive[i]]
        for t in range(i):
            s -= chol[i, t] * step[t]
        step[i] = s / chol[i, i]
    for i in range(size - 1, -1, -1):
        s = step[i]
        for t in range(i + 1, size):
            s -= chol[t, i] * step[t]
        step[i] = s / chol[i, i]


@_compile
def _move_free(w, passive, size, step):
    """Go along ``step`` to the first bound; whether the whole step could be taken."""
    length = 1.0
    first = -1
    for i in range(size):
        if w[passive[i]] + step[i] <= 0.0 and w[passive[i]] <= length * -step[i]:
            length = w[passive[i]] / -step[i]
            first = i
    for i in range(size):
        w[passive[i]] = max(w[passive[i]] + length * step[i], 0.0)
    if first >= 0:
        w[passive[first]] = 0.0  # exactly: rounding must not leave it free
    return first < 0


@_compile
def _active_set(gram, cross, w, scale, passive, chol, gradient, step):
    """Finish one row exactly from a feasible ``w``: Bro & de Jong's fast NNLS, warm-started.

    Newton steps on the free coefficients until their gradient is below sqrt(scale * G_aa) (or no
    longer shrinks: rounding), then the bound coefficient with the steepest gradient is freed.
    """
    k = gram.shape[0]
    whole_steps = 0
    for _ in range(4 * k + 20):
        size = 0
        free = 0.0
        bound = scale
        best = -1
        for a in range(k):
            g = cross[a]
            for b in range(k):
                g -= gram[a, b] * w[b]
            gradient[a] = g
            if gram[a, a] <= 0.0:
                continue
            if w[a] > 0.0:
                passive[size] = a
                size += 1
                free = max(free, g * g / gram[a, a])
            elif g > 0.0 and g * g > bound * gram[a, a]:
                bound = g * g / gram[a, a]
                best = a
        if free > scale and whole_steps < 3:
            _newton_step(gram, gradient, passive, size, chol, step)
            whole = _move_free(w, passive, size, step)
            whole_steps = whole_steps + 1 if whole else 0
        elif best >= 0:
            w[best] = gradient[best] / gram[best, best]
            whole_steps = 0
        else:
            return


@_compile
def descend_rows(cross, gram, out, sweeps, tol, finish):
    """Cyclic coordinate descent of min 1/2 w G wᵀ - c wᵀ, w >= 0, for every row, in place.

    A row rests when the largest G_aa d_a² of a sweep is below tol² max_a c_a²/G_aa. With
    ``finish`` the rows still moving after ``sweeps`` are solved by an active set.
    """
    rows, k = cross.shape
    c = np.empty((k, TILE))
    w = np.empty((k, TILE))
    g = np.empty(TILE)
    live = np.empty(TILE)
    worst = np.empty(TILE)
    scale = np.empty(TILE)
    chol = np.empty((k, k))
    step = np.empty(k)
    gradient = np.empty(k)
    passive = np.empty(k, np.int64)
    one_c = np.empty(k)
    one_w = np.empty(k)
    for start in range(0, rows, TILE):
        stop = min(start + TILE, rows)
        c[:] = 0.0
        w[:] = 0.0
        for t in range(stop - start):
            for a in range(k):
                c[a, t] = cross[start + t, a]
                if gram[a, a] > 0.0:
                    w[a, t] = max(out[start + t, a], 0.0)
        for t in range(TILE):
            scale[t] = 0.0
            live[t] = 1.0
        for a in range(k):
            if gram[a, a] > 0.0:
                for t in range(TILE):
                    scale[t] = max(scale[t], tol * tol * c[a, t] * c[a, t] / gram[a, a])
        for _ in range(sweeps):
            for t in range(TILE):
                worst[t] = 0.0
            for a in range(k):
                if gram[a, a] <= 0.0:
                    continue
                for t in range(TILE):
                    g[t] = c[a, t]
                for b in range(k):
                    factor = gram[a, b]
                    for t in range(TILE):
                        g[t] -= factor * w[b, t]
                for t in range(TILE):
                    d = live[t] * max(g[t] / gram[a, a], -w[a, t])
                    w[a, t] += d
                    worst[t] = max(worst[t], gram[a, a] * d * d)
            moving = 0
            for t in range(TILE):
                if worst[t] <= scale[t]:
                    live[t] = 0.0
                else:
                    moving += 1
            if moving == 0:
                break
        for t in range(stop - start):
            if finish and live[t] == 1.0:
                for a in range(k):
                    one_c[a] = c[a, t]
                    one_w[a] = w[a, t]
                _active_set(gram, one_c, one_w, scale[t], passive, chol, gradient, step)
                for a in range(k):
                    w[a, t] = one_w[a]
            for a in range(k):
                out[start + t, a] = w[a, t]


@_compile
def csr_matmul(indptr, indices, data, fixed, out):
    """out[i] = Σ_j v_ij fixed[j]: a CSR slab times a tall factor."""
    k = fixed.shape[1]
    row = np.empty(k)
    for i in range(indptr.size - 1):
        row[:] = 0.0
        for p in range(indptr[i], indptr[i + 1]):
            v = np.float64(data[p])
            j = indices[p]
            for a in range(k):
                row[a] += v * fixed[j, a]
        for a in range(k):
            out[i, a] = row[a]


@_compile
def csr_t_matmul(indptr, indices, data, fixed, out):
    """out[j] += Σ_i v_ij fixed[i]: the transpose of a CSR slab times a tall factor."""
    k = fixed.shape[1]
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            v = np.float64(data[p])
            j = indices[p]
            for a in range(k):
                out[j, a] += v * fixed[i, a]


@_compile
def csr_model_dot(indptr, indices, data, rows, columns):
    """Σ v_ij (W H)_ij over the stored entries."""
    total = 0.0
    k = rows.shape[1]
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            j = indices[p]
            wh = 0.0
            for a in range(k):
                wh += np.float64(rows[i, a]) * np.float64(columns[j, a])
            total += np.float64(data[p]) * wh
    return total


@_compile
def _divergence(v, wh, beta):
    """d_beta(v | wh) of one entry (Févotte & Idier 2011, eq. 2), 0 where both are zero."""
    y = max(wh, FLOOR)
    if v == 0.0 and wh == 0.0 and beta > 0.0:
        return 0.0
    if beta == 1.0:
        return (v * np.log(v / y) if v > 0.0 else 0.0) - v + y
    if beta == 0.0:
        return v / y - np.log(v / y) - 1.0
    power = y ** (beta - 1.0)
    first = v**beta if v > 0.0 else 0.0
    return (first + (beta - 1.0) * power * y - beta * v * power) / (beta * (beta - 1.0))


@_compile
def beta_weights(block, model, unit, beta, pos):
    """Turn a tile of W H into v y^(beta-2) in place, y^(beta-1) into ``pos``; give the loss.

    Everything is in units of ``unit``, so that no power leaves the range of float32. ``pos`` may
    be empty where beta is 1: it would be all ones.
    """
    total = 0.0
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            v = np.float64(block[i, j]) / unit
            wh = np.float64(model[i, j]) / unit
            y = max(wh, FLOOR)
            total += _divergence(v, wh, beta)
            if beta == 1.0:
                model[i, j] = v / y
            else:
                power = y ** (beta - 2.0)
                model[i, j] = v * power
                pos[i, j] = power * y
    return total


@_compile
def csr_kl_terms(indptr, indices, data, rows, columns, unit, move_rows, neg):
    """Kullback-Leibler numerator over the stored entries; returns Σ v log(v/y) - v, in ``unit``."""
    total = 0.0
    k = rows.shape[1]
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            j = indices[p]
            wh = 0.0
            for a in range(k):
                wh += np.float64(rows[i, a]) * np.float64(columns[j, a])
            y = max(wh / unit, FLOOR)
            v = np.float64(data[p]) / unit
            ratio = v / y
            if v > 0.0:
                total += v * np.log(ratio) - v
            if move_rows:
                for a in range(k):
                    neg[i, a] += ratio * columns[j, a]
            else:
                for a in range(k):
                    neg[j, a] += ratio * rows[i, a]
    return total


@_compile
def csr_beta_terms(indptr, indices, data, rows, columns, unit, beta, move_rows, neg, pos):
    """Any beta on a CSR slab: every entry of the model counts, one row of W H at a time."""
    total = 0.0
    k = rows.shape[1]
    width = columns.shape[0]
    values = np.zeros(width)
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            values[indices[p]] += np.float64(data[p]) / unit
        for j in range(width):
            wh = 0.0
            for a in range(k):
                wh += np.float64(rows[i, a]) * np.float64(columns[j, a])
            wh /= unit
            y = max(wh, FLOOR)
            v = values[j]
            total += _divergence(v, wh, beta)
            power = y ** (beta - 2.0)
            q = v * power
            power *= y
            if move_rows:
                for a in range(k):
                    neg[i, a] += q * columns[j, a]
                    pos[i, a] += power * columns[j, a]
            else:
                for a in range(k):
                    neg[j, a] += q * rows[i, a]
                    pos[j, a] += power * rows[i, a]
        for p in range(indptr[i], indptr[i + 1]):
            values[indices[p]] = 0.0
    return total


@_compile
def inspect_values(values, counts, first, sums):
    """One walk over stored values: counts of bad ones, where they start, and the sums.

    counts = nan, infinite, negative, positive; first = flat index of the first of the first
    three, or -1; sums = sum, sum of squares, maximum (of the finite values).
    """
    for p in range(values.size):
        v = np.float64(values[p])
        if 0.0 <= v < np.inf:
            if v > 0.0:
                counts[3] += 1
                sums[0] += v
                sums[1] += v * v
                sums[2] = max(sums[2], v)
            continue
        if np.isnan(v):
            kind = 0
        elif np.isinf(v):
            kind = 1
        else:
            kind = 2
        counts[kind] += 1
        if first[kind] < 0:
            first[kind] = p
