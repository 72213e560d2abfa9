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
def _curvature(B, q, x, free, f, m, C):
    """C = B diag(q) Bᵀ on the free components; x is scratch."""
    for i in range(f):
        for j in range(m):
            x[j] = q[j] * B[free[i], j]
        b = 0
        while b + 4 <= i + 1:
            rows = (B[free[b]], B[free[b + 1]], B[free[b + 2]], B[free[b + 3]])
            C[i, b], C[i, b + 1], C[i, b + 2], C[i, b + 3] = _four_dots(x, rows, m)
            b += 4
        while b <= i:
            C[i, b] = _dot(x, B[free[b]], m)
            b += 1
        for b in range(i):
            C[b, i] = C[i, b]


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
    _curvature(B, z, x, free, f, m, C)
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


@helper(REGROUP)
def _add_outer(w, ratio, q, neg, curvature):
    """Add ratio w to a column's numerator and q w wᵀ to its packed curvature (if not empty)."""
    for a in range(w.size):
        neg[a] += ratio * w[a]
    if curvature.size == 0:
        return
    first = 0
    for a in range(w.size):
        s = q * w[a]
        if s != 0.0:
            for b in range(a + 1):
                curvature[first + b] += s * w[b]
        first += a + 1


@helper(REGROUP)
def _share(w, v, y, index, m, mass, neg, curvature, small, free):
    """Add the row's numerator, and its packed curvature if that is asked for; give Σ v log(v/y)."""
    f, value = 0, 0.0
    held, nothing = small[3], curvature[:0].reshape(-1)
    for a in range(w.size):
        if w[a] > 0.0:
            free[f], held[f] = a, w[a]
            f += 1
    scattered = 3 * f < w.size  # few components: their places one by one
    for p in range(m):
        ratio = v[p] / y[p]  # v and y are both in units of the row's mass
        value += v[p] * np.log(ratio)
        if neg.shape[0] == 0:
            continue
        j = index[p]
        q = ratio / (y[p] * mass)
        if not scattered:
            _add_outer(w, ratio, q, neg[j], curvature[j] if curvature.shape[0] > 0 else nothing)
            continue
        for b in range(f):
            neg[j, free[b]] += ratio * held[b]
            if curvature.shape[0] > 0:
                s = q * held[b]
                first = free[b] * (free[b] + 1) // 2
                for c in range(b + 1):
                    curvature[j, first + free[c]] += s * held[c]
    return value * mass


@helper()
def _workspace(width, k):
    """Scratch of one slab: entries (v, y, r, z, x), components, B, C, free components."""
    return (
        np.empty((5, width)), np.empty((4, k)), np.empty((k, width)), np.empty((k, k)),
        np.empty(k, np.int64), np.empty(k), np.empty(k),
    )  # fmt: skip


@helper()
def _row(values, index, count, mass, Ht, weight, l2, rule, keep, work, out, neg, curvature):
    """One row from its entries: solve, share, and give Σ v log(v/y) - v."""
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
        return value
    for p in range(m):
        v[p] /= fitted
    for a in range(k):
        rho[a] = l2 * fitted * inverse[a] * inverse[a]
        u[a] = 1.0 / live if weight[a] > 0.0 else 0.0
    _solve_row(v, B, m, u, rho, rule, wide, small, C, free)
    for a in range(k):
        out[a] = u[a] * fitted / weight[a] if u[a] > 0.0 else 0.0
    return value + _share(out, v, y, index, m, fitted, neg, curvature, small, free)


@entry()
def csr_rows(indptr, indices, data, Ht, weight, l2, rule, out, neg, curvature):
    """Solve the rows of a CSR slab into ``out``, add their terms; give Σ v log(v/y) - v.

    weight = S + l1, one row of it for all rows or one for each; ``neg`` (columns × k) and
    ``curvature`` (columns × k(k+1)/2, lower triangle) may be empty. Every row starts from equal
    shares: its result depends on nothing but the row.
    """
    width = 1
    for i in range(indptr.size - 1):
        width = max(width, indptr[i + 1] - indptr[i])
    values, index = np.empty(width), np.empty(width, np.int64)
    work = _workspace(width, weight.shape[1])
    value = 0.0
    for i in range(indptr.size - 1):
        price = weight[min(i, weight.shape[0] - 1)]
        count, mass = 0, 0.0
        for p in range(indptr[i], indptr[i + 1]):
            if data[p] > 0.0:
                values[count], index[count] = data[p], indices[p]
                mass += values[count]
                count += 1
        out[i] = 0.0
        if count > 0:
            value += _row(
                values, index, count, mass, Ht, price, l2, rule, False, work, out[i], neg,
                curvature,
            )  # fmt: skip
    return value


@entry()
def dense_rows(V, Ht, weight, l2, rule, out, neg, curvature):
    """Solve the rows of a dense slab; whole rows share one block B."""
    width = max(V.shape[1], 1)
    values, index = np.empty(width), np.empty(width, np.int64)
    work = _workspace(width, weight.shape[1])
    value, keep, reached = 0.0, False, True
    for j in range(Ht.shape[0]):  # columns without a component would change places in B
        reached = reached and Ht[j].max() > 0.0
    for i in range(V.shape[0]):
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
        value += _row(
            values, index, count, mass, Ht, weight[0], l2, rule, keep and whole, work, out[i], neg,
            curvature,
        )  # fmt: skip
        keep = whole and reached
    return value
