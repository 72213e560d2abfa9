"""Missing entries, weights, hold-outs: twins, oracles, what can't depend on chunks, bad input."""

import re
from itertools import pairwise

import dask.array as da
import naive
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from dasknmf import NMF
from dasknmf.numerics import weighted
from dasknmf.numerics.errors import DataError, FactorWarning, ParameterError
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.observed import NAN, UNSTORED, ZERO, Holdout, Observed, Rule
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers import make_solver
from dasknmf.numerics.weighted import Solve
from dasknmf.parallel import make_executor
from dasknmf.parallel.executors import ThreadsExecutor
from dasknmf.parallel.observing import observed
from dasknmf.parallel.slabs import cut

FREE = Penalty()
LOSSES = ["frobenius", "kullback-leibler"]


def some_weights(rng, shape, kind="float"):
    """Weights of which some are 0, some 1, the rest anything."""
    mask = rng.random(shape) < 0.7
    mask[1] = True
    mask[:, 2] = True
    if kind == "bool":
        return mask
    return np.where(rng.random(shape) < 0.5, mask, mask * rng.gamma(2.0, 1.0, shape))


def slab(V, weights=None, missing=ZERO, holdout=None, start=0, swapped=False):
    names = np.arange(start, start + V.shape[0])
    return Observed(V, weights, Rule(missing, holdout), names, swapped)


def forms(V, M):
    """The same observed entries in every way there is to say so; M of 0 and others."""
    found = {
        "dense": slab(V, M),
        "csr": slab(sp.csr_array(V), M),
        "sparse weights": slab(V, sp.csr_array(M)),
        "both sparse": slab(sp.csr_array(V), sp.csr_array(M)),
    }
    unstored = sp.csr_array((V + 7.0) * (M > 0))
    unstored.data -= 7.0  # zeros that are stored, and so observed
    found["unstored"] = slab(unstored, M, UNSTORED)
    found["unstored, sparse weights"] = slab(unstored, sp.csr_array(M), UNSTORED)
    found["nan"] = slab(np.where(M > 0, V, np.nan), np.where(M > 0, M, 1.0), NAN)
    return found


FORMS = ["dense", "csr", "sparse weights", "both sparse", "unstored", "unstored, sparse weights"]
FORMS.append("nan")


def small(rng, rows=11, columns=8, k=3):
    V = rng.poisson(2.0, (rows, columns)).astype(float)
    return V, rng.random((columns, k)) + 0.1, some_weights(rng, V.shape)


def fit(X, k=3, **parameters):
    weights = parameters.pop("weights", None)
    return NMF(k, random_state=0, **parameters).fit(X, weights=weights)


def weighted_loss(model, X, W, M, beta="frobenius"):
    Y = W @ model.components_
    if beta == "frobenius":
        return 0.5 * np.sum((M * (np.where(M > 0, X, 0) - Y) ** 2)[M > 0])
    v, y, m = X[M > 0], Y[M > 0], M[M > 0]
    logs = np.log(np.where(v > 0, v / y, 1.0))
    return np.sum(m * (v * logs - v + y))


