"""Slow scalar twins of what reads a model: plain loops over Python floats, as in naive.py."""

from __future__ import annotations

import math
from itertools import combinations, permutations


def hoyer(x):
    """Hoyer 2004, section 3.1."""
    root = math.sqrt(len(x))
    return (root - sum(x) / math.sqrt(sum(v * v for v in x))) / (root - 1)


def npmi_of_topic(X, topic):
    """Mean NPMI over pairs of words, counted document by document (Bouma 2009)."""
    values = []
    for x, y in combinations(topic, 2):
        one = sum(row[x] > 0 for row in X) / len(X)
        other = sum(row[y] > 0 for row in X) / len(X)
        both = sum(row[x] > 0 and row[y] > 0 for row in X) / len(X)
        if both in (0, 1):
            values.append(-1.0 if both == 0 else 0.0)
        else:
            values.append(math.log(both / (one * other)) / -math.log(both))
    return sum(values) / len(values)


def consensus(labels):
    """Part of the restarts in which two samples share their label (Brunet 2004)."""
    m = len(labels[0])
    return [
        [
            1.0 if i == j else sum(r[i] == r[j] and r[i] >= 0 for r in labels) / len(labels)
            for j in range(m)
        ]
        for i in range(m)
    ]


def dispersion(C):
    """Kim & Park 2007, eq. 6."""
    return sum(4 * (c - 0.5) ** 2 for row in C for c in row) / len(C) ** 2


def cophenetic(C):
    """Average linkage by merging the two nearest groups, then Pearson's correlation."""
    m = len(C)
    pairs = list(combinations(range(m), 2))
    groups = [[i] for i in range(m)]
    height = {}
    while len(groups) > 1:
        value, a, b = min(
            (sum(1 - C[i][j] for i in g for j in h) / (len(g) * len(h)), a, b)
            for (a, g), (b, h) in combinations(enumerate(groups), 2)
        )
        for i in groups[a]:
            for j in groups[b]:
                height[min(i, j), max(i, j)] = value
        merged = groups[a] + groups[b]
        groups = [g for n, g in enumerate(groups) if n not in (a, b)] + [merged]
    x, y = [1 - C[i][j] for i, j in pairs], [height[p] for p in pairs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cov / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def cosine(x, y):
    size = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / size if size else 0.0


def best_match(A, B):
    """The assignment of largest total cosine, by trying all of them."""
    k = len(A)
    return max(permutations(range(len(B)), k), key=lambda p: sum(map(cosine, A, [B[i] for i in p])))


def silhouettes(points, labels):
    """Rousseeuw 1987, with distance 1 - cosine."""
    values = []
    for i, (x, own) in enumerate(zip(points, labels, strict=True)):
        mean = {}
        for label in set(labels):
            others = [
                1 - cosine(x, y) for j, y in enumerate(points) if labels[j] == label and j != i
            ]
            if others:
                mean[label] = sum(others) / len(others)
        if own not in mean:
            values.append(0.0)
            continue
        a, b = mean[own], min(v for label, v in mean.items() if label != own)
        values.append((b - a) / max(a, b) if max(a, b) else 0.0)
    return values


def local_density(points, near):
    """Mean Euclidean distance of unit vectors to their nearest neighbours (Kotliar 2019)."""
    found = []
    for i, x in enumerate(points):
        distances = sorted(
            math.sqrt(max(0.0, 2 - 2 * cosine(x, y))) for j, y in enumerate(points) if j != i
        )
        found.append(sum(distances[:near]) / near)
    return found
