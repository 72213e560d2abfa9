"""The loss of a pair that no slab has met, as Kullback-Leibler's sums tell it after a pass."""

from itertools import pairwise

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf import NMF
from dasknmf.ensemble import Model, Problem
from dasknmf.numerics.losses import make_loss
from dasknmf.numerics.observed import Observed, Rule
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.solvers.newton import Newton
from dasknmf.numerics.terms import Columns, add
from dasknmf.numerics.work import ModelSums
from dasknmf.parallel import driver

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::dasknmf.numerics.errors.FactorWarning"),
]
KL = make_loss("kullback-leibler")
FREE = Penalty()


def divergence(V, W, H):
    """Σ v log(v/y) - v + y, by numpy."""
    Y = W @ H.T
    logs = np.where(V > 0, V * np.log(np.where(V > 0, V, 1.0) / np.where(V > 0, Y, 1.0)), 0.0)
    return float(np.sum(logs - V + Y))


def taylor(V, W, met, H):
    """The divergence's expansion of second order around ``met``, column by column."""
    total = divergence(V, W, met)
    for j in range(V.shape[1]):
        some = V[:, j] > 0
        v, w, step = V[some, j], W[some], H[j] - met[j]
        gradient = W.sum(axis=0) - w.T @ (v / (w @ met[j]))
        hessian = (w * (v / (w @ met[j]) ** 2)[:, None]).T @ w
        total += gradient @ step + 0.5 * step @ hessian @ step
    return total


def waves_of(rng, waves, columns, k, curved, sparse):
    """Dense data, rows, the factor met and terms of each wave."""
    found = []
    for _ in range(waves):
        V = rng.poisson(2.0, (12, columns)).astype(float)
        met = rng.random((columns, k)) + 0.2
        given = sp.csr_array(V) if sparse else V
        rows, (terms,) = Newton(curved=curved).visit(KL, given, (), (met,), (FREE,))
        found.append((V, rows[0], met, driver.formed(terms).met(met)))
    return found