# ---- kernels against scalar twins ---------------------------------------------------------------


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.3, 0.4)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_rows_and_their_terms_equal_the_scalar_twin(form, penalty, rng):
    V, Ht, M = small(rng)
    rules = [Solve(1e-12, 0.0, penalty.l1, penalty.l2)]
    (rows,), (terms,) = weighted.least_squares(forms(V, M)[form], [Ht], rules)
    expected = naive.weighted_rows(V.tolist(), M.tolist(), Ht.T.tolist(), penalty.l1, penalty.l2)
    np.testing.assert_allclose(rows, expected, rtol=1e-9, atol=1e-11)
    cross, grams = naive.weighted_terms(V.T.tolist(), M.T.tolist(), rows.T.tolist())
    np.testing.assert_allclose(terms.cross, cross, rtol=1e-10)
    k = Ht.shape[1]
    own = np.array(grams)[:, *np.tril_indices(k)] - terms.gram[np.tril_indices(k)]
    np.testing.assert_allclose(terms.packed, own, rtol=1e-9, atol=1e-9)
    value = make_loss("frobenius").value(terms, Ht, float(np.sum(M * V**2)))
    difference = V - rows @ Ht.T
    assert value == pytest.approx(0.5 * np.sum(M * difference**2), rel=1e-10)
    residual = weighted.squared_residual(forms(V, M)[form], rows, Ht)
    assert residual == pytest.approx(np.sum(M * difference**2), rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_rows_of_the_transpose(form, rng):
    V, Ht, M = small(rng)
    solver = make_solver("als", make_loss("frobenius"))
    (rows,), (terms,) = weighted.least_squares(forms(V, M)[form], [Ht], [Solve(1e-12)])
    found = solver.half_step(Ht, terms, Penalty(0.1, 0.2))
    expected = naive.weighted_rows(V.T.tolist(), M.T.tolist(), rows.T.tolist(), 0.1, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.3, 0.4)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_kullback_leibler_rows_and_terms_equal_the_scalar_twin(form, penalty, rng):
    V, Ht, M = small(rng)
    V[3] = 0.0
    prices = (penalty.l1, penalty.l2)
    rule = (2, 200, 1e-13)
    rows, neg, curvature, mass, value = weighted.kl_rows(
        forms(V, M)[form], Ht, prices, rule, "curvature"
    )
    expected = [
        naive.weighted_kl_row(v, m, Ht.T.tolist(), *prices)
        for v, m in zip(V.tolist(), M.tolist(), strict=True)
    ]
    np.testing.assert_allclose(rows, expected, atol=1e-4)  # the twin's bisections in turn
    np.testing.assert_allclose(mass, M.T @ rows, rtol=1e-9, atol=1e-12)
    Y = rows @ Ht.T
    ratio = np.divide(M * V, Y, out=np.zeros(V.shape), where=V > 0)
    np.testing.assert_allclose(neg, ratio.T @ rows, rtol=1e-9)
    second = np.divide(ratio, Y, out=np.zeros(V.shape), where=V > 0)
    full = np.einsum("ij,ia,ib->jab", second, rows, rows)
    np.testing.assert_allclose(curvature, full[:, *np.tril_indices(3)], rtol=1e-9, atol=1e-12)
    logs = np.log(np.divide(V, Y, out=np.ones(V.shape), where=V > 0))
    assert value == pytest.approx(np.sum(M * (V * logs - V + Y)), rel=1e-10)


def test_rows_with_fewer_entries_than_components_are_solved(rng):
    """Dependent columns: any minimum is as good; none may overflow, and the residual is scipy's."""
    V = np.zeros((60, 40))
    Ht = np.abs(rng.standard_normal((40, 15)))
    M = np.zeros(V.shape)
    for i in range(60):
        M[i, rng.choice(40, 1 + i % 12, replace=False)] = 1.0
    V = M * rng.integers(1, 6, V.shape)
    (rows,), _ = weighted.least_squares(slab(V, M), [Ht], [Solve(1e-10)])
    for i in range(60):
        seen = M[i] > 0
        best = nnls(Ht[seen], V[i, seen])[1]
        assert np.linalg.norm(V[i, seen] - Ht[seen] @ rows[i]) <= best + 1e-6 * np.linalg.norm(V[i])


def test_a_row_is_the_same_in_any_slab(rng):
    V, Ht, M = small(rng, 40)
    whole = weighted.least_squares(slab(V, M), [Ht], [Solve(1e-10)])[0][0]
    for part in (slice(0, 1), slice(7, 30)):
        found = weighted.least_squares(slab(V[part], M[part]), [Ht], [Solve(1e-10)])[0][0]
        np.testing.assert_array_equal(found, whole[part])


# ---- hold-outs ----------------------------------------------------------------------------------


def test_the_hash_is_that_of_its_scalar_twin():
    rows, columns = np.array([0, 1, 2**40, 7]), np.array([0, 3, 5, 2**33])
    for seed in (0, 5, 2**63 + 1):
        holdout = Holdout(0.5, seed)
        expected = [
            naive.hashed(seed, int(i), int(j)) < 2**63 for i, j in zip(rows, columns, strict=True)
        ]
        np.testing.assert_array_equal(holdout.hides(rows, columns), expected)


@settings(max_examples=25, deadline=None)
@drawn(
    cuts=st.lists(st.integers(1, 29), max_size=5),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**64 - 1),
    swapped=st.booleans(),
    listed=st.booleans(),
)
def test_the_same_entries_are_hidden_whatever_the_slabs(cuts, share, seed, swapped, listed):
    V = np.arange(1.0, 30 * 17 + 1).reshape(30, 17)
    holdout = Holdout(share, seed)
    edges = sorted({0, 30, *cuts})
    hidden = []
    for a, b in pairwise(edges):
        part = sp.csr_array(V[a:b]) if listed else V[a:b]
        missing = UNSTORED if listed else ZERO
        for tile in slab(part, None, missing, holdout, a, swapped).tiles():
            hidden += tile.held[1].tolist()
            assert len(tile.value) + len(tile.held[1]) == V[a:b].size
    i, j = (grid.ravel() for grid in np.indices(V.shape))
    expected = holdout.hides(j, i) if swapped else holdout.hides(i, j)
    assert hidden == V.ravel()[expected].tolist()


