"""Compiled row solves where every row has a Gram matrix of its own.

    min over w >= 0 of 1/2 w G_i wᵀ - c_i wᵀ        G_i = share_i G + own_i + ridge

Rows march in tiles (component × lane), so that the loops over lanes run on vector registers: first
the unconstrained solution, clipped; then coordinate descent; rows that would need many sweeps more
are finished one by one by an active set (``active.py``). No lane looks at another, and a row's
result is the same in any tile. The rules are those of rows that share one matrix (``nnls.py``).

Y.-D. Kim, S. Choi: Weighted nonnegative matrix factorization, ICASSP 2009 (alternating weighted
least squares); R. Bro, S. de Jong, J. Chemometrics 11, 1997 (the active set).
"""

import numpy as np

from dasknmf.numerics.kernels.active import DEPENDENT, LOST, finish, unpack
from dasknmf.numerics.kernels.compiling import CONTRACT, entry, helper

LANES = 32  # G of 32 rows at k = 12 is 36 KiB: the first-level cache
SWEEPS = 24  # of coordinate descent, at most
ROUND = 4  # sweeps between two packings of the rows that still move
PATIENCE = 12  # sweeps that cost less than the active set that they save
ROUNDING = 1e-15
REMAINS = 1e-24  # of the largest share in a row's squared norm, likewise


@helper(CONTRACT)
def _load(problem, live, start, G, inverse, c):
    """Bring the listed rows' problems into a tile; lanes without a row are all zero.

    A diagonal of which only rounding is left counts as zero, and its inverse, too: such a
    coefficient stands still.
    """
    cross, gram, own, share, ridge = problem
    k = c.shape[0]
    count = min(LANES, live.size - start)
    c[:] = 0.0
    G[:] = 0.0
    for t in range(count):
        i = live[start + t]
        first = 0
        for a in range(k):
            for b in range(a + 1):
                G[a, b, t] = share[i] * gram[a, b] + own[i, first + b]
            first += a + 1
            c[a, t] = cross[i, a]
            if G[a, a, t] <= LOST * share[i] * gram[a, a]:
                G[a, a, t] = 0.0
            G[a, a, t] += ridge
    for a in range(k):
        for b in range(a):
            for t in range(LANES):
                G[b, a, t] = G[a, b, t]
        for t in range(LANES):
            inverse[a, t] = 1.0 / G[a, a, t] if G[a, a, t] > 0.0 else 0.0
    return count


@helper(CONTRACT)
def _tolerance(inverse, c, tol, scale):
    """scale[t] = tol² max c_a² / G_aa over what pulls; g² / G_aa below that is zero."""
    scale[:] = 0.0
    for a in range(c.shape[0]):
        for t in range(LANES):
            pull = max(c[a, t], 0.0)
            scale[t] = max(scale[t], tol * tol * pull * pull * inverse[a, t])


@helper(CONTRACT)
def _energy(c, w, gain, scale):
    """Raise scale[t] to 2 gain (c w), which is what a sweep that gains too little brings."""
    for t in range(LANES):
        energy = 0.0
        for a in range(c.shape[0]):
            energy += c[a, t] * w[a, t]
        scale[t] = max(scale[t], 2.0 * gain * energy)


@helper(CONTRACT)
def _unconstrained(G, c, L, x):
    """Solve G x = c of every lane by Cholesky; what depends on coefficients before it is zero."""
    k = c.shape[0]
    s = np.empty(LANES)
    for i in range(k):
        for j in range(i):
            for t in range(LANES):
                s[t] = G[i, j, t]
            for m in range(j):
                for t in range(LANES):
                    s[t] -= L[i, m, t] * L[j, m, t]
            for t in range(LANES):
                L[i, j, t] = s[t] * L[j, j, t]
        for t in range(LANES):
            s[t] = G[i, i, t]
            x[i, t] = c[i, t]
        for m in range(i):
            for t in range(LANES):
                s[t] -= L[i, m, t] * L[i, m, t]
                x[i, t] -= L[i, m, t] * x[m, t]
        for t in range(LANES):  # the diagonal is kept inverted
            kept = s[t] > DEPENDENT * G[i, i, t]
            L[i, i, t] = 1.0 / np.sqrt(s[t] if kept else 1.0) if kept else 0.0
            x[i, t] *= L[i, i, t]
    for i in range(k - 1, -1, -1):
        for t in range(LANES):
            x[i, t] *= L[i, i, t]
        for m in range(i):
            for t in range(LANES):
                x[m, t] -= L[i, m, t] * x[i, t]


@helper(CONTRACT)
def _begin(G, inverse, c, L, w):
    """Where a lane has nothing to start from: the unconstrained solution, clipped."""
    x = np.empty(w.shape)
    _unconstrained(G, c, L, x)
    fresh = np.ones(LANES)
    for a in range(w.shape[0]):
        for t in range(LANES):
            w[a, t] = max(w[a, t], 0.0) if inverse[a, t] > 0.0 else 0.0
            fresh[t] = 0.0 if w[a, t] > 0.0 else fresh[t]
    for a in range(w.shape[0]):
        for t in range(LANES):
            w[a, t] = max(x[a, t], 0.0) if fresh[t] > 0.0 else w[a, t]


@helper(CONTRACT)
def _gradient_of(G, c, w, a, g):
    """g[t] = c_a - (G w)_a of every lane, four components a step: g is then written less often."""
    k = c.shape[0]
    for t in range(LANES):
        g[t] = c[a, t]
    fours = k // 4 * 4
    for b in range(0, fours, 4):
        for t in range(LANES):
            g[t] -= (
                G[a, b, t] * w[b, t]
                + G[a, b + 1, t] * w[b + 1, t]
                + G[a, b + 2, t] * w[b + 2, t]
                + G[a, b + 3, t] * w[b + 3, t]
            )
    for b in range(fours, k):
        for t in range(LANES):
            g[t] -= G[a, b, t] * w[b, t]


