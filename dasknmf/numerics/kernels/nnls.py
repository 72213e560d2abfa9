"""Compiled row solves: non-negative least squares from a Gram matrix, for many rows at once.

    min over w >= 0 of 1/2 w G wᵀ - c wᵀ        G: k × k, c: one row of the cross product

Coordinate descent, then an active set. Rows march in tiles (component × lane), so that the loops
over lanes run on vector registers; no lane looks at another, and a row's result is the same in any
tile.

R. Bro, S. de Jong: A fast non-negativity-constrained least squares algorithm, J. Chemometrics 11,
1997 (the active set); D. P. Bertsekas: Projected Newton methods, SIAM J. Control Optim. 20(2), 1982
(the clipped step).
"""

import numpy as np

from dasknmf.numerics.kernels.active import DEPENDENT
from dasknmf.numerics.kernels.compiling import CONTRACT, entry, helper

TILE = 64  # rows that march in step: many vector registers, so that loops over lanes pay

ROUND = 4  # sweeps between two packings of the rows that still move
ROUNDING = 1e-15
PATIENCE = 12  # sweeps that cost less than the rounds of the active set that they save


@helper(CONTRACT)
def _gather(rows, live, start, tile):
    """Bring the listed rows into a tile: component × lane, lanes without a row zero."""
    count = min(TILE, live.size - start)
    tile[:] = 0.0
    for t in range(count):
        for a in range(rows.shape[1]):
            tile[a, t] = rows[live[start + t], a]
    return count


@helper(CONTRACT)
def _scatter(tile, live, start, count, rows):
    """Put a tile back into its rows."""
    for t in range(count):
        for a in range(rows.shape[1]):
            rows[live[start + t], a] = tile[a, t]


@helper(CONTRACT)
def _tolerance(gram, c, tol, scale):
    """scale[t] = tol² max_a c_a² / G_aa, what counts as zero for a squared gradient over G_aa."""
    scale[:] = 0.0
    for a in range(gram.shape[0]):
        if gram[a, a] > 0.0:
            for t in range(TILE):
                scale[t] = max(scale[t], tol * tol * c[a, t] * c[a, t] / gram[a, a])


@helper(CONTRACT)
def _energy(c, w, gain, scale):
    """Raise scale[t] to 2 gain (c w), which is what a sweep that gains too little brings."""
    for t in range(TILE):
        energy = 0.0
        for a in range(c.shape[0]):
            energy += c[a, t] * w[a, t]
        scale[t] = max(scale[t], 2.0 * gain * energy)


@helper(CONTRACT)
def _gradient(gram, c, w, a, g):
    """g[t] = c_a - (G w)_a of every lane, four components a step: g is then written less often."""
    k = gram.shape[0]
    for t in range(TILE):
        g[t] = c[a, t]
    fours = k // 4 * 4
    for b in range(0, fours, 4):
        f0, f1, f2, f3 = gram[a, b], gram[a, b + 1], gram[a, b + 2], gram[a, b + 3]
        for t in range(TILE):
            g[t] -= f0 * w[b, t] + f1 * w[b + 1, t] + f2 * w[b + 2, t] + f3 * w[b + 3, t]
    for b in range(fours, k):
        factor = gram[a, b]
        for t in range(TILE):
            g[t] -= factor * w[b, t]


@helper(CONTRACT)
def _sweep(gram, c, w, sweeps, scale, before, rate, moving):
    """Cyclic coordinate descent; a lane rests when all that is left to gain is within its scale.

    A sweep gains s = Σ_a G_aa d_a² (up to twice what it lowers the lane's objective by), and
    ``before`` is that of the sweep before: gains fall at the rate s / before a sweep, so those to
    come add up to s² / (before - s), however slowly they fall.
    """
    g = np.empty(TILE)
    gained = np.empty(TILE)
    for _ in range(sweeps):
        gained[:] = 0.0
        for a in range(gram.shape[0]):
            diagonal = gram[a, a]
            if diagonal <= 0.0:
                continue
            _gradient(gram, c, w, a, g)
            inverse = 1.0 / diagonal
            for t in range(TILE):
                d = moving[t] * max(g[t] * inverse, -w[a, t])
                gained[t] += diagonal * d * d
                d += w[a, t]
                w[a, t] = d if d > ROUNDING * w[a, t] else 0.0  # the inverse is off by that much
        still = 0.0
        for t in range(TILE):
            s = gained[t]
            to_come = s * s > scale[t] * (before[t] - s)
            moving[t] = 1.0 if s > 0.0 and (to_come or s > 100.0 * scale[t]) else 0.0
            rate[t] = s / before[t] if s < before[t] else 1.0
            before[t] = s
            still += moving[t]
        if still == 0.0:
            return