def test_shares_are_kept_and_rows_and_columns_independent():
    i, j = (grid.ravel() for grid in np.indices((400, 300)))
    hidden = Holdout(0.1, 3).hides(i, j).reshape(400, 300)
    assert abs(hidden.mean() - 0.1) < 0.004
    for along, deviation in ((0, np.sqrt(0.09 / 400)), (1, np.sqrt(0.09 / 300))):
        assert hidden.mean(axis=along).std() == pytest.approx(deviation, rel=0.25)
    other = Holdout(0.1, 4).hides(i, j).reshape(400, 300)
    assert np.mean(hidden & other) == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("beta", LOSSES)
@pytest.mark.parametrize("form", ["dense", "csr", "nan", "unstored", "wide"])
def test_the_error_of_the_last_pass_is_that_of_the_returned_factors(form, beta, rng, many_slabs):
    X = rng.poisson(planted(rng, 70, 20, 3)).astype(float)
    X = X.T.copy() if form == "wide" else X
    i, j = (grid.ravel() for grid in np.indices(X.shape))
    hidden = Holdout(0.15, 0).hides(i, j).reshape(X.shape)
    given = X.copy()
    missing = {"nan": "nan", "unstored": "unstored"}.get(form)
    if form in ("csr", "unstored"):
        given = sp.csr_array(X)
    if form == "unstored":
        hidden &= X > 0
    if form == "nan":
        given[5, :4] = np.nan
        hidden[5, :4] = False
    model = NMF(3, missing=missing, holdout=0.15, beta_loss=beta, random_state=0, tol=1e-3)
    W = model.fit_transform(given)
    y, v = np.minimum((W @ model.components_)[hidden], X.max()), X[hidden]
    if beta == "frobenius":
        expected = np.mean((v - y) ** 2)
    else:
        y = np.maximum(y, 1e-6 * v)  # where the model says zero
        expected = np.mean(v * np.log(np.divide(v, y, out=np.ones(v.size), where=v > 0)) - v + y)
    found = model.history_["holdout"]
    assert len(found) == len(model.history_["loss"])
    if form != "wide":  # there the factor of the columns is solved once more, after the errors
        assert found[-1] == pytest.approx(expected, rel=1e-6)
    assert found[-1] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("squared", [True, False])
def test_what_is_foreseen_counts_up_to_a_ceiling(rng, squared):
    V, W, F = rng.random((9, 7)), rng.random((9, 2)), rng.random((7, 2))
    i, j = (grid.ravel() for grid in np.indices(V.shape))
    hidden = Holdout(0.5, 3).hides(i, j).reshape(V.shape)
    part, product = slab(V, holdout=Holdout(0.5, 3)), (W @ F.T)[hidden]
    ceiling = float(np.median(product))
    y, v = np.minimum(product, ceiling), V[hidden]
    expected = np.sum((v - y) ** 2) if squared else np.sum(v * np.log(v / y) - v + y)
    (found,) = weighted.held_errors(part, [W], [F], squared=squared, ceiling=ceiling)
    assert found.error == pytest.approx(expected, rel=1e-12)
    assert found.weight == hidden.sum()
    (free,) = weighted.held_errors(part, [W], [F], squared=squared, ceiling=np.inf)
    assert abs(free.error - found.error) > 1e-3 * found.error


