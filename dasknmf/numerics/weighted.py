"""Least squares and Kullback-Leibler over the entries of a slab that count.

    rows:     w_i = argmin over w >= 0 of Σ_j m_ij d(v_ij | w h_j), a function of V_i, m_i and H
    columns:  what adds up over slabs: Each (a Gram matrix a column), or Columns (as of all entries,
              with a mass a column)

Y.-D. Kim, S. Choi: Weighted nonnegative matrix factorization, ICASSP 2009; N. Srebro, T. Jaakkola:
Weighted low-rank approximations, ICML 2003.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dasknmf.numerics import kernels, kullback
from dasknmf.numerics.kernels import Array, Float64, Slab, gram, loops, own
from dasknmf.numerics.observed import Lists, Observed
from dasknmf.numerics.terms import Each

Prices = tuple[float, float]  # l1 and l2 of the rows


def triangle(k: int) -> int:
    """Numbers in the lower triangle of a k × k matrix."""
    return k * (k + 1) // 2


def _wide(factor: Array) -> Float64:
    return own(factor.astype(np.float64, copy=False))


def solve_each(
    cross: Float64, shared: Float64, packed: Float64, share: Float64, start: Array, rule: Solve
) -> Float64:
    """Non-negative least squares of every row with its own Gram, share · shared + packed."""
    out = np.array(start, dtype=np.float64, order="C")
    np.maximum(out, 0.0, out=out)
    problem = (own(cross), own(shared), own(packed), own(share), float(rule.ridge))
    loops("alone").solve_each(problem, rule.tol, rule.gain, out)
    return out


class Solve(NamedTuple):
    """How exact, and with which ridge; see ``kernels/each.py``."""

    tol: float
    gain: float = 0.0
    l1: float = 0.0
    ridge: float = 0.0


def least_squares(
    V: Observed, fixed: Sequence[Array], rules: Sequence[Solve], *, share: bool = True
) -> tuple[list[Array], list[Each]]:
    """Rows of every model, each solved on its own, and their terms of the H half if ``share``."""
    wide = Stack.of(fixed)
    rows = [np.zeros((V.shape[0], F.shape[1]), F.dtype) for F in fixed]
    sums = _Sums(V.shape[1], wide.edges) if share else None
    shared = [gram(F) for F in fixed]
    for tile in V.products():
        crosses = _crosses(tile, wide)
        for number, (cross, G, rule) in enumerate(zip(crosses, shared, rules, strict=True)):
            packed = np.zeros((tile.height, triangle(cross.shape[1])))
            F = wide.part(number)
            loops("each").row_terms(tile.marks, tile.kernel_lists, F, cross, packed)
            cross -= rule.l1
            start = np.zeros(cross.shape)
            solved = solve_each(cross, G, packed, tile.base, start, rule)
            rows[number][tile.start : tile.stop] = solved
        if sums is not None:
            sums.add(tile, [W[tile.start : tile.stop] for W in rows])
    return list(rows), [] if sums is None else sums.terms()


def share_of(V: Observed, fixed: Sequence[Array], rows: Sequence[Array]) -> list[Each]:
    """Terms of the H half from rows as they are."""
    sums = _Sums(V.shape[1], Stack.of(fixed).edges)
    for tile in V.products():
        sums.add(tile, [W[tile.start : tile.stop] for W in rows])
    return sums.terms()


class Stack(NamedTuple):
    """Factors of all models side by side, in float64: for one wide product."""

    whole: Float64
    edges: tuple[int, ...]

    @staticmethod
    def of(factors: Sequence[Array]) -> Stack:
        """Put them there."""
        edges = np.cumsum([0, *(F.shape[1] for F in factors)])
        whole = np.concatenate(factors, axis=1, dtype=np.float64)
        return Stack(own(whole), tuple(int(edge) for edge in edges))

    def part(self, number: int) -> Float64:
        """The factor of one model."""
        return own(self.whole[:, self.edges[number] : self.edges[number + 1]])


def _crosses(tile: Lists, wide: Stack) -> list[Float64]:
    """V ∘ M times the factor of every model, as far as the tile holds that as a product."""
    if tile.product is None:
        return [np.zeros((tile.height, b - a)) for a, b in pairwise(wide.edges)]
    cross = (own(tile.product) @ wide.whole)[: tile.height]
    return [np.ascontiguousarray(cross[:, a:b]) for a, b in pairwise(wide.edges)]


class _Sums:
    """What adds up over tiles for the H half of every model."""

    def __init__(self, columns: int, edges: tuple[int, ...]) -> None:
        self.edges = edges
        self.cross = np.zeros((columns, edges[-1]))
        self.listed = [np.zeros((columns, b - a)) for a, b in pairwise(edges)]
        self.gram = [np.zeros((b - a, b - a)) for a, b in pairwise(edges)]
        self.packed = [np.zeros((columns, triangle(b - a))) for a, b in pairwise(edges)]

    def add(self, tile: Lists, rows: Sequence[Array]) -> None:
        """Take in the rows of a tile."""
        wide = Stack.of(rows)
        if tile.product is not None:
            self.cross += own(tile.product[: tile.height].T) @ wide.whole
        for number in range(len(rows)):
            W = wide.part(number)
            sums = self.listed[number], self.packed[number]
            loops("each").column_terms(tile.marks, tile.kernel_lists, W, *sums)
            self.gram[number] += W.T @ own(W * tile.base[:, None])

    def terms(self) -> list[Each]:
        """One a model."""
        dense = [self.cross[:, a:b] for a, b in pairwise(self.edges)]
        return [
            Each(own_cross + listed, G, packed)
            for own_cross, listed, G, packed in zip(
                dense, self.listed, self.gram, self.packed, strict=True
            )
        ]


def kl_rows(
    V: Observed, fixed: Array, penalty: Prices, rule: tuple[int, int, float], share: str = "none"
) -> tuple[Float64, Float64, Float64, Float64, float]:
    """Kullback-Leibler's rows; (rows, neg, curvature, mass of every column, value) as there.

    See :func:`dasknmf.numerics.kullback.kl_rows`.
    """
    columns, k = fixed.shape
    F = _wide(fixed)
    rows = np.zeros((V.shape[0], k))
    neg = np.zeros((0 if share == "none" else columns, k))
    curvature = np.zeros((columns if share == "curvature" else 0, triangle(k)))
    mass, whole, value = np.zeros((columns, k)), np.zeros(k), 0.0
    sums = np.sum(F, axis=0)
    for tile in V.tiles():
        solved = rows[tile.start : tile.stop]
        own_sums = np.empty(solved.shape)
        lists = tile.kernel_lists
        loops("each").prices(tile.marks, lists, tile.base, F, sums, own_sums)
        weight = np.where(own_sums > 0.0, own_sums + penalty[0], 0.0)
        scaled = own(tile.value * tile.weight)
        value += loops("kl").csr_rows(
            own(tile.marks[:, 0].astype(np.int32)), tile.columns, scaled, F, own(weight),
            float(penalty[1]), rule, solved, neg, curvature, tuple(kullback.Kept.room(0, 0)),
        )  # fmt: skip
        value += float(np.sum(own_sums * solved)) - float(np.dot(scaled, np.log(tile.weight)))
        loops("each").masses(tile.marks, lists, own(solved), mass)
        whole += np.sum(solved * tile.base[:, None], axis=0)
    mass += whole
    mass[mass <= 1e-13 * whole] = 0.0  # all that is left is rounding: nothing observed
    return rows, neg, curvature, mass, float(value)


def squared_residual(V: Observed, rows: Array, columns: Array) -> float:
    """Σ m (v - w h)²; where zeros are not listed, by the Gram matrices."""
    W, F = _wide(rows), _wide(columns)
    total = 0.0
    if V.complete:
        for tile in V.tiles():
            lists = (own(tile.marks[:, 0]), tile.columns, tile.value, tile.weight)
            total += loops("each").squared_error(*lists, W[tile.start : tile.stop], F, np.inf)
        return float(total)
    (terms,) = share_of(V, [columns], [rows])
    squares = float(sum(np.sum(t.weight * t.value**2) for t in V.tiles()))
    return max(squares - 2.0 * float(np.sum(terms.cross * F)) + terms.norm(F), 0.0)


def squared_norms(V: Slab) -> Float64:
    """Σ_j m_ij v_ij² of every row."""
    if not isinstance(V, Observed):
        return kernels.squared_norms(V)
    found = []
    for tile in V.tiles():
        of = np.repeat(np.arange(tile.stop - tile.start), np.diff(tile.marks[:, 0]))
        squares = tile.weight * np.square(tile.value)
        found.append(np.bincount(of, squares, minlength=tile.stop - tile.start))
    return np.concatenate(found)


class Held(NamedTuple):
    """Error on held-out entries, Σ m d(v | y), and their Σ m."""

    error: float = 0.0
    weight: float = 0.0

    @property
    def mean(self) -> float:
        """Error an entry; nan where none is held out."""
        return self.error / self.weight if self.weight > 0.0 else float("nan")


def held_errors(
    V: Observed, rows: Sequence[Array], fixed: Sequence[Array], *, squared: bool, ceiling: float
) -> list[Held]:
    """How well models foresee what was held out: squared errors, or Kullback-Leibler deviances.

    What is foreseen counts as at most ``ceiling``: a product that no observed entry pins down can
    have any size, and a few of these would be all of the error.
    A deviance is infinite where the model says zero: it then counts as a millionth of the entry.
    """
    pairs = [(_wide(W), _wide(F)) for W, F in zip(rows, fixed, strict=True)]
    errors, weight = [0.0] * len(pairs), 0.0
    measure = loops("each").squared_error if squared else loops("each").divergence
    for tile in V.products():
        index, v, m = tile.held
        if not v.size:
            continue
        lists = (own(tile.marks[:, 2]), own(index), own(v), own(m))
        for number, (W, F) in enumerate(pairs):
            errors[number] += float(measure(*lists, W[tile.start : tile.stop], F, ceiling))
        weight += float(np.sum(m))
    return [Held(error, weight) for error in errors]