@helper(CONTRACT)
def _choose(gram, c, w, scale, steps, gradient, free, moving):
    """Gradient of every lane, and what to do: rest, or a Newton step on the free coefficients.

    Where the free gradient is zero (or three whole Newton steps did not make it so: rounding), all
    bound coefficients with a gradient that calls them are freed, by the mean of their coordinate
    steps (which descends, the objective being convex); without any, the lane is done.
    """
    k = gram.shape[0]
    for a in range(k):
        _gradient(gram, c, w, a, gradient[a])
    for t in range(TILE):
        if moving[t] == 0.0:
            free[:, t] = 0.0
            continue
        inside, called = 0.0, 0
        for a in range(k):
            g = gradient[a, t]
            free[a, t] = 1.0 if w[a, t] > 0.0 else 0.0
            if w[a, t] > 0.0:
                inside = max(inside, g * g / gram[a, a])
            elif g > 0.0 and g * g > scale[t] * gram[a, a] and gram[a, a] > 0.0:
                called += 1
        if inside > scale[t] and steps[t] < 3.0:
            continue
        steps[t] = 0.0
        if called == 0:
            moving[t] = 0.0
            free[:, t] = 0.0
            continue
        for a in range(k):
            g = gradient[a, t]
            if free[a, t] == 0.0 and g > 0.0 and g * g > scale[t] * gram[a, a] and gram[a, a] > 0.0:
                w[a, t] = g / (called * gram[a, a])
                free[a, t] = 1.0
        for a in range(k):
            gradient[a, t] = c[a, t]
            for b in range(k):
                gradient[a, t] -= gram[a, b] * w[b, t]


@helper(CONTRACT)
def _newton(gram, gradient, free, moving, passive, chol, step):
    """Solve G[P, P] step = gradient[P] of every lane, P its free coefficients.

    One lane at a time: P differs from lane to lane and is often small. Coefficients whose columns
    depend on those of others before stand still: lifted pivots would multiply rounding by a million
    for each of them, and more components than rows have many.
    """
    k = gram.shape[0]
    x = np.empty(k)
    step[:] = 0.0
    for t in range(TILE):
        if moving[t] == 0.0:
            continue
        size = 0
        for a in range(k):
            if free[a, t] > 0.0:
                passive[size] = a
                size += 1
        for i in range(size):
            p = passive[i]
            for j in range(i):
                s = gram[p, passive[j]]
                for m in range(j):
                    s -= chol[i, m] * chol[j, m]
                chol[i, j] = s * chol[j, j]
            s = gram[p, p]
            for m in range(i):
                s -= chol[i, m] * chol[i, m]
            if s <= DEPENDENT * gram[p, p]:
                chol[i, : i + 1] = 0.0
                x[i] = 0.0
                continue
            chol[i, i] = 1.0 / np.sqrt(s)  # the diagonal is kept inverted
            s = gradient[p, t]
            for m in range(i):
                s -= chol[i, m] * x[m]
            x[i] = s * chol[i, i]
        for i in range(size - 1, -1, -1):
            x[i] *= chol[i, i]
            for m in range(i):
                x[m] -= chol[i, m] * x[i]
            step[passive[i], t] = x[i]


@helper(CONTRACT)
def _move(gram, w, gradient, free, step, steps):
    """Take the step, clipped at zero if that lowers the objective, else up to the first bound.

    Clipping can zero many coefficients at once; the other one, exactly.
    """
    k = gram.shape[0]
    clipped = np.empty((k, TILE))  # the change of w that clipping gives
    bend = np.empty(TILE)
    change = np.zeros(TILE)
    for a in range(k):
        for t in range(TILE):
            clipped[a, t] = max(step[a, t], -w[a, t])
    for a in range(k):
        bend[:] = 0.0
        for b in range(k):
            factor = gram[a, b]
            for t in range(TILE):
                bend[t] += factor * clipped[b, t]
        for t in range(TILE):
            change[t] += clipped[a, t] * (0.5 * bend[t] - gradient[a, t])
    for t in range(TILE):
        length, first = 1.0, -1
        for a in range(k):
            aim = w[a, t] + step[a, t]
            if free[a, t] > 0.0 and aim <= 0.0 and w[a, t] <= length * -step[a, t]:
                length = w[a, t] / -step[a, t]
                first = a
        steps[t] = steps[t] + 1.0 if first < 0 else 0.0
        if first < 0 or change[t] < 0.0:
            for a in range(k):
                w[a, t] += clipped[a, t]
        else:
            for a in range(k):
                w[a, t] = max(w[a, t] + length * step[a, t], 0.0)
            w[first, t] = 0.0


