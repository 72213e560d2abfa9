"""What the rows of Kullback-Leibler bring to the H half: numerators, and curvature by column.

A column's curvature has k(k+1)/2 numbers. Row by row, every entry would fetch those of its column
from memory and put them back. So entries are listed while rows are solved; now and then they are
sorted by column, and a column's numbers stay near while it gets the outer products w wᵀ of its
rows, which are formed once a row.

A slab of few entries for its columns keeps the whole list instead (``kept``): the sums are formed
from those of many slabs at once (columns.py).
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import REGROUP, helper

EACH = 8  # entries a column, on average, that are listed before they are added up
OUTER_BYTES = 1 << 22  # of the outer products that those may need: they stay in the cache


@helper()
def make_list(curvature, kept, width, stored):
    """Arrays for listed entries (column, row, ratio, bend) as they come and in order, and starts.

    ``width``: the most that a row adds, ``stored``: all there are. They take about as many bytes as
    the curvature, at most; none without it. ``kept`` (starts, rows, ratios, bends): where all
    entries end up in order, if it is not empty.
    """
    columns, packed = curvature.shape
    starts, rows, ratios, bends = kept
    keeps, height, most = starts.size > 0, 0, rows.size
    if not keeps:
        if columns:
            height = max(OUTER_BYTES // (8 * max(packed, 1)), 16)
            most = max(width, min(EACH * columns, stored, curvature.size // 4))
        starts = np.empty(columns + 1, np.int64)
        rows, bends = np.empty(most, np.int32), np.empty(most)
    listed = (
        np.empty(most, np.int32), np.empty(most, np.int32), np.empty(ratios.size), np.empty(most)
    )  # fmt: skip
    return listed, (rows, ratios, bends), starts, np.empty((height, packed))


@helper(REGROUP)
def divergence(v, y):
    """Σ v log(v/y). In a loop that stores, its last bits depended on where the arrays lay."""
    value = 0.0
    for p in range(v.size):
        value += v[p] * np.log(v[p] / y[p])
    return value


@helper(REGROUP)
def note(w, entries, mass, row, neg, listed, noted):
    """Add a row's numerators, and list its entries; give Σ v log(v/y), and the list's length."""
    v, y, index = entries
    column, of_row, ratio_of, bend = listed
    for p in range(v.size):
        ratio = v[p] / y[p]  # v and y are both in units of the row's mass
        j = index[p]
        if neg.shape[0]:
            for a in range(w.size):
                neg[j, a] += ratio * w[a]
        if column.size:
            column[noted], of_row[noted], bend[noted] = j, row, ratio / (y[p] * mass)
            if ratio_of.size:
                ratio_of[noted] = ratio
            noted += 1
    return divergence(v, y) * mass, noted


@helper()
def sort_listed(listed, noted, ordered, starts):
    """Put listed entries in the order of their columns, those of a column as they came."""
    column, of_row, ratio_of, bend = listed
    rows, ratios, bends = ordered
    starts[:] = 0
    for e in range(noted):
        starts[column[e] + 1] += 1
    for j in range(starts.size - 1):
        starts[j + 1] += starts[j]
    for e in range(noted):
        place = starts[column[e]]
        rows[place], bends[place] = of_row[e], bend[e]
        if ratios.size:
            ratios[place] = ratio_of[e]
        starts[column[e]] = place + 1
    for j in range(starts.size - 1, 0, -1):
        starts[j] = starts[j - 1]
    starts[0] = 0


@helper(REGROUP)
def form_outer(w, packed):
    """Form w wᵀ, the lower triangle row by row."""
    first = 0
    for a in range(w.size):
        for b in range(a + 1):
            packed[first + b] = w[a] * w[b]
        first += a + 1


@helper(REGROUP)
def add_listed(work, noted, W, curvature):
    """Add Σ bend w wᵀ of the listed entries to their columns; ``W``: the rows that they are of."""
    listed, ordered, starts, products = work
    if noted == 0:
        return
    sort_listed(listed, noted, ordered, starts)
    for i in range(W.shape[0]):
        form_outer(W[i], products[i])
    rows, _, bends = ordered
    for j in range(starts.size - 1):
        total = curvature[j]
        e, end = starts[j], starts[j + 1]
        while e + 4 <= end:
            s, t, u, v = bends[e], bends[e + 1], bends[e + 2], bends[e + 3]
            w, x = products[rows[e]], products[rows[e + 1]]
            y, z = products[rows[e + 2]], products[rows[e + 3]]
            for p in range(total.size):
                total[p] += s * w[p] + t * x[p] + u * y[p] + v * z[p]
            e += 4
        while e < end:
            s, w = bends[e], products[rows[e]]
            for p in range(total.size):
                total[p] += s * w[p]
            e += 1
