"""What Kullback-Leibler's first read already moves, how far it goes ahead, and how it ends."""

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
from dasknmf.numerics.terms import Columns, Foreseen
from dasknmf.numerics.work import ModelSums
from dasknmf.parallel import driver, race

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
KL = make_loss("kullback-leibler")
FREE = Penalty()


def seen(V, target, solver=None):
    """What a wave brings that met ``target``."""
    rows, (terms,) = (solver or Newton()).visit(KL, V, (), (target,), (FREE,))
    return rows[0], driver.formed(terms)


@settings(deadline=None, max_examples=60)
@given(
    columns=st.integers(1, 30), k=st.integers(1, 6), parts=st.integers(1, 3), curved=st.booleans(),
    ratio=st.floats(0.1, 9.0), weighted=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_slabs_not_seen_bend_as_the_bound_of_em_does(
    columns, k, parts, curved, ratio, weighted, seed
):
    """mass / h on the diagonal, zero gradient; rows of any slice are those of the whole."""
    rng = np.random.default_rng(seed)
    H = rng.random((columns, k)) * (rng.random((columns, k)) < 0.7)
    masses = [rng.random((columns, k) if weighted else k) + 0.1 for _ in range(parts)]
    some = [Columns(H, mass, H, H, 1.0) for mass in masses]
    if not curved:
        some[-1] = some[-1]._replace(pull=None, curvature=None)
    found = Foreseen.of(some, H, ratio)
    mass = ratio * sum(m.mean(axis=0) if weighted else m for m in masses)
    np.testing.assert_allclose(found.mass, mass, rtol=1e-12)
    whole = found.part(slice(None))
    np.testing.assert_allclose(whole.counts, H * mass, rtol=1e-12)
    assert whole.value == 0.0
    if curved:
        full = np.zeros((columns, k, k))
        full[:, *np.tril_indices(k)] = whole.curvature
        for j in range(columns):
            bend = np.diag([m / h if h else 0.0 for m, h in zip(mass, H[j], strict=True)])
            np.testing.assert_allclose(full[j], bend, rtol=1e-12)
            np.testing.assert_allclose(whole.pull[j], bend @ H[j], rtol=1e-12)
    else:
        assert whole.pull is None
        assert whole.curvature is None
    cut = found.part(slice(columns // 2, columns))
    for name in ("counts", "pull", "curvature") if curved else ("counts",):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[columns // 2 :])


def test_a_component_that_was_not_met_yet_can_still_be_of_use(rng):
    H, mass = rng.random((9, 3)), np.array([5.0, 0.0, 1.0])
    found = Foreseen.of([Columns(H, mass, None, None, 1.0)], H, 2.0)
    np.testing.assert_allclose(found.mass, [10.0, 0.004, 2.0])
    assert Foreseen.of([Columns(H, 0.0 * mass, None, None, 1.0)], H, 2.0) is None


def test_what_is_not_seen_weighs_what_is_missing_of_the_total(rng):
    """Not what waves are of all waves: a few rows may carry most of V."""
    H = rng.random((30, 4)) + 0.1
    heavy, light = sparse_counts(rng, 20, 30) * 50.0, sparse_counts(rng, 60, 30)
    total = heavy.sum() + light.sum()
    for one, other in ((heavy, light), (light, heavy)):
        terms = seen(one, H)[1]
        found = Foreseen.of([terms], H, 1.0, total)
        np.testing.assert_allclose(found.mass, terms.mass * other.sum() / one.sum(), rtol=1e-9)
    alone = Foreseen.of([terms], H, 1.0, light.sum())  # zeros are left
    np.testing.assert_allclose(alone.mass, 1e-3 * terms.mass, rtol=1e-9)


def test_a_converged_factor_stays_where_it_is(rng, many_slabs):
    """A fit that goes on from one gives what it began with, or better; from the first pass on."""
    V = sparse_counts(rng, 150, 30, 0.3)
    given = {"beta_loss": "kullback-leibler", "tol": 0}
    found = NMF(3, random_state=0, max_iter=60, **given).fit(V)
    for passes in (1, 3):
        again = NMF(3, init="custom", max_iter=passes, **given).fit(V, H=found.components_)
        losses = again.history_["loss"]
        assert losses.max() <= found.history_["loss"][-1] * (1.0 + 1e-6)


def test_entries_next_to_nothing_count_as_zero(rng):
    """mass / h would overflow."""
    H = np.array([[1e-310, 1.0], [0.0, 2e-300]])
    terms = Columns(H, np.array([3.0, 1e9]), H, H, 1.0)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        found = Foreseen.of([terms], H, 2.0).part(slice(None))
    np.testing.assert_array_equal(found.curvature, [[0, 0, 2e9], [0, 0, 0]])
    np.testing.assert_array_equal(found.pull, [[0, 2e9], [0, 0]])


@pytest.mark.parametrize("solver", [Newton(), Newton(curved=False)], ids=str)
def test_what_agrees_with_the_factor_leaves_it_where_it_is(solver, rng):
    """All that is foreseen does, and so do slabs that are fitted exactly."""
    H = rng.random((25, 4)) + 0.1
    H[3, 1] = 0.0
    terms = seen(sp.csr_array(rng.random((40, 4)) @ H.T), H, solver)[1]
    foreseen = Foreseen.of([terms], H, 3.0)
    alone = driver.solve_columns(solver, H, [foreseen], FREE)[0]
    np.testing.assert_allclose(alone, H, rtol=1e-9, atol=1e-12)
    both = driver.solve_columns(solver, H, [terms, foreseen], FREE)[0]
    np.testing.assert_allclose(both, H, rtol=1e-4, atol=1e-4)


def test_a_part_of_the_data_moves_em_by_its_part_of_the_way(rng):
    H, solver = rng.random((30, 4)) + 0.1, Newton(curved=False)
    terms = seen(sparse_counts(rng, 40, 30), H, solver)[1]
    whole = driver.solve_columns(solver, H, [terms], FREE)[0]
    for ratio in (0.5, 3.0):
        found = [terms, Foreseen.of([terms], H, ratio)]
        part = driver.solve_columns(solver, H, found, FREE)[0]
        np.testing.assert_allclose(part, (whole + ratio * H) / (1.0 + ratio), rtol=1e-12)


def twin_of_passes(V, short, waves, passes, solver):
    """Factors after every wave and objectives of the passes, by EM in plain numpy."""
    sums, target, momentum, factors, objectives = [None] * len(waves), short, 0.5, [], []
    good = None
    for _ in range(passes):
        for number, rows in enumerate(waves):
            W = seen(V[rows], target, solver)[0]
            Y = W @ target.T
            logs = V[rows] * np.log(np.where(V[rows] > 0, V[rows] / Y, 1.0))
            value = np.sum(logs - V[rows] + Y)
            sums[number] = (target * ((V[rows] / Y).T @ W), W.sum(axis=0), value, target)
            known = [found for found in sums if found is not None]
            counts, mass = sum(f[0] for f in known), sum(f[1] for f in known)
            rest = (len(sums) / len(known) - 1.0) * mass
            new = (counts + short * rest) / (mass + rest)
            target = np.maximum(new + momentum * (new - short), 0.3 * new) if momentum else new
            short = new
            factors.append(short)
        bounds = [
            value + np.sum(mass * (short - met)) - np.sum(counts * np.log(short / met))
            for counts, mass, value, met in sums
        ]
        met, told = sum(found[2] for found in sums), sum(bounds)
        if good is not None and met > good[0] * (1 + 1e-9) and told > good[1] * (1 + 1e-9):
            met, sums = good[0], list(good[2])
            short = target = sum(f[0] for f in sums) / sum(f[1] for f in sums)
            momentum = 0.0
        else:
            good = met, told, list(sums)
        objectives.append(met)
    return factors, objectives


@pytest.mark.parametrize("many", [1, 4])
def test_passes_of_waves_are_those_of_the_twin(many, rng):
    solver, problem = Newton(curved=False, tol=1e-12), Problem(KL, FREE)
    V, start = planted(rng, 60, 20, 3, noise=1.0), rng.gamma(0.3, 9.0, (20, 3)) + 0.01
    waves = [np.arange(n, 60, many) for n in range(many)]
    model, found = Model(0, start, [None] * many, 0.0, 1.0), []
    for _ in range(6):
        for number, rows in enumerate(waves):
            terms = seen(V[rows], model.target, solver)[1]
            model.visit_columns(number, ModelSums(terms, 0.0, 0.0), problem, solver)
            found.append(model.short)
        model.close_pass(problem, solver)
    factors, objectives = twin_of_passes(V, start, waves, 6, solver)
    np.testing.assert_allclose(found, factors, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.objectives, objectives, rtol=1e-9)
    assert np.all(np.diff(objectives) <= 0.0)
    assert many > 1 or np.any(factors[0] < 0.4 * start)  # such would be led to zero


def test_rows_are_as_exact_as_the_last_pass_has_shown_to_pay(rng):
    """A hundredth of what it gained, in parts of the counts; never more than at first."""
    V, problem = sparse_counts(rng, 150, 40), Problem(KL, FREE)
    model = Model(0, rng.random((40, 5)) + 0.1, [None], 1e-4, 0.9)
    asked = []
    for _ in range(12):
        terms = seen(V, model.target)[1]
        model.visit_columns(0, ModelSums(terms, 0.0, 0.0), problem, Newton())
        model.close_pass(problem, Newton())
        asked.append(model.accuracy)
        assert model.gain == pytest.approx(
            model.accuracy * model.objectives[-1] / V.sum(), rel=1e-6
        )
    fell = -np.diff(model.objectives) / model.objectives[1:]
    expected = np.minimum.accumulate([1e-4, *(0.01 * fell)])
    np.testing.assert_allclose(asked, expected, rtol=1e-12)
    assert asked[-1] < 0.5e-4


def test_the_first_read_gets_further_than_from_where_it_began(reuters, monkeypatch):
    """Against waiting for all waves, on real counts: after the first pass, and after three."""

    def losses():
        model = NMF(20, beta_loss="kullback-leibler", random_state=0, max_iter=3, tol=0.0)
        return model.fit(reuters).history_["loss"]

    found = losses()
    monkeypatch.setattr(Foreseen, "of", staticmethod(lambda *_: None))
    waiting = losses()
    assert found[0] < 0.985 * waiting[0]
    assert found[2] < waiting[2]


def test_empty_slabs_move_nothing():
    H, problem = np.ones((5, 2)), Problem(KL, FREE)
    model = Model(0, H, [None, None], 0.0, 1.0)
    terms = seen(sp.csr_array((4, 5)), H)[1]
    model.visit_columns(0, ModelSums(terms, 0.0, 0.0), problem, Newton())
    assert model.short is H
    assert model.target is H


SLABS = {
    "dense": np.asarray, "csr": sp.csr_array,
    "masked": lambda V: Observed(V, (V != 1.0).astype(float), Rule(), np.arange(V.shape[0])),
}  # fmt: skip


@pytest.mark.parametrize("penalty", [FREE, Penalty(0.1, 0.3)], ids=str)
@pytest.mark.parametrize("layout", SLABS)
def test_final_rows_and_their_loss_bring_nothing_else(layout, penalty, rng):
    V, H = rng.poisson(1.0, (40, 300)).astype(float), rng.random((300, 3))
    (rows,), (terms,) = Newton().visit(KL, SLABS[layout](V), (), (H,), (penalty,))
    (last,), (bare,) = Newton().ending().visit(KL, SLABS[layout](V), (), (H,), (penalty,))
    np.testing.assert_array_equal(last, rows)
    assert KL.value(bare, H, 0.0) == pytest.approx(KL.value(terms, H, 0.0), rel=1e-12)
    assert sum(np.asarray(part).nbytes for part in bare if part is not None) < rows.nbytes


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("polish", [True, False])
def test_where_another_loss_goes_on_one_random_start_of_sparse_data_is_enough(
    polish, sparse, rng, monkeypatch
):
    V = sparse_counts(rng, 900, 200, 0.05)
    V = V if sparse else V.toarray()
    rounds, powers, once, svd = [], [], race._round, race.randomized_svd
    seeded, run = [], race.Candidate.run

    def round_of(pool, racing, rows, iterations, *rest):
        rounds.append((len(racing), rows.shape[0], iterations))
        return once(pool, racing, rows, iterations, *rest)

    def vectors(matrix, k, *, n_iter, **rest):
        powers.append(n_iter)
        return svd(matrix, k, n_iter=n_iter, **rest)

    def run_of(self, parts, squares, iterations, *rest):
        if self.number == 0 and not seeded:
            seeded.append((len(parts), iterations))
        return run(self, parts, squares, iterations, *rest)

    monkeypatch.setattr(race, "_round", round_of)
    monkeypatch.setattr(race.Candidate, "run", run_of)
    monkeypatch.setattr(race, "randomized_svd", vectors)
    count = race.count_candidates(V, polish=polish)
    (best,) = race.run_race(V, 8, 0, range(count + 1), 1, polish=polish, exchanges=True)
    assert best.relative < 1.0
    if sparse and not polish:
        assert count == race.ENOUGH == 1
        assert rounds == [(1, 300, 12), (1, 900, 12)]
        assert seeded == [(1, 12)]
        assert powers == [race.ROUGHLY]
    else:
        exchange = [(1, 900, race.WIDER), (1, 900, race.LAST)]
        last = [(1, 900, race.LAST), *exchange] if polish else []
        assert rounds == [(3, 300, 12), (1, 900, 12), *last]
        assert seeded == [(1, 12)]
        assert powers == [9 if sparse else 7]
