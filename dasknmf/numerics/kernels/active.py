"""Compiled active set for one row with a Gram matrix of its own (``alone.py`` walks over rows).

R. Bro, S. de Jong: A fast non-negativity-constrained least squares algorithm, J. Chemometrics 11,
1997; D. P. Bertsekas: Projected Newton methods, SIAM J. Control Optim. 20(2), 1982 (the clipped
step).
"""

import numpy as np

from dasknmf.numerics.kernels.compiling import helper

LOST = 1e-13  # of the shared diagonal: what is left of it is rounding
DEPENDENT = 1e-12  # of a column's squared norm: what others leave of it is rounding


@helper()
def unpack(packed, gram, share, ridge, G):
    """G of one row, a diagonal of which only rounding is left counts as zero."""
    k = G.shape[0]
    for a in range(k):
        first = a * (a + 1) // 2
        for b in range(a + 1):
            G[a, b] = G[b, a] = share * gram[a, b] + packed[first + b]
        if G[a, a] <= LOST * share * gram[a, a]:
            G[a, a] = 0.0
        G[a, a] += ridge


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
def finish(G, c, w, g, scale, free, chol, step):
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
