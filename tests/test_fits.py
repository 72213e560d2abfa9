"""Whole fits of every (loss, solver) pair: descent, optimality, and one result for every layout."""

import threading
from functools import lru_cache

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from dask import delayed
from pairs import PAIRS, SMOOTH
from sklearn.exceptions import ConvergenceWarning

from dasknmf import NMF, Outcome
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.penalties import make_penalties

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_thread"),
]

PENALTIES = [{}, {"alpha_W": 0.05, "l1_ratio": 1.0}, {"alpha_W": 0.02, "alpha_H": 0.05}]


def fitted(X, name, beta, k=4, passes=12, **more):
    more = {"random_state": 3, "init": "random", "tol": 0, **more}
    model = NMF(k, solver=name, beta_loss=beta, max_iter=passes, **more)
    return model, model.fit_transform(X)


def objective(X, W, H, model):
    """The documented objective, from the definition."""
    dense = X.toarray() if sp.issparse(X) else X
    W, H, dense = (np.asarray(a, dtype=float) for a in (W, H, dense))
    Y, beta = W @ H, make_loss(model.beta_loss)
    beta = 2.0 if beta.name == "frobenius" else beta.beta
    if beta == 2:
        value = np.sum((dense - Y) ** 2) / 2
    elif beta == 1:
        logs = np.where(dense > 0, dense * np.log(np.where(dense > 0, dense, 1) / Y), 0)
        value = np.sum(logs - dense + Y)
    elif beta == 0:
        value = np.sum(dense / Y - np.log(dense / Y) - 1)
    else:
        parts = dense**beta + (beta - 1) * Y**beta - beta * dense * Y ** (beta - 1)
        value = np.sum(parts) / (beta * (beta - 1))
    loss = value
    for factor, penalty in zip(
        (W, H), make_penalties(model.alpha_W, model.alpha_H, model.l1_ratio, X.shape), strict=True
    ):
        value += penalty.l1 * factor.sum() + penalty.l2 / 2 * np.sum(factor**2)
    return loss, value


@pytest.mark.parametrize("penalty", PENALTIES, ids=["plain", "L1", "L2"])
@pytest.mark.parametrize(("name", "beta"), PAIRS)
def test_the_objective_never_rises_and_is_that_of_the_returned_pair(name, beta, penalty, rng):
    if penalty and name == "mu" and not 1 <= beta <= 2:
        pytest.skip("the multiplicative step is a descent step there only without a penalty")
    X = planted(rng)
    model, W = fitted(X, name, beta, **penalty)
    history = model.history_["objective"]
    assert (np.diff(history) <= 1e-12 * history[:-1]).all()
    loss, value = objective(X, W, model.components_, model)
    assert history[-1] == pytest.approx(value, rel=1e-9)
    assert model.history_["loss"][-1] == pytest.approx(loss, rel=1e-9)
    assert model.reconstruction_err_ == pytest.approx(np.sqrt(2 * loss), rel=1e-9)


def _gradient(X, W, H, beta, penalty):
    Y = W @ H
    return (Y ** (beta - 1) - X * Y ** (beta - 2)) @ H.T + penalty.l1 + penalty.l2 * W


CONVERGING = [("als", 2.0, 400), ("hals", 2.0, 1000), ("pg", 2.0, 1000), ("mu", 1.0, 3000)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=["plain", "L1", "L2"])
@pytest.mark.parametrize(("name", "beta", "passes"), CONVERGING)
def test_kkt_conditions_hold_at_convergence(name, beta, passes, penalty, rng):
    assert_kkt(name, beta, passes, penalty, rng)


# Multiplicative steps are slow for beta > 2, where their exponent is below one: one component.
@pytest.mark.parametrize(
    ("beta", "k"),
    [
        *[(2.0, 1), (1.5, 2), (3.0, 1), (0.0, 2)],
        *[pytest.param(beta, 2, marks=pytest.mark.slow) for beta in (2.0, 0.5, -1.0)],
    ],
)
def test_kkt_conditions_hold_at_convergence_of_mu_for_any_beta(beta, k, rng):
    assert_kkt("mu", beta, 4000 if k == 2 else 300, {}, rng, k)


def assert_kkt(name, beta, passes, penalty, rng, k=2):
    """min(F, gradient) = 0 for both factors, relative to the gradient's own size."""
    X = planted(rng, 40, 12, 2, noise=0.5) + 0.1
    model, W = fitted(X, name, beta, k=k, passes=passes, **penalty)
    H = model.components_
    weights = make_penalties(model.alpha_W, model.alpha_H, model.l1_ratio, X.shape)
    for V, F, other, weight in ((X, W, H, weights[0]), (X.T, H.T, W.T, weights[1])):
        gradient = _gradient(V, F, other, beta, weight)
        scale = np.abs(V @ other.T).max()
        assert gradient.min() >= -2e-5 * scale
        assert np.abs(gradient * F).max() <= 2e-5 * scale * F.max()