@settings(deadline=None, max_examples=60)
@given(
    waves=st.integers(1, 4), columns=st.integers(1, 9), k=st.integers(1, 5),
    sparse=st.booleans(), parts=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_models_of_waves_that_met_different_factors_add_up(waves, columns, k, sparse, parts, seed):
    """To their expansions of second order, in any parts of the columns; at one factor: exactly."""
    rng = np.random.default_rng(seed)
    found = waves_of(rng, waves, columns, k, True, sparse)
    H = rng.random((columns, k)) + 0.1
    total = add([terms for *_, terms in found])
    edges = np.linspace(0, columns, parts + 1).astype(int)
    told = sum(total.part(slice(a, b)).told(H[a:b]) for a, b in pairwise(edges))
    expected = sum(taylor(V, W, met, H) for V, W, met, _ in found)
    size = sum(float(V.sum()) for V, *_ in found) + abs(expected) + 1.0
    assert told + total.constant == pytest.approx(expected, rel=1e-9, abs=1e-9 * size)
    V, W, met, terms = found[0]
    assert terms.told(met) + terms.constant == pytest.approx(divergence(V, W, met), abs=1e-9 * size)


@settings(deadline=None, max_examples=60)
@given(
    waves=st.integers(1, 4), columns=st.integers(1, 9), k=st.integers(1, 5), seed=st.integers(0, 99)
)
def test_without_curvature_what_is_told_is_a_bound(waves, columns, k, seed):
    """EM's: nowhere below the divergence, and equal to it where all waves met one factor."""
    rng = np.random.default_rng(seed)
    found = waves_of(rng, waves, columns, k, False, False)
    total = add([terms for *_, terms in found])
    H = rng.gamma(0.5, 1.0, (columns, k)) + 1e-3
    true = sum(divergence(V, W, H) for V, W, *_ in found)
    assert total.told(H) + total.constant >= true * (1.0 - 1e-9)
    V, W, met, terms = found[0]
    assert terms.told(met) + terms.constant == pytest.approx(divergence(V, W, met), rel=1e-9)


def test_entries_that_count_differently_are_told_of_as_well(rng):
    """A mass a column."""
    V, M = rng.poisson(2.0, (30, 8)).astype(float), rng.integers(0, 3, (30, 8)).astype(float)
    met, H = rng.random((8, 3)) + 0.2, rng.random((8, 3)) + 0.2
    slab = Observed(V, M, Rule(), np.arange(30))
    for curved in (True, False):
        rows, (terms,) = Newton(curved=curved).visit(KL, slab, (), (met,), (FREE,))
        terms = terms.met(met)
        value = terms.told(met) + terms.constant
        assert value == pytest.approx(terms.value, rel=1e-9)
        near = met + 1e-4 * (H - met)
        Y = rows[0] @ near.T
        logs = np.where(V > 0, V * np.log(np.where(V > 0, V, 1.0) / Y), 0.0)
        assert terms.told(near) + terms.constant == pytest.approx(
            np.sum(M * (logs - V + Y)), rel=1e-6
        )


@pytest.mark.parametrize(
    ("told", "met", "expected"),
    [
        (9.0, 10.0, 9.5),
        (7.0, 10.0, 8.8),
        (7.5, 10.0, 8.75),
        (5.0, 10.0, 10.0),
        (10.5, 10.0, 10.5),  # waves fitted each to its own factor: the pair is worse
        (2.0, 10.0, 10.0),
        (-3.0, 10.0, 10.0),
        (-1e-18, 0.0, 0.0),
    ],
)
def test_what_models_promise_is_not_all_counted(told, met, expected, rng):
    model = Model(0, rng.random((4, 2)), [None], 0.0, 1.0, current=told)
    some = np.ones((4, 2))
    terms = Columns(some, some[0], some, np.ones((4, 3)), met)
    assert model._believed([terms], met, model.short, FREE) == pytest.approx(expected, rel=1e-12)
    bound = terms._replace(pull=None, curvature=None)
    assert model._believed([bound], met, model.short, FREE) == max(told, 0.0)


@pytest.mark.parametrize("curved", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_ems_bound_is_one_and_exact_where_slabs_met_the_factor(curved, sparse, rng):
    found = waves_of(rng, 3, 7, 3, curved, sparse)
    whole = [driver.formed(terms).met(met, bounded=True) for _, _, met, terms in found]
    for V, W, met, _ in found:
        terms = whole.pop(0)
        assert terms.bound(met) == pytest.approx(divergence(V, W, met), rel=1e-9)
        for scale in (0.01, 0.5, 3.0):
            near = met * scale * rng.lognormal(0.0, 0.3, met.shape)
            assert terms.bound(near) >= divergence(V, W, near) * (1 - 1e-12)
    parts = [driver.formed(terms).met(met, bounded=True) for _, _, met, terms in found]
    H = rng.random((7, 3)) + 0.1
    assert add(parts).bound(H) == pytest.approx(sum(part.bound(H) for part in parts), rel=1e-12)


def test_where_a_price_lets_the_loss_rise_the_bound_counts(rng):
    """A tenth of the factor: quadratic models tell half of what the loss rises by."""
    ((V, W, met, terms),) = waves_of(rng, 1, 7, 3, True, False)
    terms, short = terms.met(met, bounded=True), 0.1 * met
    told = terms.told(short) + terms.constant
    model = Model(0, short, [None], 0.0, 1.0, current=told)
    assert told > terms.value
    price = Penalty(2.0, 0.0)
    believed = model._believed([terms], terms.value, short, price)
    assert believed == pytest.approx(terms.bound(short), rel=1e-12)
    assert believed >= divergence(V, W, short) > terms.value + 1.5 * (told - terms.value)
    assert model._believed([terms], terms.value, short, FREE) == told


def many_kinds(seed):
    """Data whose waves pull H apart: k near the features, sorted, scaled, penalties, one start."""
    rng = np.random.default_rng(seed)
    W, H = rng.gamma(0.3, 1.0, (300, 6)), rng.gamma(0.3, 1.0, (6, 40))
    T = rng.dirichlet(np.full(120, 0.05), 8)
    topics = rng.poisson(60 * rng.dirichlet(np.full(8, 0.1), 240) @ T).astype(float)
    yield "near", rng.gamma(0.5, 1.0, (400, 12)), 10, 40, {}
    yield "counts near", rng.poisson(3.0, (300, 8)).astype(float), 7, 25, {}
    yield "exact", W @ H, 6, 50, {}
    yield "sorted", np.sort(rng.poisson(5 * W @ H), axis=0).astype(float), 6, 40, {}
    yield "scaled", rng.poisson(W @ H) * 10.0 ** rng.uniform(-4, 4, (1, 40)), 6, 40, {}
    yield "many", topics, 25, 40, {}
    yield "l1", topics, 8, 40, {"alpha_W": 0.01, "alpha_H": 0.01, "l1_ratio": 1.0}
    yield "strong l1", topics, 8, 40, {"alpha_W": 1.0, "alpha_H": 1.0, "l1_ratio": 1.0}
    scarce = (rng.random((1200, 300)) < 0.003) * rng.random((1200, 300))
    yield "scarce", scarce, 6, 100, {"alpha_W": 0.1, "alpha_H": 0.1, "l1_ratio": 1.0}
    yield "l2", topics, 8, 40, {"alpha_W": 0.01, "alpha_H": 0.01, "l1_ratio": 0.0}
    yield "random", topics, 8, 40, {"init": "random"}
    yield "wide", rng.poisson(H[:, :30].T @ W[:200].T).astype(float), 6, 10, {}


@pytest.mark.parametrize("curved", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("passes", [2, 12])
def test_no_objective_rises_up_to_that_of_what_is_returned(seed, passes, curved, monkeypatch):
    """The last entry is measured with exact rows; those before it were told. (Not for all data.)"""
    if not curved:
        monkeypatch.setattr(Newton, "curvature_bytes", lambda *_: 0)
    for name, V, k, chunk, more in many_kinds(seed):
        model = NMF(
            k, beta_loss="kullback-leibler", random_state=0, max_iter=passes, tol=0.0, **more
        ).fit(da.from_array(V, chunks=(chunk, -1)))
        objective = model.history_["objective"]
        assert np.all(np.diff(objective) <= 1e-9 * np.abs(objective[:-1])), name


@pytest.mark.parametrize("alpha", [0.03, 0.1, 0.3])
def test_prices_that_shrink_the_factors_are_not_taken_for_convergence(alpha, rng):
    """From scales of no use to the prices; what a pass was thought to end with held the fit up."""
    V = sp.random_array((4000, 1500), density=0.002, rng=rng, format="csr")
    prices = {"alpha_W": alpha, "alpha_H": alpha, "l1_ratio": 1.0}
    given = {"beta_loss": "kullback-leibler", "random_state": 0, "max_iter": 40, **prices}
    ours, other = (NMF(8, **given, init=init).fit(V) for init in ("sample", "random"))
    objective = ours.history_["objective"]
    assert np.all(np.diff(objective) <= 1e-9 * objective[0])
    assert objective[-1] <= 1.005 * other.history_["objective"][-1]


def test_what_is_told_is_what_is_measured_once_it_converges(rng):
    V = sparse_counts(rng, 400, 60)
    model = NMF(5, beta_loss="kullback-leibler", random_state=0, max_iter=60, tol=0.0)
    loss = model.fit(da.from_array(V.toarray(), chunks=(50, -1))).history_["loss"]
    assert loss[-1] == pytest.approx(loss[-2], rel=1e-5)
    assert loss[0] > 1.01 * loss[-1]


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.3, 0.2)], ids=str)
def test_the_other_factor_is_solved_last_where_that_gains(penalty, rng):
    """Of a wide matrix that is its W; the loss is that of the pair, which no slab has met."""
    V, problem = sparse_counts(rng, 200, 30), Problem(KL, penalty, squares=1.0)
    model = Model(0, rng.random((30, 4)) + 0.2, [None], 0.0, 1.0)
    for _ in range(2):
        terms = Newton().visit(KL, V, (), (model.target,), (FREE,))[1][0]
        model.visit_columns(0, ModelSums(terms, 0.0, 0.0), problem, Newton())
        model.close_pass(problem, Newton())
    rows, (terms,) = Newton().visit(KL, V, (), (model.short,), (FREE,))
    before, sums = model.short, ModelSums(terms, 0.0, 0.0)
    model.measure(model.finish(sums, problem, Newton()), problem, residual=False)
    true = divergence(V.toarray(), rows[0], model.short)
    assert true < model.loss < true + 0.6 * (terms.value - true)
    assert model.reported == model.objectives[-1] == model.loss + penalty.value(model.short)
    assert model.objectives[-1] < terms.value + penalty.value(before)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_loss_of_a_wide_matrix_is_that_of_what_is_returned(sparse, rng):
    V = sparse_counts(rng, 500, 50).T.tocsr()
    X = V if sparse else V.toarray()
    for passes in (3, 8):
        model = NMF(5, beta_loss="kullback-leibler", random_state=0, max_iter=passes, tol=0.0)
        W = model.fit_transform(X)
        true = divergence(V.toarray(), W, model.components_.T)
        losses = model.history_["loss"]
        assert true <= losses[-1] <= true * (1.0 + 0.005)


def test_entries_that_nothing_depends_on_become_zero(rng):
    """Instead of shrinking tenfold a wave until their products are denormal, and slow."""
    H = rng.random((20, 3)) + 0.1
    H[4, 1], H[5, 1] = 1e-80, 1e-78
    V = planted(rng, 40, 20, 3, noise=0.1)
    _, (terms,) = Newton().visit(KL, V, (), (H,), (FREE,))
    down = terms._replace(pull=terms.pull - 1e6)
    new = Newton().half_step(H, down, FREE)
    assert new[4, 1] == 0.0
    assert new[5, 1] == pytest.approx(1e-79)
    assert np.all(new[terms.counts > 1e-70] > 0.0)
    up = terms._replace(pull=terms.pull + 1e6)
    assert Newton().half_step(new, up, FREE)[4, 1] > 0.0
