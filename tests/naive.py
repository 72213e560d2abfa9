"""Slow scalar twins: the formulas of the papers as plain loops over Python floats.

No NumPy arithmetic, no shared code with the package. A solver without a twin here fails the
contract tests.
"""

from __future__ import annotations

import math
from itertools import combinations

FLOOR = 1e-15


def product(A, B):
    """A @ B of nested lists."""
    return [
        [sum(a * b for a, b in zip(row, col, strict=True)) for col in zip(*B, strict=True)]
        for row in A
    ]


def transpose(A):
    return [list(column) for column in zip(*A, strict=True)]


def divergence(V, W, H, beta):
    """D_beta(V | W H), entry by entry (Févotte & Idier 2011, eq. 2)."""
    total = 0.0
    for v_row, y_row in zip(V, product(W, H), strict=True):
        for v, y in zip(v_row, y_row, strict=True):
            if beta == 2:
                total += (v - y) ** 2 / 2
            elif beta == 1:
                total += (v * math.log(v / y) if v > 0 else 0.0) - v + y
            elif beta == 0:
                total += v / y - math.log(v / y) - 1
            else:
                top = v**beta + (beta - 1) * y**beta - beta * v * y ** (beta - 1)
                total += top / (beta * (beta - 1))
    return total


def normal_terms(V, H):
    """C = V Hᵀ and G = H Hᵀ."""
    Ht = transpose(H)
    return product(V, Ht), product(H, Ht)


def solve(G, c):
    """Gaussian elimination with pivoting; None for a singular system."""
    n = len(c)
    M = [[*G[i], c[i]] for i in range(n)]
    for i in range(n):
        p = max(range(i, n), key=lambda r: abs(M[r][i]))
        if abs(M[p][i]) < 1e-12:
            return None
        M[i], M[p] = M[p], M[i]
        for r in range(i + 1, n):
            f = M[r][i] / M[i][i]
            for s in range(i, n + 1):
                M[r][s] -= f * M[i][s]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (M[i][n] - sum(M[i][s] * x[s] for s in range(i + 1, n))) / M[i][i]
    return x


def nnls(G, c):
    """Non-negative least squares by trying every set of free variables."""
    k = len(c)
    best, best_value = [0.0] * k, 0.0
    for size in range(1, k + 1):
        for free in combinations(range(k), size):
            x = solve([[G[a][b] for b in free] for a in free], [c[a] for a in free])
            if x is None or min(x) < 0:
                continue
            w = [0.0] * k
            for a, value in zip(free, x, strict=True):
                w[a] = value
            value = sum(
                0.5 * w[a] * sum(G[a][b] * w[b] for b in range(k)) - c[a] * w[a] for a in range(k)
            )
            if value < best_value:
                best, best_value = w, value
    return best


def als(V, W, H, l1, l2, beta, settings):
    C, G = normal_terms(V, H)
    k = len(H)
    G = [[G[a][b] + (l2 if a == b else 0.0) for b in range(k)] for a in range(k)]
    return [nnls(G, [c - l1 for c in row]) for row in C]


def hals(V, W, H, l1, l2, beta, settings):
    C, G = normal_terms(V, H)
    k = len(H)
    out = []
    for w, c in zip(W, C, strict=True):
        w = list(w)
        for _ in range(settings.sweeps):
            for a in range(k):
                g = c[a] - l1 - sum(G[a][b] * w[b] for b in range(k)) - l2 * w[a]
                w[a] = max(0.0, w[a] + g / (G[a][a] + l2))
        out.append(w)
    return out


def pg(V, W, H, l1, l2, beta, settings):
    C, G = normal_terms(V, H)
    k = len(H)
    G = [[G[a][b] + (l2 if a == b else 0.0) for b in range(k)] for a in range(k)]
    x = [1.0] * k  # largest eigenvalue by power iteration
    for _ in range(2000):
        y = [sum(G[a][b] * x[b] for b in range(k)) for a in range(k)]
        L = math.sqrt(sum(value * value for value in y))
        x = [value / L for value in y]
    out = []
    for w, c in zip(W, C, strict=True):
        w = list(w)
        for _ in range(settings.steps):
            g = [sum(G[a][b] * w[b] for b in range(k)) - c[a] + l1 for a in range(k)]
            w = [max(0.0, w[a] - g[a] / L) for a in range(k)]
        out.append(w)
    return out