LAYOUTS = {
    "1 slab": lambda X: da.from_array(X, chunks=(-1, -1)),
    "uneven slabs": lambda X: da.from_array(X, chunks=((1, 50, 7, 62), -1)),
    "column chunks": lambda X: da.from_array(X, chunks=(-1, 8)),
    "both chunked": lambda X: da.from_array(X, chunks=(17, 11)),
    "wide": lambda X: X.T,
    "wide, many slabs": lambda X: da.from_array(X.T, chunks=(-1, 13)),
    "csr": sp.csr_array,
    "csc, wide": lambda X: sp.csc_array(X.T),
    "csr chunks": lambda X: da.from_array(X, chunks=(31, -1)).map_blocks(
        sp.csr_array, meta=sp.csr_array((0, 0), dtype=X.dtype)
    ),
}


@lru_cache
def plain(name, beta, dtype):
    """A matrix and its fit as one array. Waves are groups of slabs: other slabs are other waves."""
    X = sparse_counts(np.random.default_rng(20261121), density=0.7).toarray().astype(dtype)
    X += beta <= 0
    return X, fitted(X, name, beta, passes=3, waves=1)[0]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "beta"), PAIRS)
def test_one_result_for_every_layout(name, beta, layout, dtype, many_slabs):
    if beta <= 0 and layout.startswith("cs"):
        pytest.skip("beta <= 0 is infinite at the zeros of a sparse matrix")
    X, expected = plain(name, beta, dtype)
    found, W = fitted(LAYOUTS[layout](X), name, beta, passes=3, waves=1)
    H = found.components_
    assert W.dtype == H.dtype == dtype
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    size = expected.components_.max()
    if "wide" in layout:  # the factors change places
        H = np.asarray(W).T
        same = np.abs(H - expected.components_).max() <= 3 * tolerance * size
        assert same or name in ("als", "newton")  # these end with one more half-step
    else:
        assert np.abs(H - expected.components_).max() <= tolerance * size
    errors = [m.history_["objective"] for m in (found, expected)]
    np.testing.assert_allclose(errors[0][:3], errors[1][:3], rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["als", "hals", "pg", "mu"])
