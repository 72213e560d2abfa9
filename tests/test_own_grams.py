"""Rows with Gram matrices of their own: the solver's optimality, tiles that models share."""

import numpy as np
import pytest
from conftest import planted
from scipy.optimize import nnls

from dasknmf.numerics import weighted
from dasknmf.numerics.observed import TALLEST, ZERO, Holdout, Observed, Rule
from dasknmf.numerics.weighted import Solve

EXACT = Solve(1e-12)


def problems(rng, k, rows=75):
    """Some rows with all, few, or none of 30 columns observed: (cross, shared, packed, designs)."""
    F = rng.gamma(0.5, 1.0, (30, k))
    M = rng.random((rows, 30)) < rng.choice(
        [0.0, 0.1, 0.5, 0.95], (rows, 1), p=[0.1, 0.2, 0.3, 0.4]
    )
    V = np.maximum(rng.standard_normal((rows, 30)) + 0.3, 0.0)
    grams = np.einsum("ij,ja,jb->iab", M - 1.0, F, F)
    return (V * M) @ F, F.T @ F, grams[:, *np.tril_indices(k)], (F, M, V)


def solved(cross, shared, packed, rule=EXACT, start=None):
    base = np.ones(len(cross))
    return weighted.solve_each(
        cross, shared, packed, base, np.zeros(cross.shape) if start is None else start, rule
    )


def objective(rows, cross, shared, packed):
    k = cross.shape[1]
    low = np.zeros((len(cross), k, k))
    low[:, *np.tril_indices(k)] = packed
    own = shared + low + np.tril(low, -1).transpose(0, 2, 1)
    return 0.5 * np.einsum("ia,iab,ib->i", rows, own, rows) - np.sum(cross * rows, axis=1)


@pytest.mark.parametrize("k", [1, 3, 8, 21])
def test_every_row_is_as_near_as_by_active_sets_on_its_entries(k, rng):
    *given, (F, M, V) = problems(rng, k)
    rows = solved(*given)
    assert (rows >= 0).all()
    for w, m, v in zip(rows, M, V, strict=True):
        if not m.any():
            assert not w.any()
            continue
        best = nnls(F[m], v[m])[1]
        assert np.linalg.norm(v[m] - F[m] @ w) <= best + 1e-7 * np.linalg.norm(v[m])


def test_no_row_looks_at_another(rng):
    cross, shared, packed, _ = problems(rng, 6, 150)
    whole = solved(cross, shared, packed)
    order = rng.permutation(150)[:70]
    np.testing.assert_array_equal(solved(cross[order], shared, packed[order]), whole[order])


def test_a_start_changes_the_way_and_not_the_end(rng):
    *given, _ = problems(rng, 5)
    cold = objective(solved(*given), *given)
    warm = objective(solved(*given, start=rng.random(given[0].shape)), *given)
    np.testing.assert_allclose(warm, cold, rtol=1e-9, atol=1e-12)


def test_rows_may_leave_as_much_as_they_are_allowed_to(rng):
    *given, _ = problems(rng, 8)
    best = solved(*given)
    loose = objective(solved(*given, rule=Solve(1e-12, 1e-3)), *given)
    left = loose - objective(best, *given)
    assert 0.0 < left.sum() <= 1e-2 * np.sum(given[0] * best)


def hidden(V, start=0):
    rule = Rule(ZERO, Holdout(0.1, 7))
    return Observed(V, None, rule, np.arange(start, start + len(V)))


def test_tiles_are_made_once_for_all_models(rng, monkeypatch):
    V, made = hidden(planted(rng, 50, 12, 3)), []
    make = Observed._product

    def counted(self, *where):
        made.append(where)
        return make(self, *where)

    monkeypatch.setattr(Observed, "_product", counted)
    factors = [rng.random((12, k)) for k in (2, 3, 4, 5)]
    weighted.least_squares(V, factors, [EXACT] * 4)
    assert len(made) == 1
    kept = V.keeping()
    made.clear()
    first, second = (weighted.least_squares(of, factors, [EXACT] * 4) for of in (V, kept))
    assert len(made) == 1
    for one, other in zip(first[0], second[0], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(first[1], second[1], strict=True):
        np.testing.assert_array_equal(one.packed, other.packed)
    assert kept[3:9].kept is None
    assert Observed.stacked([kept, kept]).kept is None
    assert kept.root().kept is None


def test_an_ensemble_gives_each_model_what_it_gets_alone(rng):
    V = hidden(planted(rng, 90, 12, 3))
    factors = [rng.random((12, k)) for k in (2, 5, 3)]
    rows, terms = weighted.least_squares(V, factors, [EXACT] * 3)
    for F, W, found in zip(factors, rows, terms, strict=True):
        (alone,), (own,) = weighted.least_squares(V, [F], [EXACT])
        np.testing.assert_allclose(W, alone, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.cross, own.cross, rtol=1e-9)


def test_a_row_is_the_same_wherever_its_tiles_end(rng):
    V, F = planted(rng, 2 * TALLEST + 100, 40, 3), rng.random((40, 4))
    whole = weighted.least_squares(hidden(V), [F], [EXACT], share=False)[0][0]
    for a, b in ((5, 6), (700, 1900), (2 * TALLEST, len(V))):
        part = weighted.least_squares(hidden(V[a:b], a), [F], [EXACT], share=False)[0][0]
        np.testing.assert_array_equal(part, whole[a:b])
