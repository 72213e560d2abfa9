"""Compiled walks over slabs of which not every entry counts: which do, and how much.

A row becomes three lists: its *observed* entries (column, value, weight), its *deviations* from a
row whose weights are all equal to its base (1 or 0, whichever is shorter), and its *held* entries:
hidden by a hash of (seed, row, column) from the fit, and used to judge it.

The hash: D. Lea, C. H. Flood, G. L. Steele: Fast splittable pseudorandom number generators, OOPSLA
2014 (the finaliser of SplitMix64, once over the row and once over the column).
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import entry, helper

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S27, S30, S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@helper()
def _mix(x):
    """Finaliser of SplitMix64."""
    x = (x ^ (x >> S30)) * MIX_1
    x = (x ^ (x >> S27)) * MIX_2
    return x ^ (x >> S31)


@helper()
def _row_key(seed, row):
    """What the columns of a row are hashed with."""
    return _mix(seed + GOLDEN * np.uint64(row + 1))


@helper()
def _word(key, column):
    """64 bits for an entry."""
    return _mix(key + GOLDEN * np.uint64(column + 1))


@entry()
def hashed(seed, rows, columns, out):
    """The word of every listed entry."""
    for p in range(rows.size):
        out[p] = _word(_row_key(seed, rows[p]), columns[p])


@helper()
def _weigh(v, m, row, rule, weight, lists, held):
    """Weights of a row of a dense tile, and what of it is held out; (base, held so far)."""
    seed, below, name, swapped = rule
    hi, hv, hw = lists
    zeros, others = 0, 0
    key = np.uint64(0) if swapped else _row_key(seed, name)
    for j in range(v.shape[1]):
        x = 1.0 if m.size == 0 else m[row, j]
        if np.isnan(v[row, j]):
            x = 0.0
        if below > 0 and x > 0.0:
            word = _word(_row_key(seed, j), name) if swapped else _word(key, j)
            if word < below:
                hi[held], hv[held], hw[held] = j, v[row, j], x
                held += 1
                x = 0.0
        weight[j] = x
        zeros += x == 0.0
        others += x != 1.0
    return 1.0 if others < v.shape[1] - zeros else 0.0, held


@entry()
def grid_rows(v, m, whole, rule, names, base, marks, lists):
    """Lists of a dense tile ``v``; NaN is missing, ``m`` the weights (or empty: all 1).

    whole: zeros are listed among the observed, too. rule: (seed, below, swapped); entries whose
    word is less than ``below`` are held out (0: none). names: global numbers of the rows; swapped:
    they are columns of the matrix. base: 1 or 0 a row. marks: ends of the lists of each row,
    (rows + 1) × 3. lists: (index, value, weight) of the observed, (index, deviation), (index,
    value, weight) held.
    """
    oi, ov, ow, di, dw, hi, hv, hw = lists
    seed, below, swapped = rule
    rows, columns = v.shape
    weight = np.empty(columns)
    observed, deviating, held = 0, 0, 0
    for i in range(rows):
        own = (seed, below, names[i], swapped)
        base[i], held = _weigh(v, m, i, own, weight, (hi, hv, hw), held)
        for j in range(columns):
            x = weight[j]
            if x > 0.0 and (whole or v[i, j] > 0.0):
                oi[observed], ov[observed], ow[observed] = j, v[i, j], x
                observed += 1
            if x != base[i]:
                di[deviating], dw[deviating] = j, x - base[i]
                deviating += 1
        marks[i + 1, 0], marks[i + 1, 1], marks[i + 1, 2] = observed, deviating, held


@entry()
def grid_products(v, m, rule, names, base, marks, lists, product):
    """The same, but with m ∘ v as a dense tile in place of the lists of what is observed."""
    di, dw, hi, hv, hw = lists
    seed, below, swapped = rule
    rows, columns = v.shape
    weight = np.empty(columns)
    deviating, held = 0, 0
    for i in range(rows):
        own = (seed, below, names[i], swapped)
        base[i], held = _weigh(v, m, i, own, weight, (hi, hv, hw), held)
        for j in range(columns):
            x = weight[j]
            product[i, j] = x * v[i, j] if x > 0.0 else 0.0
            if x != base[i]:
                di[deviating], dw[deviating] = j, x - base[i]
                deviating += 1
        marks[i + 1, 1], marks[i + 1, 2] = deviating, held


@entry()
def listed_rows(indptr, index, v, m, rule, names, marks, lists):
    """The same of rows that are lists themselves: what they do not name is missing.

    Every base is 0, so the deviations are the observed entries.
    """
    oi, ov, ow, di, dw, hi, hv, hw = lists
    seed, below, swapped = rule
    observed, held = 0, 0
    key = np.uint64(0)
    for i in range(indptr.size - 1):
        name = names[i]
        if not swapped:
            key = _row_key(seed, name)
        for p in range(indptr[i], indptr[i + 1]):
            j, x = index[p], m[p]
            if np.isnan(v[p]) or x == 0.0:
                continue
            if below > 0:
                word = _word(_row_key(seed, j), name) if swapped else _word(key, j)
                if word < below:
                    hi[held], hv[held], hw[held] = j, v[p], x
                    held += 1
                    continue
            oi[observed], ov[observed], ow[observed] = j, v[p], x
            di[observed], dw[observed] = j, x
            observed += 1
        marks[i + 1, 0], marks[i + 1, 1], marks[i + 1, 2] = observed, observed, held


@entry()
def looked_up(indptr, indices, data, at, index, out):
    """Values of a CSR matrix with sorted indices at entries listed by rows (``at``, ``index``)."""
    for i in range(indptr.size - 1):
        q, end = indptr[i], indptr[i + 1]
        for p in range(at[i], at[i + 1]):
            while q < end and indices[q] < index[p]:
                q += 1
            out[p] = data[q] if q < end and indices[q] == index[p] else 0.0