@helper(CONTRACT)
def _sweep(G, inverse, c, w, scale, before, rate, moving):
    """Cyclic coordinate descent, ``ROUND`` sweeps; a lane rests when what is left is in its scale.

    A sweep gains s = Σ_a G_aa d_a², and ``before`` is that of the sweep before: gains fall at the
    rate s / before, so those to come add up to s² / (before - s).
    """
    g = np.empty(LANES)
    gained = np.empty(LANES)
    for _ in range(ROUND):
        gained[:] = 0.0
        for a in range(c.shape[0]):
            _gradient_of(G, c, w, a, g)
            for t in range(LANES):
                d = moving[t] * max(g[t] * inverse[a, t], -w[a, t])
                gained[t] += G[a, a, t] * d * d
                d += w[a, t]
                w[a, t] = d if d > ROUNDING * w[a, t] else 0.0
        still = 0.0
        for t in range(LANES):
            s = gained[t]
            to_come = s * s > scale[t] * (before[t] - s)
            moving[t] = 1.0 if s > 0.0 and (to_come or s > 100.0 * scale[t]) else 0.0
            rate[t] = s / before[t] if s < before[t] else 1.0
            before[t] = s
            still += moving[t]
        if still == 0.0:
            return


@helper()
def _drop_rounding(problem, out):
    """Make zero what explains next to nothing beside the row's largest coefficient.

    Left standing, such remains of a difference would be all that a row with few entries finds of
    a component in the next half-step, and would be scaled up to explain them.
    """
    _, gram, own, share, ridge = problem
    k = out.shape[1]
    shares = np.empty(k)
    for i in range(out.shape[0]):
        largest = 0.0
        for a in range(k):
            diagonal = share[i] * gram[a, a] + own[i, a * (a + 3) // 2]
            if diagonal <= LOST * share[i] * gram[a, a]:
                diagonal = 0.0
            shares[a] = out[i, a] * out[i, a] * (diagonal + ridge)
            largest = max(largest, shares[a])
        for a in range(k):
            if shares[a] < REMAINS * largest:
                out[i, a] = 0.0


@helper(CONTRACT)
def _is_slow(gained, rate, scale):
    """Whether the gains to come would still be above ``scale`` after PATIENCE sweeps more."""
    return gained * rate ** (PATIENCE + 1) > scale * (1.0 - rate)


@helper()
def _finish_rows(problem, tol, slow, out):
    """The active set, row by row, exactly: what few coefficients leave to gain bounds nothing."""
    cross, gram, own, share, ridge = problem
    k = cross.shape[1]
    G, chol = np.empty((k, k)), np.empty((k, k))
    g, step, free = np.empty(k), np.empty(k), np.empty(k, np.int64)
    for i in slow:
        c, w = cross[i], out[i]
        unpack(own[i], gram, share[i], ridge, G)
        scale = 0.0
        for a in range(k):
            if G[a, a] > 0.0 and c[a] > 0.0:
                scale = max(scale, tol * tol * c[a] * c[a] / G[a, a])
        finish(G, c, w, g, scale, free, chol, step)


@entry(CONTRACT)
def solve_each(problem, tol, gain, out):
    """Solve every row's problem from what ``out`` holds (where it is zero: anew), in place.

    problem: (cross, G, own, share, ridge), own packed: the lower triangle row by row. ``tol``:
    steps below this part of the largest are rounding; ``gain``: a row rests where less than this
    part of c w is left.
    """
    rows, k = problem[0].shape
    G, L = np.empty((k, k, LANES)), np.empty((k, k, LANES))
    inverse, c, w = np.empty((k, LANES)), np.empty((k, LANES)), np.empty((k, LANES))
    scale, moving = np.empty(LANES), np.empty(LANES)
    before, rate = np.empty(LANES), np.empty(LANES)
    gains = np.zeros(rows)
    slow = np.empty(rows, np.int64)
    handed_on = 0
    live = np.arange(rows)
    for done in range(0, SWEEPS, ROUND):
        left = 0
        for start in range(0, live.size, LANES):
            count = _load(problem, live, start, G, inverse, c)
            w[:] = 0.0
            moving[:] = 0.0
            before[:] = 0.0
            for t in range(count):
                before[t] = gains[live[start + t]]
                for a in range(k):
                    w[a, t] = out[live[start + t], a]
            if done == 0:
                _begin(G, inverse, c, L, w)
            _tolerance(inverse, c, tol, scale)
            for t in range(count):
                moving[t] = 1.0 if scale[t] > 0.0 else 0.0
                if scale[t] <= 0.0:  # nothing pulls: nothing observed, or zeros only
                    w[:, t] = 0.0
            _energy(c, w, gain, scale)
            _sweep(G, inverse, c, w, scale, before, rate, moving)
            for t in range(count):  # never beyond what has been read already
                row = live[start + t]
                for a in range(k):
                    out[row, a] = w[a, t]
                gains[row] = before[t]
                if moving[t] == 0.0:
                    continue
                if _is_slow(before[t], rate[t], scale[t]):
                    slow[handed_on] = row
                    handed_on += 1
                else:
                    live[left] = row
                    left += 1
        live = live[:left]
    for row in live:
        slow[handed_on] = row
        handed_on += 1
    _finish_rows(problem, tol, slow[:handed_on], out)
    _drop_rounding(problem, out)
