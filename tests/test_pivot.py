"""Exact rows by pivots from the unconstrained solution: their optimum, scales, and how often."""

import naive
import numpy as np
import pytest
from conftest import planted
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf.numerics import kernels
from dasknmf.numerics.kernels import pivot


def solved(C, G, start=None):
    """What a fit does: sweeps, tolerance."""
    return kernels.solve_rows(C, kernels.row_system(G), start, 24, 1e-10)


def problem(seed, k, rows, *, spread=1.0, shift=0.5):
    """c and G of rows of which some coefficients are negative without the constraint."""
    rng = np.random.default_rng(seed)
    F = rng.random((40, k)) * np.geomspace(1, spread, k) + 0.05
    return (rng.random((rows, 40)) - shift) @ F, F.T @ F


def solved_alone(C, G, most, *, refine=False):
    """What pivots make of the unconstrained solution, and which rows they solve."""
    units = 1 / np.sqrt(np.diag(G))
    inverse = np.linalg.inv(G)
    rows, solved = C @ inverse, np.zeros(len(C), np.bool_)
    given_rows = rows.copy()
    own = [kernels.own(a) for a in (C, G, inverse, units)]
    pivot.pivot_rows(*own, most, refine, rows, solved)
    return rows, solved, given_rows


def violation(C, G, W):
    """Largest violation of the KKT conditions, in parts of a row's largest c_a / sqrt(G_aa)."""
    root = np.sqrt(np.diag(G))
    gradient = (W @ G - C) / root
    scale = np.max(np.abs(C) / root, axis=1, keepdims=True)
    wrong = np.where(W > 0, np.abs(gradient), np.maximum(-gradient, 0))
    return float(np.max(wrong / scale))


@given(seed=st.integers(0, 10**6), k=st.integers(1, 7), shift=st.floats(0.0, 0.5))
@settings(deadline=None, max_examples=60)
def test_rows_are_those_of_all_sets_tried_in_turn(seed, k, shift):
    C, G = problem(seed, k, 5, shift=shift)
    found = solved(C, G)
    expected = [naive.nnls(G.tolist(), c) for c in C.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * np.abs(C).max())


def test_pivots_solve_rows_to_their_optimum():
    """Alone, without a sweep; with coefficients that leave their bound again on the way."""
    C, G = problem(3, 12, 400, shift=0.4)
    W, solved, x = solved_alone(C, G, 12)
    assert solved.mean() > 0.99
    assert (W[solved] >= 0).all()
    assert violation(C[solved], G, W[solved]) < 1e-12
    first, last = x < 0, W == 0
    assert (first & ~last)[solved].any()  # was negative, ends as positive
    assert (~first & last)[solved].any()


def test_rows_with_more_bound_coefficients_are_left_as_they_were():
    C, G = problem(4, 10, 300, shift=0.1)
    W, solved, x = solved_alone(C, G, 3)
    assert 0 < solved.sum() < 300
    np.testing.assert_array_equal(W[~solved], x[~solved])
    assert (np.sum(W[solved] == 0, axis=1) <= 3).all()


def test_ill_conditioned_rows_are_refined():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.random((50, 8)))[0]
    F = np.abs(basis * np.geomspace(1, 3e-3, 8) @ rng.random((8, 8))) + 1e-3
    G = F.T @ F
    even = np.linalg.eigvalsh(G / np.sqrt(np.outer(np.diag(G), np.diag(G))))
    assert kernels.ROUGH < even[0] / even[-1] < kernels.FINE
    C = rng.random((200, 50)) @ F
    assert violation(C, G, solved_alone(C, G, 8)[0]) > 1e-12
    assert violation(C, G, solved_alone(C, G, 8, refine=True)[0]) < 1e-14
    assert violation(C, G, solved(C, G)) < 1e-14


def test_scales_and_dead_components_change_nothing(rng):
    C, G = problem(5, 9, 100, shift=0.3)
    W = solved(C, G)
    units = 2.0 ** rng.integers(-300, 300, 9)
    stretched = solved(C * units, G * units * units[:, None])
    np.testing.assert_allclose(stretched * units, W, rtol=1e-12, atol=1e-13 * W.max())
    more = np.insert(np.insert(G, 4, 0, axis=0), 4, 0, axis=1)
    wider = solved(np.insert(C, 4, 0, axis=1), more)
    np.testing.assert_allclose(np.delete(wider, 4, axis=1), W, rtol=1e-12, atol=1e-14 * W.max())
    assert (wider[:, 4] == 0).all()


@pytest.mark.parametrize("size", [1e-155, 1e-160])
def test_a_component_of_next_to_nothing_leaves_the_others_finite(size):
    """Its squared norm is no normal number any more."""
    C, G = problem(7, 6, 50)
    units = np.where(np.arange(6) == 2, size, 1.0)
    W = solved(C * units, G * units * units[:, None])
    others = np.delete(np.arange(6), 2)
    np.testing.assert_array_equal(W[:, 2], 0.0)
    alone = solved(C[:, others], G[np.ix_(others, others)])
    np.testing.assert_allclose(W[:, others], alone, rtol=1e-9, atol=1e-12 * alone.max())


def test_what_is_no_number_is_not_taken_for_solved():
    C, G = problem(8, 6, 50)
    C[3, 1], C[4, 0] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        assert not solved_alone(C, G, 6)[1][[3, 4]].any()


def test_a_start_does_not_change_what_pivots_find(rng):
    C, G = problem(6, 9, 100, shift=0.3)
    cold, warm = (solved(C, G, F) for F in (None, rng.random((100, 9))))
    np.testing.assert_array_equal(cold, warm)


@pytest.mark.parametrize("k", [1, 6])
def test_no_rows_at_all_give_none(k):
    C, G = problem(0, k, 0)
    assert solved(C, G).shape == (0, k)


def test_most_rows_of_dense_data_are_solved_by_pivots(monkeypatch):
    """Counted: sweeps get next to none of the rows that a fit solves."""
    rows, swept = [], []
    loops = kernels.loops

    class Counting:
        def __init__(self, module):
            self.module = loops(module)

        def pivot_rows(self, *given):
            self.module.pivot_rows(*given)
            rows.append(given[-1].size)

        def descend_rows(self, C, G, out, live, *given):
            swept.append(live.size)
            self.module.descend_rows(C, G, out, live, *given)

    monkeypatch.setattr(
        kernels, "loops", lambda m="compiled": Counting(m) if m in ("pivot", "nnls") else loops(m)
    )
    V = planted(np.random.default_rng(0), 2000, 60, k=10, noise=0.1)
    H = np.random.default_rng(1).random((60, 10))
    W = solved(V @ H, H.T @ H)
    assert W.shape == (2000, 10)
    assert rows == [2000]
    assert sum(swept) < 100
