"""Compiled loops over one slab (numba, nogil, cached on disk).

Imported at the first fit, never with the package. Arrays are C-contiguous and aligned when they
arrive here (``kernels/__init__`` sees to it). Everything is accumulated in float64, whatever the
dtype of the data, and no loop depends on anything but its own row: a row's result is the same in
any slab.
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import CONTRACT, REGROUP, entry, helper

STRETCH = 4096  # values that are looked at together
FLOOR = 1e-15  # smallest model value W H, in units of the largest, that a ratio may meet


@entry(CONTRACT)
def csr_matmul(indptr, indices, data, fixed, out):
    """out[i] = Σ_j v_ij fixed[j]: a CSR slab times a tall factor.

    Four entries of a row at a time: the sums are then loaded and stored less often.
    """
    k = fixed.shape[1]
    for i in range(indptr.size - 1):
        row = out[i]
        row[:] = 0.0
        p, end = indptr[i], indptr[i + 1]
        while p + 4 <= end:
            s, t = np.float64(data[p]), np.float64(data[p + 1])
            u, v = np.float64(data[p + 2]), np.float64(data[p + 3])
            w, x = fixed[indices[p]], fixed[indices[p + 1]]
            y, z = fixed[indices[p + 2]], fixed[indices[p + 3]]
            for a in range(k):
                row[a] += s * w[a] + t * x[a] + u * y[a] + v * z[a]
            p += 4
        while p < end:
            s, w = np.float64(data[p]), fixed[indices[p]]
            for a in range(k):
                row[a] += s * w[a]
            p += 1


@entry()
def csr_t_matmul(indptr, indices, data, fixed, out):
    """out[j] += Σ_i v_ij fixed[i]: the transpose of a CSR slab times a tall factor."""
    k = fixed.shape[1]
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            v = np.float64(data[p])
            j = indices[p]
            for a in range(k):
                out[j, a] += v * fixed[i, a]


@entry()
def add_scaled(part, unit, total):
    """Total += unit part, in float64."""
    for i in range(part.shape[0]):
        for a in range(part.shape[1]):
            total[i, a] += unit * np.float64(part[i, a])


@entry()
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


@helper()
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


@entry()
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


@entry()
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


@entry()
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


@helper()
def _look_closely(values, start, stop, counts, first, sums):
    """One by one: count what is bad, where it begins, and the sums of the rest."""
    for p in range(start, stop):
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


@helper(REGROUP)
def _sums(values, bits, counts, sums):
    """Of values that are all good."""
    total, squares, positive = 0.0, 0.0, 0
    for p in range(values.size):
        v = np.float64(values[p])
        total += v
        squares += v * v
        positive += bits[p] > 0
    sums[0] += total
    sums[1] += squares
    counts[3] += positive


@entry()
def inspect_values(values, bits, infinity, counts, first, sums):
    """One walk over stored values: counts of bad ones, where they start, and the sums.

    counts = nan, infinite, negative, positive; first = flat index of the first of the first
    three, or -1; sums = sum, sum of squares, maximum (of the finite values).

    ``bits``: the same memory as integers, which are in the order of numbers >= 0; negative ones
    have the sign, and those from ``infinity`` on are no finite numbers. So a stretch is known to be
    good from the smallest and the largest, and its sums need no branch.
    """
    largest = np.zeros(1, values.dtype)
    for start in range(0, values.size, STRETCH):
        stop = min(start + STRETCH, values.size)
        near = bits[start:stop]  # a loop over an array's own range needs no checks of the index
        low = high = near[0]
        for p in range(near.size):
            low, high = min(low, near[p]), max(high, near[p])
        if low < 0 or high >= infinity:
            _look_closely(values, start, stop, counts, first, sums)
            continue
        _sums(values[start:stop], near, counts, sums)
        largest.view(bits.dtype)[0] = high
        sums[2] = max(sums[2], np.float64(largest[0]))