@pytest.mark.parametrize("form", ["dense", "csr", "wide"])
@pytest.mark.parametrize("value", [1e6, 5.0])
def test_the_ceiling_is_the_largest_entry_be_it_hidden_or_not(form, value):
    """The model foresees 1e6 for one hidden entry: right if that is it, else cut off at 1000."""
    a, b = np.append(np.ones(40), 1000.0), np.append(np.ones(29), 1000.0)
    X = np.outer(a, b)
    X[-1, -1] = value
    given = np.ascontiguousarray(X.T) if form == "wide" else X
    for seed in range(100):
        hidden = Holdout(0.1, seed).hides(*np.indices(given.shape).reshape(2, -1))
        hidden = hidden.reshape(given.shape)
        if hidden[-1, -1]:
            break
    model = NMF(1, holdout=0.1, random_state=seed, tol=1e-8, max_iter=20)
    W = model.fit_transform(sp.csr_array(given) if form == "csr" else given)
    product = (W @ model.components_)[hidden]
    assert product.max() > 0.99e6
    error = np.mean((np.minimum(product, X.max()) - given[hidden]) ** 2)
    found = model.history_["holdout"][-1]
    assert found == pytest.approx(error, rel=1e-3, abs=1.0)
    assert found < 1e3 if value == 1e6 else 1e3 < found < 1e6


def test_hidden_entries_do_not_change_the_fit(rng):
    X = planted(rng, 60, 20, 3)
    i, j = (grid.ravel() for grid in np.indices(X.shape))
    hidden = Holdout(0.2, 0).hides(i, j).reshape(X.shape)
    spoilt = np.where(hidden, 1e3, X)
    first, second = (fit(given, holdout=0.2) for given in (X, spoilt))
    np.testing.assert_array_equal(first.components_, second.components_)
    assert second.history_["holdout"][-1] > 100 * first.history_["holdout"][-1]


# ---- whole fits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_entries_are_foreseen_as_well_as_by_alternating_nnls(seed):
    rng = np.random.default_rng(seed)
    X = planted(rng, 60, 20, 3, noise=0.2)
    M = rng.random(X.shape) < 0.8
    H = rng.random((3, 20))
    for _ in range(60):
        W = np.array([nnls(H[:, m].T, x[m])[0] for x, m in zip(X, M, strict=True)])
        H = np.array([nnls(W[m], x[m])[0] for x, m in zip(X.T, M.T, strict=True)]).T
    oracle = np.sqrt(np.mean((X - W @ H)[~M] ** 2))
    model = NMF(3, missing="nan", tol=1e-7, max_iter=500, random_state=0)
    W = model.fit_transform(np.where(M, X, np.nan))
    found = np.sqrt(np.mean((X - W @ model.components_)[~M] ** 2))
    assert found <= 1.01 * oracle
    assert weighted_loss(model, X, W, M) == pytest.approx(model.history_["loss"][-1], rel=1e-9)
    assert model.reconstruction_err_ == pytest.approx(
        np.linalg.norm((X - W @ model.components_)[M])
    )


@pytest.mark.parametrize("beta", LOSSES)
@pytest.mark.parametrize("form", ["numpy", "wide", "csr", "dask", "dask-csr"])
def test_loss_is_weighted_never_rises_and_transform_gives_the_same_rows(
    form, beta, rng, many_slabs
):
    X = rng.poisson(planted(rng, 80, 16, 3)).astype(float)
    M = some_weights(rng, X.shape)
    if form == "wide":
        X, M = X.T.copy(), M.T.copy()
    given, weights = X, M
    if form == "csr":
        given = sp.csr_array(X)
    if form.startswith("dask"):
        given, weights = da.from_array(X, chunks=(9, 5)), da.from_array(M, chunks=(20, 7))
    if form == "dask-csr":
        given = da.from_array(X, chunks=(9, -1)).map_blocks(sp.csr_array, meta=sp.csr_array((0, 0)))
    model = NMF(3, beta_loss=beta, tol=1e-5, max_iter=60, random_state=0)
    W = np.asarray(model.fit_transform(given, weights=weights))
    objective = model.history_["objective"]
    exact = beta == "frobenius"  # else the rows are solved to a tolerance
    assert np.all(np.diff(objective) <= 1e-9 * objective[0])
    expected = weighted_loss(model, X, W, M, beta)
    assert expected == pytest.approx(model.history_["loss"][-1], rel=1e-9 if exact else 1e-5)
    again = np.asarray(model.transform(given, weights=weights))
    np.testing.assert_allclose(again, W, rtol=1e-6 if exact else 1e-2, atol=1e-3 * W.max())