def mu(V, W, H, l1, l2, beta, settings):
    k = len(H)
    gamma = 1 / (2 - beta) if beta < 1 else 1 / (beta - 1) if beta > 2 else 1.0
    out = []
    for w, v_row, y_row in zip(W, V, product(W, H), strict=True):
        new = []
        for a in range(k):
            neg = sum(v * y ** (beta - 2) * h for v, y, h in zip(v_row, y_row, H[a], strict=True))
            pos = sum(y ** (beta - 1) * h for y, h in zip(y_row, H[a], strict=True))
            pos += l1 + l2 * w[a]
            new.append(w[a] * (neg / pos) ** gamma)
        out.append(new)
    return out


def kl_row(v, H, l1, l2, sweeps=200):
    """A row's Kullback-Leibler optimum: every coefficient by bisection on its slope, in turn."""
    k, n = len(H), len(v)
    price = [sum(row) + l1 for row in H]
    w = [sum(v) / (k * p) if p > 0 else 0.0 for p in price]
    for _ in range(sweeps):
        for a in range(k):
            if not any(v) or price[a] == 0:
                w[a] = 0.0
                continue
            rest = [sum(w[b] * H[b][j] for b in range(k) if b != a) for j in range(n)]

            def slope(x, a=a, rest=rest):
                found = price[a] + l2 * x
                for j in range(n):
                    if v[j] > 0 and H[a][j] > 0:
                        y = rest[j] + x * H[a][j]
                        found -= v[j] * H[a][j] / y if y > 0 else math.inf
                return found

            low, high = 0.0, 2 * sum(v) / price[a]
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if slope(middle) > 0 else (middle, high)
            w[a] = 0.0 if slope(0.0) >= 0 else (low + high) / 2
    return w


def kl_terms(V, W, H):
    """Numerator n × k, curvature n × k × k, both at W: Σ v/y w and Σ v/y² w wᵀ of each column."""
    k, n = len(H), len(H[0])
    neg = [[0.0] * k for _ in range(n)]
    curvature = [[[0.0] * k for _ in range(k)] for _ in range(n)]
    for v_row, w, y_row in zip(V, W, product(W, H), strict=True):
        for j in range(n):
            if v_row[j] == 0:
                continue
            ratio = v_row[j] / y_row[j]
            for a in range(k):
                neg[j][a] += ratio * w[a]
                for b in range(k):
                    curvature[j][a][b] += ratio / y_row[j] * w[a] * w[b]
    return neg, curvature


def weighted_terms(V, M, H):
    """Of every row: c_a = Σ m v h_a and G_ab = Σ m h_a h_b."""
    cross, grams = [], []
    for v_row, m_row in zip(V, M, strict=True):
        listed = range(len(v_row))
        cross.append([sum(m_row[j] * v_row[j] * h[j] for j in listed) for h in H])
        grams.append([[sum(m_row[j] * h[j] * g[j] for j in listed) for g in H] for h in H])
    return cross, grams


def weighted_rows(V, M, H, l1, l2):
    """Non-negative least squares of every row over its weighted entries."""
    out = []
    for c, G in zip(*weighted_terms(V, M, H), strict=True):
        ridged = [[G[a][b] + (l2 if a == b else 0.0) for b in range(len(c))] for a in range(len(c))]
        out.append(nnls(ridged, [value - l1 for value in c]))
    return out


def weighted_kl_row(v, m, H, l1, l2):
    """A row's weighted Kullback-Leibler optimum: that of m v with components m h."""
    seen = [j for j in range(len(v)) if m[j] > 0]
    scaled = [[h[j] * m[j] for j in seen] for h in H]
    return kl_row([v[j] * m[j] for j in seen], scaled, l1, l2)


def hashed(seed, row, column):
    """SplitMix64's finaliser over the row, then over the column, in Python's integers."""
    golden, word = 0x9E3779B97F4A7C15, 2**64

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % word
        return x ^ (x >> 31)

    key = mix((seed + golden * (row + 1)) % word)
    return mix((key + golden * (column + 1)) % word)


UPDATES = {
    "als": als,
    "hals": hals,
    "pg": pg,
    "mu": mu,
    "newton": mu,
}  # newton: of a plain gradient
