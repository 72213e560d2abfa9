"""Components that are missing join, and those that explain least leave."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from dasknmf import NMF, RankStudy
from dasknmf.numerics import exchange, kernels
from dasknmf.parallel import race

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def lost(W, F, kept):
    """Squared error of the best W' of these components for W Fᵀ, from its definition."""
    best = np.linalg.lstsq(F[:, kept], F @ W.T, rcond=None)[0]
    return np.sum((F[:, kept] @ best - F @ W.T) ** 2)


def eliminated(W, F, k):
    """Backward elimination, one trial after the other."""
    kept = list(range(F.shape[1]))
    while len(kept) > k:
        trials = [[j for j in kept if j != leaves] for leaves in kept]
        kept = min(trials, key=lambda trial: lost(W, F, trial))
    return kept


@settings(deadline=None, max_examples=100)
@given(
    width=st.integers(1, 8), k=st.integers(1, 8), columns=st.integers(8, 20),
    seed=st.integers(0, 999), scale=st.sampled_from([1e-150, 1e-9, 1.0, 1e9]),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_those_that_stay_are_what_backward_elimination_leaves(
    width, k, columns, seed, scale, dtype
):
    if dtype == np.float32:
        scale = max(scale, 1e-9)
    rng = np.random.default_rng(seed)
    W = rng.gamma(0.5, 1.0, (30, width))
    F = (rng.gamma(0.5, 1.0, (columns, width)) * rng.lognormal(0, 2, width)).astype(dtype)
    kept = exchange.most_useful(W.T @ W * scale, F * dtype(scale), k)
    known = eliminated(W, F.astype(np.float64), k)
    assert len(kept) == min(k, width)
    assert kept == sorted(set(kept))
    assert lost(W, F.astype(np.float64), kept) <= lost(W, F, known) * (1 + 1e-5) + 1e-9


def test_the_others_count_for_what_they_take_over():
    """The last two are nearly one: first one of them leaves, and then the other is worth most."""
    F = np.array([[1.0, 0, 0, 0], [0, 1.1, 0, 0], [0, 0, 0.9, 0.9], [0, 0, 0, 1e-3]])
    assert exchange.most_useful(np.eye(4), F, 3) in ([0, 1, 2], [0, 1, 3])
    assert exchange.most_useful(np.eye(4), F, 2) in ([1, 2], [1, 3])
    assert exchange.most_useful(np.eye(4), F, 1) in ([2], [3])


@pytest.mark.parametrize("doubled", [True, False])
def test_zero_and_equal_components_leave_first(doubled, rng):
    F = rng.random((9, 4))
    F[:, 1] = F[:, 3] if doubled else 0.0
    kept = exchange.most_useful(np.eye(4), F, 3)
    assert kept in ([0, 2, 3], [0, 1, 2]) if doubled else kept == [0, 2, 3]
    assert exchange.most_useful(np.eye(4), np.zeros((9, 4)), 2) == [2, 3]


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(4, 16), groups=st.integers(1, 4), seed=st.integers(0, 999),
    apart=st.sampled_from([0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3]),
)  # fmt: skip
def test_one_of_many_that_are_nearly_equal_stays(width, groups, seed, apart):
    rng = np.random.default_rng(seed)
    W, F = rng.gamma(0.5, 1.0, (40, width)), rng.gamma(0.5, 1.0, (25, width))
    of = rng.integers(0, groups, width)
    for j in range(width):
        F[:, j] = F[:, np.argmax(of == of[j])] * (1.0 + apart * rng.standard_normal(25))
    k = np.unique(of).size
    kept = exchange.most_useful(W.T @ W, F, k)
    assert sorted(of[kept]) == sorted(np.unique(of))


@pytest.mark.parametrize(
    ("k", "rows", "columns", "many"),
    [(1, 99, 99, 0), (2, 99, 99, 1), (9, 99, 99, 1), (10, 99, 99, 2), (50, 99, 99, 10),
     (50, 55, 99, 5), (50, 99, 51, 1), (50, 50, 99, 0), (50, 99, 20, 0)],
)  # fmt: skip
def test_a_fifth_joins_as_far_as_there_can_be_more(k, rows, columns, many):
    assert exchange.count_joining(k, rows, columns) == many


def unexplained(rng, layout, dtype, scale=1.0):
    """A pair W, F, and a V that is more than their product: two blocks that nobody has."""
    W, F = rng.gamma(0.5, 1.0, (60, 3)), rng.gamma(0.5, 1.0, (40, 3))
    V = W @ F.T
    V[:10, :8] += 3.0
    V[10:16, 20:26] += 2.0
    V = (V * scale).astype(dtype)
    W, F = (W * scale).astype(dtype), F.astype(dtype)
    return (
        {"dense": lambda: V, "csr": lambda: sp.csr_array(V), "csc": lambda: sp.csc_array(V)}[
            layout
        ](),
        W,
        F,
    )


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_what_is_missing_is_found(layout, dtype, scale, rng):
    V, W, F = unexplained(rng, layout, dtype, scale)
    basis = exchange.directions(V, W, F, 2, 0)
    assert basis.shape == (40, 7)
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-9)
    found = exchange.missing(V, W, F, basis, 2)
    assert found.dtype == dtype
    blocks = np.zeros((40, 2))
    blocks[:8, 0] = blocks[20:26, 1] = 1.0
    blocks *= np.mean(np.linalg.norm(F, axis=0)) / np.linalg.norm(blocks, axis=0)
    np.testing.assert_allclose(found, blocks, atol=1e-3 * blocks.max())