@pytest.mark.parametrize("beta", LOSSES)
def test_weights_of_one_are_the_plain_fit(beta, rng):
    X = rng.poisson(planted(rng, 80, 16, 3)).astype(float)
    settings = {"beta_loss": beta, "init": "random", "tol": 0.0, "max_iter": 15}
    plain = fit(X, **settings)
    ones = fit(X, weights=np.ones(X.shape, bool), **settings)
    np.testing.assert_allclose(ones.history_["loss"], plain.history_["loss"], rtol=2e-3)
    rows = [plain.transform(X, weights=weights) for weights in (None, np.ones(X.shape))]
    np.testing.assert_allclose(*rows, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", LOSSES)
def test_all_ways_to_say_missing_are_one_fit(beta, rng):
    X = rng.poisson(planted(rng, 60, 16, 3)).astype(float) + 1.0
    M = some_weights(rng, X.shape, "bool")
    settings = {"beta_loss": beta, "init": "random", "tol": 1e-4}
    by_mask = fit(X, weights=M, **settings)
    by_nan = fit(np.where(M, X, np.nan), missing="nan", **settings)
    by_number = fit(np.where(M, X, -9.0), weights=M.astype(np.float32), **settings)
    for other in (by_nan, by_number):
        np.testing.assert_array_equal(other.components_, by_mask.components_)
    unstored = fit(sp.csr_array(X * M), missing="unstored", **settings)
    np.testing.assert_allclose(
        unstored.history_["loss"][:3], by_mask.history_["loss"][:3], rtol=1e-6
    )


def test_integer_weights_are_repeated_rows(rng):
    X = planted(rng, 30, 12, 3)
    times = rng.integers(1, 4, 30)
    Ht = rng.random((12, 3))
    M = np.broadcast_to(times[:, None], X.shape).astype(float)
    _, (one,) = weighted.least_squares(slab(X, M), [Ht], [Solve(1e-12)])
    repeated = np.repeat(X, times, axis=0)
    _, (many,) = weighted.least_squares(
        slab(repeated, np.ones(repeated.shape)), [Ht], [Solve(1e-12)]
    )
    np.testing.assert_allclose(one.cross, many.cross, rtol=1e-10)
    np.testing.assert_allclose(
        one.packed + one.gram[np.tril_indices(3)],
        many.packed + many.gram[np.tril_indices(3)],
        rtol=1e-10,
    )


@pytest.mark.parametrize("beta", LOSSES)
def test_float32_and_many_starts(beta, rng):
    X = rng.poisson(planted(rng, 60, 16, 3)).astype(np.float32) + 1
    M = some_weights(rng, X.shape, "bool")
    model = fit(X, weights=M, beta_loss=beta, n_init=3, init="random", tol=1e-3)
    assert model.components_.dtype == np.float32
    alone = fit(X.astype(float), weights=M, beta_loss=beta, init="random", tol=1e-3)
    assert model.history_["loss"][-1] <= alone.history_["loss"][-1] * 1.001


def test_rows_and_columns_without_entries_are_zero_and_named(rng):
    X = planted(rng, 40, 12, 3)
    X[[4, 9]] = np.nan
    X[:, 7] = np.nan
    for given, text in ((X, "2 rows and 1 column"), (X.T.copy(), "1 row and 2 columns")):
        for beta in LOSSES:
            model = NMF(3, missing="nan", beta_loss=beta, random_state=0, tol=1e-3)
            with pytest.warns(FactorWarning, match=text):
                W = model.fit_transform(given)
            H = model.components_
            long, short = (W, H.T) if given is X else (H.T, W)
            assert not long[[4, 9]].any()
            assert not short[7].any()
            assert np.isfinite(long).all()


def test_a_cluster_gives_the_bits_of_threads(client, rng, many_slabs, monkeypatch):
    X = rng.poisson(planted(rng, 60, 16, 3)).astype(float)
    M = some_weights(rng, X.shape)
    given, weights = da.from_array(X, chunks=(8, -1)), da.from_array(M, chunks=(8, -1))
    for beta in LOSSES:
        model = NMF(3, beta_loss=beta, holdout=0.1, tol=1e-3, random_state=0)
        model.fit(given, weights=weights, client=client)
        there, held = model.components_, model.history_["holdout"]
        slabs = observed(cut(given), given, weights, Rule(ZERO, Holdout(0.1, 0)))
        with monkeypatch.context() as patch:
            patch.setattr("dasknmf.parallel.active_client", lambda: None)
            assert isinstance(make_executor(slabs), ThreadsExecutor)
            model.fit(given, weights=weights)
        np.testing.assert_array_equal(there, model.components_)
        np.testing.assert_array_equal(held, model.history_["holdout"])


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((5, 4)), r"weights have shape \(5, 4\); expected \(20, 6\)"),
        (np.ones(20), r"weights have shape \(20,\)"),
        (np.ones((20, 6), complex), "weights have dtype complex128; expected booleans"),
        (np.full((20, 6), "a"), "weights have dtype <U1"),
        (np.ma.masked_array(np.ones((20, 6))), "weights are a masked array"),
        (np.zeros((20, 6)), "nothing of X is observed"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message, rng):
    with pytest.raises(DataError, match=message):
        fit(planted(rng, 20, 6, 2), k=2, weights=weights)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("value", "kind"), [(-1.0, "negative"), (np.nan, "NaN"), (np.inf, "inf")])