def test_the_known_factorisation_is_found(name, dtype, known):
    V, W, H = (a.astype(dtype) for a in known)
    passes = {"als": 400, "hals": 800, "pg": 800, "mu": 1500}[name]
    for seed in range(10):  # a start may end in a local minimum; one of ten must not
        model, found = fitted(V, name, 2.0, k=3, passes=passes, random_state=seed)
        if model.history_["relative_error"][-1] < (1e-2 if name == "mu" else 1e-4):
            break
    scale = model.components_.max(axis=1)
    pairs = [
        int(np.argmax(H @ row / np.linalg.norm(row) / np.linalg.norm(H, axis=1)))
        for row in model.components_
    ]
    assert sorted(pairs) == [0, 1, 2]
    tolerance = 5e-2 if name == "mu" else 1e-3
    for a, b in enumerate(pairs):
        np.testing.assert_allclose(
            model.components_[a] / scale[a], H[b] / H[b].max(), atol=tolerance
        )
        np.testing.assert_allclose(
            found[:, a] * scale[a], W[:, b] * H[b].max(), atol=tolerance * 10
        )


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e9])
@pytest.mark.parametrize(("name", "beta"), SMOOTH)
def test_scaled_data_take_the_same_passes(name, beta, factor, rng):
    X = planted(rng)
    plain, _ = fitted(X, name, beta, tol=1e-3, passes=40)
    scaled, _ = fitted(X * factor, name, beta, tol=1e-3, passes=40)
    assert scaled.n_iter_ == plain.n_iter_
    assert scaled.outcome_ is plain.outcome_
    np.testing.assert_allclose(
        scaled.history_["loss"], plain.history_["loss"] * factor**beta, rtol=1e-7
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sparse", [False, True])
def test_an_exact_factorisation_is_recognised(dtype, sparse, rng):
    X = np.outer(rng.random(80), rng.random(20)).astype(dtype)
    model = NMF(1, random_state=0).fit(sp.csr_array(X) if sparse else X)
    assert model.outcome_ is Outcome.EXACT
    assert model.history_["relative_error"][-1] < 1e-6


def test_a_small_residual_keeps_its_digits_in_float32(rng):
    """||V||² - 2<C, H> + <G, HHᵀ> alone would be noise here."""
    X = planted(rng, 2000, 50, 3, noise=1e-4).astype(np.float32)
    model = NMF(3, random_state=0, max_iter=150, tol=1e-6)
    W = model.fit_transform(X)
    true = np.linalg.norm(X.astype(float) - W.astype(float) @ model.components_.astype(float))
    assert model.reconstruction_err_ == pytest.approx(true, rel=1e-3)
    assert true / np.linalg.norm(X) < 1e-3


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_small_residual_keeps_its_digits_in_wide_float32_data(noise, rng):
    X = planted(rng, 400, 60, 5, noise=noise).T.astype(np.float32)
    model = NMF(5, random_state=0, max_iter=300, tol=1e-6)
    W = model.fit_transform(X)
    true = np.linalg.norm(X.astype(float) - W.astype(float) @ model.components_.astype(float))
    assert true / np.linalg.norm(X) < 3e-3
    assert model.reconstruction_err_ == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("wide", [False, True])
def test_fit_transform_equals_transform_with_exact_rows(wide, rng, many_slabs):
    X = planted(rng).T if wide else planted(rng)
    model, W = fitted(X, "als", 2.0, alpha_W=1e-3, l1_ratio=0.5)
    np.testing.assert_allclose(W, model.transform(X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [2.0, 1.0, 1.5])
def test_transform_is_the_same_in_any_batches(beta, rng, many_slabs):
    X = planted(rng)
    model, _ = fitted(X, "auto", beta)
    whole = model.transform(X)
    for rows in ([7], slice(3, 40), [5, 99, 2]):
        np.testing.assert_allclose(model.transform(X[rows]), whole[rows], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_transform_minimises_the_divergence(beta, rng):
    X = planted(rng, 30, 12, 2) + 0.1
    model, _ = fitted(X, "auto", beta, k=2, passes=300)
    model.set_params(tol=1e-9, max_iter=20000)
    W = model.transform(X)
    gradient = _gradient(X, W, model.components_, beta, make_penalties(0, 0, 0, X.shape)[0])
    assert gradient.min() > -1e-4
    assert np.abs(gradient * W).max() < 1e-4


def test_bits_and_threads_do_not_depend_on_which_thread_fits(rng):
    """BLAS is limited to one thread for every fit, from any thread, and restored after the last."""
    from threadpoolctl import threadpool_info

    from dasknmf.parallel.blas import one_thread

    def limits():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    before, seen = limits(), []
    X = planted(rng, 3000, 60)

    def fit():
        watch = [lambda _: seen.append(limits())]
        seen.append(fitted(X, "als", 2.0, passes=3, callbacks=watch)[1])

    fit()
    for _ in range(2):
        thread = threading.Thread(target=fit)
        thread.start()
        thread.join()
    factors = [item for item in seen if not isinstance(item, set)]
    assert [item for item in seen if isinstance(item, set)] == [{1}] * 12
    for W in factors[1:]:
        np.testing.assert_array_equal(W, factors[0])
    first, second = one_thread(), one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert limits() == {1}
    second.__exit__(None, None, None)
    assert limits() == before


@pytest.mark.parametrize("size", [1e-200, 1e160])
@pytest.mark.parametrize("beta", [2.0, 1.0])
def test_data_whose_squares_leave_the_numbers_are_refused_with_advice(size, beta, rng):
    model = NMF(3, beta_loss=beta, init="random", random_state=0)
    for X in (planted(rng) * size, planted(rng).T * size, sp.csr_array(planted(rng) * size)):
        with pytest.raises(ValueError, match=r"largest value of .* Rescale X first"):
            model.fit(X)


def test_a_fit_that_fails_late_leaves_the_earlier_model_whole(rng, monkeypatch):
    X, other = planted(rng), planted(rng)[:, :17]
    model, W = fitted(X, "als", 2.0)

    def lost(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("dasknmf.results.rows_of", lost)
    H, error = model.components_, model.reconstruction_err_
    with pytest.raises(KeyboardInterrupt):
        model.fit_transform(other)
    assert model.components_ is H
    assert (model.reconstruction_err_, model.n_features_in_) == (error, 30)
    np.testing.assert_allclose(model.transform(X), W, rtol=1e-9)


def test_a_warning_names_the_callers_line(rng):
    model = NMF(3, max_iter=1, random_state=0)
    for fit in (model.fit, model.fit_transform):
        with pytest.warns(ConvergenceWarning, match="Maximum") as caught:
            fit(planted(rng))
        assert {warning.filename for warning in caught} == {__file__}


def test_transform_refuses_zeros_where_the_loss_is_infinite_at_them(rng):
    X = planted(rng) + 1
    model, _ = fitted(X, "mu", 0.0)
    with pytest.raises(ValueError, match="entries that are zero"):
        model.transform(np.where(X.mean() < X, X, 0))


@pytest.mark.parametrize("callbacks", [print, [1], ["x"]])
def test_callbacks_that_are_none_are_refused_before_the_first_pass(callbacks, rng):
    with pytest.raises(ValueError, match="expected a list of functions"):
        NMF(3, callbacks=callbacks).fit(planted(rng))


@pytest.mark.parametrize("X", [None, delayed(np.eye(3))], ids=["None", "delayed"])
def test_what_is_no_matrix_at_all_is_refused_with_advice(X):
    with pytest.raises(ValueError, match="expected a matrix"):
        NMF(2).fit(X)


@pytest.mark.filterwarnings("ignore::dasknmf.FactorWarning")
def test_more_components_than_samples(rng):
    """Their rows have Gram matrices of which most columns depend on others."""
    X = rng.poisson(3.0, (5, 64)) * (rng.random((5, 64)) < 0.7)
    for seed in range(4):
        model = NMF(20, random_state=seed, tol=1e-3).fit(X.astype(float))
        errors = model.history_["relative_error"]
        assert np.isfinite(model.components_).all()
        assert (np.diff(errors) <= 1e-6).all()  # below, all is rounding
        assert errors[-1] < 0.05