def test_directions_are_the_residuals_singular_vectors(rng):
    W, F = rng.random((80, 4)), rng.random((50, 4))
    R = rng.standard_normal((80, 50)) @ np.diag(0.8 ** np.arange(50))
    basis = exchange.directions(W @ F.T + R, W, F, 3, 1)
    exact = np.linalg.svd(R)[2][:3].T
    assert np.linalg.norm(basis.T @ exact, axis=0).min() > 0.999
    assert not np.array_equal(basis, exchange.directions(W @ F.T + R, W, F, 3, 2))
    within = np.linalg.qr(rng.standard_normal((50, 6)))[0]
    found = exchange.missing(W @ F.T + R, W, F, within, 1)[:, 0]
    known = within @ np.linalg.svd(R @ within)[2][0]
    heavier = max(np.maximum(known, 0), np.maximum(-known, 0), key=np.linalg.norm)
    np.testing.assert_allclose(
        found / np.linalg.norm(found), heavier / np.linalg.norm(heavier), atol=1e-9
    )


def raced(V, k, monkeypatch):
    """Squared errors of a random start after the race, with and without an exchange."""
    found = []
    for exchanges in (True, False):
        with monkeypatch.context() as patch:
            if not exchanges:
                patch.setattr(race.exchange, "count_joining", lambda *given: 0)
            best = [race.run_race(V, k, seed, [1], 1, exchanges=True)[0] for seed in range(8)]
        assert all(one.short.shape == (V.shape[1], k) for one in best)
        assert all(np.concatenate(one.rows).shape == (V.shape[0], k) for one in best)
        found.append(np.array([one.relative for one in best]))
    return found


def test_starts_leave_poor_optima(rng, monkeypatch):
    """Fifteen groups of rows, each of a block of columns: random starts merge two of them."""
    kinds = np.kron(np.eye(15), np.ones((1, 6)))
    V = kinds[rng.integers(0, 15, 900)] * rng.gamma(9.0, 1 / 9, (900, 1))
    V = sp.csr_array(V * (rng.random(V.shape) < 0.5))
    ours, kept = raced(V, 15, monkeypatch)
    poor = [np.sum(errors > 1.02 * min(ours.min(), kept.min())) for errors in (ours, kept)]
    assert poor[0] <= 1, poor
    assert poor[1] >= 4, poor


def test_real_data_are_fitted_better(monkeypatch):
    V = load_digits().data
    ours, kept = raced(V, 25, monkeypatch)
    assert (ours <= kept).all()
    assert np.mean(ours / kept) < 0.98


def test_no_exchange_ends_above_its_beginning(rng, monkeypatch):
    """Whatever joins: here what is there already, so that nothing is gained."""
    V = rng.gamma(1.0, 1.0, (500, 30))
    with monkeypatch.context() as patch:
        patch.setattr(race.exchange, "count_joining", lambda *given: 0)
        (kept,) = race.run_race(V, 6, 0, range(4), 1, exchanges=True)
    monkeypatch.setattr(race.exchange, "most_useful", lambda gram, F, k: [0] * k)
    (best,) = race.run_race(V, 6, 0, range(4), 1, exchanges=True)
    assert best.relative == kept.relative
    np.testing.assert_array_equal(best.short, kept.short)


def test_restarts_that_stay_apart_exchange_nothing(rng, monkeypatch):
    """And neither does a race for another loss; of an ensemble, the first alone."""
    made, exchanged = [], race._exchanged
    monkeypatch.setattr(race, "_exchanged", lambda *given: made.append(1) or exchanged(*given))
    V = rng.gamma(1.0, 1.0, (500, 30))
    assert len(race.run_race(V, 4, 0, range(1, 4), 3)) == 3
    assert len(race.run_race(V, 4, 0, range(1, 4), 1, polish=False, exchanges=True)) == 1
    RankStudy([3, 4], n_init=2, max_iter=2, random_state=0).fit(V)
    NMF(4, beta_loss="kullback-leibler", max_iter=2, random_state=0).fit(V)
    assert not made
    for n_init in (1, 2, 5):
        NMF(4, n_init=n_init, max_iter=2, random_state=0).fit(V)
        assert len(made) == 1
        made.clear()
    RankStudy([3, 4], n_init=1, holdout=0, max_iter=2, random_state=0).fit(V)
    assert len(made) == 2


@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_exactly_low_rank_data_are_still_met(k, rng):
    V = rng.gamma(0.5, 1.0, (900, 5)) @ rng.gamma(0.5, 1.0, (5, 40))
    model = NMF(k, random_state=0, max_iter=30, tol=0).fit(V)
    history = model.history_["loss"]
    assert (np.diff(history) <= 1e-9 * history[0]).all()
    if k > 5:
        assert model.history_["relative_error"][-1] < 1e-2


def test_a_gram_matrix_of_rows_is_all_that_is_needed(rng):
    """Of slabs, rows are not at hand: sums of their Gram matrices are."""
    W, F = rng.random((30, 5)), rng.random((9, 5))
    whole = exchange.most_useful(kernels.gram(W), F, 3)
    parts = kernels.gram(W[:11]) + kernels.gram(W[11:])
    assert exchange.most_useful(parts, F, 3) == whole