def test_bad_weights_are_named_by_their_place(value, kind, wide, rng, many_slabs):
    X = planted(rng, 40, 6, 2)
    M = np.ones(X.shape)
    M[[17, 30], 4] = value
    X, M = (X.T.copy(), M.T.copy()) if wide else (X, M)
    place = "row 4, column 17" if wide else "row 17, column 4"
    message = re.compile(f"weights passed to NMF have 2 {re.escape(kind)}.*first at {place}")
    for weights in (M, da.from_array(M, chunks=(10, 3)), sp.csr_array(M)):
        with pytest.raises(DataError, match=message):
            fit(X, k=2, weights=weights)


def test_bad_values_count_only_where_their_entry_does(rng):
    X = planted(rng, 30, 6, 2)
    M = np.ones(X.shape, bool)
    X[11, 3], M[11, 3] = np.nan, False
    fit(X, k=2, weights=M)
    X[13, 2] = -1.0
    for given in (X, sp.csr_array(X)):
        with pytest.raises(DataError, match=r"1 negative value, the first at row 13, column 2"):
            fit(given, k=2, weights=M)
    with pytest.raises(
        DataError, match=r"1 NaN value, the first at row 11, column 3.*missing='nan'"
    ):
        fit(X, k=2, weights=np.ones(X.shape))
    with pytest.raises(DataError, match="1 negative value, the first at row 13"):
        fit(X, k=2, missing="nan")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"missing": "NaN"}, "missing='NaN'; expected None"),
        ({"missing": np.nan}, "missing=nan; expected None"),
        ({"missing": "unstored"}, "missing='unstored' with a dense X"),
        ({"holdout": 1.0}, r"holdout=1\.0; expected a share"),
        ({"holdout": -0.1}, r"holdout=-0\.1; expected a share"),
        ({"holdout": 0.1, "solver": "mu"}, "solver='mu' .* takes every entry for equal"),
        ({"missing": "nan", "beta_loss": 0.5}, "solver='mu' with beta_loss='beta=0.5'"),
        ({"missing": "nan", "init": "nndsvda"}, "init='nndsvda' needs the singular vectors"),
        ({"missing": "nan", "compress": True}, "compress=True with missing entries"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters, message, rng):
    with pytest.raises(ParameterError, match=message):
        fit(planted(rng, 20, 6, 2), k=2, **parameters)


def test_everything_missing_is_an_error_but_not_for_transform(rng):
    with pytest.raises(DataError, match="nothing of X is observed"):
        fit(np.full((20, 6), np.nan), missing="nan")
    model = fit(planted(rng, 20, 6, 2), k=2, missing="nan")
    assert not model.transform(np.full((2, 6), np.nan)).any()


def test_weights_of_other_chunks_are_rechunked_and_said_so(rng, caplog, many_slabs):
    X = planted(rng, 60, 12, 3)
    M = some_weights(rng, X.shape)
    given = da.from_array(X, chunks=(10, -1))
    with caplog.at_level("INFO", "dasknmf"):
        other = fit(given, weights=da.from_array(M, chunks=(7, 5)))
    assert any("weights have chunks (7, 5): rechunked once" in m for m in caplog.messages)
    same = fit(given, weights=da.from_array(M, chunks=(10, -1)))
    np.testing.assert_array_equal(other.components_, same.components_)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_weights_of_any_real_dtype_are_those_of_float64(dtype, rng):
    V, weights = rng.random((60, 9)), rng.integers(0, 2, (60, 9)) * (1 if dtype is bool else 200)
    found = [
        NMF(2, random_state=0, max_iter=3, tol=0).fit(V, weights=weights.astype(to)).components_
        for to in (dtype, np.float64)
    ]
    np.testing.assert_array_equal(*found)
