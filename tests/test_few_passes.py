"""Waves, the start from a sample, ensembles: few reads of V, and never a rise of the objective."""

from itertools import pairwise

import dask.array as da
import naive
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import planted, sparse_counts
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dasknmf import NMF, DataError, ParameterError, parameters
from dasknmf.ensemble import Model, Problem, best_of, survivors
from dasknmf.numerics import planning, random
from dasknmf.numerics.inspection import Place
from dasknmf.numerics.losses import Frobenius
from dasknmf.numerics.penalties import Penalty
from dasknmf.numerics.sampling import DrawByNorm, TakeRows, Wanted
from dasknmf.numerics.solvers.als import ALS
from dasknmf.numerics.solvers.newton import Newton
from dasknmf.numerics.stopping import extrapolated
from dasknmf.numerics.terms import Normal, add
from dasknmf.numerics.weighted import squared_norms
from dasknmf.numerics.work import Inspect, ModelSums
from dasknmf.parallel import driver, race
from dasknmf.parallel.executors import ThreadsExecutor
from dasknmf.parallel.slabs import from_memory
from dasknmf.parallel.team import Team

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def twin_of_waves(V, short, waves, passes):
    """Objective of each pass, one row and one column at a time; ``waves``: lists of rows."""
    sums, ahead, momentum, best, objectives = [None] * len(waves), short, 0.5, np.inf, []
    for _ in range(passes):
        for number, rows in enumerate(waves):
            W = np.array(
                [naive.nnls((ahead.T @ ahead).tolist(), (ahead.T @ v).tolist()) for v in V[rows]]
            )
            tried = [*sums[:number], (V[rows].T @ W, W.T @ W), *sums[number + 1 :]]
            if any(s is None for s in tried):
                sums = tried
                continue
            cross, gram = sum(c for c, _ in tried), sum(g for _, g in tried)
            new = np.array([naive.nnls(gram.tolist(), c.tolist()) for c in cross])
            value = 0.5 * np.sum(V**2) - np.sum(cross * new) + 0.5 * np.sum(gram * (new.T @ new))
            if value > best:
                ahead, momentum = short, momentum * 0.7
                continue
            ahead = np.maximum(new + momentum * (new - short), 0)
            momentum = min(momentum * 1.2, 2.5)
            sums, short, best = tried, new, value
        objectives.append(best)
    return objectives


def test_waves_are_block_coordinate_descent(rng, many_slabs, monkeypatch):
    monkeypatch.setattr("dasknmf.ensemble.ACCURACY", 0.0)  # exact rows, as the twin's
    V = planted(rng, rows=60, columns=9, k=3, noise=0.3)
    model = NMF(3, init="random", waves=4, random_state=5, tol=0, max_iter=6).fit(V)
    start = np.abs(random.normal_rows(5, "columns", 0, 0, 9, 3))
    waves = planning.waves(60, 4, random.generator(5, "waves", 0, 0))  # a slab a row
    expected = twin_of_waves(V, start, waves, 6)
    np.testing.assert_allclose(model.history_["objective"][:6], expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("shape", "beta_loss", "waves"),
    [
        ((400, 390), "kullback-leibler", 2),
        ((400, 120), "kullback-leibler", 3),
        ((400, 30), "kullback-leibler", 4),
        ((30, 400), "kullback-leibler", 4),  # streamed as its transpose
        ((400, 390), "frobenius", 4),
        ((400, 390), "itakura-saito", 1),
    ],
)
def test_columns_with_curvature_are_updated_less_often(shape, beta_loss, waves, many_slabs, rng):
    """Where there are about as many of them as rows; a number that is given is taken."""
    slabs, model = from_memory(rng.random(shape), shape[0] < shape[1]), NMF(3, beta_loss=beta_loss)
    solver = parameters.check(model)[1]
    assert parameters.make_job(model, solver, 3, slabs, keep_rows=True).waves == waves
    model.set_params(waves=5)
    assert parameters.make_job(model, solver, 3, slabs, keep_rows=True).waves == 5
    assert parameters.make_job(model, Newton(limit=1), 3, slabs, keep_rows=True).waves == 5
    model.set_params(waves="auto")
    assert parameters.make_job(model, Newton(limit=1), 3, slabs, keep_rows=True).waves == 4