@helper(CONTRACT)
def _is_slow(gained, rate, scale):
    """Whether the gains to come would still be above ``scale`` after PATIENCE sweeps more."""
    return gained * rate ** (PATIENCE + 1) > scale * (1.0 - rate)


@entry(CONTRACT)
def descend_rows(cross, gram, out, live, gains, sweeps, tol, gain, finish):
    """Solve min 1/2 w G wᵀ - c wᵀ, w >= 0, for the rows of ``out`` called ``live``, in place.

    ``gains``: what the sweep before brought each row, 0 where there was none; both are used up.

    At most ``sweeps`` sweeps of coordinate descent; a row rests once its steps are zero to ``tol``
    or less than ``gain`` times c wᵀ is left to gain. With ``finish``, rows that would need many
    sweeps more are solved by an active set (Bro & de Jong's fast NNLS, warm-started), one change of
    the set a round. Rows march in tiles, each in its own lane; those that move are packed together
    anew every few sweeps.
    """
    k = cross.shape[1]
    c = np.empty((k, TILE))
    w = np.empty((k, TILE))
    scale = np.empty(TILE)
    moving = np.empty(TILE)
    before = np.empty(TILE)
    rate = np.empty(TILE)
    slow = np.empty(live.size, np.int64)
    handed_on = 0
    for a in range(k):
        if gram[a, a] <= 0.0:
            out[:, a] = 0.0
    for done in range(0, sweeps, ROUND):
        left = 0
        for start in range(0, live.size, TILE):
            count = _gather(cross, live, start, c)
            _gather(out, live, start, w)
            w = np.maximum(w, 0.0)
            moving[:] = 0.0
            moving[:count] = 1.0
            _tolerance(gram, c, tol, scale)
            _energy(c, w, gain, scale)
            for t in range(count):
                before[t] = gains[live[start + t]]
            _sweep(gram, c, w, min(ROUND, sweeps - done), scale, before, rate, moving)
            _scatter(w, live, start, count, out)
            for t in range(count):  # never beyond what has been read already
                row = live[start + t]
                gains[row] = before[t]
                if moving[t] == 0.0:
                    continue
                if finish and _is_slow(before[t], rate[t], scale[t]):
                    slow[handed_on] = row
                    handed_on += 1
                else:
                    live[left] = row
                    left += 1
        live = live[:left]
    if finish:
        _finish(cross, gram, out, tol, gain, slow[:handed_on])
        _finish(cross, gram, out, tol, gain, live)


@helper(CONTRACT)
def _finish(cross, gram, out, tol, gain, live):
    """Rounds of :func:`_choose`, :func:`_newton` and :func:`_move` until every row rests."""
    k = gram.shape[0]
    c = np.empty((k, TILE))
    w = np.empty((k, TILE))
    gradient = np.empty((k, TILE))
    free = np.empty((k, TILE))
    step = np.empty((k, TILE))
    passive = np.empty(k, np.int64)
    chol = np.empty((k, k))
    scale = np.empty(TILE)
    moving = np.empty(TILE)
    steps = np.empty(TILE)
    whole_steps = np.zeros(cross.shape[0])
    for _ in range(4 * k + 20):
        left = 0
        for start in range(0, live.size, TILE):
            _gather(cross, live, start, c)
            count = _gather(out, live, start, w)
            moving[:] = 0.0
            moving[:count] = 1.0
            for t in range(count):
                steps[t] = whole_steps[live[start + t]]
            _tolerance(gram, c, tol, scale)
            _energy(c, w, gain, scale)
            _choose(gram, c, w, scale, steps, gradient, free, moving)
            _newton(gram, gradient, free, moving, passive, chol, step)
            _move(gram, w, gradient, free, step, steps)
            _scatter(w, live, start, count, out)
            for t in range(count):
                row = live[start + t]
                whole_steps[row] = steps[t]
                if moving[t] > 0.0:
                    live[left] = row
                    left += 1
        live = live[:left]
        if left == 0:
            return
