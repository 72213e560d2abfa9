"""Compiled Kullback-Leibler: rows solved one by one, their share of the H half in the same walk.

    min over w >= 0 of  Σ_a (S_a + l1) w_a + 1/2 l2 |w|² - Σ_j v_j log(w H)_j     S_a = Σ_j H_aj

Only the entries v_j > 0 are visited; the columns of H that a row meets are gathered into a small
block B (component × entry), so that every loop over entries runs on vector registers. With
u_a = w_a (S_a + l1) / Σ v and B_aj = H_aj / (S_a + l1) the problem has no units left: Σ u = 1 at
the optimum, gradients are near one, and a tolerance means the same for any data.

Y. Kim, P. Carbonetto, M. Stephens, M. Anitescu: A fast algorithm for maximum likelihood estimation
of mixture proportions using sequential quadratic programming, J. Comput. Graph. Stat. 29(2), 2020
(the row problem and its solution by SQP). C.-J. Hsieh, I. Dhillon: Fast coordinate descent methods
with variable selection for NMF, KDD 2011 (coordinate Newton for Kullback-Leibler).
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import REGROUP, entry, helper
from dasknmf.numerics.kernels.kl_share import add_listed, make_list, note, sort_listed

LANES = 16  # entries that a loop takes at a time; it takes the rest one by one
MODEL_SWEEPS = 100  # coordinate sweeps on the k × k model of a row: k² each, next to k² per entry
HALVINGS = 40


@helper(REGROUP)
def _dot(x, y, m):
    """Σ x y over the first m entries."""
    total = 0.0
    for j in range(m):
        total += x[j] * y[j]
    return total


@helper(REGROUP)
def _eight_dots(x, y, rows, m):
    """Products of x and of y with four rows: six loads for eight of them."""
    a, b, c, d, e, f, g, h = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    r0, r1, r2, r3 = rows
    for j in range(m):
        a += x[j] * r0[j]
        b += x[j] * r1[j]
        c += x[j] * r2[j]
        d += x[j] * r3[j]
        e += y[j] * r0[j]
        f += y[j] * r1[j]
        g += y[j] * r2[j]
        h += y[j] * r3[j]
    return (a, b, c, d), (e, f, g, h)


@helper(REGROUP)
def _pull(v, y, z, t, m):
    """Σ v z / (y + t z): what the logarithms contribute to the slope at y + t z."""
    total = 0.0
    for j in range(m):
        total += v[j] * z[j] / (y[j] + t * z[j])
    return total


@helper(REGROUP)
def _mix(u, B, y, m):
    """Mix y = Σ_a u_a B_a, skipping the zeros of u."""
    y[:m] = 0.0
    for a in range(u.size):
        if u[a] != 0.0:
            for j in range(m):
                y[j] += u[a] * B[a, j]


@helper(REGROUP)
def _curvature(B, q, x, y, free, f, m, C):
    """C = B diag(q) Bᵀ on the free components, two by four at a time; x and y are scratch."""
    for i in range(0, f, 2):
        first, second = B[free[i]], B[free[min(i + 1, f - 1)]]
        for j in range(m):
            x[j], y[j] = q[j] * first[j], q[j] * second[j]
        for b in range(0, min(i + 2, f), 4):
            rows = (
                B[free[b]], B[free[min(b + 1, f - 1)]], B[free[min(b + 2, f - 1)]],
                B[free[min(b + 3, f - 1)]],
            )  # fmt: skip
            upper, lower = _eight_dots(x, y, rows, m)
            for n in range(min(4, f - b)):
                C[i, b + n] = C[b + n, i] = upper[n]
                if i + 1 < f:
                    C[i + 1, b + n] = C[b + n, i + 1] = lower[n]


@helper()
def _minimise_model(C, g, low, d, f, tol):
    """Minimise g d + 1/2 d C d over d >= low, coordinate by coordinate; g ends as the gradient.

    From d = 0 the model falls with every coordinate, so d descends wherever the sweeps stop.
    """
    d[:f] = 0.0
    for _ in range(MODEL_SWEEPS):
        moved = 0.0
        for i in range(f):
            if C[i, i] <= 0.0:
                continue
            new = max(d[i] - g[i] / C[i, i], low[i])
            e = new - d[i]
            if e != 0.0:
                d[i] = new
                moved = max(moved, C[i, i] * e * e)
                for b in range(f):
                    g[b] += e * C[i, b]
        if moved <= tol:
            return


@helper()
def _gradient(u, rho, B, r, m, g):
    """g_a = 1 + rho_a u_a - Σ_j r_j B_aj; gives a bound on how far the row is from its optimum.

    f(u) - f* <= g (u - u*) <= Σ g_a u_a + max(0, -min g), since f is convex and Σ u* <= 1.
    """
    lowest, slack = 0.0, 0.0
    for a in range(u.size):
        g[a] = 1.0 + rho[a] * u[a] - _dot(r, B[a], m)
        lowest = min(lowest, g[a])
        slack += g[a] * u[a]
    return slack - lowest


@helper()
def _multiply(u, rho, g):
    """One EM step (Lee & Seung 2001); with an L2 penalty the root of rho u² + u = numerator."""
    for a in range(u.size):
        n = u[a] * max(1.0 + rho[a] * u[a] - g[a], 0.0)
        u[a] = n if rho[a] == 0.0 else 2.0 * n / (1.0 + np.sqrt(1.0 + 4.0 * rho[a] * n))


@helper()
def _length(v, y, z, slope, bend, m):
    """A step 1, 1/2, 1/4 ... along z that surely lowers the row's objective.

    Its slope rises along the step (convex), so the change is at most t/2 (slope at t/2 + slope at
    t): no logarithm is needed. Not a number or infinite (y + z = 0) means no.
    """
    t = 1.0
    for _ in range(HALVINGS):
        end = slope + t * bend - _pull(v, y, z, t, m)
        if end <= 0.0:
            return t
        if end + slope + 0.5 * t * bend - _pull(v, y, z, 0.5 * t, m) <= 0.0:
            return t
        t *= 0.5
    return 0.0


@helper()
def _newton(v, B, m, u, rho, g, gap, wide, small, C, free):
    """One projected Newton step in u, safeguarded; False if there was nothing to gain."""
    y, r, z, x = wide[1], wide[2], wide[3], wide[4]
    step, low, d = small[1], small[2], small[3]
    f = 0
    for a in range(u.size):
        if u[a] > 0.0 or g[a] < 0.0:
            free[f] = a
            step[f], low[f] = g[a], -u[a]
            f += 1
    for j in range(m):
        z[j] = r[j] / y[j]
    _curvature(B, z, x, r, free, f, m, C)  # r is made anew before it is used again
    for i in range(f):
        C[i, i] = C[i, i] * (1.0 + 1e-10) + rho[free[i]]
    _minimise_model(C, step, low, d, f, 1e-3 * gap * min(gap, 1.0))
    step[:] = 0.0
    slope, bend = 0.0, 0.0
    for i in range(f):
        a = free[i]
        step[a] = d[i]
        slope += d[i] * (1.0 + rho[a] * u[a])
        bend += rho[a] * d[i] * d[i]
    _mix(step, B, z, m)
    t = _length(v, y, z, slope, bend, m)
    for a in range(u.size):
        u[a] = 0.0 if t == 1.0 and step[a] == -u[a] else max(u[a] + t * step[a], 0.0)
    return t > 0.0


@helper()
def _solve_row(v, B, m, u, rho, rule, wide, small, C, free):
    """Bring u to the optimum: ``rule`` = (EM steps, Newton steps, tolerance on the gap).

    EM steps first: they find the region, and cost a fraction of a Newton step.
    """
    soft, steps, tol = rule
    y, r, g = wide[1], wide[2], small[0]
    _mix(u, B, y, m)
    for it in range(soft + steps):
        for j in range(m):
            r[j] = v[j] / y[j]
        gap = _gradient(u, rho, B, r, m, g)
        if gap <= tol:
            return
        if it < soft:
            _multiply(u, rho, g)
        elif not _newton(v, B, m, u, rho, g, gap, wide, small, C, free):
            return
        _mix(u, B, y, m)


@helper(REGROUP)
def _gather(values, index, count, Ht, inverse, v, B, keep):
    """Bring the columns that a row meets into B; give the number of entries that can be fitted.

    Entries without a component (H_j = 0) move to the end of the row: they only have a value.
    ``keep``: B holds these columns already.
    """
    if keep:
        v[:count] = values[:count]
        return count
    m, end = 0, count
    while m < end:
        j = index[m]
        total = 0.0
        for a in range(inverse.size):
            B[a, m] = Ht[j, a] * inverse[a]
            total += B[a, m]
        if total > 0.0:
            v[m] = values[m]
            m += 1
        else:
            end -= 1
            index[m], index[end] = index[end], j
            values[m], values[end] = values[end], values[m]
    return m


@helper()
def _fill_up(v, B, m):
    """Entries of zeros behind a row's m, up to whole ``LANES``; give their number, too.

    They add nothing to any sum. A model of one at them is no division by zero.
    """
    whole = -(-m // LANES) * LANES
    v[m:whole] = 0.0
    for a in range(B.shape[0]):
        for p in range(m, whole):
            B[a, p] = 1.0
    return whole


@helper()
def _workspace(width, k):
    """Scratch of one slab: entries (v, y, r, z, x), components, B, C, free components."""
    width = -(-width // LANES) * LANES
    return (
        np.empty((5, width)), np.empty((4, k)), np.empty((k, width)), np.empty((k, k)),
        np.empty(k, np.int64), np.empty(k), np.empty(k),
    )  # fmt: skip


@helper()
def _row(
    values, index, count, mass, Ht, weight, l2, rule, keep, work, out, row, neg, listed, noted
):
    """Solve one row from its entries, list its share; give Σ v log(v/y) - v, and its place."""
    wide, small, B, C, free, u, rho = work
    k = weight.size
    v, y, inverse = wide[0], wide[1], small[3]
    live = 0
    for a in range(k):
        inverse[a] = 1.0 / weight[a] if weight[a] > 0.0 else 0.0
        live += weight[a] > 0.0
    m = _gather(values, index, count, Ht, inverse, v, B, keep)
    fitted = 0.0
    for p in range(m):
        fitted += v[p]
    value = -mass
    for p in range(m, count):  # no component reaches these: a model of next to nothing
        value += values[p] * (np.log(values[p] / mass) + 100.0)
    if fitted <= 0.0:
        return value, noted
    for p in range(m):
        v[p] /= fitted
    for a in range(k):
        rho[a] = l2 * fitted * inverse[a] * inverse[a]
        u[a] = 1.0 / live if weight[a] > 0.0 else 0.0
    _solve_row(v, B, _fill_up(v, B, m), u, rho, rule, wide, small, C, free)
    for a in range(k):
        out[a] = u[a] * fitted / weight[a] if u[a] > 0.0 else 0.0
    found, noted = note(out, (v[:m], y, index), fitted, row, neg, listed, noted)
    return value + found, noted


@helper()
def _settle(lists, noted, rows, curvature, keeps):
    """What is still listed goes where it belongs."""
    if keeps:
        sort_listed(lists[0], noted, lists[1], lists[2])
    else:
        add_listed(lists, noted, rows, curvature)


@entry()
def csr_rows(indptr, indices, data, Ht, weight, l2, rule, out, neg, curvature, kept):
    """Solve the rows of a CSR slab into ``out``, add their terms; give Σ v log(v/y) - v.

    weight = S + l1, one row of it for all rows or one for each; ``neg`` (columns × k),
    ``curvature`` (columns × k(k+1)/2, lower triangle) and ``kept`` (kl_share.make_list) may be
    empty. Every row starts from equal shares: its result depends on nothing but the row.
    """
    width = 1
    for i in range(indptr.size - 1):
        width = max(width, indptr[i + 1] - indptr[i])
    values, index = np.empty(width), np.empty(width, np.int64)
    work = _workspace(width, weight.shape[1])
    lists, keeps = make_list(curvature, kept, width, data.size), kept[0].size > 0
    value, first, noted = 0.0, 0, 0
    for i in range(indptr.size - 1):
        full = noted + width > lists[0][0].size or i - first == lists[3].shape[0]
        if full and not keeps:
            add_listed(lists, noted, out[first:i], curvature)
            first, noted = i, 0
        price = weight[min(i, weight.shape[0] - 1)]
        count, mass = 0, 0.0
        for p in range(indptr[i], indptr[i + 1]):
            if data[p] > 0.0:
                values[count], index[count] = data[p], indices[p]
                mass += values[count]
                count += 1
        out[i] = 0.0
        if count > 0:
            found, noted = _row(
                values, index, count, mass, Ht, price, l2, rule, False, work, out[i], i - first,
                neg, lists[0], noted,
            )  # fmt: skip
            value += found
    _settle(lists, noted, out[first:], curvature, keeps)
    return value


@entry()
def dense_rows(V, Ht, weight, l2, rule, out, neg, curvature, kept):
    """Solve the rows of a dense slab; whole rows share one block B."""
    width = max(V.shape[1], 1)
    values, index = np.empty(width), np.empty(width, np.int64)
    work = _workspace(width, weight.shape[1])
    lists, keeps = make_list(curvature, kept, width, V.size), kept[0].size > 0
    value, first, noted, keep, reached = 0.0, 0, 0, False, True
    for j in range(Ht.shape[0]):  # columns without a component would change places in B
        reached = reached and Ht[j].max() > 0.0
    for i in range(V.shape[0]):
        full = noted + width > lists[0][0].size or i - first == lists[3].shape[0]
        if full and not keeps:
            add_listed(lists, noted, out[first:i], curvature)
            first, noted = i, 0
        count, mass = 0, 0.0
        for j in range(V.shape[1]):
            if V[i, j] > 0.0:
                values[count], index[count] = V[i, j], j
                mass += values[count]
                count += 1
        out[i] = 0.0
        if count == 0:
            continue
        whole = count == width
        found, noted = _row(
            values, index, count, mass, Ht, weight[0], l2, rule, keep and whole, work, out[i],
            i - first, neg, lists[0], noted,
        )  # fmt: skip
        value += found
        keep = whole and reached
    _settle(lists, noted, out[first:], curvature, keeps)
    return value