@pytest.mark.parametrize(("slabs", "count"), [(64, 4), (16, 4), (61, 4), (10, 8), (7, 1), (3, 3)])
def test_waves_have_runs_of_neighbours_from_all_parts(slabs, count):
    drawn = [planning.waves(slabs, count, random.generator(s, "waves", 0, 0)) for s in (0, 1)]
    for groups in drawn:
        assert sorted(i for group in groups for i in group) == list(range(slabs))
        assert max(map(len, groups)) - min(map(len, groups)) <= planning.RUNS
        if slabs >= planning.RUNS * count:
            quarters = [{i * planning.RUNS // slabs for i in group} for group in groups]
            assert all(seen >= set(range(planning.RUNS)) for seen in quarters)
    assert count == 1 or drawn[0] != drawn[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_indian_pines_takes_three_reads(seed, indian_pines):
    V = indian_pines.astype(np.float32)
    history = NMF(16, random_state=seed, tol=0, max_iter=2).fit(V).history_
    there = history["relative_error"] <= 0.01970
    assert there.any()
    assert history["reads"][np.argmax(there)] <= 3.0


def test_digits_take_four_reads():
    from sklearn.datasets import load_digits

    V = load_digits().data
    reads = []
    for seed in range(3):
        history = NMF(16, random_state=seed, tol=0, max_iter=3).fit(V).history_
        there = history["relative_error"] <= 0.2600
        reads.append(history["reads"][np.argmax(there)] if there.any() else np.inf)
    assert np.median(reads) <= 4.0


def kinds(rng):
    V = planted(rng, rows=600, columns=40, k=5, noise=0.4)
    yield "tall", V
    yield "wide", V.T.copy()
    yield "sorted", V[np.argsort(V @ rng.random(40))]
    yield "rows of all sizes", V * 10.0 ** rng.uniform(-3, 3, (600, 1))
    yield "columns of all sizes", V * 10.0 ** rng.uniform(-3, 3, 40)
    yield "exact", planted(rng, rows=600, columns=40, k=5, noise=0.0)
    yield "sparse", sparse_counts(rng, 600, 60, 0.1)
    yield "noise", rng.gamma(1.0, 1.0, (600, 40))
    yield "one heavy row", np.where(np.arange(600)[:, None] == 77, 1e4, 1.0) * V


def test_the_objective_never_rises(rng):
    for name, V in kinds(rng):
        model = NMF(6, random_state=0, max_iter=12, tol=0).fit(V)
        objective = model.history_["objective"]
        rounding = 1e-13 * float(np.sum(np.square(V.data if sp.issparse(V) else V)))
        assert np.all(np.diff(objective) <= 1e-9 * objective[1:] + rounding), name


def test_sorted_rows_do_no_harm(rng):
    centres = rng.gamma(0.3, 1.0, (8, 50))
    label = np.repeat(np.arange(8), 200)
    V = centres[label] * rng.gamma(4.0, 0.25, (1600, 1)) + 0.05 * rng.random((1600, 50))
    mixed = V[rng.permutation(1600)]
    errors = [
        NMF(8, random_state=1, max_iter=5, tol=0).fit(X).reconstruction_err_
        for X in (V, mixed, da.from_array(V, chunks=(100, -1)))
    ]
    assert max(errors) <= 1.02 * min(errors)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_last_candidate_has_all_threads_and_the_same_bits_for_any_number(
    sparse, rng, monkeypatch
):
    V = planted(rng, 3200, 2100) if not sparse else sparse_counts(rng, 3200, 2100, 4)
    start = race._random_start(1, 0, 2100, 4)
    squares, found = float(np.sum(squared_norms(V))), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(driver, "CPU_COUNT", threads)
        with Team(threads) as pool:
            (candidate,) = race._round(pool, [race.Candidate(1, start)], V, 3, 0.0)
        found.append(candidate)
    alone = race.Candidate(1, start)
    alone.run([V], squares, 3, 0.0, race.ACCURACY)
    assert [len(rows) for rows in found[0].rows] == [800] * race.PARTS
    for candidate in found:
        np.testing.assert_array_equal(candidate.short, found[0].short)
        np.testing.assert_array_equal(candidate.balanced(2.0), found[0].balanced(2.0))
        np.testing.assert_allclose(candidate.short, alone.short, rtol=1e-6, atol=1e-9)
        assert candidate.relative == pytest.approx(alone.relative, rel=1e-9)


def test_restarts_leave_zero_where_their_few_rows_have_nothing(rng):
    """As they would on all columns, with zeros there from the start."""
    places = rng.integers(0, 60, 200), rng.integers(0, 400, 200)
    few = sp.csr_array(sp.coo_array((rng.random(200) + 0.1, places), shape=(60, 400)))
    reached = np.zeros(400, bool)
    reached[few.indices] = True
    assert 20 < reached.sum() < 300
    starts = {n: race._random_start(n, 0, 400, 3) for n in (1, 2, 3)}
    with Team(2) as pool:
        found = race._first_round(pool, [race.Candidate(n, H) for n, H in starts.items()], few)
        masked = [race.Candidate(n, H * reached[:, None]) for n, H in starts.items()]
        expected = race._round(pool, masked, few, race.ROUND, race.EARLY, race.ROUGH)
    for candidate, other in zip(found, expected, strict=True):
        assert candidate.number == other.number
        assert not candidate.short[~reached].any()
        np.testing.assert_allclose(candidate.short, other.short, rtol=1e-6, atol=1e-12)


def test_what_a_start_from_a_sample_reads(rng):
    V = rng.gamma(4.0, 1.0, (1600, 20))  # rows of about one size
    model = NMF(3, init="sample", random_state=0, max_iter=1, tol=0)
    assert model.fit(V).history_["reads"][0] == pytest.approx(1 + 400 / 1600)
    chunked = da.from_array(V, chunks=(100, -1))
    assert model.fit(chunked).history_["reads"][0] == pytest.approx(1 + 4 / 16)
    heavy = V * np.where(rng.random((1600, 1)) < 0.02, 1e3, 1.0)  # a few rows carry it all
    assert model.fit(heavy).history_["reads"][0] == pytest.approx(2 + 400 / 1600)
    assert model.fit(sp.csr_array(V)).history_["reads"][0] == 2.0


def test_drawn_rows_depend_on_norms_and_numbers_not_on_slabs(rng):
    V = rng.random((50, 4))
    V[31] *= 1e3
    V[40] = 0.0
    work = DrawByNorm(Wanted(10, 10), Wanted(50, 50), seed=3)
    for cut in ([0, 50], [0, 7, 20, 50]):
        parts = [work(V[a:b], None, Place(i, a, b))[1] for i, (a, b) in enumerate(pairwise(cut))]
        drawn = add(parts)
        rows = np.concatenate(drawn.blocks)
        assert rows.shape == (10, 4)
        assert drawn.keys.shape == (10,)
        uniform = random.uniform_rows(3, "draw", 0, 0, 50, 1)[:, 0]
        with np.errstate(divide="ignore"):
            keys = np.log(uniform) / np.sum(V * V, axis=1)
        np.testing.assert_array_equal(rows, V[np.sort(np.argsort(-keys)[:10])])
        assert (rows == V[31]).all(axis=1).any()
        assert drawn.inspection.rows == 50


@settings(max_examples=60)
@example(lengths=[3] * 10, wanted=Wanted(1, 40, 7), cut=4)  # random ones may all end by rows
@example(lengths=[3] * 10, wanted=Wanted(1, 2, 7), cut=4)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    wanted=st.builds(Wanted, st.integers(1, 20), st.integers(1, 40), st.integers(0, 200)),
    cut=st.integers(0, 60),
)
def test_sparse_rows_are_drawn_until_they_have_entries_enough(lengths, wanted, cut):
    """Against one row after the other; slabs offer all that they have."""
    generator, all_of_it = np.random.default_rng(1), Wanted(60, 60)
    V = np.zeros((len(lengths), 9))
    for row, length in zip(V, lengths, strict=True):
        row[:length] = generator.random(length) + 0.5
    work = DrawByNorm(wanted, all_of_it, seed=2)
    edges = sorted({0, min(cut, len(lengths)), len(lengths)})
    parts = [
        work(sp.csr_array(V[a:b]), None, Place(i, a, b))[1]
        for i, (a, b) in enumerate(pairwise(edges))
    ]
    used = np.flatnonzero(V.any(axis=1))
    uniform = random.uniform_rows(2, "draw", 0, 0, len(lengths), 1)[used, 0]
    order = used[np.argsort(-np.log(uniform) / np.sum(V[used] ** 2, axis=1))]
    expected, entries = [], 0
    for row in order:
        if len(expected) >= wanted.most:
            break
        if len(expected) >= wanted.rows and entries >= wanted.entries:
            break
        expected.append(int(row))
        entries += lengths[row]
    assert add(parts).names.tolist() == sorted(expected)


def test_a_slab_offers_four_times_its_part():
    assert Wanted(1000, 25_000, 8000).of_one(10) == (400, 10_000, 3200)
    assert Wanted(1000, 1000).of_one(1000) == (50, 50, 0)


def test_taken_rows_are_distinct_and_belong_to_the_slab(rng):
    V = rng.random((40, 3))
    blocks = TakeRows(0.25, seed=1)(V, None, Place(2, 80, 120))[1].blocks
    assert blocks[0].shape == (10, 3)
    assert len({row.tobytes() for row in blocks[0]} & {row.tobytes() for row in V}) == 10


def test_more_starts_read_no_more_and_end_no_worse(rng):
    V = planted(rng, rows=800, columns=32, k=8, noise=0.5)
    for init in ("auto", "random"):
        one, many = (
            NMF(8, init=init, n_init=n, random_state=4, max_iter=30).fit(V) for n in (1, 10)
        )
        assert many.history_["reads"][-1] == one.history_["reads"][-1]
        assert many.reconstruction_err_ <= one.reconstruction_err_ * (1 + 1e-12)
        assert np.all(many.history_["objective"] <= one.history_["objective"] * (1 + 1e-12))
        models = many.history_["models"]
        assert models[0] == {"auto": 4, "random": 10}[init]
        assert np.all(np.diff(models) <= 0)
        assert models[-1] == 1


@pytest.mark.parametrize("solver", ["hals", "mu"])
def test_ensembles_of_carried_rows(solver, rng, many_slabs):
    V = planted(rng, rows=90, columns=12, k=3)
    found = [
        NMF(3, solver=solver, init="random", n_init=n, random_state=2, max_iter=8, tol=0)
        for n in (1, 5)
    ]
    W = [model.fit_transform(V) for model in found]
    assert found[1].reconstruction_err_ <= found[0].reconstruction_err_ * (
        1 + 1e-9
    )  # one wide product has other last bits
    for model, rows in zip(found, W, strict=True):
        direct = np.linalg.norm(V - rows @ model.components_)
        assert model.reconstruction_err_ == pytest.approx(direct, rel=1e-9)


def ranked(*objectives):
    return [Model(n, np.ones(1), [], 0.0, 1.0, objectives=[f]) for n, f in enumerate(objectives)]


def test_the_better_half_and_the_first_go_on():
    assert [m.number for m in survivors(ranked(5.0, 1.0, 4.0, 2.0))] == [0, 1, 3]
    assert [m.number for m in survivors(ranked(1.0, 5.0))] == [0]
    assert best_of(ranked(3.0, 2.0, 2.0)).number == 1


def test_rows_that_would_raise_the_objective_are_not_taken(rng):
    V, H = rng.random((30, 6)), rng.random((6, 2))
    problem = Problem(Frobenius(), Penalty(), float(np.sum(V**2)))
    model = Model(0, H, [None], 1e-4, 1.0)
    good = ALS().half_step(np.zeros((30, 2)), Normal(V @ H, H.T @ H), Penalty())
    model.visit(0, ModelSums(Normal(V.T @ good, good.T @ good), 0.0, 0.0), problem, ALS())
    before, short = model.current, model.short
    model.ahead = None
    bad = np.zeros((30, 2))
    model.visit(0, ModelSums(Normal(V.T @ bad, bad.T @ bad), 0.0, 0.0), problem, ALS())
    assert model.current == before
    assert model.short is short
    assert model.accuracy < 1e-4


def test_extrapolation_stays_non_negative_and_speeds_up():
    new, old = np.array([[1.0, 0.1], [0.1, 0.2]]), np.array([[0.5, 1.0], [1.0, 2.0]])
    ahead, momentum = extrapolated(new, old, 0.5)
    np.testing.assert_allclose(ahead, [[1.25, 0.1], [0.0, 0.2]])  # no component becomes zero
    assert momentum == pytest.approx(0.6)


@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_no_wave_waits_before_the_short_factor_moves(loss, rng, many_slabs, monkeypatch, tmp_path):
    """One graph for the first pass, a graph a wave for the next ones; to the bits of waves alone.

    With a checkpoint every wave stands alone, so that one may come after each. So it does for
    Kullback-Leibler, which moves after the first wave.
    """
    graphs = []
    compute = ThreadsExecutor._compute

    def counting(executor, graph, roots, many):
        graphs.append(len(roots))
        return compute(executor, graph, roots, many)

    monkeypatch.setattr(ThreadsExecutor, "_compute", counting)
    V = sparse_counts(rng, 60, 9, 9).toarray() + 0.1
    given = {"init": "nndsvda", "random_state": 0, "tol": 0, "max_iter": 3, "beta_loss": loss}
    together = NMF(3, waves=4, **given).fit(V)
    first = [4] if loss == "frobenius" else [1] * 4
    expected = [*first, *[1] * 8, 1]  # three passes and the final rows
    assert graphs[-len(expected) :] == expected
    assert set(graphs[: -len(expected)]) == {1}
    del graphs[:]
    alone = NMF(3, waves=4, checkpoint=str(tmp_path / "run"), **given).fit(V)
    assert set(graphs) == {1}
    np.testing.assert_array_equal(together.components_, alone.components_)
    np.testing.assert_array_equal(together.history_["reads"], alone.history_["reads"])


def test_bad_values_in_the_first_wave_cost_no_second_look(rng, many_slabs, monkeypatch):
    """The waves of the first pass were looked at together."""
    seen = []
    monkeypatch.setattr(Inspect, "__call__", lambda self, V, rows, place: seen.append(place))
    V = planted(rng, rows=64, columns=5, k=2)
    V[planning.waves(64, 8, random.generator(0, "waves", 0, 0))[0][0], 2] = np.nan
    with pytest.raises(DataError, match="1 NaN value"):
        NMF(2, init="random", waves=8, random_state=0).fit(V)
    assert seen == []


def test_bad_values_of_all_waves_are_counted(rng, many_slabs):
    V = planted(rng, rows=64, columns=5, k=2)
    V[[3, 40, 61], 2] = np.nan
    with pytest.raises(DataError, match="3 NaN values, the first at row 3, column 2"):
        NMF(2, init="random", waves=8, random_state=0).fit(V)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"waves": 0}, "waves=0; expected an integer >= 1"),
        ({"waves": "many"}, "waves='many'; expected an integer >= 1 or 'auto'"),
        ({"waves": 4, "solver": "hals"}, "waves=4 needs rows that are solved anew"),
        ({"n_init": 0}, "n_init=0; expected an integer >= 1"),
        ({"n_init": 3, "init": "nndsvda"}, "n_init=3 with init='nndsvda', of which there is only"),
        ({"init": "sample", "solver": "mu"}, "init='sample' gives no rows"),
    ],
)
def test_parameters_are_refused(parameters, message, rng):
    with pytest.raises(ParameterError, match=message):
        NMF(2, **parameters).fit(rng.random((20, 4)))
